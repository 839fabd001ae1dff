//! What a row of the table in `table` says, and the macro that makes a request's types from the rows.

use std::ffi::OsStr;

use anyhow::Result;

use super::spelled::Form;

/// One row of the table of what a `Request` and its `Draft` hold.
pub struct Row<Request, Draft> {
    /// Its key in JSON, in lists as well as in a picture's record.
    pub key: &'static str,
    /// The keys it sets: several for one that spells them together.
    pub covers: &'static [&'static str],
    /// What is typed for it.
    pub form: Form,
    /// Whether a further flag adds to it.
    pub several: bool,
    /// Its flag as help spells it, e.g. `-W, --width <PIXELS>`; empty where it is no flag.
    pub flag: &'static str,
    /// What its flag stands for without a value; empty where it needs one.
    pub alone: &'static str,
    /// Where help shows it.
    pub section: Section,
    pub help: &'static str,
    /// What the long help says besides.
    pub more: &'static str,
    /// Left out of the short help.
    pub seldom: bool,
    /// Whether `help` tells the names it takes, so that they are not listed once more.
    pub tells_names: bool,
    /// Fails with a message that names the field and what would be accepted.
    pub limits: fn(&Request) -> Result<()>,
    /// Its spelling in the `parameters` text of a picture.
    pub parameter: Parameter,
    /// The name of its row in `info`; empty where it has none.
    pub info: &'static str,
    /// Its value as text, if the draft has one.
    pub get: fn(&Draft) -> Option<String>,
    /// Reads its value from text, or says what was expected.
    pub set: fn(&mut Draft, &OsStr) -> Result<(), String>,
    /// Reads its value from JSON; null is none.
    pub put: fn(&mut Draft, serde_json::Value) -> serde_json::Result<()>,
}

/// Where help shows a flag, in help's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Prompt,
    Size,
    SecondPass,
    PictureIn,
    Noise,
    Sampling,
    Saving,
    Model,
}

impl Section {
    pub fn heading(self) -> &'static str {
        match self {
            Self::Prompt => "Prompt",
            Self::Size | Self::SecondPass | Self::Noise => "Picture",
            Self::PictureIn => "Picture in",
            Self::Sampling => "Sampling",
            Self::Saving => "Less work",
            Self::Model => "Model",
        }
    }
}

/// How AUTOMATIC1111 spells a field.
pub struct Parameter {
    /// Empty where it doesn't, or not as one setting.
    pub key: &'static str,
    /// Values it has names of its own for, as ours and its; of several for one of ours the first is written.
    pub names: &'static [(&'static str, &'static str)],
    /// The value that a text without the key was made with.
    pub absent: Option<&'static str>,
    /// Whether it is not written with that value.
    pub left_out: bool,
}

impl Parameter {
    pub(super) const NONE: Self = Self::of("");

    pub(super) const fn of(key: &'static str) -> Self {
        Self { key, names: &[], absent: None, left_out: false }
    }
}

impl<Request, Draft> Row<Request, Draft> {
    /// A row that says nothing, for the members another one leaves out.
    pub(super) const EMPTY: Self = Self {
        key: "",
        covers: &[],
        form: Form::Text,
        several: false,
        flag: "",
        alone: "",
        section: Section::Prompt,
        help: "",
        more: "",
        seldom: false,
        tells_names: false,
        limits: |_| Ok(()),
        parameter: Parameter::NONE,
        info: "",
        get: |_| None,
        set: |_, _| Ok(()),
        put: |_, _| Ok(()),
    };

    /// `width` of `-W, --width <PIXELS>`.
    pub fn long(&self) -> Option<&'static str> {
        self.flag.split_once("--")?.1.split(' ').next()
    }

    /// `W` of `-W, --width <PIXELS>`.
    pub fn short(&self) -> Option<char> {
        self.flag.strip_prefix('-')?.chars().next().filter(|&letter| letter != '-')
    }

    /// `PIXELS` of `-W, --width <PIXELS>`.
    pub fn value_name(&self) -> Option<&'static str> {
        self.flag.split_once('<')?.1.strip_suffix('>')
    }
}

