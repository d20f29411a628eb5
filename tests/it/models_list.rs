//! `orchd models list`: the table against golden copies, the rest by the real binary.

use orchd::commands::models::{joined, model_table};
use orchd::commands::pools::Layout;
use serde_json::{Value, json};

use crate::fake_control_plane::{Fake, step};
use crate::pools::{PLAIN, POOLS, pool};

const MODELS: &str = "GET /v1/models";

fn model(id: &str, meta: &Value) -> Value {
    json!({"id": id, "object": "model", "created": 1, "owned_by": "orchd", "meta": meta})
}

fn known() -> Value {
    let variant = |version: &str, n_ctx: u64, pools: u64| json!({"engine": "llamacpp", "engine_version": version, "n_ctx": n_ctx, "pools": pools, "slots": 8 * pools});
    let long = "Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF:Q4_K_M";
    json!({"object": "list", "data": [
        model(long, &json!({"n_ctx": 131_072, "n_ctx_max": 131_072, "slots": 0, "state": "draining",
            "variants": [variant("b10434", 131_072, 1)], "aliases": []})),
        model("gpt-4o-mini", &json!({"n_ctx": 4096, "n_ctx_max": 8192, "slots": 16, "state": "ready", "variants": [],
            "alias_of": ["qwen3-8b", "llama-3"]})),
        // As an older control plane shows it.
        model("old", &json!({"n_ctx": null, "slots": 0, "state": "unreachable"})),
        model("qwen3-8b", &json!({"n_ctx": 4096, "n_ctx_max": 8192, "slots": 16, "state": "ready",
            "variants": [variant("b10434", 4096, 1), variant("b10434", 8192, 1), variant("b9", 4096, 1)],
            "aliases": ["gpt-4o-mini"]})),
        model("モデル", &json!({"n_ctx": 2048, "n_ctx_max": 2048, "slots": 4, "state": "sleeping",
            "variants": [variant("b1", 2048, 1)], "aliases": []})),
        model("ghost", &json!({"n_ctx": null, "n_ctx_max": null, "slots": 0, "state": "absent", "variants": [],
            "alias_of": ["nothing"]})),
    ]})
}

fn pools() -> Value {
    let long = "Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF:Q4_K_M";
    let pools = [
        pool("gpu-1", "a", &json!({})),
        pool("gpu-1", "b", &json!({"slots_free": 8})),
        pool(
            "gpu-2",
            "a",
            &json!({"ready": false, "state": "unreachable"}),
        ),
        pool("gpu-3", "a", &json!({"models": [long], "draining": true})),
        pool(
            "gpu-4",
            "a",
            &json!({"models": ["モデル", "llama-3"], "slots_total": 4, "slots_free": 4}),
        ),
    ];
    json!({"pools": pools, "count": 5})
}

fn draw(layout: Layout) -> String {
    let known = serde_json::from_value(known()).expect("models");
    let pools: orchd::types::PoolList = serde_json::from_value(pools()).expect("pools");
    format!("\n{}", model_table(&joined(known, &pools.pools), layout))
}

#[test]
fn the_table_of_models_shows_what_each_name_stands_for_and_how_much_of_it_is_taken() {
    assert_eq!(
        draw(PLAIN),
        "
MODEL                                           STATE        SLOTS  NODES  POOLS        CTX  ALIASES
Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF:Q4_K_M  draining       0/0      0    0/1     131072  -
gpt-4o-mini                                     ready         3/20      2    3/4  4096-8192  ->qwen3-8b,llama-3
old                                             unreachable    0/0      0    0/0          -  -
qwen3-8b                                        ready         3/16      1    2/3  4096-8192  gpt-4o-mini
モデル                                          sleeping       0/4      1    1/1       2048  -
ghost                                           absent         0/0      0    0/0          -  ->nothing
"
    );
}

#[test]
fn it_fits_80_columns_and_wide_shows_engines_and_nodes() {
    let narrow = draw(Layout {
        width: Some(80),
        ..PLAIN
    });
    assert_eq!(
        narrow,
        "
MODEL              STATE        SLOTS  NODES  POOLS        CTX  ALIASES
Qwen/Qwen3-235B-…  draining       0/0      0    0/1     131072  -
gpt-4o-mini        ready         3/20      2    3/4  4096-8192  ->qwen3-8b,llam…
old                unreachable    0/0      0    0/0          -  -
qwen3-8b           ready         3/16      1    2/3  4096-8192  gpt-4o-mini
モデル             sleeping       0/4      1    1/1       2048  -
ghost              absent         0/0      0    0/0          -  ->nothing
"
    );
    let wide = draw(Layout {
        wide: true,
        ..PLAIN
    });
    let lines: Vec<&str> = wide.lines().skip(1).collect();
    assert_eq!(lines.len(), 7, "{wide}");
    let line = "4096-8192  gpt-4o-mini         llamacpp b10434 x2, llamacpp b9  gpu-1";
    assert!(lines[4].ends_with(line), "{wide}");
    let line = "->qwen3-8b,llama-3  -                                gpu-1,gpu-4";
    assert!(lines[2].ends_with(line), "{wide}");
}

