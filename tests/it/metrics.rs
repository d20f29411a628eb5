//! `/metrics` of the control plane from outside: what a scraper sees of the real binary.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;

const SOON: Duration = Duration::from_secs(10);
const JSON: (&str, &str) = ("content-type", "application/json");
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The text of a fresh server, but for its start, its version and its profile.
const FRESH: &str = r#"# HELP orchd_build This build
# TYPE orchd_build info
orchd_build_info{version="VERSION",profile="PROFILE"} 1
# HELP orchd_start_time_seconds When this process started, as unix time
# TYPE orchd_start_time_seconds gauge
# UNIT orchd_start_time_seconds seconds
orchd_start_time_seconds START
# HELP orchd_node_registrations Registrations answered, by outcome
# TYPE orchd_node_registrations counter
orchd_node_registrations_total{outcome="ok"} 0
orchd_node_registrations_total{outcome="invalid"} 0
orchd_node_registrations_total{outcome="unauthorized"} 0
orchd_node_registrations_total{outcome="forbidden"} 0
orchd_node_registrations_total{outcome="conflict"} 0
orchd_node_registrations_total{outcome="superseded"} 0
orchd_node_registrations_total{outcome="unknown_node"} 0
orchd_node_registrations_total{outcome="too_large"} 0
orchd_node_registrations_total{outcome="unsupported_media_type"} 0
orchd_node_registrations_total{outcome="cloud_profile_disabled"} 0
orchd_node_registrations_total{outcome="store_unavailable"} 0
orchd_node_registrations_total{outcome="shutting_down"} 0
orchd_node_registrations_total{outcome="internal"} 0
orchd_node_registrations_total{outcome="abandoned"} 0
# HELP orchd_node_heartbeats Heartbeats answered, by outcome
# TYPE orchd_node_heartbeats counter
orchd_node_heartbeats_total{outcome="ok"} 0
orchd_node_heartbeats_total{outcome="invalid"} 0
orchd_node_heartbeats_total{outcome="unauthorized"} 0
orchd_node_heartbeats_total{outcome="forbidden"} 0
orchd_node_heartbeats_total{outcome="conflict"} 0
orchd_node_heartbeats_total{outcome="superseded"} 0
orchd_node_heartbeats_total{outcome="unknown_node"} 0
orchd_node_heartbeats_total{outcome="too_large"} 0
orchd_node_heartbeats_total{outcome="unsupported_media_type"} 0
orchd_node_heartbeats_total{outcome="cloud_profile_disabled"} 0
orchd_node_heartbeats_total{outcome="store_unavailable"} 0
orchd_node_heartbeats_total{outcome="shutting_down"} 0
orchd_node_heartbeats_total{outcome="internal"} 0
orchd_node_heartbeats_total{outcome="abandoned"} 0
# HELP orchd_node_deregistrations Deregistrations answered, by outcome
# TYPE orchd_node_deregistrations counter
orchd_node_deregistrations_total{outcome="ok"} 0
orchd_node_deregistrations_total{outcome="invalid"} 0
orchd_node_deregistrations_total{outcome="unauthorized"} 0
orchd_node_deregistrations_total{outcome="forbidden"} 0
orchd_node_deregistrations_total{outcome="conflict"} 0
orchd_node_deregistrations_total{outcome="superseded"} 0
orchd_node_deregistrations_total{outcome="unknown_node"} 0
orchd_node_deregistrations_total{outcome="too_large"} 0
orchd_node_deregistrations_total{outcome="unsupported_media_type"} 0
orchd_node_deregistrations_total{outcome="cloud_profile_disabled"} 0
orchd_node_deregistrations_total{outcome="store_unavailable"} 0
orchd_node_deregistrations_total{outcome="shutting_down"} 0
orchd_node_deregistrations_total{outcome="internal"} 0
orchd_node_deregistrations_total{outcome="abandoned"} 0
# HELP orchd_drains Drains that began, came to where nothing runs, and ended
# TYPE orchd_drains counter
orchd_drains_total{outcome="started"} 0
orchd_drains_total{outcome="done"} 0
orchd_drains_total{outcome="ended"} 0
# HELP orchd_drain_cut_requests Requests ended by the deadline of a drain or by force
# TYPE orchd_drain_cut_requests counter
orchd_drain_cut_requests_total 0
# HELP orchd_store_errors Writes that the store did not take
# TYPE orchd_store_errors counter
orchd_store_errors_total 0
# HELP orchd_store_durable Whether the last write to the store worked
# TYPE orchd_store_durable gauge
orchd_store_durable 1
# HELP orchd_nodes_online Nodes heard by a heartbeat within the timeout
# TYPE orchd_nodes_online gauge
orchd_nodes_online 0
# HELP orchd_nodes Registered nodes, by status
# TYPE orchd_nodes gauge
orchd_nodes{status="Offline"} 0
orchd_nodes{status="Failed"} 0
orchd_nodes{status="Draining"} 0
orchd_nodes{status="Online"} 0
orchd_nodes{status="Registering"} 0
# HELP orchd_pools_available Pools that take requests
# TYPE orchd_pools_available gauge
orchd_pools_available 0
# HELP orchd_node_drains Drains in force, by state
# TYPE orchd_node_drains gauge
orchd_node_drains{state="draining"} 0
orchd_node_drains{state="drained"} 0
# HELP orchd_fleet_hold Whether mass silence keeps nodes from going Offline
# TYPE orchd_fleet_hold gauge
orchd_fleet_hold 0
# HELP orchd_fleet_hold_nodes Nodes that a fleet hold keeps from going Offline
# TYPE orchd_fleet_hold_nodes gauge
orchd_fleet_hold_nodes 0
# HELP orchd_node_up Whether the node was heard by a heartbeat within the timeout
# TYPE orchd_node_up gauge
# HELP orchd_node_heartbeat_age_seconds How long ago the node was last heard; absent while it was not heard since this process started
# TYPE orchd_node_heartbeat_age_seconds gauge
# UNIT orchd_node_heartbeat_age_seconds seconds
# HELP orchd_gateway_waiting Requests that wait for a slot
# TYPE orchd_gateway_waiting gauge
# HELP orchd_gateway_in_flight Requests that run at the pool
# TYPE orchd_gateway_in_flight gauge
# HELP orchd_gateway_quarantined Slots of requests that were closed early, until the engine shows them free
# TYPE orchd_gateway_quarantined gauge
# HELP orchd_gateway_ejections How often the pool was left out after a failure
# TYPE orchd_gateway_ejections counter
"#;

