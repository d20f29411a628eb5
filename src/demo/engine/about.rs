//! What the built-in engine says of itself, in the shape that llama-server gives it, as far as somebody reads it.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::work::Work;
use super::{BUILD, MODEL, N_CTX};

pub(super) fn props(work: &Work) -> Value {
    json!({
        "default_generation_settings": {"params": {"max_tokens": -1, "stream": false}, "n_ctx": N_CTX},
        "total_slots": work.slots().len(),
        "model_alias": MODEL,
        "model_path": "(built in)",
        "modalities": {"vision": false, "video": false, "audio": false},
        "endpoint_slots": true,
        "endpoint_props": false,
        "endpoint_metrics": true,
        "ui": false,
        "chat_template": "",
        "build_info": BUILD,
        "is_sleeping": false,
    })
}

pub(super) fn slots(work: &Work) -> Value {
    let slots = work.slots().into_iter().enumerate();
    slots
        .map(|(id, busy)| {
            json!({"id": id, "n_ctx": N_CTX, "speculative": false, "is_processing": busy})
        })
        .collect()
}

pub(super) fn models(started_s: u64) -> Value {
    json!({
        "object": "list",
        "data": [{
            "id": MODEL,
            "aliases": [MODEL],
            "tags": [],
            "object": "model",
            "created": started_s,
            "owned_by": "orchd",
            "meta": {"n_ctx": N_CTX, "n_ctx_train": N_CTX},
        }],
    })
}

pub(super) fn metrics(work: &Work) -> String {
    let busy = work.slots().into_iter().filter(|busy| *busy).count();
    let lines = [
        (
            "prompt_tokens_total",
            "counter",
            "Number of prompt tokens processed",
            work.prompt_tokens.load(Ordering::Relaxed),
        ),
        (
            "tokens_predicted_total",
            "counter",
            "Number of generation tokens processed",
            work.predicted_tokens.load(Ordering::Relaxed),
        ),
        (
            "requests_processing",
            "gauge",
            "Number of requests processing",
            busy as u64,
        ),
        (
            "requests_deferred",
            "gauge",
            "Number of requests deferred",
            work.deferred.load(Ordering::Relaxed) as u64,
        ),
    ];
    lines
        .into_iter()
        .map(|(name, kind, help, value)| {
            format!(
                "# HELP llamacpp:{name} {help}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
            )
        })
        .collect()
}
