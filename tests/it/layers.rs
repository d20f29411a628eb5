//! The picture of the house, as a table, and the proof that every import follows it.
//!
//! Imports point down, never sideways except where the table says so. A module not in the table fails as well: a new
//! one has to be drawn first.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, layer, and what it may import. Everything may import itself and `types`; `clock` and `random` may be imported from L2 up.
/// `*` is every lower layer.
#[rustfmt::skip]
const PICTURE: &[(&str, u8, &[&str])] = &[
    // The shared words.
    ("types",          0, &[]),
    // Pure: no async, IO, tracing, clock, randomness or environment; see `IMPURE`.
    ("registry",       1, &[]),
    ("dispatch",       1, &[]),
    ("agent::machine", 1, &[]),
    ("agent::inventory::snapshot", 1, &[]),
    ("agent::inventory::report", 1, &["agent::inventory::snapshot"]),
    ("auth",           1, &[]),
    // The shells round the pure core.
    ("clock",          2, &[]),
    ("random",         2, &[]),
    ("store",          2, &["registry"]),
    ("admission",      2, &["dispatch"]),
    ("metrics",        2, &[]),
    ("control",        2, &["registry", "dispatch", "store", "admission", "metrics"]),
    ("socket",         2, &[]),
    ("tls",            2, &[]),
    ("service",        2, &[]),
    ("secrets",        2, &["auth", "tls", "service"]),
    ("relay",          2, &["socket", "tls"]),
    ("fetch",          2, &[]),
    ("engines",        2, &["tls", "fetch"]),
    ("listen",         2, &["socket", "tls"]),
    // HTTP faces, and the typed client. None of them knows the store.
    ("api",            3, &["auth", "control", "admission", "listen", "metrics"]),
    ("gateway",        3, &["auth", "admission", "engines", "relay", "listen", "metrics"]),
    ("client",         3, &["auth", "tls", "fetch"]),
    // Processes; siblings that do not know each other.
    ("server",         4, &["auth", "api", "gateway", "control", "admission", "store", "engines", "listen", "secrets", "service"]),
    ("agent",          4, &["agent::machine", "agent::inventory::snapshot", "agent::inventory::report", "auth", "client", "metrics", "relay", "engines", "listen", "secrets", "service"]),
    ("demo",           4, &["client", "listen"]),
    // argv in; stdout, stderr, exit code out.
    ("cli",            5, &[]),
    ("config",         5, &["cli", "*"]),
    ("commands",       5, &["cli", "config", "*"]),
    ("main",           5, &["cli", "commands", "*"]),
    // Texts only.
    ("decisions",      5, &[]),
    // Declares the modules, imports none.
    ("lib",            5, &[]),
];

/// What a module of L1 must not mention: paths, by their beginning.
const IMPURE: &[&str] = &[
    "tokio",
    "std::time",
    "std::fs",
    // Addresses are plain values; sockets and look-ups are not.
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "tracing",
    "rand",
    "getrandom",
    "crate::clock",
    "crate::random",
];
/// What a module of L1 must not contain: words.
const IMPURE_WORDS: &[&str] = &["async", "await"];

#[test]
fn every_import_follows_the_picture() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&source, &mut files);
    assert!(files.len() > 10, "the source is where it is looked for");
    let mut broken = String::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("source files are UTF-8");
        let relative = file.strip_prefix(&source).expect("below src");
        let path = module_path(relative);
        for (line, what) in offences(&path, &text) {
            let _ = writeln!(broken, "src/{}:{line}: {what}", relative.display());
        }
    }
    assert!(
        broken.is_empty(),
        "imports that break the picture in tests/it/layers.rs:\n{broken}"
    );
}

