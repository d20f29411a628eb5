//! `/openapi.json` from outside: whole, sound, and the same as what is served. What clients may send and get by it is
//! proven by `tests/openapi.sh`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::http::{self, written};
use crate::support::orchd::Orchd;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];
/// Calls that need no token.
const OPEN: [&str; 4] = ["/health", "/livez", "/metrics", "/readyz"];
/// All calls.
const CALLS: [&str; 16] = [
    "DELETE /v2/nodes/{id}",
    "DELETE /v2/nodes/{id}/drain",
    "GET /health",
    "GET /livez",
    "GET /metrics",
    "GET /openapi.json",
    "GET /readyz",
    "GET /v2/catalog/availability",
    "GET /v2/events",
    "GET /v2/meta/version",
    "GET /v2/nodes",
    "GET /v2/nodes/{id}",
    "GET /v2/pools",
    "POST /v2/nodes/register",
    "POST /v2/nodes/{id}/drain",
    "POST /v2/nodes/{id}/heartbeat",
];

fn cloud() -> (Orchd, tempfile::TempDir) {
    let state = tempfile::tempdir().expect("a directory for the state");
    (Orchd::serve_cloud(state.path(), &[]), state)
}

fn document(address: SocketAddr) -> Value {
    http::get_json(address, "/openapi.json")
}

/// Every operation: its method, its path and itself.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let mut found = Vec::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("a path item") {
            assert!(METHODS.contains(&method.as_str()), "{method} {path}");
            found.push((method.clone(), path.clone(), operation));
        }
    }
    found
}

/// Calls `see` with every value in a document.
fn walk<'a>(value: &'a Value, see: &mut impl FnMut(&'a Value)) {
    see(value);
    match value {
        Value::Array(values) => values.iter().for_each(|value| walk(value, see)),
        Value::Object(fields) => fields.values().for_each(|value| walk(value, see)),
        _ => {}
    }
}

#[test]
fn the_description_is_whole_and_sound_in_both_profiles() {
    let (cloud, _state) = cloud();
    let document = document(cloud.address);
    let home = Orchd::serve_home(&[], &[]);
    assert_eq!(document, self::document(home.address), "it is one for both");
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));

    let calls: Vec<String> = operations(&document)
        .iter()
        .map(|(method, path, _)| format!("{} {path}", method.to_uppercase()))
        .collect();
    let calls: BTreeSet<&str> = calls.iter().map(String::as_str).collect();
    let expected: BTreeSet<&str> = CALLS.into_iter().collect();
    assert_eq!(calls, expected);

    // Whatever is referred to is there, and whatever is there is referred to.
    let mut targets = BTreeSet::new();
    walk(&document, &mut |value| {
        if let Some(target) = value.get("$ref").and_then(Value::as_str) {
            let pointer = target.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{target}");
            targets.insert(target.to_owned());
        }
    });
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    for name in schemas.keys() {
        let target = format!("#/components/schemas/{name}");
        assert!(targets.contains(&target), "nobody refers to {name}");
    }
}

#[test]
fn every_call_is_described_with_its_refusals_and_what_it_needs() {
    let (cloud, _state) = cloud();
    let document = document(cloud.address);
    let schemes = &document["components"]["securitySchemes"];
    assert_eq!(schemes["bearer"]["scheme"], "bearer");
    assert_eq!(schemes["api_key"]["name"], "x-api-key");
    assert_eq!(
        document["security"],
        json!([{"bearer": []}, {"api_key": []}])
    );
    let mut names = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let call = format!("{method} {path}");
        let name = operation["operationId"].as_str().expect("a name");
        assert!(names.insert(name), "{name} is one call's name");
        assert!(operation["summary"].is_string(), "{call}");
        let open = OPEN.contains(&path.as_str());
        let security = operation.get("security");
        assert_eq!(security, open.then_some(&json!([{}])), "{call}");
        let parameters = operation["parameters"].as_array();
        let in_path = parameters
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path");
        assert_eq!(in_path.count(), path.matches('{').count(), "{call}");

        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses {
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            if status.starts_with(['4', '5']) && path != "/readyz" {
                assert_eq!(*schema, "#/components/schemas/ErrorBody", "{call} {status}");
            }
        }
        let has = |status: &str| responses.contains_key(status);
        assert_eq!(has("401"), !open, "{call}");
        let about_nodes = path.starts_with("/v2/nodes");
        assert_eq!(has("503"), about_nodes || path == "/readyz", "{call}");
        assert_eq!(has("404"), path.contains("{id}"), "{call}");
        let has_body = operation.get("requestBody").is_some();
        assert_eq!(has_body, method == "post", "{call}");
        assert!(
            !has_body || (has("400") && has("413") && has("415")),
            "{call}"
        );
    }
    let drain = &document["paths"]["/v2/nodes/{id}/drain"]["post"];
    assert_eq!(drain["requestBody"]["required"], false);
    let register = &document["paths"]["/v2/nodes/register"]["post"];
    assert_eq!(register["requestBody"]["required"], true);
}

