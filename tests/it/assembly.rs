//! An answer through the gateway is the engine's own, key by key and value by value, although it may have been streamed on
//! the way and put together again. The engine is the real one; what its models say is not the matter here, only that it
//! is the same both ways.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::engine::{Engine, Model};
use crate::support::http;
use crate::support::orchd::Orchd;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// SmolLM2's own template knows neither tools nor thoughts.
const TEMPLATE: &[&str] = &[
    "--jinja",
    "--chat-template-file",
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/engine/tools_and_thoughts.jinja"
    ),
];

/// The status, the type and the body of an answer.
type Said = (u16, Option<String>, Value);

fn ask(address: SocketAddr, path: &str, body: &Value) -> Said {
    let response = http::post(address, path, body).expect("an answer");
    let kind = response.header("content-type").map(str::to_owned);
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().to_owned());
    (response.status, kind, comparable(response.json()))
}

/// Hides what is another one each time: ids, the time, and how long it took.
fn comparable(mut answer: Value) -> Value {
    for name in ["id", "created"] {
        if let Some(value) = answer.get_mut(name) {
            *value = json!("-");
        }
    }
    for place in ["/timings", "/__verbose/timings"] {
        let timings = answer.pointer_mut(place).and_then(Value::as_object_mut);
        for value in timings.into_iter().flat_map(|timings| timings.values_mut()) {
            *value = json!("-");
        }
    }
    let calls = answer.pointer_mut("/choices/0/message/tool_calls");
    let calls = calls.and_then(Value::as_array_mut).into_iter().flatten();
    for call in calls {
        call["id"] = json!("-");
    }
    answer
}

