//! What llama-server said, streamed and whole, to the same question: `tests/fixtures/engine/assembly`, with temperature 0.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Puts a stream together that comes in pieces of these lengths, over and over.
fn assemble_cut(stream: &[u8], lengths: &[usize]) -> Result<Value, AssembleError> {
    let mut assembler = Assembler::default();
    let mut rest = stream;
    for length in lengths.iter().cycle() {
        let (piece, more) = rest.split_at((*length).min(rest.len()));
        assembler.push(piece)?;
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    let body = assembler.finish()?;
    Ok(serde_json::from_slice(&body).expect("it is JSON"))
}

fn assemble(stream: &str) -> Result<Value, AssembleError> {
    assemble_cut(stream.as_bytes(), &[usize::MAX])
}

/// The kinds of answers that are recorded: a name, the stream and the whole answer.
fn recorded() -> Vec<(String, String, Value)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/engine/assembly");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).expect("the recorded answers") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "sse") {
            let stream = fs::read_to_string(&path).expect("a stream");
            let whole = fs::read(path.with_extension("json")).expect("the answer of this stream");
            let name = path.file_stem().expect("a name").to_string_lossy();
            let whole = serde_json::from_slice(&whole).expect("JSON");
            all.push((name.into_owned(), stream, whole));
        }
    }
    assert!(all.len() >= 17, "{}", all.len());
    all
}

/// Hides what is another one each time: ids, the time, and how long it took.
fn comparable(mut answer: Value) -> Value {
    let hide = |value: &mut Value| {
        if !value.is_null() {
            *value = json!("-");
        }
    };
    hide(&mut answer["id"]);
    hide(&mut answer["created"]);
    for timing in answer["timings"]
        .as_object_mut()
        .into_iter()
        .flat_map(|timings| timings.values_mut())
    {
        hide(timing);
    }
    let calls = &mut answer["choices"][0]["message"]["tool_calls"];
    for call in calls.as_array_mut().into_iter().flatten() {
        hide(&mut call["id"]);
    }
    answer
}

