//! Models as clients meet them, with the real binary and scripted engines, in both profiles: names that engines give,
//! aliases that operators give, and what is told of either.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::scripted_engine::{N_CTX, Script, ScriptedEngine};
use crate::support::orchd::Orchd;
use crate::support::{eventually, free_address, http};

const SOON: Duration = Duration::from_secs(10);

fn engine(model: &str, slots: usize) -> ScriptedEngine {
    let engine = ScriptedEngine::start(model, slots);
    engine.always(Script::whole(200, "{}"));
    engine
}

/// `/v1/models` as `ID STATE` lines.
fn listed(orchd: &Orchd) -> Vec<String> {
    let list = http::get_json(orchd.address, "/v1/models");
    let models = list["data"].as_array().expect("a list");
    let line = |model: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!("{} {}", text(&model["id"]), text(&model["meta"]["state"]))
    };
    models.iter().map(line).collect()
}

fn wait_listed(orchd: &Orchd, wanted: &[&str]) {
    eventually(SOON, "the models are listed", || match listed(orchd) {
        listed if listed == wanted => Ok(()),
        listed => Err(format!("{listed:?} instead of {wanted:?}")),
    });
}

/// The status of a request for a model, its error code, and the pool that answered it.
fn ask(orchd: &Orchd, model: &str) -> (u16, String, Option<String>) {
    let body = json!({"model": model, "input": "x"});
    let response = http::post(orchd.address, "/v1/embeddings", &body).expect("an answer");
    let pool = response.header("x-orchd-pool").map(str::to_owned);
    let (status, answer) = (response.status, response.json());
    let code = answer["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (status, code, pool)
}

const ALIASES: &str = r#"
[aliases]
"gpt-4o" = ["qwen3-8b", "/models/llama-3-00001-of-00002.gguf", "not-there"]
"org/für:alle" = "llama-3"
big = "llama-3"
ghost = ["not-there"]
"#;

/// What the aliases of the file come to over the engines `q` (qwen3-8b, two slots), `l` (llama-3, one) and `b` (big, one).
fn aliases_route_to_all_they_stand_for(orchd: &Orchd) {
    wait_listed(
        orchd,
        &[
            "big ready",
            "ghost absent",
            "gpt-4o ready",
            "llama-3 ready",
            "org/für:alle ready",
            "qwen3-8b ready",
        ],
    );
    // Whichever was picked least recently: both.
    let pools = |model: &str| {
        let mut pools: Vec<_> = (0..4)
            .map(|_| {
                let (status, _, pool) = ask(orchd, model);
                assert_eq!(status, 200, "{model}");
                pool.expect("a pool")
            })
            .collect();
        pools.sort();
        pools.dedup();
        pools
    };
    assert_eq!(pools("gpt-4o"), ["l", "q"]);
    assert_eq!(pools("org/für:alle"), ["l"]);
    assert_eq!(pools("qwen3-8b"), ["q"]);
    // An engine's own model and what the alias of its name stands for.
    assert_eq!(pools("big"), ["b", "l"]);
    assert_eq!(ask(orchd, "Gpt-4o").1, "model_not_found");

    let model = |path: &str| http::get_json(orchd.address, path);
    let gpt = model("/v1/models/gpt-4o");
    for (key, value) in [("id", "gpt-4o"), ("object", "model"), ("owned_by", "orchd")] {
        assert_eq!(gpt[key], value);
    }
    assert!(gpt["created"].is_u64(), "{gpt}");
    let variant = json!({"engine": "llamacpp", "engine_version": "b1-7e4c0a9", "n_ctx": N_CTX, "pools": 2, "slots": 3});
    assert_eq!(
        gpt["meta"],
        json!({"n_ctx": N_CTX, "n_ctx_max": N_CTX, "slots": 3, "state": "ready", "variants": [variant],
            "alias_of": ["qwen3-8b", "llama-3", "not-there"]})
    );
    assert_eq!(
        model("/v1/models/llama-3")["meta"]["aliases"],
        json!(["big", "gpt-4o", "org/für:alle"])
    );
    let ghost = &model("/v1/models/ghost")["meta"];
    assert_eq!(
        (&ghost["slots"], &ghost["n_ctx"], &ghost["variants"]),
        (&json!(0), &Value::Null, &json!([]))
    );
    for path in ["org/für:alle", "org%2Ff%C3%BCr%3Aalle", "org/f%C3%BCr:alle"] {
        assert_eq!(model(&format!("/v1/models/{path}"))["id"], "org/für:alle");
    }
    // Known, and waited for in vain.
    assert_eq!(ask(orchd, "ghost"), (503, "no_ready_pool".into(), None));
    // Only names that exist are offered, aliases among them.
    let missing = http::get(orchd.address, "/v1/models/gpt%2F5").expect("an answer");
    assert_eq!(missing.status, 404);
    let error = &missing.json()["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("model_not_found"), &json!("model"))
    );
    assert_eq!(
        error["message"],
        "the model \"gpt/5\" does not exist; there is: big, ghost, gpt-4o, llama-3, org/für:alle, qwen3-8b"
    );
}

#[test]
fn on_one_machine_an_alias_is_served_by_whatever_has_one_of_its_models() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("c.toml");
    fs::write(&config, ALIASES).expect("writes");
    let config = config.to_str().expect("UTF-8");
    let (q, l, b) = (
        engine("qwen3-8b", 2),
        engine("llama-3", 1),
        engine("big", 1),
    );
    let orchd = Orchd::serve_home(
        &[q.named("q"), l.named("l"), b.named("b")],
        &["--config", config, "--no-pool-wait", "100ms"],
    );
    aliases_route_to_all_they_stand_for(&orchd);
    // The body is not touched.
    let asked = l.asked();
    let names: Vec<Value> = asked
        .iter()
        .map(|asked| asked.json()["model"].clone())
        .collect();
    assert!(names.contains(&json!("gpt-4o")), "{names:?}");

    let ran = orchd.command(&["models", "list", "--no-headers"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = ran.stdout.lines().map(words).collect();
    assert_eq!(
        lines,
        [
            "big ready 0/2 1 2/2 2048 ->llama-3",
            "ghost absent 0/0 0 0/0 - ->not-there",
            "gpt-4o ready 0/3 1 2/2 2048 ->qwen3-8b,llama-3,not-there",
            "llama-3 ready 0/1 1 1/1 2048 big,gpt-4o,org/für:alle",
            "org/für:alle ready 0/1 1 1/1 2048 ->llama-3",
            "qwen3-8b ready 0/2 1 1/1 2048 gpt-4o",
        ]
    );
}

#[test]
fn in_a_fleet_an_alias_is_served_by_whatever_node_has_one_of_its_models() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("c.toml");
    fs::write(&config, ALIASES).expect("writes");
    let config = config.to_str().expect("UTF-8");
    let (q, l, b) = (
        engine("qwen3-8b", 2),
        engine("llama-3", 1),
        engine("big", 1),
    );
    let server = Orchd::serve_cloud(dir.path(), &["--config", config, "--no-pool-wait", "100ms"]);
    assert_eq!(
        listed(&server),
        [
            "big absent",
            "ghost absent",
            "gpt-4o absent",
            "org/für:alle absent"
        ],
        "aliases are known without a node"
    );
    let _one = Orchd::agent(&server.url(), "n1", &[q.named("q"), b.named("b")]);
    let two = Orchd::agent(&server.url(), "n2", &[l.named("l")]);
    aliases_route_to_all_they_stand_for(&server);

    // Of a model whose nodes are drained it is said that they are.
    let ran = server.command(&["nodes", "drain", "n2"]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    assert_eq!(
        listed(&server)[2..],
        [
            "gpt-4o ready",
            "llama-3 draining",
            "org/für:alle draining",
            "qwen3-8b ready"
        ]
    );
    assert_eq!(ask(&server, "org/für:alle").1, "no_ready_pool");
    assert_eq!(ask(&server, "gpt-4o").2.as_deref(), Some("q"));
    let ran = server.command(&["nodes", "undrain", "n2"]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    assert_eq!(ask(&server, "org/für:alle").2.as_deref(), Some("l"));

    // Whoever leaves takes the names of its models along; aliases stay.
    drop(two);
    let node = http::written("DELETE", "/v2/nodes/n2", &[], b"");
    let left = http::send(server.address, &node).expect("an answer");
    assert!(matches!(left.status, 204 | 404), "{}", left.status);
    assert_eq!(
        listed(&server),
        [
            "big ready",
            "ghost absent",
            "gpt-4o ready",
            "org/für:alle absent",
            "qwen3-8b ready"
        ]
    );
}

#[test]
fn an_alias_is_given_by_a_flag_as_well_and_a_model_less_request_needs_a_name_beside_it() {
    let q = engine("qwen3-8b", 1);
    let orchd = Orchd::serve_home(
        &[q.url()],
        &["--alias", "a=/m/qwen3-8b.gguf", "--alias=b=x,qwen3-8b"],
    );
    wait_listed(&orchd, &["a ready", "b ready", "qwen3-8b ready"]);
    for name in [
        "a",
        "b",
        "qwen3-8b",
        "/elsewhere/qwen3-8b.gguf",
        "/x/a.gguf",
    ] {
        assert_eq!(ask(&orchd, name).0, 200, "{name}");
    }
    let none = http::post(orchd.address, "/v1/embeddings", &json!({"input": "x"}));
    assert_eq!(none.expect("an answer").status, 400);
}

#[test]
fn a_model_that_a_handoff_file_declares_is_known_before_its_engine_answers_and_waited_for_while_the_file_is_gone()
 {
    let runtime = tempfile::tempdir().expect("a directory");
    let file = runtime.path().join("a.json");
    let dir = runtime.path().to_str().expect("UTF-8");
    let handoff =
        |url: &str| json!({"url": url, "model": {"path": "/m/m-00001-of-00002.gguf"}}).to_string();
    fs::write(&file, handoff(&format!("http://{}", free_address()))).expect("writes");
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", dir, "--no-pool-wait", "8s"]);
    wait_listed(&orchd, &["m unreachable"]);

    let gone = || {
        fs::remove_file(&file).expect("removes");
        wait_listed(&orchd, &[]);
    };
    gone();
    // A request that comes in between is served when the file is back.
    let body = json!({"model": "m", "input": "x"}).to_string();
    let headers = [("content-type", "application/json")];
    let request = http::written("POST", "/v1/embeddings", &headers, body.as_bytes());
    let waiting = http::begin(orchd.address, &request).expect("goes out");
    let m = engine("m", 1);
    fs::write(&file, handoff(&m.url())).expect("writes");
    let answer = waiting.answer().expect("an answer");
    assert_eq!(answer.status, 200);
    answer.text().expect("a body");

    // What was never there is told so at once.
    gone();
    assert_eq!(ask(&orchd, "n").1, "model_not_found");
}
