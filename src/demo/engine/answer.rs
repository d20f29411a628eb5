//! Requests and answers of chat and completions, in the shape that llama-server gives them (recorded of build 7e4c0a9).
//! Pure: an answer is told its id and the time of day.

use serde::Deserialize;
use serde_json::{Value, json};

use super::text::{answer, tokens};
use super::{BUILD, MODEL, N_CTX, TOKEN_MS};

/// The two kinds of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion,
}

/// An error of the engine's: its status, its kind and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub body: Value,
}

impl Refusal {
    pub fn new(status: u16, kind: &str, message: &str) -> Self {
        let body = json!({"error": {"code": status, "message": message, "type": kind}});
        Self { status, body }
    }

    fn invalid(message: &str) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    fn too_long(tokens: usize) -> Self {
        let message = format!(
            "request ({tokens} tokens) exceeds the available context size ({N_CTX} tokens), try increasing it"
        );
        let mut refusal = Self::new(400, "exceed_context_size_error", &message);
        refusal.body["error"]["n_prompt_tokens"] = tokens.into();
        refusal.body["error"]["n_ctx"] = N_CTX.into();
        refusal
    }
}

/// A request, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n_predict: Option<i64>,
    n: Option<i64>,
    messages: Option<Value>,
    prompt: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// An answer that is going to be given.
#[derive(Debug)]
pub(super) struct Answer {
    kind: Kind,
    pub stream: bool,
    include_usage: bool,
    prompt_tokens: usize,
    tokens: Vec<String>,
    finish_reason: &'static str,
    id: String,
    created: u64,
}

/// One write of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub text: String,
    /// It carries a token, which takes its time; other frames follow at once.
    pub token: bool,
}

impl Answer {
    /// Reads a request, `node` being where this engine stands.
    pub fn to(
        kind: Kind,
        body: &[u8],
        node: &str,
        id: String,
        created: u64,
    ) -> Result<Self, Refusal> {
        // Bad JSON is its 500.
        let body: Value = serde_json::from_slice(body)
            .map_err(|e| Refusal::new(500, "server_error", &format!("parse error: {e}")))?;
        let body: Body =
            serde_json::from_value(body).map_err(|e| Refusal::invalid(&e.to_string()))?;
        if body.n.is_some_and(|n| n != 1) {
            return Err(Refusal::invalid(
                "the built-in engine of orchd's demo gives one choice per request: n must be 1",
            ));
        }
        let (said, prompt_tokens) = match kind {
            Kind::Chat => chat(body.messages.as_ref())?,
            Kind::Completion => prompt(body.prompt.as_ref())?,
        };
        if prompt_tokens >= N_CTX {
            return Err(Refusal::too_long(prompt_tokens));
        }
        let all = answer(node, &said);
        let all = tokens(&all);
        let wanted = [body.max_completion_tokens, body.max_tokens, body.n_predict];
        let limit = wanted.into_iter().flatten().next();
        // Fewer than none is as many as there are; one is the fewest it gives.
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let count = limit.map_or(all.len(), |limit| limit.clamp(1, all.len()));
        Ok(Self {
            kind,
            stream: body.stream.unwrap_or(false),
            include_usage: body
                .stream_options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
            prompt_tokens,
            tokens: all[..count].iter().map(|&token| token.to_owned()).collect(),
            finish_reason: if count < all.len() { "length" } else { "stop" },
            id,
            created,
        })
    }

    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// How many the prompt has.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// All of it.
    pub fn whole(&self) -> Value {
        let text = self.tokens.concat();
        let (choice, object) = match self.kind {
            Kind::Chat => (
                json!({"finish_reason": self.finish_reason, "index": 0,
                       "message": {"role": "assistant", "content": text}}),
                "chat.completion",
            ),
            Kind::Completion => (
                json!({"text": text, "index": 0, "logprobs": null, "finish_reason": self.finish_reason}),
                "text_completion",
            ),
        };
        let mut whole = self.object(&json!([choice]), object);
        whole["usage"] = self.usage();
        whole["timings"] = self.timings();
        whole
    }

