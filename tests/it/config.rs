//! Settings from flags, variables, the file and defaults, through the real executable.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_control_plane::{Fake, LIST, Ran, list, orchd, step};
use crate::support::process::Running;
use crate::support::{free_address, http};

pub const SECRET: &str = "sesame-open-sesame-open-sesame-open";

/// A directory with files of settings.
pub struct Files(pub TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// A file that its owner alone can read, as it should be.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        std::fs::write(&path, text).expect("written");
        chmod(&path, 0o600);
        path
    }
}

pub fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("its owner may");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

pub fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = orchd(arguments);
    command.envs(variables.iter().copied());
    Ran::from(command.output().expect("orchd runs"))
}

/// Name and value of each.
type Variables<'a> = &'a [(&'a str, &'a str)];

/// `config show` as JSON: value and source of each setting, and stderr.
pub fn show(arguments: &[&str], variables: &[(&str, &str)]) -> (BTreeMap<String, Value>, String) {
    let arguments = [&["config", "show", "-o", "json"], arguments].concat();
    let ran = run_with(&arguments, variables);
    assert_eq!(ran.exit, Some(0), "{arguments:?}: {}", ran.stderr);
    let shown: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let settings = shown["settings"].as_array().expect("a list");
    let settings = settings
        .iter()
        .map(|setting| {
            let key = setting["key"].as_str().expect("a name").to_owned();
            let picked = json!([setting["value"], setting["source"], setting["detail"]]);
            (key, picked)
        })
        .collect();
    (settings, ran.stderr)
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default_and_each_is_named() {
    let cases = [
        // Key, flag, variable, file; each in its own syntax, then as shown; default.
        (
            "queue_timeout",
            ("--queue-timeout=10s", "10s"),
            ("ORCHD_QUEUE_TIMEOUT_MS", "20000", "20s"),
            ("queue_timeout = '30000ms'", "30s"),
            "5m",
        ),
        (
            "stale_check_interval",
            ("--stale-check-interval=1s", "1s"),
            ("ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", "2", "2s"),
            ("stale_check_interval = '3s'", "3s"),
            "10s",
        ),
        (
            "admission_bytes",
            ("--admission-bytes=1GiB", "1GiB"),
            ("ORCHD_ADMISSION_BYTES", "2048", "2KiB"),
            ("admission_bytes = '3B'", "3B"),
            "256MiB",
        ),
        (
            "admission_policy",
            ("--admission-policy=drop-lru", "drop-lru"),
            ("ORCHD_ADMISSION_POLICY", "drop-lru", "drop-lru"),
            ("admission_policy = 'drop-lru'", "drop-lru"),
            "reject",
        ),
        (
            "admission_capacity",
            ("--admission-capacity=1", "1"),
            ("ORCHD_ADMISSION_CAPACITY", "2", "2"),
            ("admission_capacity = 0x1_0", "16"),
            "1024",
        ),
        (
            "listen",
            ("--listen=127.0.0.1:1", "127.0.0.1:1"),
            ("ORCHD_ADDR", "127.0.0.1:2", "127.0.0.1:2"),
            ("listen = '127.0.0.1:3'", "127.0.0.1:3"),
            "127.0.0.1:8080",
        ),
        (
            "cloud",
            ("--cloud", "true"),
            ("ORCHESTRATORD_CLOUD_PROFILE", "1", "true"),
            ("cloud = true", "true"),
            "false",
        ),
        (
            "runtime_dir",
            ("--runtime-dir=/a", "/a"),
            ("ORCHD_RUNTIME_DIR", "/b", "/b"),
            ("runtime_dir = '/c'", "/c"),
            ".runtime/engines",
        ),
    ];
    let files = Files::new();
    for (key, (flag, by_flag), (variable, value, by_variable), (line, by_file), default) in cases {
        let file = files.write("c.toml", format!("# one\n\n{line}\n"));
        let file = text(&file);
        let set = [(variable, value)];
        let name = flag.split('=').next().expect("a name");
        let here = format!("{file}:3");
        let table: [(&[&str], Variables, Value); 6] = [
            (&[], &[], json!([default, "default", null])),
            (&["--config", file], &[], json!([by_file, "file", here])),
            (&[], &set, json!([by_variable, "env", variable])),
            (
                &["--config", file],
                &set,
                json!([by_variable, "env", variable]),
            ),
            (&["--", flag], &set, json!([by_flag, "flag", name])),
            (
                &["--config", file, "--", flag],
                &set,
                json!([by_flag, "flag", name]),
            ),
        ];
        for (arguments, variables, wanted) in table {
            let (settings, _) = show(arguments, variables);
            assert_eq!(settings[key], wanted, "{arguments:?} {variables:?}");
        }
    }
}

#[test]
fn a_variable_that_turns_something_off_beats_a_file_that_turns_it_on() {
    let files = Files::new();
    let file = files.write("c.toml", "cloud = true\n");
    let variables = [("ORCHESTRATORD_CLOUD_PROFILE", "0")];
    let (settings, _) = show(&["--config", text(&file)], &variables);
    let wanted = json!(["false", "env", "ORCHESTRATORD_CLOUD_PROFILE"]);
    assert_eq!(settings["cloud"], wanted);
}

#[test]
fn an_empty_variable_does_not_undo_what_the_file_sets() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("orchd.toml");
    let token = "file-file-file-file-file-file-file-1";
    std::fs::write(&file, format!("api_token = {token:?}\n")).expect("written");
    let path = file.to_str().expect("UTF-8");
    let (shown, _) = show(
        &["--config", path],
        &[("ORCHD_API_TOKEN", ""), ("ORCHD_TLS_CERT", "")],
    );
    assert_eq!(shown["api_token"][1], "file", "{shown:?}");
}

