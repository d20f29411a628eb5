//! Tables of the README that commands write: each lies between two comments with its name, and nobody edits it by hand.

use std::fmt::Write;

/// Puts a table in place of the one of that name in the README.
///
/// # Panics
///
/// When the README has no place of that name, or cannot be written.
pub fn write(name: &str, head: &[&str], rows: &[Vec<String>]) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(file).expect("the README is there");
    let (begin, end) = (
        format!("<!-- {name}: written by its command -->\n"),
        format!("<!-- end of {name} -->\n"),
    );
    let (before, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("README.md has no {begin:?}"));
    let (_, after) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("README.md has no {end:?}"));
    let mut table = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let _ = writeln!(table, "| {} |", row.join(" | "));
    }
    std::fs::write(file, format!("{before}{begin}\n{table}\n{end}{after}"))
        .expect("the README can be written");
    println!("README.md: the table of {name} is this run's");
}