#[test]
fn the_description_tells_the_limits_that_are_kept() {
    use orchd::types::{MAX_GPUS, MAX_LABELS, MAX_POOLS};
    let (cloud, _state) = cloud();
    let document = document(cloud.address);
    let property = |schema: &str, name: &str| -> &Value {
        &document["components"]["schemas"][schema]["properties"][name]
    };
    assert_eq!(property("RegisterRequest", "pools")["maxItems"], MAX_POOLS);
    assert_eq!(property("HeartbeatRequest", "pools")["maxItems"], MAX_POOLS);
    assert_eq!(
        property("RegisterRequest", "engines")["maxItems"],
        MAX_POOLS
    );
    assert_eq!(property("Capabilities", "gpus")["maxItems"], MAX_GPUS);
    let labels = property("RegisterRequest", "labels");
    assert_eq!(labels["maxProperties"], MAX_LABELS);
    assert_eq!(labels["additionalProperties"]["type"], "string");
    let id = &document["components"]["schemas"]["NodeId"];
    assert_eq!(id["pattern"], "^[A-Za-z0-9][A-Za-z0-9._-]*$");
    assert_eq!(
        (&id["minLength"], &id["maxLength"]),
        (&json!(1), &json!(128))
    );
    // No number is larger than what the server reads, and none has a format that nobody knows.
    walk(&document, &mut |value| match value["format"].as_str() {
        Some("uint32") => assert_eq!(value["maximum"], u32::MAX),
        Some("uint64") => assert_eq!(value["maximum"], u64::MAX),
        Some(other) => panic!("{other:?} is no format of ours"),
        None => {}
    });
}

#[test]
fn what_a_request_may_leave_out_may_be_null_and_nothing_else_may() {
    let (cloud, _state) = cloud();
    let document = document(cloud.address);
    for name in [
        "RegisterRequest",
        "EngineRef",
        "Capabilities",
        "Gpu",
        "HeartbeatRequest",
        "PoolStatus",
        "Health",
        "HealthReason",
        "DrainAck",
        "DrainRequest",
    ] {
        let schema = &document["components"]["schemas"][name];
        let properties = schema["properties"].as_object().expect("properties");
        for (property, described) in properties {
            let mut required = schema["required"].as_array().into_iter().flatten();
            let required = required.any(|required| required == property);
            let mut may_be_null = false;
            let either = described["oneOf"].as_array().into_iter().flatten();
            for described in either.chain([described]) {
                let kind = &described["type"];
                let several = kind.as_array().into_iter().flatten();
                may_be_null |= several.chain([kind]).any(|kind| kind == "null");
            }
            assert_eq!(may_be_null, !required, "{name}.{property}: {described}");
        }
    }
}

#[test]
fn what_is_described_is_served_and_nothing_else_is() {
    let (cloud, _state) = cloud();
    let document = document(cloud.address);
    let paths = document["paths"].as_object().expect("paths");
    for (path, item) in paths {
        for method in METHODS {
            let target = path.replace("{id}", "n1");
            let request = written(
                &method.to_uppercase(),
                &target,
                &[("connection", "close")],
                b"",
            );
            let response = http::send(cloud.address, &request).expect("an answer");
            let served = if response.status == 405 {
                false
            } else if response.status == 404 {
                response.json()["code"] == "NODE_NOT_FOUND"
            } else {
                true
            };
            assert_eq!(served, item.get(method).is_some(), "{method} {target}");
        }
    }
}

#[test]
fn the_description_takes_a_token() {
    let home = Orchd::serve_home_guarded(&[], TOKEN);
    let refused = http::get(home.address, "/openapi.json").expect("an answer");
    assert_eq!(refused.status, 401);
    let request = written("GET", "/openapi.json", &[("x-api-key", TOKEN)], b"");
    let response = http::send(home.address, &request).expect("an answer");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
}

#[test]
fn a_list_of_words_holds_no_empty_word() {
    let (cloud, _state) = cloud();
    for (target, status) in [
        ("/v2/nodes?status=", 400),
        ("/v2/nodes?status=Online,Offline", 200),
        ("/v2/nodes?status=,", 400),
        ("/v2/nodes?status=Online,", 400),
        ("/v2/nodes?status=,,,,", 400),
    ] {
        let response = http::get(cloud.address, target).expect("an answer");
        assert_eq!(response.status, status, "{target}");
    }
}

// A script with an empty variable, `?forget=$FORGET`, must not drop what an operator asked.
#[test]
fn a_flag_without_a_value_is_refused_rather_than_taken_for_yes() {
    let (cloud, _state) = cloud();
    for (method, target) in [
        ("GET", "/v2/nodes?departed="),
        ("GET", "/v2/nodes?departed"),
        ("DELETE", "/v2/nodes/n1?forget="),
        ("DELETE", "/v2/nodes/n1?forget"),
    ] {
        let request = written(method, target, &[], b"");
        let response = http::send(cloud.address, &request).expect("an answer");
        assert_eq!(response.status, 400, "{method} {target}");
        let body = response.json();
        assert_eq!(body["code"], "INVALID_REQUEST", "{body}");
        let message = body["message"].as_str().expect("a sentence");
        assert!(message.contains("must be true or false"), "{message}");
    }
}