    /// The writes of the stream, in order.
    pub fn frames(&self) -> Vec<Frame> {
        let mut frames: Vec<Frame> = (self.tokens.iter().map(|token| self.delta(token)))
            .map(|frame| Frame {
                text: event(&frame),
                token: true,
            })
            .collect();
        if let (Kind::Chat, Some(first)) = (self.kind, frames.first_mut()) {
            // The first write holds two events.
            let role = json!([{"finish_reason": null, "index": 0, "delta": {"role": "assistant", "content": null}}]);
            first
                .text
                .insert_str(0, &event(&self.object(&role, "chat.completion.chunk")));
        }
        let mut end = self.last().iter().map(event).collect::<String>();
        end.push_str("data: [DONE]\n\n");
        frames.push(Frame {
            text: end,
            token: false,
        });
        frames
    }

    fn delta(&self, token: &str) -> Value {
        match self.kind {
            Kind::Chat => self.object(
                &json!([{"finish_reason": null, "index": 0, "delta": {"content": token}}]),
                "chat.completion.chunk",
            ),
            Kind::Completion => self.object(
                &json!([{"text": token, "index": 0, "logprobs": null, "finish_reason": null}]),
                "text_completion",
            ),
        }
    }

    /// What stands behind the tokens.
    fn last(&self) -> Vec<Value> {
        let reason = self.finish_reason;
        if self.kind == Kind::Completion {
            let end = json!([{"text": "", "index": 0, "logprobs": null, "finish_reason": reason}]);
            let mut end = self.object(&end, "text_completion");
            end["usage"] = self.usage();
            end["timings"] = self.timings();
            return vec![end];
        }
        let end = json!([{"finish_reason": reason, "index": 0, "delta": {}}]);
        let mut frames = vec![self.object(&end, "chat.completion.chunk")];
        if self.include_usage {
            let mut usage = self.object(&json!([]), "chat.completion.chunk");
            usage["usage"] = self.usage();
            frames.push(usage);
        }
        let at = frames.len() - 1;
        frames[at]["timings"] = self.timings();
        frames
    }

    fn object(&self, choices: &Value, object: &str) -> Value {
        json!({
            "choices": choices,
            "created": self.created,
            "id": self.id,
            "model": MODEL,
            "system_fingerprint": BUILD,
            "object": object,
        })
    }

    fn usage(&self) -> Value {
        let (given, made) = (self.prompt_tokens, self.len());
        json!({
            "completion_tokens": made,
            "prompt_tokens": given,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": 0},
        })
    }

    fn timings(&self) -> Value {
        let made = self.len();
        json!({
            "cache_n": 0,
            "prompt_n": self.prompt_tokens,
            "prompt_ms": 1.0,
            "prompt_per_token_ms": 1.0 / count(self.prompt_tokens),
            "prompt_per_second": count(self.prompt_tokens) * 1_000.0,
            "predicted_n": made,
            "predicted_ms": count(made) * count(TOKEN_MS),
            "predicted_per_token_ms": count(TOKEN_MS),
            "predicted_per_second": 1_000.0 / count(TOKEN_MS),
        })
    }
}

/// A number of tokens or milliseconds, for a quotient.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

fn event(frame: &Value) -> String {
    format!("data: {frame}\n\n")
}

/// What the user said last, and the tokens of all messages.
fn chat(messages: Option<&Value>) -> Result<(String, usize), Refusal> {
    let messages = messages.filter(|messages| !messages.is_null());
    let messages = messages.ok_or_else(|| Refusal::invalid("'messages' is required"))?;
    let messages = messages
        .as_array()
        .ok_or_else(|| Refusal::invalid("Expected 'messages' to be an array"))?;
    let said: Vec<(Option<&str>, String)> = messages
        .iter()
        .map(|message| (message["role"].as_str(), content(&message["content"])))
        .collect();
    let count = said.iter().map(|(_, text)| tokens(text).len()).sum();
    let last = said
        .into_iter()
        .rev()
        .find(|(role, _)| *role == Some("user"));
    Ok((last.map(|(_, text)| text).unwrap_or_default(), count))
}

