//! What nobody thought of: generated from a seed that is printed.

use std::hash::{BuildHasher, Hasher, RandomState};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use super::{Server, at, calls, leaves, may_refuse};

/// Cases of each generated test.
const CASES: u32 = 400;

/// A runner whose cases can be had again.
pub(super) fn runner(what: &str) -> TestRunner {
    let seed = std::env::var("ORCHD_TEST_SEED").ok();
    let seed: u64 = match seed {
        Some(text) => text.parse().expect("ORCHD_TEST_SEED is a number"),
        None => RandomState::new().build_hasher().finish(),
    };
    println!("{what}: ORCHD_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        Just(json!("n1")),
        Just(json!("http://10.0.0.1:1")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

#[test]
fn any_value_in_any_place_is_taken_or_refused() {
    let server = Server::start();
    let strategy = (0..3_usize, any::<prop::sample::Index>(), any_json());
    let run = runner("values").run(&strategy, |(call, place, value)| {
        let (path, mut body) = calls()[call].clone();
        let mut places = Vec::new();
        leaves(&body, &mut Vec::new(), &mut places);
        // The value itself, or something that holds it.
        let mut place = place.get(&places).clone();
        place.truncate(1 + usize::from(value.is_object()) + usize::from(value.is_array()));
        *at(&mut body, &place) = value;
        may_refuse(
            &body.to_string(),
            server.post(path, body.to_string().as_bytes()),
        );
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
    server.must_be_well();
}

#[test]
fn any_damage_to_a_good_body_is_taken_or_refused() {
    let server = Server::start();
    let damage = (any::<prop::sample::Index>(), 0..4_u8, any::<u8>());
    let strategy = (0..3_usize, prop::collection::vec(damage, 1..6));
    let run = runner("damage").run(&strategy, |(call, damages)| {
        let (path, body) = calls()[call].clone();
        let mut bytes = body.to_string().into_bytes();
        for (at, how, byte) in damages {
            let at = at.index(bytes.len().max(1));
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), byte),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|b| *b ^= byte | 1),
            }
        }
        may_refuse(&String::from_utf8_lossy(&bytes), server.post(path, &bytes));
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
    server.must_be_well();
}

#[test]
fn any_path_and_query_is_answered_or_refused() {
    let server = Server::start();
    let part = prop_oneof![
        Just("nodes".to_owned()),
        Just("n1".to_owned()),
        Just("register".to_owned()),
        Just("drain".to_owned()),
        Just("heartbeat".to_owned()),
        Just("local".to_owned()),
        Just(String::new()),
        Just("..".to_owned()),
        Just("%00".to_owned()),
        Just("%2e%2e%2f".to_owned()),
        Just("%".to_owned()),
        Just("%zz".to_owned()),
        Just("%ff".to_owned()),
        "[!-\"$->@-~]{0,12}",
    ];
    let parts = prop::collection::vec(part, 0..5);
    let key = prop_oneof![
        Just("limit"),
        Just("after"),
        Just("label"),
        Just("status"),
        Just("departed"),
        Just("forget"),
        Just("instance_id"),
        Just("other"),
    ];
    let query = prop::collection::vec((key, "[!-\"$-~]{0,16}"), 0..4);
    let method = prop_oneof![
        Just("GET"),
        Just("POST"),
        Just("PUT"),
        Just("PATCH"),
        Just("OPTIONS"),
        Just("TRACE"),
        Just("FROB"),
    ];
    let run = runner("paths").run(&(method, parts, query), |(method, parts, query)| {
        let query: Vec<String> = query
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let target = format!("/v2/{}?{}", parts.join("/"), query.join("&"));
        let response = server.ask(method, &target, b"").expect("an answer");
        // What is no URI at all is for the library.
        if response.status == 400 && response.header("x-orchd-version").is_none() {
            return Ok(());
        }
        may_refuse(&format!("{method} {target}"), response);
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
    server.must_be_well();
}