#[test]
fn an_import_that_breaks_the_picture_is_named_with_its_line() {
    let found = |path: &[&str], text: &str| -> Vec<(usize, String)> {
        offences(
            &path.iter().map(|&s| s.to_owned()).collect::<Vec<_>>(),
            text,
        )
    };
    let lines = |path: &[&str], text: &str| -> Vec<usize> {
        found(path, text)
            .into_iter()
            .map(|(line, _)| line)
            .collect()
    };

    assert_eq!(
        found(
            &["api", "nodes"],
            "//! Nodes.\nuse crate::types::NodeId;\nuse crate::store::Store;\n"
        ),
        [(3, "api must not import store".to_owned())]
    );
    // Groups, over several lines; renames; paths in expressions; `super` that climbs out.
    assert_eq!(
        lines(
            &["gateway"],
            "use crate::{\n    admission::Permit,\n    store::{self, Store as Disk},\n};"
        ),
        [3]
    );
    assert_eq!(
        lines(&["gateway"], "fn f() { crate::control::Control::new() }"),
        [1]
    );
    assert_eq!(lines(&["api"], "use super::store::Store;"), [1]);
    assert_eq!(
        lines(
            &["api", "nodes"],
            "use super::super::store;\nuse super::Error;"
        ),
        [1]
    );
    assert_eq!(
        lines(&["main"], "fn main() { orchd::commands::run() }"),
        [0usize; 0]
    );
    assert_eq!(
        lines(&["registry", "node"], "use crate::dispatch::Pool;"),
        [1]
    );
    assert_eq!(lines(&["server"], "use crate::agent::Agent;"), [1]);
    assert_eq!(
        lines(
            &["agent", "run"],
            "use crate::agent::machine::Event;\nuse crate::client::Client;"
        ),
        [0usize; 0]
    );
    assert_eq!(
        lines(&["agent", "machine"], "use crate::client::Client;"),
        [1]
    );
    assert_eq!(
        lines(&["control"], "use crate::agent::machine::Event;"),
        [1]
    );
    assert_eq!(lines(&["client"], "use crate::clock::Clock;"), [0usize; 0]);
    // Pure means pure.
    assert_eq!(lines(&["dispatch"], "use std::{fmt, time::Instant};"), [1]);
    assert_eq!(
        lines(&["registry"], "async fn f() {\n    g().await\n}"),
        [1, 2]
    );
    assert_eq!(
        lines(&["registry"], "fn f() { tracing::info!(\"x\") }"),
        [1]
    );
    assert_eq!(
        lines(&["agent", "machine"], "fn f(at: std::time::Instant) {}"),
        [1]
    );
    // Comments, strings and unit tests may say what they like.
    let quiet = "// use crate::store;\n/* use crate::store; /* async */ */\nconst A: &str = \"crate::store::X\";\n\
                 const B: &str = r#\"async \"crate::store\"#;\nfn f<'a>(c: &'a char) -> bool { *c == '\"' }\n\
                 #[cfg(test)]\nmod tests {\n    use crate::store::Store;\n    fn f() { if true { async {} } }\n}\n";
    assert_eq!(lines(&["registry"], quiet), [0usize; 0]);
    assert_eq!(
        lines(&["registry"], &format!("{quiet}use crate::store;")),
        [11]
    );
    // A module that nobody has drawn.
    assert_eq!(lines(&["utils"], "fn f() {}"), [1]);
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the directory is readable") {
        let path = entry.expect("the entry is readable").path();
        // `tests.rs` is what `#[cfg(test)] mod tests;` names; unit tests may use what they like.
        let tests = path.file_name().is_some_and(|name| name == "tests.rs");
        if path.is_dir() {
            walk(&path, files);
        } else if !tests && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// `agent/machine/mod.rs` is `agent::machine`.
fn module_path(relative: &Path) -> Vec<String> {
    let mut path: Vec<String> = relative
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// The row of the picture a path belongs to: the longest that it begins with.
fn row(path: &[String]) -> Option<&'static (&'static str, u8, &'static [&'static str])> {
    PICTURE
        .iter()
        .filter(|(name, ..)| {
            let parts: Vec<&str> = name.split("::").collect();
            path.len() >= parts.len() && parts.iter().zip(path).all(|(a, b)| a == b)
        })
        .max_by_key(|(name, ..)| name.len())
}

fn may_import(from: &(&str, u8, &[&str]), to: &(&str, u8, &[&str])) -> bool {
    let (name, layer, imports) = from;
    let (target, target_layer, _) = to;
    name == target
        || *target == "types"
        || (["clock", "random"].contains(target) && *layer >= 2)
        || imports.contains(target)
        || (imports.contains(&"*") && target_layer < layer)
}

