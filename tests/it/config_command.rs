//! `orchd config`: settings shown and checked, and the units.

use std::collections::BTreeMap;

use serde_json::json;

use crate::config::{Files, SECRET, chmod, run_with, show, text};
use crate::fake_control_plane::{Ran, orchd};

#[test]
fn whatever_is_shown_can_be_written_into_a_file_as_it_is() {
    let files = Files::new();
    for verb in ["serve", "agent"] {
        let (shown, _) = show(&[verb], &[("ORCHD_API_TOKEN", SECRET)]);
        let mut lines = String::new();
        let mut expected = BTreeMap::new();
        for (key, setting) in &shown {
            if setting[0].is_null() || setting[0] == json!([]) {
                continue;
            }
            lines += &format!("{key} = {}\n", setting[0]);
            expected.insert(key.clone(), setting[0].clone());
        }
        assert!(expected.len() > 6, "{lines}");
        // What is the agent's own stands in its table.
        let text_of_file = if verb == "agent" {
            format!("[agent]\n{lines}")
        } else {
            lines
        };
        let file = files.write("c.toml", text_of_file);
        let (again, _) = show(&[verb, "--config", text(&file)], &[]);
        for (key, value) in expected {
            assert_eq!(again[&key][0], value, "{key}");
            assert_eq!(again[&key][1], "file", "{key}");
        }
    }
}

#[test]
fn what_is_made_from_another_setting_says_from_which() {
    let (settings, _) = show(&["--", "--node-timeout", "12s"], &[]);
    assert_eq!(
        settings["heartbeat_interval"],
        json!(["4s", "derived", "a third of node_timeout, at most 10s"])
    );
    let (settings, _) = show(&["--", "--node-timeout", "2m"], &[]);
    assert_eq!(settings["heartbeat_interval"][0], "10s");
    assert_eq!(
        settings["restart_grace"],
        json!(["2m", "derived", "node_timeout, at least 30s"])
    );
    for verb in ["serve", "agent"] {
        let (settings, _) = show(&[verb], &[]);
        let [count, source, from] =
            [0, 1, 2].map(|at| settings["max_connections"][at].as_str().expect("text"));
        let count: u32 = count.parse().expect("a number");
        assert!((64..=65_536).contains(&count), "{count}");
        assert_eq!(source, "derived");
        assert_eq!(
            from,
            "half of the files that this process may open, 64 to 65536"
        );
    }
    let (settings, _) = show(&["agent", "--", "--listen", "127.0.0.1:7"], &[]);
    assert_eq!(
        settings["advertise"],
        json!(["http://127.0.0.1:7", "derived", "listen"])
    );
}