#[test]
fn the_file_is_the_one_named_by_flag_else_by_variable_else_the_users() {
    let files = Files::new();
    let users = files.write("orchd/config.toml", "admission_capacity = 1\n");
    let second = files.write("second.toml", "admission_capacity = 2\n");
    let third = files.write("third.toml", "admission_capacity = 3\n");
    let capacity = |arguments: &[&str], variable: Option<&Path>| {
        let mut command = orchd(&[&["config", "show", "-o", "json"], arguments].concat());
        command
            .env_remove("ORCHD_CONFIG")
            .env("XDG_CONFIG_HOME", files.0.path())
            .envs(variable.map(|path| ("ORCHD_CONFIG", path)));
        let ran = Ran::from(command.output().expect("orchd runs"));
        let shown: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let settings = shown["settings"].as_array().expect("a list");
        let capacity = settings
            .iter()
            .find(|setting| setting["key"] == "admission_capacity")
            .expect("a setting");
        (shown["file"].clone(), capacity["value"].clone())
    };
    assert_eq!(capacity(&[], None), (json!(users), json!("1")));
    assert_eq!(capacity(&[], Some(&second)), (json!(second), json!("2")));
    assert_eq!(
        capacity(&["--config", text(&third)], Some(&second)),
        (json!(third), json!("3"))
    );
}

#[test]
fn the_agents_table_is_the_agents_and_the_top_level_listen_is_serves() {
    let files = Files::new();
    let file = files.write(
        "c.toml",
        "listen = '127.0.0.1:1'\nengine = 'http://a'\nshutdown_grace = '1s'\n\n[agent]\n\
         engine = [\n  'http://b',\n  'x=http://c',\n]\nlabel = ['rack=b2']\nnode_id = 'gpu-1'\n",
    );
    let here = |line: u32| json!(format!("{}:{line}", file.display()));
    let (agent, _) = show(&["agent", "--config", text(&file)], &[]);
    assert_eq!(agent["listen"], json!(["127.0.0.1:9200", "default", null]));
    assert_eq!(
        agent["engine"],
        json!([["http://b", "x=http://c"], "file", here(6)])
    );
    assert_eq!(agent["label"], json!([["rack=b2"], "file", here(10)]));
    assert_eq!(agent["node_id"], json!(["gpu-1", "file", here(11)]));
    assert_eq!(agent["shutdown_grace"], json!(["1s", "file", here(3)]));
    let (serve, _) = show(&["serve", "--config", text(&file)], &[]);
    assert_eq!(serve["listen"], json!(["127.0.0.1:1", "file", here(1)]));
    assert_eq!(serve["engine"], json!([["http://a"], "file", here(2)]));

    let file = files.write(
        "d.toml",
        "engine = 'http://a'\n[agent]\nlisten = '127.0.0.1:2'\n",
    );
    let (agent, _) = show(&["agent", "--config", text(&file)], &[]);
    assert_eq!(agent["listen"][0], "127.0.0.1:2");
    assert_eq!(agent["engine"][0], json!(["http://a"]));
}