/// Lines that break the picture, and how.
fn offences(path: &[String], text: &str) -> Vec<(usize, String)> {
    let Some(here) = row(path) else {
        return vec![(1, format!("{} is not in the picture", path.join("::")))];
    };
    let code = without_tests(&without_comments_and_strings(text));
    let tokens = tokens(&code);
    let mut found = Vec::new();
    for (line, used) in paths(&tokens) {
        let full = absolute(path, &used);
        if let Some(inside) = full.strip_prefix(&["crate".to_owned()]) {
            // Only names of modules matter: `crate::VERSION` is an item of the root.
            if let Some(there) = row(inside).filter(|there| !may_import(here, there)) {
                found.push((line, format!("{} must not import {}", here.0, there.0)));
            }
        }
        if here.1 == 1 {
            let joined = full.join("::");
            let impure = IMPURE.iter().find(|bad| {
                joined == **bad
                    || joined
                        .strip_prefix(**bad)
                        .is_some_and(|rest| rest.starts_with("::"))
            });
            if let Some(bad) = impure {
                found.push((line, format!("{} is pure and must not use {bad}", here.0)));
            }
        }
    }
    if here.1 == 1 {
        for (line, token) in &tokens {
            if IMPURE_WORDS.contains(&token.as_str()) {
                found.push((*line, format!("{} is pure and must not be {token}", here.0)));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Turns `super::…`, `self::…` and the name of the package into paths from the root.
fn absolute(module: &[String], used: &[String]) -> Vec<String> {
    let climbs = used.iter().take_while(|part| *part == "super").count();
    match used.first().map(String::as_str) {
        Some("orchd") => [vec!["crate".to_owned()], used[1..].to_vec()].concat(),
        Some("super") if climbs <= module.len() => [
            vec!["crate".to_owned()],
            module[..module.len() - climbs].to_vec(),
            used[climbs..].to_vec(),
        ]
        .concat(),
        _ => used.to_vec(),
    }
}

/// Every path of two and more parts, and everything a `use` names, groups spread out, with the line of its last part.
fn paths(tokens: &[(usize, String)]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].1 == "use" {
            at = use_tree(tokens, at + 1, &[], &mut found);
            continue;
        }
        let mut path = Vec::new();
        let mut line = tokens[at].0;
        while at < tokens.len() && is_name(&tokens[at].1) {
            path.push(tokens[at].1.clone());
            line = tokens[at].0;
            if tokens.get(at + 1).is_some_and(|(_, token)| token == "::") {
                at += 2;
            } else {
                break;
            }
        }
        if path.len() > 1 {
            found.push((line, path));
        }
        at += 1;
    }
    found
}

/// Reads one branch of a `use`; says where it ended.
fn use_tree(
    tokens: &[(usize, String)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = prefix.to_vec();
    while let Some((line, token)) = tokens.get(at) {
        let mut named = false;
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| token != "}") {
                    at = use_tree(tokens, at, &path, found);
                    if tokens.get(at).is_some_and(|(_, token)| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 1,
            "self" if !path.is_empty() => named = true,
            "::" => {}
            name => {
                path.push(name.to_owned());
                named = true;
            }
        }
        if named && tokens.get(at + 1).is_none_or(|(_, token)| token != "::") {
            found.push((*line, path.clone()));
        }
        at += 1;
    }
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, text) in code.lines().enumerate() {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                found.push((index + 1, rest[..length].to_owned()));
            }
            rest = &rest[length..];
        }
    }
    found
}

/// Blanks out comments, strings and characters; lines stay where they are.
fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let skip = |code: &mut String, from: usize, to: usize| {
        code.extend(
            chars[from..to.min(chars.len())]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
        to
    };
    while at < chars.len() {
        let next = chars.get(at + 1).copied();
        let before = at.checked_sub(1).map(|at| chars[at]);
        let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        match chars[at] {
            '/' if next == Some('/') => {
                let end = chars[at..]
                    .iter()
                    .position(|c| *c == '\n')
                    .map_or(chars.len(), |n| at + n);
                at = skip(&mut code, at, end);
            }
            '/' if next == Some('*') => at = skip(&mut code, at, comment_end(&chars, at)),
            'r' if !in_word || before == Some('b') => match raw_string_end(&chars, at) {
                Some(end) => at = skip(&mut code, at, end),
                None => {
                    code.push('r');
                    at += 1;
                }
            },
            '"' => at = skip(&mut code, at, quoted_end(&chars, at, '"')),
            // A quote opens a character when it closes again at once; else it names a lifetime.
            '\'' if next == Some('\\') || chars.get(at + 2) == Some(&'\'') => {
                at = skip(&mut code, at, quoted_end(&chars, at, '\''));
            }
            other => {
                code.push(other);
                at += 1;
            }
        }
    }
    code
}

fn comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    (open + 1..chars.len())
        .find(|&at| {
            chars[at] == '"'
                && chars[at + 1..]
                    .iter()
                    .take(hashes)
                    .filter(|c| **c == '#')
                    .count()
                    == hashes
        })
        .map(|at| at + 1 + hashes)
}

/// Blanks out what stands behind `#[cfg(test)]`: the block in braces, or the rest of the statement.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        out.push_str(&rest[..start]);
        let body = &rest[start..];
        let mut depth = 0usize;
        let end = body
            .char_indices()
            .find_map(|(at, c)| {
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    ';' if depth == 0 => return Some(at + 1),
                    _ => return None,
                }
                (c == '}' && depth == 0).then_some(at + 1)
            })
            .unwrap_or(body.len());
        out.extend(
            body[..end]
                .chars()
                .map(|c| if c == '\n' { '\n' } else { ' ' }),
        );
        rest = &body[end..];
    }
    out.push_str(rest);
    out
}