#[test]
fn of_a_token_and_a_file_of_tokens_the_stronger_source_wins() {
    let files = Files::new();
    let tokens = files.write("tokens", "of-a-file-of-tokens");
    let tokens = text(&tokens);
    let given = files.write("given.toml", format!("api_token = '{SECRET}'\n"));
    let named = files.write("named.toml", format!("api_token_file = '{tokens}'\n"));
    let (given, named) = (text(&given), text(&named));
    let here = format!("{given}:1");
    let flag = [SECRET, "flag", "--api-token"];
    let variable = [SECRET, "env", "ORCHD_API_TOKEN"];
    let alias = [SECRET, "env", "LLORCH_API_TOKEN"];
    let file_alias = [tokens, "env", "LLORCH_API_TOKEN_FILE"];
    let file_flag = [tokens, "flag", "--api-token-file"];
    let file_variable = [tokens, "env", "ORCHD_API_TOKEN_FILE"];
    let api_token = ("ORCHD_API_TOKEN", SECRET);
    let other_name = ("LLORCH_API_TOKEN", SECRET);
    let api_token_file = ("ORCHD_API_TOKEN_FILE", tokens);
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], [&'a str; 3], bool);
    #[rustfmt::skip]
    let table: [Case; 12] = [
        (&[], &[("LLORCH_API_TOKEN_FILE", tokens)], file_alias, true),
        (&["--api-token", SECRET], &[("LLORCH_API_TOKEN_FILE", tokens)], flag, false),
        (&["--api-token", SECRET], &[api_token_file], flag, false),
        (&["--api-token", SECRET, "--config", named], &[], flag, false),
        (&["--api-token-file", tokens], &[api_token], file_flag, true),
        (&["--api-token-file", tokens], &[other_name], file_flag, true),
        (&["--api-token-file", tokens, "--config", given], &[], file_flag, true),
        (&["--config", named], &[api_token], variable, false),
        (&["--config", named], &[other_name], alias, false),
        (&["--config", given], &[other_name], alias, false),
        (&["--config", given], &[api_token_file], file_variable, true),
        (&["--config", given], &[("ORCHD_API_TOKEN", "")], [SECRET, "file", &here], false),
    ];
    for (arguments, variables, [value, source, detail], is_file) in table {
        let (settings, _) = show(arguments, variables);
        let (winner, loser) = match is_file {
            true => ("api_token_file", "api_token"),
            false => ("api_token", "api_token_file"),
        };
        let value = if is_file { value } else { "********" };
        let case = format!("{arguments:?} {variables:?}: {settings:#?}");
        assert_eq!(settings[winner], json!([value, source, detail]), "{case}");
        assert_eq!(settings[loser][0], json!(null), "{case}");
        // Whoever looks for what became of the other is told.
        if settings[loser][1] != "default" {
            let overruled = json!([null, "overruled", format!("{source} {detail}")]);
            assert_eq!(settings[loser], overruled, "{case}");
        }
    }
    // Who forgot to fill one in has no door left open.
    let empty = files.write("empty.toml", "api_token = ''\n");
    for (arguments, named) in [
        (&["serve", "--api-token", ""][..], "flag --api-token"),
        (&["agent", "--api-token-file="], "flag --api-token-file"),
        (&["serve", "--client-token", ""], "flag --client-token"),
        (&["serve", "--config", text(&empty)], "empty.toml:1"),
    ] {
        let ran = run_with(arguments, &[]);
        assert_eq!(ran.exit, Some(2), "{arguments:?}: {}", ran.stderr);
        let told = ran.stderr.contains(named) && ran.stderr.contains("is empty");
        assert!(told, "{arguments:?}: {}", ran.stderr);
    }
    // Where nothing says which one is meant, nobody guesses.
    let both = files.write(
        "both.toml",
        format!("api_token = '{SECRET}'\napi_token_file = '{tokens}'\n"),
    );
    let ran = run_with(&["serve", "--config", text(&both)], &[]);
    assert_eq!(ran.exit, Some(2));
    let place = both.display();
    let told = format!("both a token (file {place}:1) and a file of tokens (file {place}:2)");
    assert!(ran.stderr.contains(&told), "{}", ran.stderr);
}

#[test]
fn secrets_are_never_shown_and_a_file_of_them_that_others_can_read_is_warned_about() {
    let files = Files::new();
    let file = files.write("c.toml", format!("api_token = '{SECRET}'\n"));
    let here = format!("{}:1", file.display());
    let config = ["--config", text(&file)];
    let masked = |arguments: &[&str], variables: &[(&str, &str)], source: &str, detail: &str| {
        for format in ["json", "yaml", "table"] {
            let arguments = [&["config", "show", "-o", format], arguments].concat();
            let ran = run_with(&arguments, variables);
            assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
            assert!(!ran.stdout.contains("sesame") && !ran.stderr.contains("sesame"));
            assert!(ran.stdout.contains("********") && ran.stdout.contains(detail));
        }
        let (settings, _) = show(arguments, variables);
        assert_eq!(settings["api_token"], json!(["********", source, detail]));
    };
    masked(&config, &[], "file", &here);
    masked(
        &[],
        &[("ORCHD_API_TOKEN", SECRET)],
        "env",
        "ORCHD_API_TOKEN",
    );
    masked(&["--api-token", SECRET], &[], "flag", "--api-token");
    masked(&["--", "--api-token", SECRET], &[], "flag", "--api-token");
    let (settings, _) = show(&[], &[]);
    assert_eq!(settings["api_token"], json!([null, "default", null]));

    // Mistakes do not quote them either.
    for content in ["api_token = 'sesame", "api_token = ['sesame']"] {
        let bad = files.write("bad.toml", content);
        let ran = run_with(&["serve", "--config", text(&bad)], &[]);
        assert_eq!(ran.exit, Some(2));
        assert!(!ran.stderr.contains("sesame"), "{}", ran.stderr);
    }

    let warning = format!(
        "{0} holds `api_token`, and others than its owner can read it: chmod 600 {0}",
        file.display()
    );
    for (mode, warned) in [(0o600, false), (0o640, true), (0o644, true)] {
        chmod(&file, mode);
        for arguments in [&["config", "check", "serve"][..], &["nodes", "list"]] {
            let ran = run_with(&[arguments, &config].concat(), &[]);
            assert_eq!(
                ran.stderr.contains(&warning),
                warned,
                "{mode:o} {}",
                ran.stderr
            );
        }
    }
    // A file without secrets is anybody's to read.
    let open = files.write("open.toml", "cloud = true\n");
    chmod(&open, 0o644);
    let (_, stderr) = show(&["--config", text(&open)], &[]);
    assert_eq!(stderr, "");
}