/// The text of a scrape.
pub fn scrape(address: SocketAddr) -> String {
    let response = http::get(address, "/metrics").expect("an answer");
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(response.header("x-orchd-version").is_some());
    response.text().expect("a whole body")
}

/// Reads a text as strictly as its format is defined: every sample belongs to the family above it, by a name that its
/// type allows; no family and no series stands there twice; the end is marked. Gives values by series.
pub fn read(text: &str) -> BTreeMap<String, f64> {
    let lines: Vec<&str> = text
        .strip_suffix("# EOF\n")
        .expect("the end is marked")
        .lines()
        .collect();
    let mut families = BTreeSet::new();
    let mut series = BTreeMap::new();
    let (mut family, mut kind) = (String::new(), String::new());
    for line in lines {
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').expect("a word of a description");
            let (name, said) = rest.split_once(' ').expect("a name and what is said of it");
            match word {
                "HELP" => {
                    assert!(families.insert(name.to_owned()), "{name} is described once");
                    name.clone_into(&mut family);
                }
                "TYPE" => {
                    assert_eq!(name, family, "the type follows its description");
                    said.clone_into(&mut kind);
                }
                "UNIT" => assert!(name == family && name.ends_with(&format!("_{said}"))),
                other => panic!("{other:?} describes nothing: {line}"),
            }
            continue;
        }
        let (key, value) = line.rsplit_once(' ').expect("a series and its value");
        let name = key.split('{').next().expect("a name");
        let suffix = name
            .strip_prefix(family.as_str())
            .unwrap_or_else(|| panic!("{name} stands below {family}"));
        let allowed: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            other => panic!("{other:?} is no type"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(series.insert(key.to_owned(), value).is_none(), "{key} once");
    }
    series
}

