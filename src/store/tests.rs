//! One suite for every store.

use super::*;
use crate::types::{DrainRequest, Now, PoolDescriptor, PoolId, RegisterRequest, UnixMs};

fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("good")
}

fn record(node: &str, version: &str) -> Record {
    let body = serde_json::json!({
        "node_id": node, "address": "http://10.0.0.1:9200", "version": version, "labels": {"rack": "a"},
        "capabilities": {"gpus": [{"device_id": 0, "name": "RTX 3090", "vram_total_bytes": 24_000_000_000_u64}]},
    });
    let request: RegisterRequest = serde_json::from_value(body).expect("good");
    Record::from_request(&request, UnixMs(7))
}

fn drain() -> Drain {
    let request = DrainRequest {
        reason: Some("new kernel".into()),
        ..DrainRequest::default()
    };
    let now = Now {
        mono: crate::types::Mono(0),
        wall: UnixMs(9),
    };
    Drain::asked(now, "m1".into(), &request, "d1", 3)
}

fn observed() -> Observed {
    let pool = PoolDescriptor {
        pool_id: PoolId::new("default").expect("good"),
        url: None,
        engine: Some("llamacpp".into()),
        engine_version: Some("b1".into()),
        models: vec!["org/model:Q4".into()],
        slots_total: Some(4),
        n_ctx: Some(2048),
    };
    Observed {
        beaten: true,
        last_heartbeat_ms: Some(UnixMs(11)),
        pools: vec![pool],
        ..Observed::default()
    }
}

fn by_name(loaded: Loaded) -> Vec<Restored> {
    let mut nodes = loaded.nodes;
    nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    nodes
}

/// What every store does; `reopen` ends one life of it and begins the next.
fn conforms<S: Store>(mut store: S, reopen: impl Fn(S) -> S) {
    assert_eq!(
        store.load().expect("loads"),
        Loaded::default(),
        "a new store is empty"
    );

    let first = [
        Write::Record(id("n1"), Some(record("n1", "1"))),
        Write::Record(id("n2"), Some(record("n2", "1"))),
        Write::Drain(id("n1"), Some(drain())),
        Write::Observed(id("n1"), Some(observed())),
    ];
    assert_eq!(store.apply(&first, 0).expect("applies"), 1);
    store = reopen(store);
    let loaded = store.load().expect("loads");
    assert_eq!(loaded.revision, 1);
    let nodes = by_name(loaded);
    let n1 = Restored {
        node_id: id("n1"),
        record: record("n1", "1"),
        drain: Some(drain()),
        observed: observed(),
    };
    let n2 = Restored {
        node_id: id("n2"),
        record: record("n2", "1"),
        drain: None,
        observed: Observed::default(),
    };
    assert_eq!(nodes, [n1.clone(), n2]);

    assert!(matches!(
        store.apply(&first, 0),
        Err(StoreError::Conflict {
            expected: 0,
            found: 1
        })
    ));

    let second = [
        Write::Record(id("n1"), Some(record("n1", "2"))),
        Write::Record(id("n2"), None),
        Write::Observed(id("n1"), None),
    ];
    assert_eq!(store.apply(&second, 1).expect("applies"), 2);
    store = reopen(store);
    let nodes = by_name(store.load().expect("loads"));
    let replaced = Restored {
        record: record("n1", "2"),
        observed: Observed::default(),
        ..n1
    };
    assert_eq!(nodes, [replaced], "one was replaced, one removed");

    // A node that left is kept for what was asked of it.
    let left = record("n1", "2").ended();
    let batch = [Write::Record(id("n1"), Some(left.clone()))];
    store.apply(&batch, 2).expect("applies");
    store = reopen(store);
    let nodes = by_name(store.load().expect("loads"));
    assert_eq!(
        (nodes[0].record.clone(), nodes[0].drain.is_some()),
        (left, true)
    );
    let batch = [Write::Record(id("n1"), None), Write::Drain(id("n1"), None)];
    store.apply(&batch, 3).expect("applies");
    store = reopen(store);
    assert_eq!(
        store.load().expect("loads"),
        Loaded {
            revision: 4,
            nodes: vec![]
        }
    );
}

#[test]
fn the_memory_store_conforms() {
    conforms(MemoryStore::default(), |store| store);
}

#[test]
fn the_sqlite_store_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    conforms(SqliteStore::open(dir.path()).expect("opens"), |store| {
        drop(store);
        SqliteStore::open(dir.path()).expect("opens again")
    });
}

#[test]
fn a_state_directory_has_one_holder_and_names_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = SqliteStore::open(dir.path()).expect("opens");
    let refused = SqliteStore::open(dir.path()).expect_err("is held");
    assert!(
        refused
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
}

#[test]
fn a_damaged_or_newer_file_stops_the_start_and_is_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("orchd.db");
    std::fs::write(&path, vec![b'x'; 8192]).expect("writes");
    assert!(matches!(
        SqliteStore::open(dir.path()),
        Err(StoreError::Damaged { .. })
    ));
    assert_eq!(std::fs::read(&path).expect("reads"), vec![b'x'; 8192]);

    std::fs::remove_file(&path).expect("removes");
    drop(SqliteStore::open(dir.path()).expect("opens"));
    rusqlite::Connection::open(&path)
        .expect("opens")
        .pragma_update(None, "user_version", 3)
        .expect("writes");
    let refused = SqliteStore::open(dir.path()).expect_err("is newer");
    assert!(
        matches!(
            refused,
            StoreError::Newer {
                found: 3,
                known: 2,
                ..
            }
        ),
        "{refused}"
    );
}

fn json(value: impl serde::Serialize) -> String {
    serde_json::to_string(&value).expect("it serialises")
}

/// What the first schema had, with one node in it.
const FIRST_SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    INSERT INTO meta VALUES ('revision', 7);
    CREATE TABLE nodes (node_id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE drains (node_id TEXT PRIMARY KEY, drain TEXT NOT NULL) STRICT;
    CREATE TABLE observed (
        node_id TEXT PRIMARY KEY, beaten INTEGER NOT NULL, offline INTEGER NOT NULL, pools TEXT NOT NULL
    ) STRICT;
    PRAGMA user_version = 1;
";

#[test]
fn a_store_of_the_first_schema_is_taken_over_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let before = rusqlite::Connection::open(dir.path().join("orchd.db")).expect("opens");
    before.execute_batch(FIRST_SCHEMA).expect("is made");
    for name in ["n1", "n2"] {
        before
            .execute(
                "INSERT INTO nodes VALUES (?1, ?2)",
                [name, &json(record(name, "1"))],
            )
            .expect("is written");
    }
    before
        .execute(
            "INSERT INTO observed VALUES ('n1', 1, 0, ?1)",
            [&json(observed().pools)],
        )
        .expect("is written");
    drop(before);
    let expected = Observed {
        last_heartbeat_ms: None,
        ..observed()
    };
    // The second time it has this version's schema.
    for revision in [7, 8] {
        let mut store = SqliteStore::open(dir.path()).expect("opens");
        let loaded = store.load().expect("loads");
        assert_eq!(loaded.revision, revision);
        let nodes = by_name(loaded);
        assert_eq!(
            (&nodes[0].observed, &nodes[1].observed),
            (&expected, &Observed::default())
        );
        let batch = [Write::Drain(id("n2"), Some(drain()))];
        store.apply(&batch, revision).expect("applies");
    }
}
