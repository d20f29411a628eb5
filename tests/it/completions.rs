//! Completion as a shell asks for it: a real bash with the script that `orchd completions bash` prints.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fake_control_plane::{Fake, LIST, drain, list, node, refusal, silent_port, step};

/// What bash offers for the last of these words.
fn offered(words: &str, environment: &[(&str, &str)]) -> (Vec<String>, String) {
    let directory = Path::new(env!("CARGO_BIN_EXE_orchd"))
        .parent()
        .expect("it lies in a directory");
    let script = format!(
        "set -u; source <(orchd completions bash); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
         COMP_TYPE=9; _clap_complete_orchd orchd \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .env_clear()
        .env(
            "PATH",
            format!("{}:/usr/local/bin:/usr/bin:/bin", directory.display()),
        )
        .envs(environment.iter().copied())
        .output()
        .expect("bash is there");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    (text.lines().map(str::to_owned).collect(), errors)
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn fleet() -> Value {
    let draining = drain("draining", 1, &json!({}));
    list(&[
        node("gpu-1", &json!({})),
        node("gpu-2", &draining),
        node("other", &json!({})),
    ])
}

#[test]
fn names_of_nodes_come_from_the_live_control_plane_and_fit_the_verb() {
    let cases: [(&str, &[&str]); 6] = [
        ("orchd nodes get g", &["gpu-1", "gpu-2"]),
        ("orchd nodes wait other gpu", &["gpu-1", "gpu-2"]),
        ("orchd nodes drain gpu", &["gpu-1"]),
        ("orchd nodes undrain gpu", &["gpu-2"]),
        ("orchd events --node o", &["other"]),
        ("orchd pools list --node o", &["other"]),
    ];
    for (words, names) in cases {
        let fake = Fake::start([step(LIST, 200, &fleet())]);
        let environment = [
            ("ORCHD_SERVER", fake.url().to_string()),
            ("ORCHD_API_TOKEN", "sesame".to_owned()),
        ];
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let (seen, errors) = offered(words, &environment);
        assert_eq!(
            (seen.as_slice(), errors.as_str()),
            (owned(names).as_slice(), ""),
            "{words}"
        );
        assert_eq!(
            fake.asked()[0].authorization.as_deref(),
            Some("Bearer sesame")
        );
    }
}

#[test]
fn the_server_on_the_command_line_is_asked_even_though_bash_breaks_its_address() {
    let fake = Fake::start([step(LIST, 200, &fleet())]);
    let url = fake.url();
    let port = url.origin().port;
    let words = format!("orchd --server http : //127.0.0.1 : {port} nodes get other");
    let elsewhere = silent_port();
    let (seen, errors) = offered(&words, &[("ORCHD_SERVER", elsewhere.as_str())]);
    assert_eq!((seen, errors.as_str()), (vec!["other".to_owned()], ""));
    fake.asked();
}

#[test]
fn server_and_token_come_from_the_configuration_file_too_below_the_environment() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("orchd.toml");
    let file = file.to_str().expect("UTF-8");
    let (flag, variable) = (
        format!("orchd nodes get --config {file} other"),
        "orchd nodes get other".to_owned(),
    );
    let elsewhere = silent_port();
    for (words, environment, overruled) in [
        (&flag, vec![], false),
        (&variable, vec![("ORCHD_CONFIG", file)], false),
        (&variable, vec![("ORCHD_CONFIG", file)], true),
    ] {
        let fake = Fake::start([step(LIST, 200, &fleet())]);
        let url = fake.url();
        let server = if overruled { &elsewhere } else { &url };
        let text = format!("server = \"{server}\"\napi_token = \"sesame\"\n");
        std::fs::write(file, text).expect("the file is written");
        let mut environment = environment;
        if overruled {
            environment.push(("ORCHD_SERVER", url.as_str()));
        }
        let (seen, errors) = offered(words, &environment);
        assert_eq!((seen, errors.as_str()), (owned(&["other"]), ""), "{words}");
        assert_eq!(
            fake.asked()[0].authorization.as_deref(),
            Some("Bearer sesame")
        );
    }
}

#[test]
fn without_a_control_plane_there_are_no_names_and_no_noise() {
    let nobody = silent_port();
    let begun = Instant::now();
    let (seen, errors) = offered("orchd nodes get gpu", &[("ORCHD_SERVER", nobody.as_str())]);
    assert_eq!((seen.join(""), errors.as_str()), (String::new(), ""));

    let fake = Fake::start([refusal(LIST, 401, "UNAUTHORIZED", "a token is needed")]);
    let (seen, errors) = offered(
        "orchd nodes get gpu",
        &[("ORCHD_SERVER", fake.url().as_str())],
    );
    assert_eq!((seen.join(""), errors.as_str()), (String::new(), ""));

    // A file that cannot be read as one.
    let (seen, errors) = offered("orchd nodes get gpu", &[("ORCHD_CONFIG", "/dev/null/no")]);
    assert_eq!((seen.join(""), errors.as_str()), (String::new(), ""));

    // Accepts in its backlog, and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (seen, errors) = offered("orchd nodes get gpu", &[("ORCHD_SERVER", &url)]);
    assert_eq!((seen.join(""), errors.as_str()), (String::new(), ""));
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it does not hang"
    );
}

#[test]
fn verbs_options_and_values_complete_without_a_control_plane() {
    let cases = [
        ("orchd no", "nodes"),
        ("orchd nodes undr", "undrain"),
        ("orchd nodes wait n --for dr", "drained"),
        ("orchd nodes list --status Off", "Offline"),
        ("orchd nodes list --status Draine", "Drained"),
        ("orchd nodes drain --dead", "--deadline"),
        ("orchd completions elv", "elvish"),
    ];
    for (words, wanted) in cases {
        let (seen, errors) = offered(words, &[("ORCHD_SERVER", "http://127.0.0.1:1")]);
        assert_eq!(
            (seen, errors.as_str()),
            (vec![wanted.to_owned()], ""),
            "{words}"
        );
    }
}