#[test]
fn an_agent_is_told_where_to_keep_what_survives_a_restart() {
    let files = Files::new();
    let file = files.write("c.toml", "state_dir = '/file'\n");
    let told = |arguments: &[&str], variables: &[(&str, &str)]| {
        let config = ["agent", "--config", text(&file)];
        let (agent, warnings) = show(&[&config, arguments].concat(), variables);
        assert_eq!(warnings, "");
        agent["state_dir"].clone()
    };
    let here = format!("{}:1", file.display());
    assert_eq!(told(&[], &[]), json!(["/file", "file", here]));
    let variable = ("ORCHD_STATE_DIR", "/variable");
    assert_eq!(told(&[], &[variable])[0], "/variable");
    let flag = ["--", "--state-dir", "/flag"];
    assert_eq!(told(&flag, &[variable])[0], "/flag");
    let (agent, _) = show(&["agent"], &[("XDG_STATE_HOME", "/var/lib/x")]);
    assert_eq!(
        agent["state_dir"],
        json!(["/var/lib/x/orchd", "derived", "the user's state directory"])
    );
}

#[test]
fn an_agent_is_told_how_long_an_engine_may_hang() {
    let files = Files::new();
    let file = files.write("c.toml", "hung_after = '90s'\n");
    let here = format!("{}:1", file.display());
    let told = |variables: &[(&str, &str)]| {
        let (agent, warnings) = show(&["agent", "--config", text(&file)], variables);
        assert_eq!(warnings, "");
        agent["hung_after"].clone()
    };
    assert_eq!(told(&[]), json!(["90s", "file", here]));
    let variable = ("ORCHD_HUNG_AFTER_MS", "5000");
    assert_eq!(told(&[variable])[0], "5s");
    let (agent, _) = show(&["agent"], &[]);
    assert_eq!(agent["hung_after"][0], "30s");
    let ran = run_with(&["agent", "--hung-after", "999ms"], &[]);
    assert_eq!(ran.exit, Some(2));
    assert!(ran.stderr.contains("must be 1s to 1h"), "{}", ran.stderr);
}

#[test]
fn mistakes_in_the_file_are_named_with_line_key_value_and_what_is_accepted() {
    let cases: [(&str, &str); 15] = [
        (
            "\nqueue_timeout = 30\n",
            "line 2: invalid value '30' for `queue_timeout`: a duration needs its unit here, such as 30s or 30ms",
        ),
        (
            "node_timeout = '2h'",
            "line 1: invalid value '2h' for `node_timeout`: must be 1s to 1h",
        ),
        (
            "admission_capacity = -1",
            "line 1: invalid value '-1' for `admission_capacity`: must be a whole number, 0 to 1000000",
        ),
        (
            "admission_bytes = 64",
            "line 1: invalid value '64' for `admission_bytes`: must be a whole number and a unit (B, KiB, MiB or GiB), \
             such as 64MiB, 0B to 1024GiB",
        ),
        (
            "admission_policy = 'lru'",
            "line 1: invalid value 'lru' for `admission_policy`: must be reject or drop-lru",
        ),
        (
            "cloud = 'maybe'",
            "line 1: invalid value 'maybe' for `cloud`: must be true, false, 1 or 0",
        ),
        (
            "listen = ['127.0.0.1:1']",
            "line 1: invalid value ['127.0.0.1:1'] for `listen`: takes one value, not a list",
        ),
        (
            "engine = [\n  'http://a',\n  'b',\n]",
            "line 3: invalid value 'b' for `engine`: \"b\" is not an address; write it like http://HOST:PORT",
        ),
        (
            "state_dir = ''",
            "line 1: invalid value '' for `state_dir`: it must not be empty",
        ),
        (
            "cloud = true\n\nqueue_timout = '1s'\n",
            "line 3: unknown key `queue_timout`\nhint: did you mean `queue_timeout`?",
        ),
        (
            "queue-timeout = '1s'",
            "line 1: unknown key `queue-timeout`\nhint: did you mean `queue_timeout`?",
        ),
        (
            "[agent]\nnode_timeout = '1m'",
            "line 2: unknown key `node_timeout`\nhint: `node_timeout` is a setting of `orchd serve`: it stands at the top \
             level, above [agent]",
        ),
        (
            "[serve]\nlisten = '127.0.0.1:1'",
            "line 1: unknown key `serve`\nhint: settings stand at the top level; the only tables are [agent], for the \
             agent's own, and [aliases]",
        ),
        (
            "[[agent]]\nlisten = '127.0.0.1:1'",
            "line 1: unknown key `agent`\nhint: the agent's own settings stand in one table, [agent]",
        ),
        ("cloud = true\nlisten = '127", "line 2: not TOML: "),
    ];
    let files = Files::new();
    let file = files.write("c.toml", "");
    for (content, wanted) in cases {
        std::fs::write(&file, content).expect("written");
        for verb in [&["serve"][..], &["config", "check", "serve"]] {
            let ran = run_with(&[verb, &["--config", text(&file)]].concat(), &[]);
            assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""), "{content}");
            let wanted = format!("error: {}, {wanted}", file.display());
            assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
        }
    }
}