#[test]
fn check_says_before_a_start_what_a_start_would_say() {
    let files = Files::new();
    let cases = [
        (
            "serve",
            "cloud = true\n",
            0,
            "orchd serve: settings are good (",
        ),
        (
            "agent",
            "listen = '0.0.0.0:1'\n",
            0,
            "orchd agent: settings are good (",
        ),
        (
            "serve",
            "heartbeat_interval = '11s'\n",
            2,
            "error: the heartbeat interval 11s",
        ),
        (
            "serve",
            "cloud = true\nengine = 'http://a'\n",
            2,
            "error: --engine belongs to the HOME profile",
        ),
        (
            "serve",
            "listen = '0.0.0.0:1'\n",
            2,
            "error: 0.0.0.0:1 can be reached from other machines",
        ),
        (
            "agent",
            "label = ['a=1', 'a=2']\n",
            2,
            "error: the label a is given twice",
        ),
    ];
    for (verb, content, exit, text_of_it) in cases {
        let file = files.write("c.toml", content);
        let ran = run_with(&["config", "check", verb, "--config", text(&file)], &[]);
        assert_eq!(
            (ran.exit, ran.stdout.as_str()),
            (Some(exit), ""),
            "{content}"
        );
        assert!(ran.stderr.starts_with(text_of_it), "{}", ran.stderr);
    }
    // Both, unless one is named.
    let file = files.write("c.toml", "[agent]\nlabel = 'x'\n");
    let ran = run_with(&["config", "check", "--config", text(&file)], &[]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr.contains("line 2: invalid value 'x' for `label`"),
        "{}",
        ran.stderr
    );
    let ran = run_with(&["config", "check"], &[]);
    assert_eq!(ran.exit, Some(0));
    let ran = run_with(&["config", "check"], &[("ORCHD_LOG", "loud")]);
    assert_eq!(ran.exit, Some(2));
    let ran = run_with(&["config", "check"], &[("ORCHD_QUEUE_TIMEOUT_MS", "0")]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr
            .contains("'0' for 'ORCHD_QUEUE_TIMEOUT_MS': must be 1 to 86400000 milliseconds"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_setting_goes_by_the_name_of_its_variable_without_prefix_and_unit_as_well() {
    let files = Files::new();
    for (key, other, value) in [
        ("admission_bytes", "admission", "3MiB"),
        ("fleet_hold_percent", "fleet_hold", "7"),
    ] {
        let flag = |name: &str| format!("--{}", name.replace('_', "-"));
        let (settings, _) = show(&["--", &flag(other), value], &[]);
        assert_eq!(settings[key], json!([value, "flag", flag(key)]));
        let file = files.write("c.toml", format!("\n{other} = '{value}'\n"));
        let here = format!("{}:2", file.display());
        let (settings, stderr) = show(&["--config", text(&file)], &[]);
        assert_eq!(settings[key], json!([value, "file", here]), "{stderr}");
        // Both are one, of which nobody guesses which one is meant.
        let file = files.write("c.toml", format!("{other} = '1'\n\n{key} = '1'\n"));
        let ran = run_with(&["serve", "--config", text(&file)], &[]);
        assert_eq!(ran.exit, Some(2));
        assert_eq!(
            ran.stderr,
            format!(
                "error: {}, lines 1 and 3: `{other}` and `{key}` are one setting\nhint: leave one out\n",
                file.display()
            )
        );
        let ran = run_with(&["serve", &flag(other), "x"], &[]);
        assert!(ran.stderr.contains(&flag(key)), "{}", ran.stderr);
        let file = files.write("c.toml", format!("[agent]\n{other} = '1'\n"));
        let ran = run_with(&["agent", "--config", text(&file)], &[]);
        assert!(ran.stderr.contains("above [agent]"), "{}", ran.stderr);
    }
}

#[test]
fn the_files_in_the_readme_are_good_once_there_is_a_token() {
    let readme = include_str!("../../README.md");
    let files = Files::new();
    let examples = readme.split("```toml\n").skip(1);
    for example in examples.clone() {
        let example = example.split("```").next().expect("it ends");
        let file = files.write("c.toml", example);
        let check = ["config", "check", "--config", text(&file)];
        let ran = run_with(&check, &[("ORCHD_API_TOKEN", SECRET)]);
        assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    }
    assert_eq!(examples.count(), 2);
}

#[test]
fn units_stop_later_than_the_shutdown_grace_and_are_hardened() {
    let files = Files::new();
    let file = files.write("c.toml", "shutdown_grace = '2m'\n");
    for verb in ["serve", "agent"] {
        let ran = run_with(&["config", "unit", verb], &[]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
        // The state directory is the service's own, and `orchd` in it is where the state lies.
        let (state_directory, state_home) = match verb {
            "serve" => ("StateDirectory=orchd", "Environment=XDG_STATE_HOME=%S"),
            _ => (
                "StateDirectory=orchd-agent",
                "Environment=XDG_STATE_HOME=%S/orchd-agent",
            ),
        };
        for line in [
            "Type=notify",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "EnvironmentFile=-/etc/orchd/env",
            "TimeoutStopSec=45",
            "ProtectSystem=strict",
            state_directory,
            state_home,
            "NoNewPrivileges=yes",
            // The file of tests' environment.
            &format!("ExecStart=/usr/local/bin/orchd {verb} --config /dev/null"),
        ] {
            assert!(
                ran.stdout.lines().any(|l| l == line),
                "{line}: {}",
                ran.stdout
            );
        }
        assert!(ran.stdout.contains("\nWatchdogSec="));
        let ran = run_with(&["config", "unit", verb, "--config", text(&file)], &[]);
        assert!(
            ran.stdout.contains("\nTimeoutStopSec=135\n"),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn a_unit_names_the_file_it_was_made_from_and_hands_in_the_files_of_secrets() {
    let files = Files::new();
    let file = files.write(
        "c.toml",
        "api_token_file = '/etc/orchd/token'\ntls_cert = '/etc/orchd/cert.pem'\ntls_key = '/etc/orchd/100%.pem'\n",
    );
    let directory = file.parent().expect("it is in one");
    let shown = file.display();
    for verb in ["serve", "agent"] {
        let mut command = orchd(&["config", "unit", verb, "--config", "c.toml"]);
        let ran = Ran::from(command.current_dir(directory).output().expect("orchd runs"));
        assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
        for text in [
            format!("# Settings: {shown}, "),
            format!(
                "\nExecStart=/usr/local/bin/orchd {verb} --config {shown} \\\n    \
                 --api-token-file ${{CREDENTIALS_DIRECTORY}}/api_token_file \\\n    \
                 --tls-cert ${{CREDENTIALS_DIRECTORY}}/tls_cert \\\n    \
                 --tls-key ${{CREDENTIALS_DIRECTORY}}/tls_key\n"
            ),
            "\nLoadCredential=api_token_file:/etc/orchd/token\n".to_owned(),
            "\nLoadCredential=tls_key:/etc/orchd/100%%.pem\n".to_owned(),
        ] {
            assert!(ran.stdout.contains(&text), "{text}\n{}", ran.stdout);
        }
        assert!(!ran.stdout.contains("S@"), "{}", ran.stdout);
        let hidden = format!("warning: {shown} is hidden from the service");
        assert!(ran.stderr.contains(&hidden), "{}", ran.stderr);
    }
    // A file of the user's own, which nobody named, is none of the service's.
    let home = directory.to_str().expect("UTF-8");
    files.write("orchd/config.toml", "cloud = true\n");
    let mut command = orchd(&["config", "unit", "serve"]);
    command
        .env("XDG_CONFIG_HOME", home)
        .env_remove("ORCHD_CONFIG");
    let ran = Ran::from(command.output().expect("orchd runs"));
    assert!(
        ran.stderr
            .contains("warning: the service reads /etc/orchd/config.toml, not "),
        "{}",
        ran.stderr
    );
    let start = "\nExecStart=/usr/local/bin/orchd serve\n";
    assert!(ran.stdout.contains(start), "{}", ran.stdout);
}

#[test]
fn the_table_of_settings_is_for_people_and_says_which_file_it_read() {
    let files = Files::new();
    let file = files.write("c.toml", "admission_capacity = 7\n");
    let ran = run_with(&["config", "show", "--config", text(&file)], &[]);
    assert_eq!(ran.exit, Some(0));
    assert_eq!(
        ran.stderr,
        format!("configuration file: {}\n", file.display())
    );
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let lines: Vec<Vec<String>> = ran.stdout.lines().map(words).collect();
    assert_eq!(lines[0], ["KEY", "VALUE", "SOURCE"]);
    let here = format!("{}:1", file.display());
    assert!(lines.contains(&vec![
        "admission_capacity".into(),
        "7".into(),
        "file".into(),
        here
    ]));

    // Settings that do not go together are shown, and refused.
    let ran = run_with(
        &["config", "show", "--", "--heartbeat-interval", "11s"],
        &[],
    );
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stdout.contains("flag --heartbeat-interval"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stderr.contains("error: the heartbeat interval 11s"),
        "{}",
        ran.stderr
    );
}
