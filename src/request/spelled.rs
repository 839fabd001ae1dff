//! How the types of a request's fields are read and printed as text, and how a draft holds them.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::files::Lora;
use super::saving::{Reuse, StepRange};
use crate::named_enum::Named;

/// What is typed for a value, as far as a shell can help with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Number,
    /// One of these.
    Name(&'static [&'static str]),
    Path,
}

/// A value that can be typed.
pub trait Spelled: Sized {
    const FORM: Form;
    /// Whether it is a list that each further flag adds to.
    const SEVERAL: bool = false;

    /// Reads `text` into `slot`.
    ///
    /// # Errors
    /// Says what was expected.
    fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String>;

    /// What [`Self::read_into`] reads; the values of a list on a line each.
    fn print(&self) -> String;
}

/// The type of a request's field, and what a draft holds of it.
pub trait Held: Sized {
    type Given: Spelled;
    /// Whether every request has a value.
    const ALWAYS: bool = true;

    fn complete(given: Option<Self::Given>, default: impl FnOnce() -> Self) -> Self;

    /// What a draft holds for this value; nothing stands for an empty list.
    fn given(self) -> Option<Self::Given>;
}

/// A field of a draft: the request's value, or nothing yet.
pub type Given<T> = Option<<T as Held>::Given>;

macro_rules! held_as_it_is {
    ($(($($generics:tt)*) $type:ty),+) => {
        $(impl $($generics)* Held for $type {
            type Given = Self;

            fn complete(given: Option<Self>, default: impl FnOnce() -> Self) -> Self {
                given.unwrap_or_else(default)
            }

            fn given(self) -> Option<Self> {
                Some(self)
            }
        })+
    };
}

held_as_it_is!(() String, () usize, () u64, () f64, () PathBuf, () Reuse, (<T: Named>) T);

impl<T: Spelled> Held for Option<T> {
    type Given = T;
    const ALWAYS: bool = false;

    fn complete(given: Option<T>, default: impl FnOnce() -> Self) -> Self {
        given.or_else(default)
    }

    fn given(self) -> Option<T> {
        self
    }
}

impl<T: Spelled> Held for Vec<T> {
    type Given = Self;
    const ALWAYS: bool = false;

    fn complete(given: Option<Self>, default: impl FnOnce() -> Self) -> Self {
        given.unwrap_or_else(default)
    }

    fn given(self) -> Option<Self> {
        Some(self).filter(|list| !list.is_empty())
    }
}

impl<T: Spelled> Spelled for Vec<T> {
    const FORM: Form = T::FORM;
    const SEVERAL: bool = true;

    fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
        let mut value = None;
        T::read_into(&mut value, text)?;
        slot.get_or_insert_default().extend(value);
        Ok(())
    }

    fn print(&self) -> String {
        self.iter().map(T::print).collect::<Vec<_>>().join("\n")
    }
}

impl<T: Named> Spelled for T {
    const FORM: Form = Form::Name(T::NAMES);

    fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
        *slot = Some(utf8(text)?.parse().map_err(|error| format!("{error}"))?);
        Ok(())
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Spelled for String {
    const FORM: Form = Form::Text;

    fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
        *slot = Some(utf8(text)?.to_owned());
        Ok(())
    }

    fn print(&self) -> String {
        self.clone()
    }
}

impl Spelled for PathBuf {
    const FORM: Form = Form::Path;

    fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
        if text.is_empty() {
            return Err("expected a path".to_owned());
        }
        *slot = Some(text.into());
        Ok(())
    }

    fn print(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

macro_rules! spelled_as_text {
    ($($type:ty: $form:expr),+) => {
        $(impl Spelled for $type {
            const FORM: Form = $form;

            fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
                *slot = Some(utf8(text)?.parse().map_err(|error| format!("{error}"))?);
                Ok(())
            }

            fn print(&self) -> String {
                self.to_string()
            }
        })+
    };
}

spelled_as_text!(Lora: Form::Path, StepRange: Form::Text, Reuse: Form::Text);

macro_rules! spelled_number {
    ($($number:ty: $expected:expr),+) => {
        $(impl Spelled for $number {
            const FORM: Form = Form::Number;

            fn read_into(slot: &mut Option<Self>, text: &OsStr) -> Result<(), String> {
                let expected: fn(&dyn std::fmt::Display) -> String = $expected;
                *slot = Some(utf8(text)?.parse().map_err(|error| expected(&error))?);
                Ok(())
            }

            fn print(&self) -> String {
                self.to_string()
            }
        })+
    };
}

spelled_number!(
    usize: |error| error.to_string(),
    f64: |error| error.to_string(),
    u64: |_| format!("expected a whole number from 0 to {}", u64::MAX)
);

fn utf8(text: &OsStr) -> Result<&str, String> {
    text.to_str().ok_or_else(|| "it is not UTF-8".to_owned())
}
