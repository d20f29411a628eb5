//! Generated files equal their generator. `ORCHD_BLESS=1` rewrites them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use orchd::commands::generate;

fn root(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)
}

fn compare(directory: &str, wanted: &BTreeMap<String, Vec<u8>>) {
    let directory = root(directory);
    let there: BTreeMap<String, Vec<u8>> = fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .map(|entry| {
            let entry = entry.expect("the directory is readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("the file is readable"))
        })
        .collect();
    if &there == wanted {
        return;
    }
    if std::env::var_os("ORCHD_BLESS").is_some() {
        fs::create_dir_all(&directory).expect("the directory can be made");
        for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
            fs::remove_file(directory.join(name)).expect("the file can be removed");
        }
        for (name, content) in wanted {
            fs::write(directory.join(name), content).expect("the file can be written");
        }
        return;
    }
    let missing: Vec<_> = wanted
        .keys()
        .filter(|name| !there.contains_key(*name))
        .collect();
    let left_over: Vec<_> = there
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .collect();
    let stale: Vec<_> = wanted
        .iter()
        .filter(|(name, content)| there.get(*name).is_some_and(|old| old != *content))
        .map(|(name, _)| name)
        .collect();
    panic!(
        "{} is not what the command line generates; ORCHD_BLESS=1 rewrites it.\n\
         missing: {missing:?}, left over: {left_over:?}, different: {stale:?}",
        directory.display()
    );
}

#[test]
fn completion_scripts_equal_their_generator() {
    compare(
        "completions",
        &generate::SHELLS
            .into_iter()
            .map(generate::completion_script)
            .collect(),
    );
}

#[test]
fn every_verb_stands_in_every_completion_script_in_lines_that_no_shell_runs() {
    let pages = generate::man_pages().expect("pages are written to memory");
    let verbs: BTreeSet<String> = pages
        .iter()
        .map(|(name, _)| name.trim_end_matches(".1").replace('-', " "))
        .filter(|verb| verb != "orchd")
        .collect();
    assert!(verbs.len() > 15, "{verbs:?}");
    for shell in generate::SHELLS {
        let (name, script) = generate::completion_script(shell);
        let script = String::from_utf8(script).expect("scripts are UTF-8");
        let listed: BTreeSet<String> = script
            .lines()
            .filter_map(|line| line.strip_prefix("#   "))
            .flat_map(|line| {
                let (verb, below) = match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                    [bin, verb, below] => (format!("{bin} {verb}"), below),
                    _ => (line.to_owned(), ""),
                };
                let below = below.split('|').filter(|word| !word.is_empty());
                let whole: Vec<String> = below.map(|word| format!("{verb} {word}")).collect();
                [vec![verb], whole].concat()
            })
            .collect();
        assert_eq!(listed, verbs, "{name}");
        let compdef = name == "_orchd";
        assert_eq!(script.starts_with("#compdef orchd\n"), compdef, "{name}");
    }
}

#[test]
fn manual_pages_equal_their_generator() {
    let pages = generate::man_pages().expect("pages are written to memory");
    compare("man", &pages.into_iter().collect());
}

#[test]
fn every_verb_has_a_manual_page_with_examples() {
    let pages = generate::man_pages().expect("pages are written to memory");
    let names: Vec<String> = pages.iter().map(|(name, _)| name.clone()).collect();
    for (name, page) in pages {
        let page = String::from_utf8(page).expect("pages are UTF-8");
        let below = format!("{}-", name.trim_end_matches(".1"));
        let is_group = name != "orchd.1" && names.iter().any(|other| other.starts_with(&below));
        assert!(
            page.contains(".SH EXAMPLES") || is_group,
            "{name} has no examples"
        );
    }
}
