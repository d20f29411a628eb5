//! The answer that chunks add up to, as JSON text.
//!
//! Invariants: one pass over a chunk; strings and lists of a delta grow, everything else is replaced by what came last.
//! Used by the assembler.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

/// A field of the answer: its name, and its value's text without the delimiter that closes it where it may still grow.
#[derive(Debug)]
struct Field {
    name: String,
    value: String,
    close: &'static str,
}

/// The fields of an object, in the order in which they came.
#[derive(Debug, Default)]
struct Fields(Vec<Field>);

impl Fields {
    fn find(&mut self, name: &str) -> Option<&mut Field> {
        self.0.iter_mut().find(|field| field.name == name)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|field| field.name == name)?;
        Some(&found.value)
    }

    fn put(&mut self, name: &str, value: &str, close: &'static str) {
        match self.find(name) {
            // Mostly it is what it was in the chunk before.
            Some(field) if field.value == value && field.close == close => {}
            Some(field) => {
                field.value.clear();
                field.value.push_str(value);
                field.close = close;
            }
            None => self.0.push(Field {
                name: name.to_owned(),
                value: value.to_owned(),
                close,
            }),
        }
    }

    /// What came last counts, but `null` says nothing of what is known.
    fn set(&mut self, name: &str, value: &str) {
        if value != "null" || self.value(name).is_none() {
            self.put(name, value, "");
        }
    }

    /// A string or a list goes on where it ended.
    fn extend(&mut self, name: &str, value: &str) {
        let close = match value.as_bytes() {
            [b'"', ..] => "\"",
            [b'[', ..] => "]",
            _ => return self.set(name, value),
        };
        let open = &value[..value.len() - 1];
        match self.find(name) {
            Some(field) if field.close == close => {
                let more = &open[1..];
                if close == "]" && !more.trim().is_empty() && field.value.len() > 1 {
                    field.value.push(',');
                }
                field.value.push_str(more);
            }
            _ => self.put(name, open, close),
        }
    }

    fn size(&self) -> usize {
        let of = |field: &Field| field.name.len() + field.value.len();
        self.0.iter().map(of).sum()
    }
}

/// Something that grows by the fields of a JSON object.
trait Grow {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Lets `T` grow by an object; by nothing where there is `null` instead.
struct Object<'a, T>(&'a mut T);

/// The same by each object of a list.
struct List<'a, T>(&'a mut T);

/// A field's name; borrowed unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, T: Grow> DeserializeSeed<'de> for Object<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: Grow> Visitor<'de> for Object<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            self.0.field(&name, &mut map)?;
        }
        Ok(())
    }
}

impl<'de, T: Grow> DeserializeSeed<'de> for List<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T: Grow> Visitor<'de> for List<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Object(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

fn raw<'de, A: MapAccess<'de>>(map: &mut A) -> Result<&'de str, A::Error> {
    Ok(map.next_value::<&'de RawValue>()?.get())
}

/// The answer as far as it came.
#[derive(Debug, Default)]
pub(super) struct Answer {
    choice: Choice,
    rest: Fields,
    error: Option<Box<RawValue>>,
}

/// Its only choice. The text of a completion is one of the fields.
#[derive(Debug, Default)]
struct Choice {
    message: Message,
    logprobs: Logprobs,
    rest: Fields,
}

#[derive(Debug, Default)]
struct Message {
    rest: Fields,
    /// By their `index`.
    calls: Vec<(u64, Call)>,
}

#[derive(Debug, Default)]
struct Call {
    function: Function,
    rest: Fields,
}

#[derive(Debug, Default)]
struct Function(Fields);

#[derive(Debug, Default)]
struct Logprobs {
    /// Whether they are named at all, be it as `null`.
    named: bool,
    rest: Fields,
}

impl Grow for Answer {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "choices" => map.next_value_seed(List(&mut self.choice))?,
            "error" => self.error = map.next_value()?,
            // Of use only while there is no answer.
            "prompt_progress" => drop(raw(map)?),
            _ => self.rest.set(name, raw(map)?),
        }
        Ok(())
    }
}

impl Grow for Choice {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "delta" => map.next_value_seed(Object(&mut self.message))?,
            "logprobs" => {
                self.logprobs.named = true;
                map.next_value_seed(Object(&mut self.logprobs))?;
            }
            "text" => self.rest.extend(name, raw(map)?),
            "index" => match raw(map)? {
                "0" => self.rest.set(name, "0"),
                other => {
                    let detail = format!("a part of answer {other}, where there is only one");
                    return Err(A::Error::custom(detail));
                }
            },
            _ => self.rest.set(name, raw(map)?),
        }
        Ok(())
    }
}

impl Grow for Message {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "role" => self.rest.set(name, raw(map)?),
            "tool_calls" => {
                let calls: Option<Vec<&'de RawValue>> = map.next_value()?;
                for call in calls.unwrap_or_default() {
                    self.call(call.get()).map_err(A::Error::custom)?;
                }
            }
            _ => self.rest.extend(name, raw(map)?),
        }
        Ok(())
    }
}

impl Message {
    /// Calls are rare, and their number may stand anywhere in them: they are read twice.
    fn call(&mut self, delta: &str) -> serde_json::Result<()> {
        #[derive(Deserialize)]
        struct Numbered {
            #[serde(default)]
            index: u64,
        }
        let Numbered { index } = serde_json::from_str(delta)?;
        let at = self.calls.iter().position(|(number, _)| *number == index);
        let at = at.unwrap_or_else(|| {
            self.calls.push((index, Call::default()));
            self.calls.len() - 1
        });
        let call = &mut self.calls[at].1;
        Object(call).deserialize(&mut serde_json::Deserializer::from_str(delta))
    }
}