/// Asks the engine itself and then through orchd. What they both said is given by the name of the case.
fn same_both_ways(
    engine: &Engine,
    cases: &[(&'static str, &str, Value)],
) -> Vec<(&'static str, Said)> {
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let mut all = Vec::new();
    for (name, path, case) in cases {
        // The same words each time.
        let mut body = json!({"temperature": 0, "seed": 1, "cache_prompt": false});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(case.as_object().expect("an object").clone());
        let direct = ask(engine.address, path, &body);
        let relayed = ask(orchd.address, path, &body);
        assert_eq!(relayed, direct, "{name}");
        all.push((*name, direct));
    }
    all
}

/// What is asked, and what is written of the answer already.
fn messages(asked: &str, begun: Option<&str>) -> Value {
    let mut messages = vec![json!({"role": "user", "content": asked})];
    messages.extend(begun.map(|begun| json!({"role": "assistant", "content": begun})));
    messages.into()
}

#[test]
fn an_answer_of_a_model_that_counts_is_the_same_both_ways() {
    let engine = Engine::start(Model::Counting, 2, 4_096);
    let count = || messages("Count!", None);
    let begun = messages("Count!", Some(" one two three"));
    let said = same_both_ways(
        &engine,
        &[
            ("plain", CHAT, json!({"messages": count()})),
            (
                "no stream",
                CHAT,
                json!({"messages": count(), "stream": false}),
            ),
            (
                "null",
                CHAT,
                json!({"messages": count(), "stream": null, "stream_options": {}}),
            ),
            (
                "stop",
                CHAT,
                json!({"messages": count(), "stop": [" five"]}),
            ),
            (
                "stop within",
                CHAT,
                json!({"messages": count(), "stop": ["ve si"]}),
            ),
            (
                "length",
                CHAT,
                json!({"messages": count(), "max_tokens": 3}),
            ),
            (
                "nothing",
                CHAT,
                json!({"messages": count(), "max_tokens": 0}),
            ),
            ("begun", CHAT, json!({"messages": begun, "max_tokens": 3})),
            (
                "progress",
                CHAT,
                json!({"messages": count(), "max_tokens": 2, "return_progress": true}),
            ),
            (
                "logprobs",
                CHAT,
                json!({"messages": count(), "logprobs": true, "top_logprobs": 1}),
            ),
            (
                "text logprobs",
                TEXT,
                json!({"prompt": "Count!", "logprobs": 1}),
            ),
            (
                "text logprobs, stop",
                TEXT,
                json!({"prompt": "Count!", "logprobs": 1, "stop": [" five"]}),
            ),
            (
                "timings",
                CHAT,
                json!({"messages": count(), "max_tokens": 2, "timings_per_token": true}),
            ),
            (
                "two",
                CHAT,
                json!({"messages": count(), "max_tokens": 3, "n": 2}),
            ),
            (
                "two by its name",
                CHAT,
                json!({"messages": count(), "max_tokens": 3, "n": 1, "n_cmpl": 2}),
            ),
            ("text", TEXT, json!({"prompt": "Count!"})),
            (
                "text stop",
                TEXT,
                json!({"prompt": "Count!", "stop": [" five"], "stream": false}),
            ),
            (
                "text length",
                TEXT,
                json!({"prompt": ["Count!"], "max_tokens": 3}),
            ),
            (
                "text echo",
                TEXT,
                json!({"prompt": "Count!", "echo": true, "max_tokens": 3}),
            ),
            (
                "texts",
                TEXT,
                json!({"prompt": ["Count!", "On!"], "max_tokens": 3}),
            ),
            (
                "wrong stream",
                CHAT,
                json!({"messages": count(), "stream": 1}),
            ),
            ("wrong n", CHAT, json!({"messages": count(), "n": "1"})),
            ("no prompt", TEXT, json!({"max_tokens": 3})),
            ("too long", TEXT, json!({"prompt": "Count! ".repeat(3_000)})),
        ],
    );
    for (name, (status, kind, answer)) in said {
        let refused = ["wrong stream", "wrong n", "no prompt", "too long"].contains(&name);
        assert_eq!(status, if refused { 400 } else { 200 }, "{name}: {answer}");
        assert_eq!(kind.as_deref(), Some("application/json"), "{name}");
    }
}

#[test]
fn an_answer_of_a_model_that_speaks_is_the_same_both_ways() {
    let engine = Engine::start_with(Model::SmolLm2, 1, 2_048, TEMPLATE);
    let no_thoughts = json!({"enable_thinking": false});
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["city", "days"],
    }}});
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}\n";
    let called = messages("Weather?", Some(call));
    let another =
        "</tool_call>\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"O";
    let calling = messages("Weather?", Some(&format!("{call}{another}")));
    let astray = messages("Weather?", Some(&format!("{call}</tool_call>\nSo")));
    let schema = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}},
        "required": ["name"],
    }}});
    let hi = || messages("Hi!", None);
    let thoughts = "root ::= [a-z ]{6} \"\\n</think>\\n\\n\" [A-Z ]{6}";
    let said = same_both_ways(
        &engine,
        &[
            (
                "plain",
                CHAT,
                json!({"messages": hi(), "max_tokens": 4, "chat_template_kwargs": no_thoughts}),
            ),
            (
                "emoji",
                CHAT,
                json!({"messages": messages("😀 ü 日本", None), "max_tokens": 7, "chat_template_kwargs": no_thoughts}),
            ),
            (
                "schema",
                CHAT,
                json!({"messages": hi(), "response_format": schema, "chat_template_kwargs": no_thoughts}),
            ),
            (
                "empty",
                CHAT,
                json!({"messages": hi(), "grammar": "root ::= \"\"", "chat_template_kwargs": no_thoughts}),
            ),
            (
                "logprobs",
                CHAT,
                json!({"messages": hi(), "max_tokens": 3, "logprobs": true, "top_logprobs": 2}),
            ),
            (
                "logprobs, stop",
                CHAT,
                json!({"messages": hi(), "max_tokens": 9, "logprobs": true, "top_logprobs": 1, "stop": ["\n"]}),
            ),
            (
                "thoughts",
                CHAT,
                json!({"messages": hi(), "grammar": thoughts}),
            ),
            (
                "thoughts cut",
                CHAT,
                json!({"messages": hi(), "max_tokens": 3}),
            ),
            (
                "legacy",
                CHAT,
                json!({"messages": hi(), "grammar": thoughts, "reasoning_format": "deepseek-legacy"}),
            ),
            (
                "raw",
                CHAT,
                json!({"messages": hi(), "grammar": thoughts, "reasoning_format": "none"}),
            ),
            (
                "tool call",
                CHAT,
                json!({
                    "messages": called, "tools": [tool], "max_tokens": 9, "stop": ["</tool_call>"],
                    "logit_bias": [["</tool_call>", 100]], "chat_template_kwargs": no_thoughts,
                }),
            ),
            (
                "tool calls",
                CHAT,
                json!({
                    "messages": calling, "tools": [tool], "parallel_tool_calls": true, "max_tokens": 5,
                    "chat_template_kwargs": no_thoughts,
                }),
            ),
            (
                "tools, logprobs",
                CHAT,
                json!({
                    "messages": hi(), "tools": [tool], "max_tokens": 3, "logprobs": true, "top_logprobs": 1,
                    "chat_template_kwargs": no_thoughts,
                }),
            ),
            (
                "verbose",
                CHAT,
                json!({"messages": hi(), "max_tokens": 2, "verbose": true}),
            ),
            (
                "text",
                TEXT,
                json!({"prompt": "Once upon", "max_tokens": 4}),
            ),
            (
                "text logprobs",
                TEXT,
                json!({"prompt": "Once upon", "max_tokens": 3, "logprobs": 2}),
            ),
            (
                "text n_probs",
                TEXT,
                json!({"prompt": "Once upon", "max_tokens": 3, "n_probs": 1, "stop": [" a", ","]}),
            ),
            (
                "text schema",
                TEXT,
                json!({"prompt": "A name:", "json_schema": schema["json_schema"]["schema"]}),
            ),
            (
                "tokens",
                TEXT,
                json!({"prompt": [28, 216, "hi"], "max_tokens": 3}),
            ),
            ("empty text", TEXT, json!({"prompt": "", "max_tokens": 3})),
            (
                "astray",
                CHAT,
                json!({
                    "messages": astray, "tools": [tool], "max_tokens": 4, "chat_template_kwargs": no_thoughts,
                }),
            ),
        ],
    );
    // That each case is what it is here for.
    let of = |wanted: &str| {
        let found = said.iter().find(|(name, _)| *name == wanted);
        &found.expect("a case").1
    };
    for (name, place) in [
        ("thoughts", "/choices/0/message/reasoning_content"),
        ("logprobs", "/choices/0/logprobs/content/2/token"),
        ("text logprobs", "/choices/0/logprobs/content/2/token"),
        (
            "tool call",
            "/choices/0/message/tool_calls/0/function/arguments",
        ),
        (
            "tool calls",
            "/choices/0/message/tool_calls/1/function/name",
        ),
        ("tools, logprobs", "/choices/0/logprobs/content/2/token"),
        ("verbose", "/__verbose/generation_settings"),
    ] {
        let (status, _, answer) = of(name);
        assert_eq!(*status, 200, "{name}: {answer}");
        assert!(answer.pointer(place).is_some(), "{name}: {answer}");
    }
    let (status, kind, answer) = of("astray");
    assert_eq!(*status, 500, "an error after the first words: {answer}");
    assert_eq!(kind.as_deref(), Some("application/json"));
}