/// Declares `Request`, `Draft` and the types of settings that are only valid together, and lists every field in
/// `FIELDS`. A row is
///
/// ```text
/// /// What it is.
/// name: Type = |basis| default, { members of `Field` }
/// ```
///
/// `also` adds another spelling of the row above; `together` makes a type whose first row has no default, because
/// without it there is none of the others. Each of its rows has two names: in JSON and in the type.
///
/// A record holds every field but the empty lists, the `Option`s and what belongs together: give what few requests
/// name one of these types, and other pictures' bytes stay what they are.
macro_rules! request_fields {
    (
        each {
            $(
                $(#[$doc:meta])*
                $name:ident: $type:ty = $default:expr, { $($row:tt)* }
                $(also $alias:ident { $($alias_row:tt)* })?;
            )*
        }
        $(
            $(#[$group_doc:meta])*
            together $group:ident: $Group:ident, $needs:literal {
                $(#[$leader_doc:meta])*
                $leader:ident as $leader_part:ident: $leader_type:ty, { $($leader_row:tt)* };
                $(
                    $(#[$member_doc:meta])*
                    $member:ident as $part:ident: $member_type:ty = $member_default:expr, { $($member_row:tt)* };
                )*
            }
        )*
    ) => {
        /// One picture, fully resolved: the same request with the same model, version and kernel gives the same
        /// bytes.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Request {
            $($(#[$doc])* pub $name: $type,)*
            $($(#[$group_doc])* pub $group: Option<$Group>,)*
        }

        $(
            $(#[$group_doc])*
            #[derive(Debug, Clone, PartialEq)]
            pub struct $Group {
                $(#[$leader_doc])* pub $leader_part: $leader_type,
                $($(#[$member_doc])* pub $part: $member_type,)*
            }
        )*

        /// A request whose every field may be missing, flat as it is spelled.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Draft {
            $(pub $name: Given<$type>,)*
            $(pub $leader: Given<$leader_type>, $(pub $member: Given<$member_type>,)*)*
        }

        /// Every field, in the order of their keys in JSON.
        pub static FIELDS: &[Field] = &[
            $(
                request_fields!(@field $name: $type, { $($row)* }),
                $(Field { key: stringify!($alias), $($alias_row)* ..Field::EMPTY },)?
            )*
            $(
                request_fields!(@field $leader: $leader_type, { $($leader_row)* }),
                $(request_fields!(@field $member: $member_type, { $($member_row)* }),)*
            )*
        ];

        impl Draft {
            /// Fills each field that is missing here from `below`.
            pub(super) fn or(self, below: Self) -> Self {
                Self {
                    $($name: self.$name.or(below.$name),)*
                    $(
                        $leader: self.$leader.or(below.$leader),
                        $($member: self.$member.or(below.$member),)*
                    )*
                }
            }

            /// The request that says what this draft does, and for the rest the table's defaults.
            ///
            /// # Errors
            /// Names the first setting that means nothing without another one.
            pub(super) fn complete(self, basis: &Basis) -> Result<Request> {
                Ok(Request {
                    $($name: request_fields!(@complete self.$name, $type, $default, basis),)*
                    $($group: match self.$leader {
                        Some(leader) => Some($Group {
                            $leader_part: leader,
                            $($part: request_fields!(
                                @complete self.$member, $member_type, $member_default, basis
                            ),)*
                        }),
                        None => {
                            $(ensure!(
                                self.$member.is_none(),
                                "{} {}", stringify!($member).replace('_', " "), $needs
                            );)*
                            None
                        }
                    },)*
                })
            }
        }

        impl From<Request> for Draft {
            fn from(request: Request) -> Self {
                $(let ($leader, $($member,)*) = match request.$group {
                    Some($Group { $leader_part, $($part,)* }) => (Some($leader_part), $($part.given(),)*),
                    None => Default::default(),
                };)*
                Self { $($name: request.$name.given(),)* $($leader, $($member,)*)* }
            }
        }

        /// Flat; what a request may do without is left out where it is missing.
        impl Serialize for Draft {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                $(if self.$name.is_some() || <$type as Held>::ALWAYS {
                    map.serialize_entry(stringify!($name), &self.$name)?;
                })*
                $(
                    if self.$leader.is_some() {
                        map.serialize_entry(stringify!($leader), &self.$leader)?;
                    }
                    $(if self.$member.is_some() {
                        map.serialize_entry(stringify!($member), &self.$member)?;
                    })*
                )*
                map.end()
            }
        }
    };

    (@field $name:ident: $type:ty, { $($row:tt)* }) => {
        Field {
            key: stringify!($name),
            covers: &[stringify!($name)],
            form: <<$type as Held>::Given as Spelled>::FORM,
            several: <<$type as Held>::Given as Spelled>::SEVERAL,
            get: |draft| draft.$name.as_ref().map(Spelled::print),
            set: |draft, text| Spelled::read_into(&mut draft.$name, text),
            put: |draft, value| {
                draft.$name = serde_json::from_value(value)?;
                Ok(())
            },
            $($row)*
            ..Field::EMPTY
        }
    };

    (@complete $given:expr, $type:ty, $default:expr, $basis:expr) => {{
        let default: fn(&Basis) -> $type = $default;
        <$type as Held>::complete($given, || default($basis))
    }};
}

pub(super) use request_fields;
