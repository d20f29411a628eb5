//! What the definition of the command line has no example of yet: switches, and options that exclude or need others.

use clap::ArgAction;

use super::*;

fn definition() -> Command {
    let option = |name: &'static str| Arg::new(name).long(name);
    let verb = |name: &'static str| {
        Command::new(name)
            .arg(option("plain"))
            .arg(option("list").action(ArgAction::Append))
            .arg(option("on").action(ArgAction::SetTrue))
            .arg(option("secret").hide_env_values(true))
            .arg(option("secret-file").conflicts_with("secret"))
            .arg(option("cert").requires("cert-key"))
            .arg(option("cert-key").requires("cert"))
            .arg(option("number").value_parser(clap::value_parser!(u8).range(1..=9)))
            .arg(option("word").value_parser(["one", "two"]))
    };
    let mut definition = Command::new("orchd").subcommands([verb("serve"), verb("agent")]);
    definition.build();
    definition
}

fn injected(text: &str, given: &[&str]) -> Result<Vec<String>, String> {
    let definition = definition();
    let scratch = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(scratch.path(), text).expect("written");
    let file = file::find(Some(scratch.path()), &definition).map_err(|e| e.to_string())?;
    let matches = definition
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(["orchd", "serve"].iter().chain(given))
        .expect("nothing but what the file may mend");
    let (_, leaf, leaf_matches) = descend(&definition, &matches);
    let file = file.expect("it was named");
    let mut added = Added::default();
    let settled = added.settings_of(&file, Scope::Serve, &leaf, leaf_matches);
    settled
        .map(|()| {
            let text = |argument: OsString| argument.into_string().expect("UTF-8");
            added.arguments.into_values().flatten().map(text).collect()
        })
        .map_err(|e| {
            let path = scratch.path().display().to_string();
            e.to_string().replace(&path, "FILE")
        })
}

#[test]
fn switches_are_true_or_false_and_lists_are_for_what_can_be_repeated() {
    let good = |text: &str| injected(text, &[]).expect("good");
    assert_eq!(good("on = true"), ["--on"]);
    assert!(good("on = false").is_empty());
    assert_eq!(good("list = ['a', 'b']"), ["--list=a", "--list=b"]);
    assert_eq!(good("list = 'a'"), ["--list=a"]);
    assert_eq!(good("plain = '--x=y z'"), ["--plain=--x=y z"]);
    for (text, why) in [
        ("on = 'yes'", "'yes' for `on`: must be true or false"),
        (
            "plain = ['a']",
            "['a'] for `plain`: takes one value, not a list",
        ),
        (
            "list = [['a']]",
            "[['a']] for `list`: must be a list of strings",
        ),
        (
            "plain = 2026-01-01",
            "(a date) for `plain`: must be a string",
        ),
        ("plain = {a = 1}", "(a table) for `plain`: must be a string"),
    ] {
        let error = injected(text, &[]).expect_err("bad");
        let wanted = format!("FILE, line 1: invalid value {why}");
        assert!(error.starts_with(&wanted), "{error}");
    }
}

#[test]
fn claps_own_readers_say_what_they_accept_too() {
    let bad = |text: &str| injected(text, &[]).expect_err("bad");
    assert_eq!(
        bad("number = 10"),
        "FILE, line 1: invalid value '10' for `number`: 10 is not in 1..=9"
    );
    assert_eq!(
        bad("word = 'three'"),
        "FILE, line 1: invalid value 'three' for `word`: must be one of one, two"
    );
    assert_eq!(
        bad("plain = ''\nword = ''"),
        "FILE, line 2: invalid value '' for `word`: must be one of one, two"
    );
}

#[test]
fn an_option_that_needs_another_may_find_it_on_the_command_line() {
    assert_eq!(
        injected("cert_key = 'k'", &["--cert", "c"]).expect("good"),
        ["--cert-key=k"]
    );
    assert_eq!(
        injected("cert = 'c'\ncert_key = 'k'", &[]).expect("good"),
        ["--cert=c", "--cert-key=k"]
    );
}

#[test]
fn a_flag_beats_the_settings_of_the_file_that_it_excludes() {
    assert!(
        injected("secret_file = 'f'", &["--secret", "s"])
            .expect("good")
            .is_empty()
    );
    assert!(
        injected("secret = 's'", &["--secret-file", "f"])
            .expect("good")
            .is_empty()
    );
}
