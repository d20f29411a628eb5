//! Bodies, whole: what does not parse, does not fit, is too large or of another kind.

use serde_json::{Value, json};

use crate::support::http::{self, written};

use super::{Server, at, calls, heartbeat, leaves, must_refuse, nested, registration};

/// Largest body under `/v2`.
const MIB: usize = 1 << 20;

#[test]
fn bodies_that_are_not_what_a_call_takes_are_refused_with_what_is_wrong() {
    let server = Server::start();
    let deep_list = nested("[", "]", 10_000);
    let deep_open = "[".repeat(10_000);
    let deep_object = nested("{\"a\":", "}", 10_000).replace(":}", ":1}");
    let wide = format!("[{}0]", "0,".repeat(200_000));
    for (path, good) in calls() {
        for bad in [
            "{",
            "}",
            "[]",
            "null",
            "true",
            "1",
            "1.5",
            "\"x\"",
            "{}x",
            "{}{}",
            "nul",
            "'a'",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":}",
            "{\"a\" 1}",
            "// {}",
            "\u{feff}{}",
            "{\"a\":NaN}",
            "{\"a\":Infinity}",
            "{\"a\":1e400}",
            "{\"a\":-}",
            "{\"a\":01}",
            "{\"a\":\"\\ud800\"",
            "{\"a\":\"\u{1}\"}",
            "\0",
            deep_list.as_str(),
            deep_open.as_str(),
            deep_object.as_str(),
            wide.as_str(),
        ] {
            // A drain may be asked for without saying anything; unknown fields are nobody's concern.
            let response = server.post(path, bad.as_bytes());
            if response.status < 300 {
                assert!(
                    path.ends_with("/drain") && bad.starts_with("{\"a\""),
                    "{path}: {bad:.100}"
                );
            } else {
                must_refuse(&format!("{path}: {bad}"), response, 400, "INVALID_REQUEST");
            }
        }
        for bad in [
            &b"\xff\xfe{}"[..],
            b"{\"reason\":\"\xc3\x28\",\"node_id\":\"\xff\",\"timestamp\":\"\xff\"}",
        ] {
            must_refuse(path, server.post(path, bad), 400, "INVALID_REQUEST");
        }
        let good = good.to_string();
        for end in 1..good.len() {
            let what = format!("{path}: {}", &good[..end]);
            must_refuse(
                &what,
                server.post(path, &good.as_bytes()[..end]),
                400,
                "INVALID_REQUEST",
            );
        }
        // Twice the same field is two opinions.
        let field = good[1..].split(':').next().expect("it has a field");
        let value = if field == "\"pools\"" { "[]" } else { "\"n1\"" };
        let twice = format!("{{{field}:{value},{field}:{value},{}", &good[1..]);
        must_refuse(
            &twice,
            server.post(path, twice.as_bytes()),
            400,
            "INVALID_REQUEST",
        );
    }
    server.must_be_well();
}

#[test]
fn a_field_of_another_type_or_beyond_its_range_is_refused_wherever_it_is() {
    let server = Server::start();
    // None of these fits any number, name or flag there is.
    let never = [
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!({"a": 1}),
        json!([[]]),
        json!([1]),
        json!(18_446_744_073_709_551_615_f64),
    ];
    for (path, good) in calls() {
        let mut places = Vec::new();
        leaves(&good, &mut Vec::new(), &mut places);
        assert!(places.len() > 1);
        for place in places {
            for value in &never {
                let mut bad = good.clone();
                *at(&mut bad, &place) = value.clone();
                let what = format!("{path}: {place:?} is {value}");
                must_refuse(
                    &what,
                    server.post(path, bad.to_string().as_bytes()),
                    400,
                    "INVALID_REQUEST",
                );
            }
        }
    }
    // Numbers just inside and just outside of what their types hold.
    for (field, inside, outside) in [
        ("slots_total", "4294967295", "4294967296"),
        ("slots_free", "4294967295", "4294967296"),
        ("in_flight", "4294967295", "4294967296"),
        (
            "vram_free_bytes",
            "18446744073709551615",
            "18446744073709551616",
        ),
        (
            "n_ctx",
            "18446744073709551615",
            "99999999999999999999999999999999",
        ),
    ] {
        let with = |number: &str| {
            let mut body = heartbeat();
            body["pools"][0][field] = json!("HERE");
            body.to_string().replace("\"HERE\"", number)
        };
        let path = "/v2/nodes/n1/heartbeat";
        assert_eq!(
            server.post(path, with(inside).as_bytes()).status,
            200,
            "{field} {inside}"
        );
        must_refuse(
            field,
            server.post(path, with(outside).as_bytes()),
            400,
            "INVALID_REQUEST",
        );
    }
    server.must_be_well();
}

