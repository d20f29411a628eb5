use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;

use super::*;

fn at(ms: u64) -> Mono {
    Mono(ms)
}

struct Runtime {
    dir: TempDir,
    scanner: Scanner,
}

impl Runtime {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let scanner = Scanner::new(dir.path().to_owned());
        Self { dir, scanner }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
    }

    /// `FILE POOL URL`, with the fault if there is one, or `FILE: WHY`.
    fn scan(&mut self, ms: u64) -> Vec<String> {
        let claims = self.scanner.scan(at(ms)).claims;
        let said = |(source, claim): &Claim| match claim {
            Ok(engine) => {
                let fault = engine.fault.as_ref();
                let fault = fault.map(|f| format!(" ({}: {})", f.state.as_str(), f.why));
                let (name, url) = (&engine.pool_id, &engine.url);
                format!("{source} {name} {url}{}", fault.unwrap_or_default())
            }
            Err(why) => format!("{source}: {why}"),
        };
        claims.iter().map(said).collect()
    }
}

const ONE: &str = r#"{"url": "http://h:1"}"#;
const TWO: &str = r#"{"url": "http://h:2"}"#;

#[test]
fn files_that_come_change_and_go_are_seen_at_the_next_look() {
    let mut runtime = Runtime::new();
    assert!(runtime.scan(0).is_empty());
    runtime.write("a.json", ONE);
    assert_eq!(runtime.scan(1_000), ["a.json default http://h:1"]);
    // The same length, perhaps within the grain of the time stamps.
    runtime.write("a.json", TWO);
    assert_eq!(runtime.scan(1_001), ["a.json default http://h:2"]);
    fs::remove_file(runtime.path("a.json")).expect("removes");
    assert!(runtime.scan(2_000).is_empty());
}

#[test]
fn a_directory_that_is_not_there_yet_is_an_empty_one() {
    let mut runtime = Runtime::new();
    let later = runtime.path("run/engines");
    runtime.scanner = Scanner::new(later.clone());
    assert!(runtime.scan(0).is_empty());
    fs::create_dir_all(&later).expect("creates");
    fs::write(later.join("a.json"), ONE).expect("writes");
    assert_eq!(runtime.scan(1_000), ["a.json default http://h:1"]);
    fs::remove_dir_all(&later).expect("removes");
    assert!(runtime.scan(2_000).is_empty());
}