impl Grow for Call {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "index" => drop(raw(map)?),
            "function" => map.next_value_seed(Object(&mut self.function))?,
            _ => self.rest.set(name, raw(map)?),
        }
        Ok(())
    }
}

impl Grow for Function {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "arguments" => self.0.extend(name, raw(map)?),
            _ => self.0.set(name, raw(map)?),
        }
        Ok(())
    }
}

impl Grow for Logprobs {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        self.rest.extend(name, raw(map)?);
        Ok(())
    }
}

impl Answer {
    /// Adds a chunk. Gives the error that came in its place, if one did.
    pub fn add(&mut self, chunk: &str) -> serde_json::Result<Option<Box<RawValue>>> {
        let mut json = serde_json::Deserializer::from_str(chunk);
        Object(&mut *self).deserialize(&mut json)?;
        json.end()?;
        Ok(self.error.take())
    }

    /// The bytes it takes.
    pub fn size(&self) -> usize {
        let Choice {
            message,
            logprobs,
            rest,
        } = &self.choice;
        let of = |(_, call): &(u64, Call)| call.function.0.size() + call.rest.size();
        let calls: usize = message.calls.iter().map(of).sum();
        self.rest.size() + rest.size() + logprobs.rest.size() + message.rest.size() + calls
    }

    /// The body, its fields in the engine's own order.
    pub fn into_body(mut self) -> Bytes {
        // A chunk says that it is one.
        if let Some(object) = self.rest.find("object") {
            object.value = object.value.replace(".chunk\"", "\"");
        }
        let mut out = Vec::with_capacity(self.size() + 1_024);
        object(&mut out, |out| {
            out.name("choices");
            out.text("[");
            out.object(|out| self.choice.write(out));
            out.text("]");
            let first = ["created", "model", "system_fingerprint", "object", "usage"];
            let last = ["id", "timings"];
            for name in first {
                out.named(&self.rest, name);
            }
            out.rest(&self.rest, &[&first[..], &last[..]].concat());
            for name in last {
                out.named(&self.rest, name);
            }
        });
        out.into()
    }
}

impl Choice {
    fn write(&mut self, out: &mut Writer<'_>) {
        if self.rest.value("text").is_some() {
            let known = ["text", "index", "finish_reason"];
            out.named(&self.rest, "text");
            out.named(&self.rest, "index");
            self.logprobs.write(out);
            out.named(&self.rest, "finish_reason");
            out.rest(&self.rest, &known);
        } else {
            let known = ["finish_reason", "index"];
            out.named(&self.rest, "finish_reason");
            out.named(&self.rest, "index");
            out.name("message");
            out.object(|out| self.message.write(out));
            self.logprobs.write(out);
            out.rest(&self.rest, &known);
        }
    }
}

impl Message {
    fn write(&mut self, out: &mut Writer<'_>) {
        // The engine tells the role with the first token whose character is whole, if one ever is.
        for (name, default) in [("role", r#""assistant""#), ("content", r#""""#)] {
            if self.rest.value(name).is_none_or(|value| value == "null") {
                self.rest.put(name, default, "");
            }
            out.named(&self.rest, name);
        }
        out.rest(&self.rest, &["role", "content"]);
        if self.calls.is_empty() {
            return;
        }
        self.calls.sort_by_key(|(index, _)| *index);
        out.name("tool_calls");
        out.text("[");
        for (i, (_, call)) in self.calls.iter().enumerate() {
            out.text(if i == 0 { "" } else { "," });
            out.object(|out| {
                out.named(&call.rest, "type");
                out.name("function");
                out.object(|out| out.rest(&call.function.0, &[]));
                out.rest(&call.rest, &["type"]);
            });
        }
        out.text("]");
    }
}

impl Logprobs {
    fn write(&self, out: &mut Writer<'_>) {
        if !self.named {
            return;
        }
        out.name("logprobs");
        if self.rest.0.is_empty() {
            out.text("null");
        } else {
            out.object(|out| out.rest(&self.rest, &[]));
        }
    }
}

/// Writes the fields of one object.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
}

fn object(out: &mut Vec<u8>, fields: impl FnOnce(&mut Writer<'_>)) {
    out.push(b'{');
    fields(&mut Writer {
        out,
        is_first: true,
    });
    out.push(b'}');
}

impl Writer<'_> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_first) {
            self.text(",");
        }
        serde_json::to_writer(&mut *self.out, name).expect("memory takes every string");
        self.text(":");
    }

    fn object(&mut self, fields: impl FnOnce(&mut Writer<'_>)) {
        object(self.out, fields);
    }

    fn field(&mut self, field: &Field) {
        self.name(&field.name);
        self.text(&field.value);
        self.text(field.close);
    }

    /// The field of this name, if there is one.
    fn named(&mut self, fields: &Fields, name: &str) {
        if let Some(field) = fields.0.iter().find(|field| field.name == name) {
            self.field(field);
        }
    }

    /// All but these.
    fn rest(&mut self, fields: &Fields, known: &[&str]) {
        let rest = fields.0.iter();
        for field in rest.filter(|field| !known.contains(&&*field.name)) {
            self.field(field);
        }
    }
}
