//! The keys of a list's line: those of a request by flag or record name, and the item's own.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::request::table::{Draft, FIELDS, Field};

/// What the keys of one line say.
#[derive(Default)]
pub struct Keys {
    pub draft: Draft,
    pub id: Option<String>,
    pub output: Option<String>,
    /// Keys of the draft that have been read.
    covered: Vec<&'static str>,
}

impl Keys {
    /// # Errors
    /// Names every key that is wrong, unknown or given twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Object(object) = serde_json::from_str(text).map_err(|error| plain(&error))?;
        let mut keys = Self::default();
        let wrong: Vec<String> =
            object.into_iter().filter_map(|(key, value)| keys.read(&key, value).err()).collect();
        if wrong.is_empty() { Ok(keys) } else { Err(wrong.join("; ")) }
    }

    fn read(&mut self, key: &str, value: Value) -> Result<(), String> {
        match key {
            // Tables are often numbered.
            "id" if value.is_u64() => self.id = Some(value.to_string()),
            "id" => self.id = name(value).map_err(|message| format!("key 'id': {message}"))?,
            "output" => self.output = name(value).map_err(|message| format!("key 'output': {message}"))?,
            _ => self.read_field(key, value)?,
        }
        Ok(())
    }

    fn read_field(&mut self, key: &str, value: Value) -> Result<(), String> {
        let record_key = key.replace('-', "_");
        let field = FIELDS.iter().find(|field| field.key == record_key || field.long() == Some(key));
        let Some(field) = field else {
            let known: Vec<String> = FIELDS.iter().map(flag).collect();
            return Err(format!("unknown key '{key}' (one of: {}, id, output)", known.join(", ")));
        };
        for covered in field.covers {
            if self.covered.contains(covered) {
                let twice = FIELDS.iter().find(|field| field.key == *covered).map_or_else(String::new, flag);
                return Err(format!("key '{key}': the {twice} is given twice"));
            }
            self.covered.push(covered);
        }
        if value == Value::Bool(true) && !field.alone.is_empty() {
            return (field.set)(&mut self.draft, field.alone.as_ref());
        }
        (field.put)(&mut self.draft, value).map_err(|error| format!("key '{key}': {}", plain(&error)))
    }
}

/// A field under the name its flag has, if it has one.
fn flag(field: &Field) -> String {
    field.long().map_or_else(|| field.key.replace('_', "-"), str::to_owned)
}

fn name(value: Value) -> Result<Option<String>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if !text.is_empty() => Ok(Some(text)),
        _ => Err("expected a text that is not empty"),
    }
}

/// A JSON object in which no key comes twice.
struct Object(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object such as {\"prompt\": \"a red apple\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut object = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if object.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("key '{key}' comes twice")));
                    }
                    object.insert(key, value);
                }
                Ok(Object(object))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The message without the place in the line's one line.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line 1 column ") {
        Some((message, column)) if column != "0" => format!("{message} (column {column})"),
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}