#[test]
fn models_list_prints_names_and_json_and_says_when_there_are_none() {
    let none = json!({"object": "list", "data": []});
    let fake = Fake::start([
        step(MODELS, 200, &known()),
        step(MODELS, 200, &known()),
        step(POOLS, 200, &pools()),
        step(MODELS, 200, &none),
    ]);
    let ran = fake.run(&["models", "list", "-o", "name"]);
    assert_eq!(ran.exit, Some(0));
    assert!(
        ran.stdout.ends_with("old\nqwen3-8b\nモデル\nghost\n"),
        "{}",
        ran.stdout
    );
    let ran = fake.run(&["models", "list", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(seen["count"], 6);
    let alias = &seen["models"][1];
    assert_eq!(
        (
            &alias["model_id"],
            &alias["nodes"],
            &alias["total_capacity"],
            &alias["slots_free"]
        ),
        (
            &json!("gpt-4o-mini"),
            &json!(["gpu-1", "gpu-4"]),
            &json!(20),
            &json!(17)
        )
    );
    assert_eq!(alias["meta"]["alias_of"], json!(["qwen3-8b", "llama-3"]));
    let ran = fake.run(&["models", "list"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "",
            "no models\nhint: `orchd pools list` shows the engines and what they are doing\n"
        )
    );
    fake.asked();
}

#[test]
fn a_client_sees_its_models_and_not_where_they_are() {
    let refused = json!({"error": "this takes an operator's token", "message": "this takes an operator's token",
        "code": "FORBIDDEN", "retryable": false});
    let fake = Fake::start([
        step(MODELS, 200, &known()),
        step(POOLS, 403, &refused),
        step(MODELS, 200, &known()),
        step(POOLS, 403, &refused),
        step(MODELS, 200, &known()),
        step(POOLS, 401, &refused),
    ]);
    let ran = fake.run(&["models", "list"]);
    assert_eq!(
        (ran.exit, format!("\n{}", ran.stdout).as_str()),
        (
            Some(0),
            "
MODEL                                           STATE        SLOTS  NODES  POOLS        CTX  ALIASES
Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF:Q4_K_M  draining       -/0      -      -     131072  -
gpt-4o-mini                                     ready         -/16      -      -  4096-8192  ->qwen3-8b,llama-3
old                                             unreachable    -/0      -      -          -  -
qwen3-8b                                        ready         -/16      -      -  4096-8192  gpt-4o-mini
モデル                                          sleeping       -/4      -      -       2048  -
ghost                                           absent         -/0      -      -          -  ->nothing
"
        )
    );
    assert_eq!(
        ran.stderr,
        "this token is a client's: where models are, and how many slots are taken, is for operators\n"
    );
    let ran = fake.run(&["models", "list", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let alias = &seen["models"][1];
    assert_eq!(
        [
            &alias["total_capacity"],
            &alias["slots_free"],
            &alias["nodes"]
        ],
        [&json!(16), &Value::Null, &Value::Null]
    );
    // A token that is wrong altogether is another matter.
    assert_eq!(fake.run(&["models", "list"]).exit, Some(7));
    fake.asked();
}

#[test]
fn models_list_tells_a_refusal_in_the_gateways_form_as_other_verbs_tell_theirs() {
    let message = "this takes a token: send `Authorization: Bearer TOKEN`, or `x-api-key: TOKEN`";
    let error = json!({"error": {"message": message, "type": "authentication_error", "param": null, "code": "unauthorized"}});
    let fake = Fake::start([step(MODELS, 401, &error)]);
    let ran = fake.run(&["models", "list"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(7), ""));
    let server = fake.url();
    assert_eq!(
        ran.stderr,
        format!(
            "error: {server} does not accept this request: {message}\n\
             hint: put the control plane's token into ORCHD_API_TOKEN\n"
        )
    );
    fake.asked();
}