/// The text of a message: one string, or parts of which some are text.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn prompt(prompt: Option<&Value>) -> Result<(String, usize), Refusal> {
    let text = match prompt {
        None | Some(Value::Null) => return Err(Refusal::invalid("'prompt' is required")),
        Some(Value::String(text)) => text,
        Some(Value::Array(prompts)) => match prompts.as_slice() {
            [Value::String(text)] => text,
            _ => {
                return Err(Refusal::invalid(
                    "the built-in engine of orchd's demo takes one prompt per request, as a text",
                ));
            }
        },
        Some(_) => return Err(Refusal::invalid("'prompt' must be a text")),
    };
    Ok((text.clone(), tokens(text).len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, body: &Value) -> Result<Answer, Refusal> {
        Answer::to(
            kind,
            body.to_string().as_bytes(),
            "node-1",
            "chatcmpl-1".into(),
            7,
        )
    }

    fn hello(more: &Value) -> Value {
        let mut body = json!({"messages": [{"role": "user", "content": "Hello there"}]});
        let more = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(more);
        body
    }

    #[test]
    fn a_stream_and_a_whole_answer_say_the_same() {
        for (kind, body) in [
            (Kind::Chat, hello(&json!({}))),
            (Kind::Completion, json!({"prompt": "Hello there"})),
        ] {
            let answer = ask(kind, &body).expect("an answer");
            let whole = answer.whole();
            let choice = &whole["choices"][0];
            let text = match kind {
                Kind::Chat => &choice["message"]["content"],
                Kind::Completion => &choice["text"],
            };
            let mut streamed = String::new();
            let mut reason = Value::Null;
            for frame in answer.frames() {
                for data in frame.text.split_terminator("\n\n") {
                    let data = data.strip_prefix("data: ").expect("an event");
                    let Ok(frame) = serde_json::from_str::<Value>(data) else {
                        assert_eq!(data, "[DONE]");
                        continue;
                    };
                    let choice = &frame["choices"][0];
                    let token = match kind {
                        Kind::Chat => &choice["delta"]["content"],
                        Kind::Completion => &choice["text"],
                    };
                    streamed.push_str(token.as_str().unwrap_or_default());
                    if !choice["finish_reason"].is_null() {
                        reason = choice["finish_reason"].clone();
                    }
                }
            }
            assert_eq!(*text, streamed);
            assert_eq!(
                (&reason, &choice["finish_reason"]),
                (&json!("stop"), &json!("stop"))
            );
            assert_eq!(whole["usage"]["prompt_tokens"], 2);
            assert_eq!(whole["usage"]["completion_tokens"], answer.len());
        }
    }

    #[test]
    fn an_answer_ends_where_it_was_told_to() {
        for (limit, tokens) in [
            (json!({"max_tokens": 3}), 3),
            (json!({"max_completion_tokens": 5}), 5),
            (json!({"max_tokens": 0}), 1),
        ] {
            let answer = ask(Kind::Chat, &hello(&limit)).expect("an answer");
            assert_eq!(answer.len(), tokens, "{limit}");
            assert_eq!(answer.whole()["choices"][0]["finish_reason"], "length");
        }
        for endless in [json!({"max_tokens": -1}), json!({"max_tokens": 100_000})] {
            let answer = ask(Kind::Chat, &hello(&endless)).expect("an answer");
            assert_eq!(answer.whole()["choices"][0]["finish_reason"], "stop");
        }
    }

    #[test]
    fn usage_is_a_frame_of_its_own_when_it_is_asked_for() {
        let asked =
            json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 2});
        let answer = ask(Kind::Chat, &hello(&asked)).expect("an answer");
        assert!(answer.stream);
        let frames = answer.frames();
        let events: Vec<usize> = (frames.iter())
            .map(|frame| frame.text.matches("data: ").count())
            .collect();
        // Role and first token; the second; the reason, the usage and the end.
        assert_eq!(events, [2, 1, 3]);
        assert!(frames[2].text.contains("\"choices\":[]"));
        assert!(!frames[2].token);
    }

    #[test]
    fn mistakes_are_told_as_the_engine_tells_them() {
        let long = hello(&json!({"messages": [{"role": "user", "content": "a ".repeat(N_CTX)}]}));
        for (body, status, kind, message) in [
            (
                json!({}),
                400,
                "invalid_request_error",
                "'messages' is required",
            ),
            (
                json!({"messages": "x"}),
                400,
                "invalid_request_error",
                "Expected 'messages' to be an array",
            ),
            (
                hello(&json!({"n": 2})),
                400,
                "invalid_request_error",
                "n must be 1",
            ),
            (
                long,
                400,
                "exceed_context_size_error",
                "exceeds the available context size",
            ),
        ] {
            let refusal = ask(Kind::Chat, &body).expect_err("a refusal");
            assert_eq!(refusal.status, status, "{body:.80}");
            assert_eq!(refusal.body["error"]["type"], kind);
            let said = refusal.body["error"]["message"].as_str();
            assert!(said.is_some_and(|said| said.contains(message)), "{said:?}");
        }
        let broken = Answer::to(Kind::Chat, b"{", "node-1", String::new(), 0);
        assert_eq!(broken.expect_err("a refusal").status, 500);
    }
}