#[test]
fn the_largest_numbers_there_are_break_no_sum() {
    let server = Server::start();
    let most = json!({
        "ready": true, "slots_free": 0, "slots_total": u32::MAX, "in_flight": u32::MAX, "vram_free_bytes": u64::MAX,
        "n_ctx": u64::MAX, "models_available": ["m", "m", "n"], "url": "http://127.0.0.1:9", "state": "ready",
    });
    let mut pools = Vec::new();
    for n in 0..4 {
        let mut pool = most.clone();
        pool["pool_id"] = json!(format!("p{n}"));
        if n % 2 == 0 {
            pool["in_flight"] = json!(0);
        } else {
            pool["slots_free"] = json!(u32::MAX);
        }
        pools.push(pool);
    }
    let beat =
        json!({"pools": pools, "seq": u64::MAX, "drain_ack": {"id": "d", "in_flight": u32::MAX}});
    let path = "/v2/nodes/n1/heartbeat";
    for _ in 0..3 {
        assert_eq!(server.post(path, beat.to_string().as_bytes()).status, 200);
    }
    let drained = server.post("/v2/nodes/n1/drain", b"{}");
    assert_eq!(drained.status, 202);
    assert_eq!(server.post(path, beat.to_string().as_bytes()).status, 200);
    for path in [
        "/v2/nodes",
        "/v2/nodes/n1",
        "/v2/pools",
        "/v2/catalog/availability",
        "/v1/models",
        "/v1/models/m",
    ] {
        let _: Value = http::get_json(server.address(), path);
    }
    let undrained = server
        .ask("DELETE", "/v2/nodes/n1/drain", b"")
        .expect("an answer");
    assert_eq!(undrained.status, 200);
    for path in [
        "/v2/nodes",
        "/v2/pools",
        "/v2/catalog/availability",
        "/v1/models",
    ] {
        let _: Value = http::get_json(server.address(), path);
    }
    server.must_be_well();
}

#[test]
fn lists_and_bodies_have_a_largest_size_and_what_is_larger_is_refused_in_words() {
    let server = Server::start();
    let register = |pools: usize| {
        let mut body = registration();
        body["pools"] = (0..pools).map(|n| json!(format!("p{n}"))).collect();
        server.post("/v2/nodes/register", body.to_string().as_bytes())
    };
    let beat = |pools: usize| {
        let pools: Vec<Value> = (0..pools)
            .map(|n| json!({"pool_id": format!("p{n}"), "ready": true}))
            .collect();
        server.post(
            "/v2/nodes/n1/heartbeat",
            json!({"pools": pools}).to_string().as_bytes(),
        )
    };
    for (fits, count) in [(true, 1_024), (false, 1_025), (false, 10_000)] {
        for response in [register(count), beat(count)] {
            if fits {
                assert_eq!(response.status, 200, "{count}");
            } else {
                must_refuse(&count.to_string(), response, 400, "INVALID_REQUEST");
            }
        }
    }
    for (path, good) in calls() {
        let good = good.to_string();
        let padded = |size: usize| format!("{}{good}", " ".repeat(size - good.len()));
        for size in [MIB - 1, MIB] {
            let response = server.post(path, padded(size).as_bytes());
            assert!(response.status < 300, "{path}, {size}: {}", response.status);
        }
        for size in [MIB + 1, 2 * MIB, 8 * MIB] {
            let response = server.post(path, padded(size).as_bytes());
            must_refuse(
                &format!("{path}, {size}"),
                response,
                413,
                "PAYLOAD_TOO_LARGE",
            );
        }
    }
    server.must_be_well();
}

