//! `orchd nodes list`: the table against golden copies, the rest by the real binary.

use orchd::commands::nodes::list::{Entry, Layout, table};
use orchd::types::{NodeView, UnixMs};
use serde_json::{Value, json};

use crate::fake_control_plane::{Fake, LIST, Ran, drain, list, node, orchd, step};

fn fleet() -> Vec<Value> {
    vec![
        node("gpu-1", &json!({})),
        node(
            "gpu-2",
            &json!({"status": "Draining", "schedulable": false, "drain": drain("drained", 0, &json!({}))["drain"],
                "last_heartbeat_age_ms": 900, "labels": {"rack": "b2", "zone": "eu"}}),
        ),
        node(
            "gpu-3",
            &json!({"status": "Offline", "online": false, "schedulable": false, "last_heartbeat_age_ms": 7_300_000,
                "drain": drain("draining", 2, &json!({}))["drain"], "version": null}),
        ),
        node(
            "gpu-4-with-a-rather-long-name.example.org",
            &json!({"suspect": true, "last_heartbeat_age_ms": null, "capabilities": {"gpus": []}, "pool_status": [
                {"pool_id": "a", "ready": true, "slots_total": 4, "slots_free": 4, "vram_free_bytes": 1_073_741_824u64,
                    "models_available": ["qwen3-8b", "Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF"], "running": 2},
                {"pool_id": "b", "ready": false, "vram_free_bytes": 536_870_912u64, "state": "loading",
                    "models_available": ["smollm2"], "running": 0},
            ]}),
        ),
        node(
            "new",
            &json!({"status": "Registering", "online": false, "schedulable": false, "pool_status": [],
            "capabilities": {"gpus": []}, "address": null, "last_heartbeat_age_ms": 15_000, "registered_at_ms": 90_100_000}),
        ),
        node(
            "sick",
            &json!({"health": {"status": "degraded", "reasons": []}}),
        ),
    ]
}

fn draw(nodes: &[Value], layout: Layout) -> String {
    let nodes: Vec<Entry> = nodes
        .iter()
        .map(|node| serde_json::from_value::<NodeView>(node.clone()).expect("a node"))
        .map(Entry::from)
        .collect();
    format!("\n{}", table(&nodes, UnixMs(90_115_000), layout))
}

const PLAIN: Layout = Layout {
    wide: false,
    headers: true,
    width: None,
    color: false,
    reasons: false,
};

