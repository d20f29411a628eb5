//! What the gateway reads of a request's body: which model, how many slots, and whether its answer may be assembled.
//!
//! Invariants: nothing is decided that is the engine's to decide, so what it would refuse goes on as it came; the one
//! change that is ever made to a body is [`Peek::streamed`].

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use memchr::memchr;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::types::check_model_id;

use super::GatewayError;

/// The fields that routing needs. Everything else is skipped, but must be JSON: llama-server answers broken JSON with a
/// 500 (measured), which would look like a broken engine.
#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
    /// llama.cpp's own name for `n`. Where both are given it goes by this one.
    #[serde(borrow, default)]
    n_cmpl: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    /// The prompts of embeddings.
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    stream_options: Option<&'a RawValue>,
    // What makes a streamed answer differ from a whole one.
    #[serde(borrow, default)]
    stop: Option<&'a RawValue>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    /// llama.cpp's own name for `logprobs`.
    #[serde(borrow, default)]
    n_probs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    verbose: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_format: Option<&'a RawValue>,
}

/// A field that is `null` has a place, too.
fn even_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peek {
    /// `None` when it names none.
    pub model: Option<String>,
    /// Slots it will take: `n` answers to each of its prompts.
    pub weight: u32,
    /// Whether it asks for a stream. llama-server takes `true`, `false` and `null`, and refuses everything else.
    pub stream: bool,
    logprobs: bool,
    stops: bool,
    /// Where to write that it asks for a stream; `None` where that is not to be done.
    splice: Option<Splice>,
}

/// Places in a body that asks for no stream.
#[derive(Debug, PartialEq, Eq)]
struct Splice {
    /// Just after the brace that opens it.
    start: usize,
    /// Whether it has no fields at all.
    is_empty: bool,
    /// The value of `stream`, if there is one.
    stream: Option<Range<usize>>,
    /// The value of `stream_options`, if there is one. Without a stream llama-server looks at none of it.
    options: Option<Range<usize>>,
}

impl Peek {
    pub fn read(body: &[u8]) -> Result<Self, GatewayError> {
        if body
            .iter()
            .find(|byte| !byte.is_ascii_whitespace())
            .is_none_or(|byte| *byte != b'{')
        {
            return Err(GatewayError::NotJson {
                detail: "it must be a JSON object".to_owned(),
            });
        }
        // What is skipped is not looked at, and an engine would be the first to see that it is no text.
        let text = std::str::from_utf8(body).map_err(|e| GatewayError::NotJson {
            detail: format!("it is not UTF-8: {e}"),
        })?;
        let read: Body<'_> = serde_json::from_str(text).map_err(|e| GatewayError::NotJson {
            detail: e.to_string(),
        })?;
        if has_lone_surrogate(text) {
            let detail = "it has half of a surrogate pair (such as \\ud800), which is no character"
                .to_owned();
            return Err(GatewayError::NotJson { detail });
        }
        let splice = read.may_stream().then(|| read.splice(text)).flatten();
        let model = read
            .model
            .map(|raw| model(raw.get()))
            .transpose()?
            .flatten();
        let n = read.n_cmpl.or(read.n).map_or(1, |raw| answers(raw.get()));
        let prompts = read
            .prompt
            .or(read.input)
            .map_or(1, |raw| prompts(raw.get()));
        Ok(Self {
            model,
            weight: n.saturating_mul(prompts),
            stream: read.stream.is_some_and(|raw| raw.get() == "true"),
            logprobs: is_set(read.logprobs) || is_set(read.n_probs),
            stops: is_set(read.stop),
            splice,
        })
    }

    /// Whether llama-server's answer on this path, without its query, may be streamed by it and assembled here.
    pub fn may_assemble(&self, path: &str) -> bool {
        // A chat's stream leaves out those of tokens that show no text, the last one among them, and with tools the engine
        // refuses to stream any. A completion's stream has all, even those of a stop word, which a whole answer lacks.
        let streams_logprobs = match path {
            "/v1/chat/completions" => false,
            "/v1/completions" => !self.stops,
            _ => return false,
        };
        let same = !self.logprobs || streams_logprobs;
        same && self.weight == 1 && self.splice.is_some()
    }

    /// The `body` that was read, asking for a stream that ends with the usage: everything else byte for byte as it was,
    /// and no field twice.
    pub fn streamed(&self, body: &[u8]) -> Bytes {
        let Some(splice) = &self.splice else {
            return Bytes::copy_from_slice(body);
        };
        let mut out = Vec::with_capacity(body.len() + STREAM.len() + OPTIONS.len() + 32);
        let mut done = 0;
        for (place, text) in splice.edits() {
            out.extend_from_slice(&body[done..place.start]);
            out.extend_from_slice(text.as_bytes());
            done = place.end;
        }
        out.extend_from_slice(&body[done..]);
        out.into()
    }
}