#[test]
fn every_kind_of_answer_is_put_together_to_what_the_engine_says_without_streaming() {
    for (name, stream, whole) in recorded() {
        match assemble(&stream) {
            Ok(answer) => assert_eq!(comparable(answer), comparable(whole), "{name}"),
            Err(AssembleError::Engine { status, body }) => {
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                assert_eq!(body, whole, "{name}");
                assert_eq!(whole["error"]["code"], status.as_u16(), "{name}");
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
}

#[test]
fn the_fields_stand_in_the_engines_order() {
    let names = |json: &str| {
        let mut names = Vec::new();
        let mut assembled = json;
        while let Some((_, rest)) = assembled.split_once('"') {
            let (name, rest) = rest.split_once('"').expect("two of them");
            if rest.starts_with(':') {
                names.push(name.to_owned());
            }
            assembled = rest;
        }
        names
    };
    let dir = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/engine/assembly"
    );
    for name in [
        "chat_plain",
        "chat_reasoning",
        "chat_logprobs",
        "completion_logprobs",
    ] {
        let read = |extension| {
            fs::read_to_string(format!("{dir}/{name}.{extension}")).expect("a recorded answer")
        };
        let mut assembler = Assembler::default();
        assembler.push(read("sse").as_bytes()).expect("a stream");
        let body = assembler.finish().expect("an answer");
        let body = String::from_utf8(body.to_vec()).expect("text");
        assert_eq!(names(&body), names(&read("json")), "{name}");
    }
}

#[test]
fn a_stream_that_breaks_off_anywhere_is_incomplete() {
    for (name, stream, whole) in recorded() {
        if whole["error"].is_object() {
            continue;
        }
        let end = stream.find("data: [DONE]").expect("an end");
        for cut in (0..end + "data: [DONE]\n".len()).step_by(7) {
            let outcome = assemble_cut(&stream.as_bytes()[..cut], &[usize::MAX]);
            assert_eq!(outcome, Err(AssembleError::Incomplete), "{name} at {cut}");
        }
    }
    assert_eq!(assemble("data: [DONE]\n\n"), Err(AssembleError::Incomplete));
    // One that says no reason is whole all the same.
    let without_a_reason = "data: {\"choices\":[{\"index\":0,\"delta\":{}}]}\n\ndata: [DONE]\n\n";
    assert!(assemble(without_a_reason).is_ok());
}

#[test]
fn every_form_of_server_sent_events_is_understood() {
    let chunk = r#"{"choices":[{"index":0,"text":"hé","finish_reason":"stop"}],"a":1}"#;
    let wanted = json!({"choices": [{"text": "hé", "index": 0, "finish_reason": "stop"}], "a": 1});
    let (head, tail) = chunk.split_once(',').expect("a comma");
    for stream in [
        format!("data: {chunk}\n\ndata: [DONE]\n\n"),
        format!("data:{chunk}\n\ndata:[DONE]\n\n"),
        format!("data: {chunk}\r\n\r\ndata: [DONE]\r\n\r\n"),
        format!(": ping\n\n:\n\ndata: {chunk}\n\n: ping\n\ndata: [DONE]\n\n"),
        format!("event: message\nid: 7\nretry: 1\ndata: {chunk}\n\n\n\ndata: [DONE]\n\n"),
        format!("data: {head},\ndata: {tail}\n\ndata: [DONE]\n\n"),
        format!("data: null\n\ndata: {chunk}\n\ndata: [DONE]\n\ndata: [DONE]\n\ndata: more\n\n"),
    ] {
        assert_eq!(assemble(&stream).as_ref(), Ok(&wanted), "{stream:?}");
        let bytes: Result<Value, _> = assemble_cut(stream.as_bytes(), &[1]);
        assert_eq!(bytes, Ok(wanted.clone()), "{stream:?} byte by byte");
    }
}

#[test]
fn what_a_newer_engine_adds_is_kept() {
    let stream = r#"data: {"x":1,"usage":null,"choices":[{"index":0,"y":[1],"delta":{"role":"assistant","content":null,"refusal":null,"thought":"a\u00e9"}}]}

data: {"x":2.50,"choices":[{"index":0,"y":[2],"delta":{"content":"c","thought":"\"b","parts":[1]},"logprobs":{"content":[1, 2],"refusal":null,"base":7}}]}

data: {"choices":[{"index":0,"delta":{"parts":[],"tool_calls":[{"function":{"name":"f","arguments":"{","strict":true},"z":1,"index":3}]},"logprobs":{"content":[]}}]}

data: {"choices":[{"index":0,"delta":{"parts":[2,3],"tool_calls":[{"index":3,"function":{"arguments":"}"},"z":2},{"index":0,"type":"t"}]},"logprobs":{"content":[3]},"finish_reason":"stop"}],"object":"chat.completion.chunk"}

data: {"choices":[],"usage":{"n":1},"w":{"a":{}},"object":"chat.completion.chunk"}

data: [DONE]

"#;
    let wanted = json!({
        "choices": [{
            "finish_reason": "stop",
            "index": 0,
            "y": [2],
            "message": {
                "role": "assistant",
                "content": "c",
                "refusal": null,
                "thought": "aé\"b",
                "parts": [1, 2, 3],
                "tool_calls": [
                    {"type": "t", "function": {}},
                    {"function": {"name": "f", "arguments": "{}", "strict": true}, "z": 2},
                ],
            },
            "logprobs": {"content": [1, 2, 3], "refusal": null, "base": 7},
        }],
        "object": "chat.completion",
        "usage": {"n": 1},
        "x": 2.5,
        "w": {"a": {}},
    });
    assert_eq!(assemble(stream), Ok(wanted));
}

#[test]
fn an_error_in_the_stream_is_the_engines_answer() {
    let engine = |status, body: &str| {
        Err(AssembleError::Engine {
            status: StatusCode::from_u16(status).expect("a status"),
            body: body.to_owned().into(),
        })
    };
    let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (event, status, body) in [
        (
            r#"data: {"error":{"code":503,"message":"m","type":"t"}}"#,
            503,
            r#"{"error":{"code":503,"message":"m","type":"t"}}"#,
        ),
        (
            r#"error: {"code":400,"message":"m"}"#,
            400,
            r#"{"error":{"code":400,"message":"m"}}"#,
        ),
        (
            r#"data: {"error":{"code":"worker_reset"}}"#,
            500,
            r#"{"error":{"code":"worker_reset"}}"#,
        ),
        (
            r#"data: {"error":{"code":200}}"#,
            500,
            r#"{"error":{"code":200}}"#,
        ),
        (r#"data: {"error":"m"}"#, 500, r#"{"error":"m"}"#),
    ] {
        assert_eq!(
            assemble(&format!("{begun}{event}\n\n")),
            engine(status, body),
            "{event}"
        );
    }
}

#[test]
fn what_is_no_stream_of_one_answer_is_refused() {
    for bad in [
        "data: {\n\n",
        "data: [1]\n\n",
        "data: {} {}\n\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n",
        "data: {\"choices\":1}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[1]}}]}\n\n",
    ] {
        let outcome = assemble(bad);
        assert!(
            matches!(outcome, Err(AssembleError::Malformed { .. })),
            "{bad:?}: {outcome:?}"
        );
    }
    let no_text = assemble_cut(b"data: \"\xff\"\n\n", &[9]);
    assert!(matches!(no_text, Err(AssembleError::Malformed { .. })));
}

#[test]
fn an_endless_answer_is_given_up() {
    let text = "x".repeat(MAX_BYTES / 4);
    let chunk = format!("data: {{\"choices\":[{{\"text\":\"{text}\"}}]}}\n\n");
    let mut assembler = Assembler::default();
    let outcomes: Vec<_> = (0..4).map(|_| assembler.push(chunk.as_bytes())).collect();
    assert_eq!(outcomes.last(), Some(&Err(AssembleError::TooLarge)));
    assert!(outcomes[..2].iter().all(Result::is_ok));

    let line = vec![b'x'; MAX_BYTES / 4];
    let mut assembler = Assembler::default();
    let outcome = (0..5).try_for_each(|_| assembler.push(&line));
    assert_eq!(outcome, Err(AssembleError::TooLarge), "a line without end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_the_bytes_are_cut_the_answer_is_the_same(
        lengths in prop::collection::vec(1_usize..200, 1..12),
        windows in any::<bool>(),
    ) {
        for (name, stream, _) in recorded() {
            let stream = if windows { stream.replace('\n', "\r\n") } else { stream };
            let cut = assemble_cut(stream.as_bytes(), &lengths);
            prop_assert_eq!(cut, assemble(&stream), "{}", name);
        }
    }
}