#[test]
fn names_and_addresses_that_are_none_are_refused_and_good_ones_are_not() {
    let server = Server::start();
    let (longest, longer) = ("n".repeat(128), "n".repeat(129));
    let good_ids = ["a", "0", "A.b_c-d", "n..n", "n-", longest.as_str()];
    let bad_ids = [
        "",
        " ",
        ".",
        "..",
        "-n",
        "_n",
        ".n",
        "a/b",
        "../n1",
        "a b",
        "a\nb",
        "a\0b",
        "n%2f1",
        "nœud",
        "ｎ",
        "n\u{200b}",
        "local",
        "register",
        "💥",
        longer.as_str(),
        "a?b",
        "a#b",
        "a\\b",
        "\"",
    ];
    let with = |field: &str, value: &str| {
        let mut body = registration();
        body[field] = json!(value);
        server.post("/v2/nodes/register", body.to_string().as_bytes())
    };
    for id in good_ids {
        assert_eq!(with("node_id", id).status, 200, "{id}");
        let path = format!("/v2/nodes/{id}");
        assert_eq!(
            server.ask("GET", &path, b"").expect("an answer").status,
            200
        );
        assert_eq!(
            server.ask("DELETE", &path, b"").expect("an answer").status,
            204
        );
    }
    for id in bad_ids {
        must_refuse(id, with("node_id", id), 400, "INVALID_REQUEST");
        let mut beat = heartbeat();
        beat["pools"][0]["pool_id"] = json!(id);
        let response = server.post("/v2/nodes/n1/heartbeat", beat.to_string().as_bytes());
        // Only nodes have names that mean something else.
        if ["local", "register"].contains(&id) {
            assert_eq!(response.status, 200, "{id}");
        } else {
            must_refuse(id, response, 400, "INVALID_REQUEST");
        }
    }
    for model in ["", "\n", "\u{7f}", &"m".repeat(513)] {
        let mut beat = heartbeat();
        beat["pools"][0]["models_available"] = json!([model]);
        let response = server.post("/v2/nodes/n1/heartbeat", beat.to_string().as_bytes());
        must_refuse(model, response, 400, "INVALID_REQUEST");
    }
    for address in [
        "",
        " ",
        "x",
        "10.0.0.1",
        "10.0.0.1:9200",
        "http://",
        "http:///x",
        "http://:9200",
        "https://?",
        "//n1:9200",
        "ftp://n1",
        "file:///etc/passwd",
        "unix:/run/x",
        "javascript:alert(1)",
        "http://user@n1",
        "http://user:pass@n1:9200",
        "http://n1:99999",
        "http://n1:-1",
        "http://n1:x",
        "http://[::1",
        "http://a b",
        "http://n1/?q",
        "http://n1/#f",
        "http://n1\n",
        " http://n1",
        "http://n1\\x",
        "HTTP//n1",
        "http:n1",
    ] {
        must_refuse(address, with("address", address), 400, "INVALID_REQUEST");
        let mut beat = heartbeat();
        beat["pools"][0]["url"] = json!(address);
        let response = server.post("/v2/nodes/n1/heartbeat", beat.to_string().as_bytes());
        must_refuse(address, response, 400, "INVALID_REQUEST");
    }
    for address in [
        "http://n1",
        "https://n1:1/base/",
        "http://[::1]:9200",
        "http://10.0.0.1:65535",
    ] {
        assert_eq!(with("address", address).status, 200, "{address}");
    }
    server.must_be_well();
}

#[test]
fn content_types_that_are_not_json_are_refused_and_none_is_not() {
    let server = Server::start();
    for (path, good) in calls() {
        let good = good.to_string();
        let send = |kind: &[(&str, &str)]| {
            let request = written("POST", path, kind, good.as_bytes());
            http::send(server.address(), &request).expect("an answer")
        };
        for kind in [
            "",
            "text/plain",
            "text/html; charset=utf-8",
            "application/xml",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonx",
            "json",
            "*/*",
            "application/json, text/plain",
            ";application/json",
            "\u{fe}",
        ] {
            let response = send(&[("content-type", kind)]);
            must_refuse(
                &format!("{path}: {kind:?}"),
                response,
                415,
                "UNSUPPORTED_MEDIA_TYPE",
            );
        }
        for kind in [
            &[][..],
            &[("content-type", "APPLICATION/JSON;charset=UTF-8")],
            &[("content-type", "application/a+json")],
        ] {
            assert!(send(kind).status < 300, "{path}: {kind:?}");
        }
    }
    server.must_be_well();
}
