//! The flags that describe a picture, made from the request's own table.

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint};

use crate::request::{Draft, FIELDS, Field, Form};

/// What a picture is asked to be, whichever command draws it.
#[derive(Debug)]
pub struct PictureArgs(Draft);

impl PictureArgs {
    /// The part of a request that the flags spell out.
    pub fn draft(&self) -> Draft {
        self.0.clone()
    }

    pub fn seed(&self) -> Option<u64> {
        self.0.seed
    }
}

/// The fields that have a flag, in help's order.
fn flags() -> impl Iterator<Item = (&'static Field, &'static str)> {
    let mut flags: Vec<_> = FIELDS.iter().filter_map(|field| Some((field, field.long()?))).collect();
    flags.sort_by_key(|(field, _)| field.section);
    flags.into_iter()
}

fn arg(field: &'static Field, long: &'static str) -> Arg {
    let arg = Arg::new(field.key)
        .long(long)
        .short(field.short())
        .value_name(field.value_name().unwrap_or_default())
        .help(field.help)
        .help_heading(field.section.heading())
        .hide_short_help(field.seldom)
        .hide_possible_values(field.tells_names)
        .action(if field.several { ArgAction::Append } else { ArgAction::Set })
        .allow_negative_numbers(field.form == Form::Number)
        .value_parser(parser(field))
        .conflicts_with_all(field.covers.iter().filter(|key| **key != field.key));
    let arg = match field.alone {
        "" => arg,
        alone => arg.num_args(0..=1).require_equals(true).default_missing_value(alone),
    };
    let arg = match field.form {
        Form::Path if field.value_name() == Some("DIR") => arg.value_hint(ValueHint::DirPath),
        Form::Path => arg.value_hint(ValueHint::FilePath),
        Form::Text | Form::Number | Form::Name(_) => arg,
    };
    if field.more.is_empty() { arg } else { arg.long_help(format!("{}\n\n{}", field.help, field.more)) }
}

/// Refuses what the field can't be; names are listed by help and completions.
fn parser(field: &'static Field) -> ValueParser {
    match field.form {
        Form::Name(names) => PossibleValuesParser::new(names).into(),
        _ => OsStringValueParser::new()
            .try_map(|text| (field.set)(&mut Draft::default(), &text).map(|()| text))
            .into(),
    }
}

impl Args for PictureArgs {
    fn augment_args(command: Command) -> Command {
        command.args(flags().map(|(field, long)| arg(field, long)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PictureArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut draft = Draft::default();
        for (field, _) in flags() {
            for text in matches.get_raw(field.key).into_iter().flatten() {
                (field.set)(&mut draft, text)
                    .map_err(|message| clap::Error::raw(clap::error::ErrorKind::ValueValidation, message))?;
            }
        }
        Ok(Self(draft))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = Self::from_arg_matches(matches)?;
        self.0 = given.0.over(std::mem::take(&mut self.0));
        Ok(())
    }
}