#[test]
fn keys_that_another_verb_takes_are_fine_whatever_they_hold() {
    let files = Files::new();
    let file = files.write("c.toml", "node_timeout = 'x'\nnode_id = 'a b'\n");
    let ran = run_with(&["nodes", "list", "--config", text(&file)], &[]);
    assert_eq!(ran.exit, Some(6), "{}", ran.stderr);
    let check = |verb| run_with(&["config", "check", verb, "--config", text(&file)], &[]);
    assert!(check("serve").stderr.contains("node_timeout"));
    assert!(check("agent").stderr.contains("node_id"));
}

#[test]
fn a_file_that_cannot_be_read_stops_the_start() {
    let files = Files::new();
    let binary = files.write("binary.toml", b"listen = '\xff'\n");
    let large = files.write("large.toml", "#".repeat(2 << 20));
    let cases = [
        (files.0.path().join("none.toml"), "it does not exist"),
        (files.0.path().to_owned(), "it is a directory"),
        (binary, "it is not UTF-8 text"),
        (large, "it is larger than 1048576 bytes"),
    ];
    for (path, why) in cases {
        let wanted = format!(
            "error: cannot read the configuration file {}: {why}\n",
            path.display()
        );
        for verb in [
            &["serve"][..],
            &["agent"],
            &["config", "show"],
            &["nodes", "list"],
        ] {
            let by_flag = run_with(&[verb, &["--config", text(&path)]].concat(), &[]);
            let by_variable = run_with(verb, &[("ORCHD_CONFIG", text(&path))]);
            for ran in [by_flag, by_variable] {
                assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""));
                assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
            }
        }
    }
}