struct Fleet {
    orchd: Orchd,
    _state: tempfile::TempDir,
}

fn fleet(options: &[&str]) -> Fleet {
    let state = tempfile::tempdir().expect("a directory for the state");
    Fleet {
        orchd: Orchd::serve_cloud(state.path(), options),
        _state: state,
    }
}

fn ask(address: SocketAddr, status: u16, method: &str, path: &str, body: &str) {
    let request = written(method, path, &[JSON], body.as_bytes());
    let response = http::send(address, &request).expect("an answer");
    assert_eq!(response.status, status, "{method} {path}");
}

impl Fleet {
    fn ask(&self, status: u16, method: &str, path: &str, body: &Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        ask(self.orchd.address, status, method, path, &body);
    }

    fn register(&self, node_id: &str, machine_id: &str, status: u16) {
        let address = "http://127.0.0.1:9";
        let body = json!({"node_id": node_id, "machine_id": machine_id, "address": address, "instance_id": "one"});
        self.ask(status, "POST", "/v2/nodes/register", &body);
    }

    fn read(&self) -> BTreeMap<String, f64> {
        read(&scrape(self.orchd.address))
    }

    /// Series of the control plane that have another value than before, or are new or gone.
    fn moved(&self, before: &mut BTreeMap<String, f64>) -> Vec<(String, String)> {
        let after = self.read();
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let moved = keys
            .into_iter()
            .filter(|key| before.get(*key) != after.get(*key))
            .filter(|key| !key.contains("_age_seconds") && !key.contains("orchd_gateway_"))
            .map(|key| {
                let value = after.get(key).map_or("gone".to_owned(), f64::to_string);
                (key.clone(), value)
            })
            .collect();
        *before = after;
        moved
    }
}