#[test]
fn the_table_of_nodes_leaves_out_columns_until_it_fits_80() {
    let text = draw(
        &fleet(),
        Layout {
            width: Some(80),
            ..PLAIN
        },
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert_eq!(
        text,
        "
NAME                          STATUS            SLOTS  MODELS            SEEN
gpu-1                         Online              3/8  qwen3-8b          3s ago
gpu-2                         Drained             3/8  qwen3-8b          0s ago
gpu-3                         Offline,draining    -/8  qwen3-8b          2h ago
gpu-4-with-a-rather-long-na…  Online,suspect      2/5  Qwen/Qwen3-235B…  -
new                           Registering           -  -                 15s ago
sick                          Online,degraded     3/8  qwen3-8b          3s ago
"
    );
}

#[test]
fn wide_leaves_nothing_out_and_fits_a_terminal_that_has_the_room() {
    let wide = Layout {
        wide: true,
        ..PLAIN
    };
    let at = |width: Option<u16>| draw(&fleet(), Layout { width, ..wide });
    let longest = |text: &str| text.lines().map(|line| line.chars().count()).max();
    let fits = at(Some(220));
    assert!(longest(&fits) <= Some(220), "{fits}");
    for column in ["GPUS", "VRAM-FREE", "ADDRESS", "MACHINE", "LABELS"] {
        assert!(fits.contains(column), "{column}: {fits}");
    }
    // Where it cannot fit, nothing is cut for nothing.
    assert_eq!(at(Some(60)), at(None));
    assert!(at(None).contains("Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF,qwen3-8b"));
}

#[test]
fn the_table_of_nodes_shows_every_column_at_160() {
    let text = draw(
        &fleet(),
        Layout {
            width: Some(160),
            ..PLAIN
        },
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 160),
        "{text}"
    );
    assert_eq!(text, "
NAME                                   STATUS            GPUS               VRAM-FREE  POOLS  SLOTS  MODELS                                SEEN     AGE  VERSION
gpu-1                                  Online            2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                              3s ago   24h  0.1.0
gpu-2                                  Drained           2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                              0s ago   24h  0.1.0
gpu-3                                  Offline,draining  2× H100 80GB HBM3          -    -/1    -/8  qwen3-8b                              2h ago   24h  -
gpu-4-with-a-rather-long-name.exampl…  Online,suspect    -                    1.0 GiB    1/2    2/5  Qwen/Qwen3-235B-A22B-Instruct-2507-…  -        24h  0.1.0
new                                    Registering       -                          -      -      -  -                                     15s ago  15s  0.1.0
sick                                   Online,degraded   2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                              3s ago   24h  0.1.0
");
}

#[test]
fn the_wide_table_of_nodes_shows_everything_at_any_width() {
    let wide = Layout {
        wide: true,
        width: Some(80),
        ..PLAIN
    };
    assert_eq!(draw(&fleet(), wide), "
NAME                                       STATUS            GPUS               VRAM-FREE  POOLS  SLOTS  MODELS                                                    SEEN     AGE  VERSION  ADDRESS                                                MACHINE                                      LABELS
gpu-1                                      Online            2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                                                  3s ago   24h  0.1.0    http://gpu-1:9200                                      m-gpu-1                                      -
gpu-2                                      Drained           2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                                                  0s ago   24h  0.1.0    http://gpu-2:9200                                      m-gpu-2                                      rack=b2,zone=eu
gpu-3                                      Offline,draining  2× H100 80GB HBM3          -    -/1    -/8  qwen3-8b                                                  2h ago   24h  -        http://gpu-3:9200                                      m-gpu-3                                      -
gpu-4-with-a-rather-long-name.example.org  Online,suspect    -                    1.0 GiB    1/2    2/5  Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF,qwen3-8b,smollm2  -        24h  0.1.0    http://gpu-4-with-a-rather-long-name.example.org:9200  m-gpu-4-with-a-rather-long-name.example.org  -
new                                        Registering       -                          -      -      -  -                                                         15s ago  15s  0.1.0    -                                                      m-new                                        -
sick                                       Online,degraded   2× H100 80GB HBM3     61 GiB    1/1    3/8  qwen3-8b                                                  3s ago   24h  0.1.0    http://sick:9200                                       m-sick                                       -
");
}

#[test]
fn a_very_narrow_terminal_still_gets_names_and_statuses() {
    let text = draw(
        &fleet()[..2],
        Layout {
            width: Some(20),
            ..PLAIN
        },
    );
    assert_eq!(
        text,
        "
NAME   STATUS   SLOTS
gpu-1  Online     3/8
gpu-2  Drained    3/8
"
    );
}

#[test]
fn colours_follow_the_news_and_do_not_move_the_columns() {
    let plain = draw(&fleet(), PLAIN);
    let colored = draw(
        &fleet(),
        Layout {
            color: true,
            ..PLAIN
        },
    );
    assert!(
        colored.contains("\u{1b}[38;5;2mOnline\u{1b}[39m"),
        "{colored:?}"
    );
    let stripped: String = anstream::adapter::strip_str(&colored).to_string();
    assert_eq!(stripped, plain);
}

#[test]
fn control_characters_from_a_node_do_not_reach_the_terminal() {
    let nodes = [node("gpu-1", &json!({"version": "\u{1b}[2J\n9"}))];
    let text = draw(&nodes, PLAIN);
    assert_eq!(text.lines().count(), 3, "{text:?}");
    assert!(text.ends_with("\u{fffd}[2J\u{fffd}9\n"), "{text:?}");
}

#[test]
fn nodes_list_prints_a_plain_table_with_all_columns_into_a_pipe() {
    let fake = Fake::start([step(LIST, 200, &list(&[node("gpu-1", &json!({}))]))]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        [
            "NAME",
            "STATUS",
            "GPUS",
            "VRAM-FREE",
            "POOLS",
            "SLOTS",
            "MODELS",
            "SEEN",
            "AGE",
            "VERSION"
        ]
    );
    assert!(
        lines[1].starts_with("gpu-1  Online  2× H100 80GB HBM3"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains('\u{1b}'), "no colour in a pipe");
    fake.asked();

    let fake = Fake::start([step(LIST, 200, &list(&[node("gpu-1", &json!({}))]))]);
    let ran = fake.run(&["nodes", "list", "--no-headers", "-o", "wide"]);
    assert!(ran.stdout.starts_with("gpu-1  Online"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("http://gpu-1:9200  m-gpu-1"),
        "{}",
        ran.stdout
    );
}

#[test]
fn nodes_list_as_json_and_yaml_is_the_answer_of_the_control_plane() {
    let wanted = list(&[
        node("gpu-1", &json!({})),
        node("gpu-2", &json!({"suspect": true})),
    ]);
    let contains = |got: &Value| {
        for key in ["count", "total", "next"] {
            assert_eq!(got[key], wanted[key]);
        }
        assert_eq!(got["nodes"][1]["suspect"], true);
        assert_eq!(
            got["nodes"][0]["capabilities"],
            wanted["nodes"][0]["capabilities"]
        );
        assert_eq!(
            got["nodes"][0]["pool_status"],
            wanted["nodes"][0]["pool_status"]
        );
    };
    let fake = Fake::start([step(LIST, 200, &wanted), step(LIST, 200, &wanted)]);
    let ran = fake.run(&["nodes", "list", "-o", "json"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    contains(&serde_json::from_str(&ran.stdout).expect("JSON"));
    let ran = fake.run(&["nodes", "list", "-o", "yaml"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    contains(&yaml_serde::from_str(&ran.stdout).expect("YAML"));
    fake.asked();
}

#[test]
fn nodes_list_asks_for_statuses_in_any_case_and_prints_names() {
    let request = "GET /v2/nodes?limit=1000&status=Online%2COffline%2CFailed";
    let fake = Fake::start([step(
        request,
        200,
        &list(&[node("a", &json!({})), node("b", &json!({}))]),
    )]);
    let ran = fake.run(&[
        "nodes",
        "list",
        "--status",
        "online,OFFLINE",
        "--status",
        "Failed",
        "-o",
        "name",
    ]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "a\nb\n", "")
    );
    fake.asked();
}

#[test]
fn the_words_that_a_list_shows_are_those_by_which_it_can_be_asked() {
    let nodes = || {
        let with = |name: &str, state: &str| node(name, &drain(state, 0, &json!({})));
        list(&[with("busy", "draining"), with("idle", "drained")])
    };
    let cases = [
        ("drained", "idle\n"),
        ("Draining", "busy\nidle\n"),
        ("DRAINED,draining", "busy\nidle\n"),
    ];
    for (words, names) in cases {
        let request = "GET /v2/nodes?limit=1000&status=Draining";
        let fake = Fake::start([step(request, 200, &nodes())]);
        let ran = fake.run(&["nodes", "list", "--status", words, "-o", "name"]);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), names), "{words}");
        fake.asked();
    }
    // Those that left are asked for by themselves, and are marked.
    let request = "GET /v2/nodes?limit=1000&departed=true";
    let fake = Fake::start([step(request, 200, &nodes())]);
    let ran = fake.run(&["nodes", "list", "--status", "departed", "-o", "json"]);
    assert!(ran.stdout.contains("\"departed\": true"), "{}", ran.stdout);
    fake.asked();
    let fake = Fake::start([step(
        "GET /v2/nodes?limit=1000&status=Draining",
        200,
        &list(&[]),
    )]);
    let ran = fake.run(&["nodes", "list", "--status", "Drained"]);
    assert_eq!(ran.stderr, "no nodes that are Drained\n");
}

#[test]
fn an_empty_fleet_is_said_on_stderr_with_the_next_step() {
    let fake = Fake::start([step(LIST, 200, &list(&[]))]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), ""));
    assert_eq!(
        ran.stderr,
        format!(
            "no nodes\nhint: on a GPU host: orchd agent --server {} --engine http://127.0.0.1:8081\n",
            fake.url()
        )
    );

    let fake = Fake::start([step(
        "GET /v2/nodes?limit=1000&status=Failed",
        200,
        &list(&[]),
    )]);
    let ran = fake.run(&["nodes", "list", "--status", "failed"]);
    assert_eq!(
        (ran.exit, ran.stderr.as_str()),
        (Some(0), "no nodes that are Failed\n")
    );
}

#[test]
fn a_reader_who_has_gone_is_not_an_error() {
    let fake = Fake::start([step(LIST, 200, &list(&fleet()))]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = orchd(&[
        "nodes",
        "list",
        "-o",
        "json",
        "--server",
        fake.url().as_str(),
    ])
    .stdout(writer)
    .output()
    .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    fake.asked();
}