/// What is written for `stream` and for `stream_options`.
const STREAM: &str = "true";
const OPTIONS: &str = r#"{"include_usage":true}"#;

impl Splice {
    /// What to put where, in order.
    fn edits(&self) -> Vec<(Range<usize>, String)> {
        let start = self.start..self.start;
        match (self.stream.clone(), self.options.clone()) {
            (Some(stream), Some(options)) => {
                let mut edits = vec![(stream, STREAM.to_owned()), (options, OPTIONS.to_owned())];
                edits.sort_by_key(|(place, _)| place.start);
                edits
            }
            (Some(stream), None) => {
                vec![(stream, format!(r#"{STREAM},"stream_options":{OPTIONS}"#))]
            }
            (None, Some(options)) => vec![
                (start, format!(r#""stream":{STREAM},"#)),
                (options, OPTIONS.to_owned()),
            ],
            (None, None) => {
                let comma = if self.is_empty { "" } else { "," };
                let fields = format!(r#""stream":{STREAM},"stream_options":{OPTIONS}{comma}"#);
                vec![(start, fields)]
            }
        }
    }
}

impl Body<'_> {
    /// Whether llama-server's stream says the same as its whole answer, logprobs aside.
    fn may_stream(&self) -> bool {
        // It tells what it was told, `stream` included.
        let echoes = is_set(self.verbose);
        // As its source has it, thoughts go to another place in a stream then.
        let is_legacy = self
            .reasoning_format
            .is_some_and(|raw| raw.get().contains("legacy"));
        !echoes && !is_legacy
    }

    /// `None` when it asks for a stream, or for something that is the engine's to refuse.
    fn splice(&self, text: &str) -> Option<Splice> {
        let asks_for_none = self
            .stream
            .is_none_or(|raw| matches!(raw.get(), "false" | "null"));
        if !asks_for_none {
            return None;
        }
        let start = text.find('{')? + 1;
        // A raw value is a part of the text it was read from.
        let place = |raw: &RawValue| {
            let at = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            at..at + raw.get().len()
        };
        Some(Splice {
            start,
            is_empty: text[start..].trim_start().starts_with('}'),
            stream: self.stream.map(place),
            options: self.stream_options.map(place),
        })
    }
}

/// Whether a field asks for anything.
fn is_set(field: Option<&RawValue>) -> bool {
    field.is_some_and(|raw| !matches!(raw.get(), "false" | "0" | "[]"))
}

/// Whether an escape in valid JSON stands for half a character. llama-server answers such a body with a 500 (measured),
/// which would look like a broken engine.
fn has_lone_surrogate(json: &str) -> bool {
    let mut rest = json.as_bytes();
    // Whether the escape just before this one began a pair.
    let mut half = false;
    while let Some(at) = memchr(b'\\', rest) {
        let unit = match &rest[at + 1..] {
            [b'u', digits @ ..] if digits.len() >= 4 => std::str::from_utf8(&digits[..4])
                .ok()
                .and_then(|hex| u16::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        let is_low = unit.is_some_and(|unit| (0xDC00..0xE000).contains(&unit));
        let completes = half && at == 0 && is_low;
        if (half || is_low) && !completes {
            return true;
        }
        half = unit.is_some_and(|unit| (0xD800..0xDC00).contains(&unit));
        // A backslash and what it escapes; and, where that is a `u`, its four digits.
        let past = at + if unit.is_some() { 6 } else { 2 };
        rest = rest.get(past..).unwrap_or_default();
    }
    half
}

fn model(raw: &str) -> Result<Option<String>, GatewayError> {
    if raw == "null" {
        return Ok(None);
    }
    let name: Cow<'_, str> = serde_json::from_str(raw).map_err(|_| GatewayError::BadModel {
        detail: format!(
            "it must be a string, not {}",
            raw.chars().take(40).collect::<String>()
        ),
    })?;
    check_model_id(&name).map_err(|e| GatewayError::BadModel {
        detail: e.to_string(),
    })?;
    Ok(Some(name.into_owned()))
}

/// How many answers an `n` asks for; whether it may is the engine's to say.
fn answers(raw: &str) -> u32 {
    let n: f64 = raw.parse().unwrap_or(1.0);
    if n >= 1.0 {
        n.min(f64::from(u16::MAX)).trunc() as u32
    } else {
        1
    }
}

/// How many prompts a `prompt` holds: a string, an object and a list with token ids in it are one, a list of anything else
/// is as many.
fn prompts(raw: &str) -> u32 {
    if !raw.starts_with('[') {
        return 1;
    }
    let mut count = 0;
    // What ends the count early is no error.
    let _ = serde_json::Deserializer::from_str(raw).deserialize_seq(Prompts(&mut count));
    count.max(1)
}

/// Counts the prompts of a list without keeping any: it may hold millions of token ids.
struct Prompts<'a>(&'a mut u32);

impl<'de> Visitor<'de> for Prompts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(prompt) = list.next_element::<&RawValue>()? {
            if prompt
                .get()
                .starts_with(|c: char| c == '-' || c.is_ascii_digit())
            {
                *self.0 = 1;
                return Ok(());
            }
            *self.0 = self.0.saturating_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> (Option<String>, u32) {
        let peek = Peek::read(body.as_bytes()).expect("good");
        (peek.model, peek.weight)
    }

    #[test]
    fn the_model_and_the_weight_are_read_and_the_rest_is_skipped() {
        assert_eq!(
            read(r#"{"model":"org/m:Q4","messages":[{"role":"user"}],"stream":true}"#),
            (Some("org/m:Q4".into()), 1)
        );
        assert_eq!(read(r#" {"model":null,"n":3}"#), (None, 3));
        assert_eq!(read(r#"{"prompt":"one"}"#), (None, 1));
        assert_eq!(
            read(r#"{"prompt":[1,2,3]}"#),
            (None, 1),
            "token ids are one prompt"
        );
        assert_eq!(
            read(r#"{"prompt":["a",7]}"#),
            (None, 1),
            "and so are text and token ids"
        );
        assert_eq!(read(r#"{"prompt":[]}"#), (None, 1));
        assert_eq!(read(r#"{"prompt":["a","b"],"n":2}"#), (None, 4));
        assert_eq!(read(r#"{"prompt":[[1,2],[3]]}"#), (None, 2));
        assert_eq!(
            read(r#"{"prompt":[{"prompt_string":"a"},{"prompt_string":"b"}]}"#),
            (None, 2)
        );
        assert_eq!(read(r#"{"input":["a","b"],"n":2.0}"#), (None, 4));
        assert_eq!(read(r#"{"n_cmpl":3e0}"#), (None, 3));
        assert_eq!(
            read(r#"{"n":1,"n_cmpl":2}"#),
            (None, 2),
            "the engine's own name goes before"
        );
        assert_eq!(read(r#"{"n":2,"n_cmpl":null}"#), (None, 2));
        assert_eq!(read(r#"{"n":-1}"#), (None, 1));
        assert_eq!(
            read(r#"{"n":"many","model":"m\u00e9"}"#),
            (Some("mé".into()), 1),
            "the engine judges the rest"
        );
    }

    #[test]
    fn half_a_character_is_none() {
        for good in [
            r#"{"a":"\ud83d\ude00"}"#,
            r#"{"a":"\\ud800"}"#,
            r#"{"a":"\u00e9\n"}"#,
            r#"{"a":"\uD83D\uDE00x\ud83d\ude00"}"#,
        ] {
            assert!(Peek::read(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\ude00"}"#,
            r#"{"a":"\ud83dx\ude00"}"#,
            r#"{"a":"\ud83d\n"}"#,
            r#"{"a":"\ud83d\ud83d"}"#,
        ] {
            let refused = Peek::read(bad.as_bytes());
            assert!(
                matches!(refused, Err(GatewayError::NotJson { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_not_a_request_is_refused_with_the_reason() {
        for bad in [
            "",
            "[]",
            "null",
            "{",
            r#"{"a":}"#,
            r#"{"model":"a","model":"b"}"#,
            r#"{"stream":false,"stream":true}"#,
            r#"{"stream":false,"str\u0065am":null}"#,
            r#"{"stream_options":null,"stream_options":{}}"#,
            r#"{"n":1,"n":2}"#,
            "{} x",
        ] {
            assert!(
                matches!(
                    Peek::read(bad.as_bytes()),
                    Err(GatewayError::NotJson { .. })
                ),
                "{bad:?}"
            );
        }
        for bad in [
            r#"{"model":1}"#,
            r#"{"model":["m"]}"#,
            r#"{"model":""}"#,
            r#"{"model":"a\nb"}"#,
        ] {
            assert!(
                matches!(
                    Peek::read(bad.as_bytes()),
                    Err(GatewayError::BadModel { .. })
                ),
                "{bad:?}"
            );
        }
    }

    const CHAT: &str = "/v1/chat/completions";

    /// What goes to the engine when the answer is to be assembled.
    fn streamed(body: &str) -> Option<String> {
        let peek = Peek::read(body.as_bytes()).expect("good");
        peek.may_assemble(CHAT).then(|| {
            let streamed = peek.streamed(body.as_bytes());
            String::from_utf8(streamed.to_vec()).expect("text")
        })
    }

    #[test]
    fn a_stream_is_asked_for_in_the_place_of_none() {
        let (on, usage) = (
            r#""stream":true"#,
            r#""stream_options":{"include_usage":true}"#,
        );
        let both = format!("{on},{usage}");
        for (body, wanted) in [
            ("{}", format!("{{{both}}}")),
            (" { \n} ", format!(" {{{both} \n}} ")),
            (r#"{"n":1}"#, format!(r#"{{{both},"n":1}}"#)),
            (r#"{"stream":false}"#, format!("{{{both}}}")),
            (
                r#"{"a":[{"stream":false}] , "stream" : null , "b":"\u00e9"}"#,
                format!(r#"{{"a":[{{"stream":false}}] , "stream" : true,{usage} , "b":"\u00e9"}}"#),
            ),
            (
                r#"{"\u0073tream":false,"a":1}"#,
                format!(r#"{{"\u0073tream":true,{usage},"a":1}}"#),
            ),
            (
                r#"{"stream_options":{"include_usage":false},"x":" ","stream":false}"#,
                format!(r#"{{{usage},"x":" ",{on}}}"#),
            ),
            (
                r#"{"stream":false,"stream_options":7}"#,
                format!("{{{both}}}"),
            ),
            (r#"{"stream_options":null}"#, format!("{{{both}}}")),
        ] {
            assert_eq!(streamed(body), Some(wanted), "{body}");
        }
    }

    #[test]
    fn what_would_be_answered_otherwise_as_a_stream_goes_on_as_it_is() {
        for body in [
            r#"{"stream":true}"#,
            r#"{"stream":1}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":[]}"#,
            r#"{"n":2}"#,
            r#"{"n_cmpl":2}"#,
            r#"{"n":1,"n_cmpl":3}"#,
            r#"{"prompt":["a","b"]}"#,
            r#"{"logprobs":true}"#,
            r#"{"n_probs":3}"#,
            r#"{"verbose":true}"#,
            r#"{"reasoning_format":"deepseek-legacy"}"#,
        ] {
            assert_eq!(streamed(body), None, "{body}");
        }
        for body in [
            r#"{"n":1.0,"n_cmpl":null,"prompt":["a"]}"#,
            r#"{"logprobs":false,"n_probs":0,"tools":[{}],"stop":["x"]}"#,
            r#"{"verbose":false,"reasoning_format":"deepseek"}"#,
        ] {
            assert!(streamed(body).is_some(), "{body}");
        }
        let text = |body: &str| {
            let peek = Peek::read(body.as_bytes()).expect("good");
            peek.may_assemble("/v1/completions")
        };
        assert!(text(r#"{"logprobs":2,"stop":[]}"#));
        assert!(text(r#"{"logprobs":0,"stop":["x"]}"#));
        assert!(!text(r#"{"logprobs":2,"stop":"x"}"#));
        let peek = Peek::read(b"{}").expect("good");
        assert!(!peek.stream);
        assert!(peek.may_assemble("/v1/completions"));
        for path in ["/v1/responses", "/v1/embeddings", "/v1/chat/completions/"] {
            assert!(!peek.may_assemble(path), "{path}");
        }
        assert!(Peek::read(br#"{"stream":true}"#).expect("good").stream);
    }

    mod whatever_a_body_holds {
        use proptest::prelude::*;
        use serde_json::{Map, Value, json};

        use super::*;

        /// Text as JSON writes it, every other character as an escape.
        fn escaped(text: &str, escape: bool) -> String {
            if !escape {
                return Value::from(text).to_string();
            }
            let mut out = String::from("\"");
            for (i, c) in text.chars().enumerate() {
                if i % 2 == 0 {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out += &format!("\\u{unit:04x}");
                    }
                } else {
                    out += Value::from(c.to_string()).to_string().trim_matches('"');
                    // What was trimmed too much of an escaped quotation mark.
                    if c == '"' {
                        out += "\"";
                    }
                }
            }
            out + "\""
        }

        fn value() -> impl Strategy<Value = Value> {
            let leaf = prop_oneof![
                Just(json!(null)),
                any::<bool>().prop_map(Value::from),
                any::<i32>().prop_map(Value::from),
                ".{0,6}".prop_map(Value::from),
                Just(json!(r#""stream":false,{"}"#)),
                Just(json!({"stream": false, "stream_options": 1})),
            ];
            leaf.prop_recursive(3, 12, 4, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                    prop::collection::hash_map(".{0,4}", inner, 0..4)
                        .prop_map(|map| Value::Object(map.into_iter().collect())),
                ]
            })
        }

        fn field() -> impl Strategy<Value = (String, Value)> {
            prop_oneof![
                3 => ("[a-z{}\":,é😀]{1,5}", value()),
                1 => prop_oneof![Just(json!(false)), Just(json!(null))]
                    .prop_map(|value| ("stream".to_owned(), value)),
                1 => value().prop_map(|value| ("stream_options".to_owned(), value)),
            ]
        }

        proptest! {
            #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

            #[test]
            fn just_two_fields_change(
                fields in prop::collection::vec((field(), any::<bool>()), 0..7),
                space in "[ \\t\\n\\r]{0,2}",
            ) {
                let mut object = Map::new();
                let mut texts = Vec::new();
                for ((key, value), escape) in fields {
                    // What is read for another reason is not the matter here.
                    if object.contains_key(&key) || ["n", "input"].contains(&&*key) {
                        continue;
                    }
                    let key_text = escaped(&key, escape);
                    texts.push(format!("{space}{key_text}{space}:{space}{value}{space}"));
                    object.insert(key, value);
                }
                let body = format!("{space}{{{space}{}}}{space}", texts.join(","));
                prop_assert_eq!(&serde_json::from_str::<Value>(&body).unwrap(), &Value::Object(object.clone()));

                let streamed = streamed(&body).expect("it may be assembled");
                object.insert("stream".to_owned(), json!(true));
                object.insert("stream_options".to_owned(), json!({"include_usage": true}));
                prop_assert_eq!(serde_json::from_str::<Value>(&streamed).unwrap(), Value::Object(object));
                prop_assert!(Peek::read(streamed.as_bytes()).expect("no field twice").stream);
            }
        }
    }
}
