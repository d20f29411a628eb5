//! How the streams of each endpoint tell an error of ours: their last event, and then the proper end.
//!
//! Used by `gateway_drain` and `gateway_stop`.

use serde_json::Value;
use tokio::time::Instant;

use super::http::Events;

/// Every endpoint with streams.
pub const ENDPOINTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
];

/// The code of the error that is a frame of a stream of `target`, in the form that it has there.
pub fn code_in(target: &str, frame: &[String]) -> String {
    let data = |line: &str| -> Value {
        let data = line.strip_prefix("data: ").expect("data");
        serde_json::from_str(data).expect("JSON")
    };
    let error = match (target, frame) {
        ("/v1/responses", [name, line]) if name == "event: error" => {
            let event = data(line);
            assert_eq!(event["type"], "error", "{event}");
            event
        }
        ("/v1/messages", [name, line]) if name == "event: error" => {
            let event = data(line);
            assert_eq!(event["type"], "error", "{event}");
            event["error"].clone()
        }
        ("/v1/chat/completions" | "/v1/completions", [line]) => data(line)["error"].clone(),
        _ => panic!("not an error of {target}: {frame:?}"),
    };
    assert!(error["message"].is_string(), "{target}: {error}");
    error["code"].as_str().unwrap_or_default().to_owned()
}

/// Reads a stream of `target` to its proper end: numbered events from `first` on, and then the error of this code, with no
/// `[DONE]`. Gives when that was.
pub fn ends_with(target: &str, mut events: Events, first: usize, code: &str) -> Instant {
    let mut frames = Vec::new();
    while let Some(frame) = events.frame().expect("a proper end") {
        frames.push(frame);
    }
    let ended = Instant::now();
    let last = frames.pop().expect("an event");
    assert_eq!(code_in(target, &last), code, "{target}");
    for (number, frame) in frames.iter().enumerate() {
        let event = format!("data: {{\"n\":{}}}", first + number);
        assert_eq!(frame[..], [event], "{target}");
    }
    ended
}