#[test]
fn an_unreadable_file_that_nobody_named_stops_serve_and_is_a_warning_for_commands() {
    let files = Files::new();
    std::fs::create_dir_all(files.0.path().join("orchd/config.toml")).expect("made");
    let run = |arguments: &[&str]| {
        let mut command = orchd(arguments);
        command
            .env_remove("ORCHD_CONFIG")
            .env("XDG_CONFIG_HOME", files.0.path());
        Ran::from(command.output().expect("orchd runs"))
    };
    let ran = run(&["serve"]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr.starts_with("error: cannot read"),
        "{}",
        ran.stderr
    );
    let server = crate::fake_control_plane::silent_port();
    let ran = run(&["nodes", "list", "--server", server.as_str()]);
    assert_eq!(ran.exit, Some(6));
    assert!(
        ran.stderr.starts_with("warning: cannot read"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_needs_no_settings_works_beside_a_broken_file() {
    let files = Files::new();
    let file = files.write("c.toml", "x");
    for arguments in [
        &["completions", "bash"][..],
        &["man"],
        &["--version"],
        &["serve", "--help"],
    ] {
        let ran = run_with(arguments, &[("ORCHD_CONFIG", text(&file))]);
        assert_eq!(
            (ran.exit, ran.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn commands_take_server_and_token_from_the_file_and_nothing_else() {
    let files = Files::new();
    let fake = Fake::start([step(LIST, 200, &list(&[]))]);
    let settings = |fake: &Fake| {
        format!(
            "server = '{}'\napi_token = '{SECRET}'\nlabel = ['rack=b2']\n[agent]\nserver = 'http://127.0.0.1:1'\n",
            fake.url()
        )
    };
    let file = files.write("c.toml", settings(&fake));
    let ran = run_with(&["nodes", "list", "--config", text(&file)], &[]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    let bearer = format!("Bearer {SECRET}");
    assert_eq!(fake.asked()[0].authorization, Some(bearer));

    let reply = json!({"success": true, "message": "registered", "node_id": "gpu-7", "heartbeat_interval_ms": 10_000,
        "node_timeout_ms": 30_000, "durable": true});
    let fake = Fake::start([step("POST /v2/nodes/register", 200, &reply)]);
    let file = files.write("c.toml", settings(&fake));
    let arguments = [
        "nodes",
        "register",
        "--address",
        "http://a:1",
        "--config",
        text(&file),
        "--",
        "gpu-7",
    ];
    let ran = run_with(&arguments, &[]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    let asked = &fake.asked()[0].body;
    assert_eq!(
        (&asked["node_id"], &asked["labels"]),
        (&json!("gpu-7"), &Value::Null)
    );
}

/// Starts a verb, which fails for its heartbeat interval or its label after it has said its warnings.
fn log_of(verb: &str, variables: &[(&str, &str)]) -> String {
    let arguments: &[&str] = match verb {
        "serve" => &["serve", "--heartbeat-interval", "1h"],
        _ => &["agent", "--label", "a=1", "--label", "a=2"],
    };
    let ran = run_with(arguments, variables);
    assert_eq!(ran.exit, Some(2), "{}", ran.stderr);
    ran.stderr
}

#[test]
fn unknown_variables_of_ours_are_warned_about_by_serve_and_agent_alone() {
    let variables = [
        ("ORCHD_QUEUE_TIMOUT_MS", "1"),
        ("ORCHD_NODE_TIMEOUT_MS", "1"),
        ("LLORCH_BAR", "1"),
        ("OTHER_ORCHD_BAZ", "1"),
        ("ORCHD_LOG", "info"),
        ("ORCHD_ADMISSION_POLICY", "drop-lru"),
        // Of serve and agent only, and still known to the other.
        ("ORCHD_ADDR", "127.0.0.1:1"),
    ];
    for verb in ["serve", "agent"] {
        let log = log_of(verb, &variables);
        let warnings: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("the variable"))
            .collect();
        assert_eq!(warnings.len(), 3, "{log}");
        assert!(warnings.iter().all(|line| line.contains("WARN")), "{log}");
        for text in [
            "the variable LLORCH_BAR is none of orchd's and has no effect",
            "the variable ORCHD_QUEUE_TIMOUT_MS is none of orchd's; is it ORCHD_QUEUE_TIMEOUT_MS?",
            "the variable ORCHD_NODE_TIMEOUT_MS is none of orchd's; is it ORCHESTRATORD_NODE_TIMEOUT_MS?",
        ] {
            assert!(log.contains(text), "{text}: {log}");
        }
    }
    let ran = run_with(&["nodes", "list"], &variables);
    assert!(!ran.stderr.contains("variable"), "{}", ran.stderr);
    let ran = run_with(&["completions", "bash"], &variables);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_timeout_below_that_of_the_original_and_a_directory_that_is_not_watched_are_warned_about_once()
{
    let short =
        "the node timeout 29999ms (--node-timeout, ORCHESTRATORD_NODE_TIMEOUT_MS) is below 30s";
    let log = log_of("serve", &[("ORCHESTRATORD_NODE_TIMEOUT_MS", "29999")]);
    assert_eq!(log.matches(short).count(), 1, "{log}");
    let log = log_of("serve", &[("ORCHESTRATORD_NODE_TIMEOUT_MS", "30000")]);
    assert!(
        !log.contains(
            "the node timeout 30s (--node-timeout, ORCHESTRATORD_NODE_TIMEOUT_MS) is below"
        ),
        "{log}"
    );
}

#[test]
fn variables_are_named_themselves_whatever_reads_them() {
    let cases = [
        (
            "serve",
            "ORCHD_ADMISSION_POLICY",
            "lru",
            "must be reject or drop-lru",
        ),
        (
            "serve",
            "ORCHD_ADMISSION_BYTES",
            "64MiB",
            "must be a whole number of bytes, 0 to 1099511627776, without a unit",
        ),
        (
            "agent",
            "ORCHD_SERVER",
            "nope",
            "\"nope\" is not an address",
        ),
    ];
    for (verb, name, value, why) in cases {
        let ran = run_with(&[verb], &[(name, value)]);
        assert_eq!(ran.exit, Some(2), "{name}");
        let wanted = format!("error: invalid value '{value}' for '{name}': {why}");
        assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
    }
    let ran = run_with(&["serve"], &[("ORCHD_STATE_DIR", "")]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr
            .starts_with("error: a value is required for 'ORCHD_STATE_DIR'"),
        "{}",
        ran.stderr
    );
    // The flag, when it was the flag.
    let ran = run_with(&["serve", "--state-dir="], &[("ORCHD_STATE_DIR", "/x")]);
    assert!(ran.stderr.contains("'--state-dir <DIR>'"), "{}", ran.stderr);
}

#[test]
fn a_control_plane_starts_with_what_its_file_says() {
    let files = Files::new();
    let address = free_address();
    let file = files.write(
        "c.toml",
        format!(
            "cloud = true\nlisten = '{address}'\nstate_dir = '{}'\nnode_timeout = '45s'\n",
            files.0.path().display()
        ),
    );
    let mut command = orchd(&["serve", "--config", text(&file)]);
    let mut running = Running::spawn("orchd serve", &mut command, &files.0.path().join("log"));
    running
        .ready(address, "/readyz", Duration::from_secs(10))
        .unwrap_or_else(|not_ready| not_ready.panic());
    let meta = http::get_json(address, "/health");
    assert_eq!(meta["profile"], "cloud");
    let body = json!({"node_id": "n", "address": "http://127.0.0.1:1"}).to_string();
    let request = http::written(
        "POST",
        "/v2/nodes/register",
        &[("content-type", "application/json")],
        body.as_bytes(),
    );
    let reply = http::send(address, &request)
        .expect("an answer")
        .text()
        .expect("a body");
    let reply: Value = serde_json::from_str(&reply).expect("JSON");
    assert_eq!(reply["node_timeout_ms"], 45_000);
}

#[test]
fn help_of_serve_and_agent_tells_of_the_log() {
    for verb in ["serve", "agent"] {
        let ran = run_with(&[verb, "--help"], &[]);
        assert!(ran.stdout.contains("ORCHD_LOG=debug"), "{}", ran.stdout);
    }
}

#[test]
fn whoever_asks_for_nothing_is_shown_what_there_is_whatever_variables_are_set() {
    let bare = run_with(&[], &[]);
    assert_eq!(bare.exit, Some(2));
    assert!(bare.stderr.contains("Commands:"), "{}", bare.stderr);
    let set = run_with(&[], &[("ORCHD_API_TOKEN", SECRET), ("ORCHD_SERVER", "x")]);
    assert_eq!((set.exit, set.stderr), (bare.exit, bare.stderr));
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    for name in ["ORCHD_ADDR", "ORCHD_API_TOKEN", "LLORCH_API_TOKEN"] {
        let mut command = orchd(&["serve"]);
        command.env(name, OsStr::from_bytes(b"\xff"));
        let ran = Ran::from(command.output().expect("orchd runs"));
        assert_eq!(ran.exit, Some(2));
        let told = format!("the variable {name} is not UTF-8 text");
        assert!(ran.stderr.contains(&told), "{}", ran.stderr);
    }
}