fn is(moved: &[(String, String)], expected: &[(&str, &str)]) {
    let moved: Vec<(&str, &str)> = moved
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    assert_eq!(moved.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn metrics_of_a_fresh_server_are_all_there_with_zeros_in_both_profiles() {
    let home = Orchd::serve_home(&[], &[]);
    let cloud = fleet(&[]);
    for (address, profile) in [(home.address, "home"), (cloud.orchd.address, "cloud")] {
        let text = scrape(address);
        let values = read(&text);
        let start = text
            .lines()
            .find_map(|line| line.strip_prefix("orchd_start_time_seconds "))
            .expect("it says when it started");
        assert!(values["orchd_start_time_seconds"] > 1_700_000_000.0);
        let expected = FRESH
            .replace("VERSION", env!("CARGO_PKG_VERSION"))
            .replace("PROFILE", profile)
            .replace("START", start);
        // Words of the gateway's counters stand in no order.
        let (control, gateway) = text
            .split_once("# HELP orchd_gateway_rejected ")
            .expect("both are there");
        assert_eq!(control, expected);
        assert!(gateway.contains("orchd_gateway_rejected_total{reason=\"queue_full\"} 0\n"));
        assert!(gateway.contains("orchd_gateway_retries_total{reason=\"connect\"} 0\n"));
        assert!(gateway.contains("orchd_gateway_cancelled_total{phase=\"queue\"} 0\n"));

        let head = written("HEAD", "/metrics", &[("connection", "close")], b"");
        let raw = http::begin(address, &head).expect("a connection").answer();
        let head = raw.expect("a head");
        assert_eq!(head.status, 200);
        assert_eq!(
            head.header("content-length"),
            Some(text.len().to_string().as_str())
        );
    }
    // A call that HOME does not have is counted there as what it is.
    ask(home.address, 503, "POST", "/v2/nodes/register", "{}");
    let counted = r#"orchd_node_registrations_total{outcome="cloud_profile_disabled"}"#;
    let values = read(&scrape(home.address));
    assert!((values[counted] - 1.0).abs() < f64::EPSILON);
    assert!(!values.keys().any(|key| key.contains("node_id")));
}

#[test]
fn metrics_follow_a_node_from_its_registration_to_its_end() {
    let fleet = fleet(&[]);
    let mut before = fleet.read();
    let odd = "0.x_y-Z";
    let beat = format!("/v2/nodes/{odd}/heartbeat");

    fleet.register(odd, "m1", 200);
    is(
        &fleet.moved(&mut before),
        &[
            (r#"orchd_node_registrations_total{outcome="ok"}"#, "1"),
            (r#"orchd_node_up{node_id="0.x_y-Z"}"#, "0"),
            (r#"orchd_nodes{status="Registering"}"#, "1"),
        ],
    );
    let pools = json!([{"pool_id": "a", "ready": true}, {"pool_id": "b", "ready": false}]);
    fleet.ask(200, "POST", &beat, &json!({"pools": pools}));
    is(
        &fleet.moved(&mut before),
        &[
            (r#"orchd_node_heartbeats_total{outcome="ok"}"#, "1"),
            (r#"orchd_node_up{node_id="0.x_y-Z"}"#, "1"),
            (r#"orchd_nodes{status="Online"}"#, "1"),
            (r#"orchd_nodes{status="Registering"}"#, "0"),
            ("orchd_nodes_online", "1"),
            ("orchd_pools_available", "1"),
        ],
    );

    // Refusals: each counted once, under its own word, and none makes a series.
    fleet.register(odd, "m2", 409);
    fleet.ask(400, "POST", "/v2/nodes/register", &json!({"node_id": "b"}));
    fleet.ask(400, "POST", &beat, &json!({}));
    let stranger = json!({"pools": [], "instance_id": "two"});
    fleet.ask(409, "POST", &beat, &stranger);
    let nobody = json!({"pools": []});
    fleet.ask(404, "POST", "/v2/nodes/nobody/heartbeat", &nobody);
    fleet.ask(404, "POST", "/v2/nodes/a%22%7D%0Ab/heartbeat", &nobody);
    let text = written("POST", &beat, &[("content-type", "text/plain")], b"{}");
    let refused = http::send(fleet.orchd.address, &text).expect("an answer");
    assert_eq!(refused.status, 415);
    let large = json!({"pools": [], "timestamp": " ".repeat(1 << 20)});
    fleet.ask(413, "POST", &beat, &large);
    fleet.ask(404, "DELETE", "/v2/nodes/nobody", &Value::Null);
    fleet.ask(
        409,
        "DELETE",
        "/v2/nodes/0.x_y-Z?instance_id=2",
        &Value::Null,
    );
    fleet.ask(405, "GET", "/v2/nodes/register", &Value::Null);
    fleet.ask(404, "GET", "/v2/nodes/nobody", &Value::Null);
    is(
        &fleet.moved(&mut before),
        &[
            (
                r#"orchd_node_deregistrations_total{outcome="superseded"}"#,
                "1",
            ),
            (
                r#"orchd_node_deregistrations_total{outcome="unknown_node"}"#,
                "1",
            ),
            (r#"orchd_node_heartbeats_total{outcome="invalid"}"#, "1"),
            (r#"orchd_node_heartbeats_total{outcome="too_large"}"#, "1"),
            (
                r#"orchd_node_heartbeats_total{outcome="unsupported_media_type"}"#,
                "1",
            ),
            (r#"orchd_node_heartbeats_total{outcome="superseded"}"#, "1"),
            (
                r#"orchd_node_heartbeats_total{outcome="unknown_node"}"#,
                "2",
            ),
            (r#"orchd_node_registrations_total{outcome="conflict"}"#, "1"),
            (r#"orchd_node_registrations_total{outcome="invalid"}"#, "1"),
        ],
    );

    // A drain that is done, and what an operator asked of a node that has left.
    fleet.ask(
        202,
        "POST",
        "/v2/nodes/0.x_y-Z/drain",
        &json!({"reason": "r"}),
    );
    fleet.ask(202, "POST", "/v2/nodes/0.x_y-Z/drain", &Value::Null);
    is(
        &fleet.moved(&mut before),
        &[
            (r#"orchd_drains_total{outcome="started"}"#, "1"),
            (r#"orchd_node_drains{state="draining"}"#, "1"),
            (r#"orchd_nodes{status="Draining"}"#, "1"),
            (r#"orchd_nodes{status="Online"}"#, "0"),
            ("orchd_pools_available", "0"),
        ],
    );
    fleet.ask(204, "DELETE", "/v2/nodes/0.x_y-Z", &Value::Null);
    is(
        &fleet.moved(&mut before),
        &[
            (r#"orchd_drains_total{outcome="done"}"#, "1"),
            (r#"orchd_node_deregistrations_total{outcome="ok"}"#, "1"),
            (r#"orchd_node_drains{state="drained"}"#, "1"),
            (r#"orchd_node_drains{state="draining"}"#, "0"),
            (r#"orchd_node_up{node_id="0.x_y-Z"}"#, "gone"),
            (r#"orchd_nodes{status="Draining"}"#, "0"),
            ("orchd_nodes_online", "0"),
        ],
    );
    fleet.ask(200, "DELETE", "/v2/nodes/0.x_y-Z/drain", &Value::Null);
    is(
        &fleet.moved(&mut before),
        &[
            (r#"orchd_drains_total{outcome="ended"}"#, "1"),
            (r#"orchd_node_drains{state="drained"}"#, "0"),
        ],
    );
}

#[test]
fn metrics_show_a_silent_node_and_for_how_long_it_has_been() {
    let fleet = fleet(&["--node-timeout", "1s"]);
    fleet.register("n1", "m1", 200);
    fleet.ask(
        200,
        "POST",
        "/v2/nodes/n1/heartbeat",
        &json!({"pools": [], "health": {"status": "failed"}}),
    );
    let values = fleet.read();
    let up = r#"orchd_node_up{node_id="n1"}"#;
    let age = r#"orchd_node_heartbeat_age_seconds{node_id="n1"}"#;
    let failed = r#"orchd_nodes{status="Failed"}"#;
    assert!(values[up] > 0.0 && values[failed] > 0.0 && values[age] < 1.0);
    let (values, _) = eventually(SOON, "it is found silent", || {
        let values = fleet.read();
        let offline = values[r#"orchd_nodes{status="Offline"}"#];
        (offline > 0.0).then_some(values).ok_or("it is not".into())
    });
    assert!(values[up] == 0.0 && values["orchd_nodes_online"] == 0.0 && values[age] >= 1.0);
}

#[test]
fn metrics_need_no_token_and_count_those_who_bring_none() {
    let home = Orchd::serve_home_guarded(&[], TOKEN);
    ask(home.address, 401, "POST", "/v2/nodes/n1/heartbeat", "{}");
    ask(home.address, 401, "GET", "/v2/pools", "");
    let values = read(&scrape(home.address));
    let sum: f64 = values
        .iter()
        .filter(|(key, _)| key.contains("outcome="))
        .map(|(_, value)| value)
        .sum();
    let unauthorized = values[r#"orchd_node_heartbeats_total{outcome="unauthorized"}"#];
    assert!((unauthorized - 1.0).abs() < f64::EPSILON && (sum - 1.0).abs() < f64::EPSILON);
}

#[test]
fn metrics_count_a_client_that_leaves_before_it_is_answered() {
    let fleet = fleet(&[]);
    let request =
        b"POST /v2/nodes/n1/heartbeat HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    let begun = http::begin(fleet.orchd.address, request).expect("a connection");
    drop(begun);
    eventually(SOON, "it is counted", || {
        let values = fleet.read();
        let counted = ["abandoned", "invalid"]
            .map(|word| values[&format!(r#"orchd_node_heartbeats_total{{outcome="{word}"}}"#)]);
        if counted.iter().sum::<f64>() > 0.0 {
            Ok(())
        } else {
            Err(format!("{counted:?}"))
        }
    });
}