#[test]
fn a_file_that_is_half_written_is_waited_for_and_then_complained_of() {
    let mut runtime = Runtime::new();
    runtime.write("a.json", r#"{"url": "http:"#);
    let found = runtime.scanner.scan(at(0));
    assert_eq!((found.claims, found.unsettled), (Vec::new(), true));
    runtime.write("a.json", ONE);
    assert_eq!(runtime.scan(200), ["a.json default http://h:1"]);
    assert!(!runtime.scanner.scan(at(200)).unsettled);

    runtime.write("b.json", "{");
    assert_eq!(runtime.scan(1_000).len(), 1, "still waited for");
    let found = runtime.scan(2_001);
    assert!(
        found[1].starts_with("b.json: it is not a handoff file"),
        "{found:?}"
    );
    assert!(!runtime.scanner.scan(at(2_100)).unsettled);
    runtime.write("b.json", r#"{"url": "http://h:2", "pool_id": "b"}"#);
    assert_eq!(runtime.scan(3_000)[1], "b.json b http://h:2");
}

#[test]
fn a_good_file_that_is_being_rewritten_counts_until_the_new_one_is_there_or_patience_ends() {
    let mut runtime = Runtime::new();
    runtime.write("a.json", ONE);
    runtime.scan(0);
    runtime.write("a.json", "");
    assert_eq!(runtime.scan(5_000), ["a.json default http://h:1"]);
    assert_eq!(runtime.scan(6_000), ["a.json default http://h:1"]);
    let found = runtime.scan(6_001);
    assert!(found[0].starts_with("a.json: "), "{found:?}");
    runtime.write("a.json", TWO);
    assert_eq!(runtime.scan(7_000), ["a.json default http://h:2"]);
}

#[test]
fn only_json_files_that_are_not_hidden_count() {
    let mut runtime = Runtime::new();
    for name in [".a.json", "a.json.tmp", "a.txt", "json"] {
        runtime.write(name, ONE);
    }
    assert!(runtime.scan(0).is_empty());
}

#[test]
fn links_are_followed_and_their_targets_watched() {
    let mut runtime = Runtime::new();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let target = elsewhere.path().join("engine");
    fs::write(&target, ONE).expect("writes");
    symlink(&target, runtime.path("a.json")).expect("links");
    assert_eq!(runtime.scan(0), ["a.json default http://h:1"]);
    runtime.scan(10_000);
    fs::write(&target, r#"{"url": "http://h:22"}"#).expect("writes");
    assert_eq!(runtime.scan(20_000), ["a.json default http://h:22"]);
    fs::remove_file(&target).expect("removes");
    runtime.scan(30_000);
    let found = runtime.scan(31_001);
    assert!(found[0].contains("cannot be read"), "{found:?}");
}

#[test]
fn pipes_directories_and_huge_files_are_passed_over_without_waiting() {
    let mut runtime = Runtime::new();
    let pipe = runtime.path("pipe.json");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("runs");
    assert!(made.success());
    fs::create_dir(runtime.path("dir.json")).expect("creates");
    runtime.write("huge.json", &" ".repeat(70_000));
    runtime.write("ok.json", ONE);
    runtime.scan(0);
    let found = runtime.scan(1_001);
    assert!(found[0].contains("not a regular file"), "{found:?}");
    assert!(found[1].contains("larger than"), "{found:?}");
    assert_eq!(found[2], "ok.json default http://h:1");
    assert!(found[3].contains("not a regular file"), "{found:?}");
}

#[test]
fn an_engine_whose_process_has_ended_is_of_no_use() {
    let mut runtime = Runtime::new();
    let mut process = Command::new("sleep").arg("60").spawn().expect("starts");
    let pid = process.id();
    runtime.write(
        "a.json",
        &format!(r#"{{"url": "http://h:1", "pid": {pid}}}"#),
    );
    assert_eq!(runtime.scan(0), ["a.json default http://h:1"]);
    process.kill().expect("ends");
    process.wait().expect("ends");
    let found = runtime.scan(10_000);
    assert!(
        found[0].contains("(unreachable: its process") && found[0].contains("has ended"),
        "{found:?}"
    );
    // None of ours to signal, and alive all the same.
    runtime.write(
        "b.json",
        r#"{"url": "http://h:2", "pool_id": "b", "pid": 1}"#,
    );
    assert_eq!(runtime.scan(11_000)[1], "b.json b http://h:2");
    for nobody in ["0", "4294967295"] {
        runtime.write(
            "b.json",
            &format!(r#"{{"url": "http://h:2", "pid": {nobody}}}"#),
        );
        assert!(runtime.scan(12_000)[1].contains("unreachable"));
    }
}

#[test]
fn the_key_of_an_engine_is_read_beside_its_file_and_again_when_it_changes() {
    let mut runtime = Runtime::new();
    let key = |runtime: &mut Runtime, ms| {
        let claims = runtime.scanner.scan(at(ms)).claims;
        let engine = claims[0].1.clone().expect("is good");
        let key = engine.key.map(|key| {
            assert!(key.is_sensitive(), "it is in no log");
            key.to_str().expect("text").to_owned()
        });
        (key, engine.fault.map(|fault| fault.why))
    };
    runtime.write("a.json", r#"{"url": "http://h:1", "api_key_file": "key"}"#);
    let (none, why) = key(&mut runtime, 0);
    assert_eq!(none, None);
    assert!(why.is_some_and(|why| why.contains("api_key_file")));
    runtime.write("key", "\n  first  \nsecond\n");
    assert_eq!(key(&mut runtime, 100), (Some("Bearer first".into()), None));
    key(&mut runtime, 5_000);
    runtime.write("key", "another\n");
    assert_eq!(
        key(&mut runtime, 10_000),
        (Some("Bearer another".into()), None)
    );
    runtime.write("key", "");
    assert!(
        key(&mut runtime, 20_000)
            .1
            .is_some_and(|why| why.contains("is empty"))
    );
}

#[test]
fn another_engine_is_shown_and_not_used() {
    let mut runtime = Runtime::new();
    runtime.write("a.json", r#"{"url": "http://h:1", "engine": "vllm"}"#);
    let found = runtime.scan(0);
    assert!(
        found[0].contains("misconfigured") && found[0].contains("vllm"),
        "{found:?}"
    );
}

#[test]
fn thousands_of_files_are_looked_at_well_within_the_time_between_two_looks() {
    let mut runtime = Runtime::new();
    for n in 0..3_000 {
        runtime.write(
            &format!("{n}.json"),
            &format!(r#"{{"url": "http://h:{}", "pool_id": "p{n}"}}"#, n + 1),
        );
    }
    assert_eq!(runtime.scan(0).len(), 3_000);
    let begun = tokio::time::Instant::now();
    assert_eq!(runtime.scan(10_000).len(), 3_000);
    assert!(begun.elapsed() < RESCAN, "took {:?}", begun.elapsed());
}
