use super::*;
use crate::types::{DrainState, NodeId, NodeStatus, PoolId, UnixMs};

const ABOUT: About = About {
    profile: "cloud",
    started_at: UnixMs(1_700_000_000_250),
};

fn node(name: &str, status: NodeStatus, age_ms: Option<u64>) -> NodeSample {
    NodeSample {
        node_id: NodeId::new(name).expect("good"),
        status,
        online: status == NodeStatus::Online,
        age_ms,
    }
}

fn text(counters: &Arc<Counters>, fleet: Fleet) -> String {
    expose(&[&scrape(counters, fleet, ABOUT)])
}

fn sample<'a>(text: &'a str, series: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

#[test]
fn every_word_stands_at_its_place_in_its_table() {
    for (at, call) in Call::ALL.into_iter().enumerate() {
        assert_eq!(call as usize, at);
    }
    for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, at);
    }
    for (at, step) in DrainStep::ALL.into_iter().enumerate() {
        assert_eq!(step as usize, at);
    }
}

#[test]
fn what_is_counted_is_shown_and_nothing_else_moves() {
    let counters = Arc::new(Counters::default());
    let fresh = text(&counters, Fleet::default());
    counters.called(Call::Heartbeat, Outcome::Superseded);
    counters.called(Call::Heartbeat, Outcome::Superseded);
    counters.called(Call::Registration, Outcome::Ok);
    counters.drain(DrainStep::Started);
    counters.wrote(false);
    let after = text(&counters, Fleet::default());
    let moved: Vec<&str> = after
        .lines()
        .filter(|line| !fresh.lines().any(|old| old == *line))
        .collect();
    assert_eq!(
        moved,
        [
            r#"orchd_node_registrations_total{outcome="ok"} 1"#,
            r#"orchd_node_heartbeats_total{outcome="superseded"} 2"#,
            r#"orchd_drains_total{outcome="started"} 1"#,
            "orchd_store_errors_total 1",
            "orchd_store_durable 0",
        ]
    );
    counters.wrote(true);
    let healed = text(&counters, Fleet::default());
    assert_eq!(sample(&healed, "orchd_store_durable"), Some("1"));
    assert_eq!(sample(&healed, "orchd_store_errors_total"), Some("1"));
}

#[test]
fn a_fleet_is_shown_as_it_is_at_the_scrape() {
    let fleet = Fleet {
        nodes: vec![
            node("0.x_y-Z", NodeStatus::Online, Some(1_500)),
            node("b", NodeStatus::Registering, None),
        ],
        pools_available: 3,
        drains: vec![DrainState::Drained],
        hold: Some(7),
        pools: vec![PoolSample {
            node_id: NodeId::new("b").expect("good"),
            pool_id: PoolId::new("p").expect("good"),
            in_flight: 2,
            quarantined: 1,
            ejections: 4,
        }],
        waiting: vec![("m/\"1\"".into(), 5)],
    };
    let text = text(&Arc::default(), fleet);
    for (series, value) in [
        ("orchd_nodes_online", "1"),
        (r#"orchd_nodes{status="Online"}"#, "1"),
        (r#"orchd_nodes{status="Registering"}"#, "1"),
        (r#"orchd_nodes{status="Offline"}"#, "0"),
        ("orchd_pools_available", "3"),
        (r#"orchd_node_drains{state="drained"}"#, "1"),
        (r#"orchd_node_drains{state="draining"}"#, "0"),
        ("orchd_fleet_hold", "1"),
        ("orchd_fleet_hold_nodes", "7"),
        (r#"orchd_node_up{node_id="0.x_y-Z"}"#, "1"),
        (r#"orchd_node_up{node_id="b"}"#, "0"),
        (
            r#"orchd_node_heartbeat_age_seconds{node_id="0.x_y-Z"}"#,
            "1.5",
        ),
        ("orchd_start_time_seconds", "1700000000.25"),
        (r#"orchd_gateway_waiting{model="m/\"1\""}"#, "5"),
        (r#"orchd_gateway_in_flight{node_id="b",pool_id="p"}"#, "2"),
        (r#"orchd_gateway_quarantined{node_id="b",pool_id="p"}"#, "1"),
        (
            r#"orchd_gateway_ejections_total{node_id="b",pool_id="p"}"#,
            "4",
        ),
    ] {
        assert_eq!(sample(&text, series), Some(value), "{series} in\n{text}");
    }
    assert!(!text.contains(r#"age_seconds{node_id="b"}"#));
}

#[test]
fn labels_are_escaped_and_a_large_fleet_is_written_at_once() {
    let about = About {
        profile: "a\"b\\c\nd",
        ..ABOUT
    };
    let registry = scrape(&Arc::default(), Fleet::default(), about);
    let text = expose(&[&registry]);
    assert!(text.contains(r#"profile="a\"b\\c\nd"} 1"#), "{text}");

    let nodes = (0..10_000).map(|n| node(&format!("node-{n:05}"), NodeStatus::Online, Some(n)));
    let fleet = Fleet {
        nodes: nodes.collect(),
        ..Fleet::default()
    };
    let text = self::text(&Arc::default(), fleet);
    let up = text.lines().filter(|l| l.starts_with("orchd_node_up{"));
    assert_eq!(up.count(), 10_000);
    assert!(text.ends_with("# EOF\n"));
}
