//! Aliases of models as settings: a table in the file, a flag, and what is said of mistakes in either.

use serde_json::json;

use crate::config::{Files, run_with, show, text};

#[test]
fn mistakes_in_aliases_are_named_with_their_line_and_what_is_accepted() {
    let cases = [
        (
            "[aliases]\n\na = []",
            "line 3: invalid value [] for `aliases.a`: must name at least one model",
        ),
        (
            "[aliases]\na = ''",
            "line 2: invalid value '' for `aliases.a`: the model \"\" must not be empty",
        ),
        (
            "[aliases]\na = ['b',\n'a']",
            "line 2: invalid value ['b', 'a'] for `aliases.a`: \"a\" stands for itself; a model of that name is served \
             under it anyhow, so name only the others",
        ),
        (
            "[aliases]\nb = ['x', '/m/a.gguf']\na = 'm'",
            "line 2: invalid value ['x', '/m/a.gguf'] for `aliases.b`: the alias \"b\" stands for \"a\", which is an \
             alias itself; an alias stands for models of engines: m",
        ),
        (
            "[aliases]\na = 'm'\n'a.gguf' = 'n'",
            "line 3: invalid value 'n' for `aliases.a.gguf`: the alias \"a\" is given twice; give it once, with all its \
             models",
        ),
        (
            "[aliases]\n\"a\\u0007\" = 'm'",
            "line 2: invalid value 'm' for `aliases.a\\u{7}`: the name \"a\\u{7}\" contains the control character '\\u{7}'",
        ),
        (
            "[aliases]\nqwen3.5 = 'm'",
            "line 2: invalid value (a table) for `aliases.qwen3`: must be a model, or a list of models, in quotes; a name \
             with a dot, a slash or a colon in it stands in quotes, too",
        ),
        (
            "aliases = {a = 1}",
            "line 1: invalid value '1' for `aliases.a`: must be a model, or a list of models, in quotes",
        ),
        (
            "aliases = ['a=m',\n'b']",
            "line 2: invalid value 'b' for `aliases`: an alias is NAME=MODEL, or NAME=MODEL,MODEL for several models",
        ),
        (
            "aliases = true",
            "line 1: invalid value 'true' for `aliases`: must be a table of names and the models they stand for",
        ),
        (
            "[aliases]\na = 'm'\n[alias]\nb = 'n'",
            "lines 1 and 3: `aliases` and `alias` are one setting",
        ),
        (
            "[agent]\naliases = {a = 'm'}",
            "line 2: unknown key `aliases`\nhint: `aliases` is a setting of `orchd serve`: it stands at the top level, above \
             [agent]",
        ),
    ];
    let files = Files::new();
    let file = files.write("c.toml", "");
    for (content, wanted) in cases {
        std::fs::write(&file, content).expect("written");
        let ran = run_with(&["config", "check", "serve", "--config", text(&file)], &[]);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""), "{content}");
        let wanted = format!("error: {}, {wanted}", file.display());
        assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
    }
    for (given, wanted) in [
        (
            "a=",
            "error: invalid value 'a=' for '--alias <NAME=MODEL[,MODEL...]>': the model \"\" must not be empty",
        ),
        (
            "m=b",
            "error: the alias \"c\" stands for \"m\", which is an alias itself",
        ),
        ("c=b", "error: the alias \"c\" is given twice"),
    ] {
        let ran = run_with(&["serve", "--alias", "c=m", "--alias", given], &[]);
        assert_eq!(ran.exit, Some(2), "{given}");
        assert!(ran.stderr.starts_with(wanted), "{}", ran.stderr);
    }
}

#[test]
fn aliases_are_a_table_and_a_flag_beats_all_of_it() {
    let files = Files::new();
    let content =
        "cloud = true\n[aliases]\n\"gpt-4o\" = [\"qwen3-8b\", \"/m/llama.gguf\"]\n'b=,c' = 'd,e'\n";
    let file = files.write("c.toml", content);
    let (shown, stderr) = show(&["--config", text(&file)], &[]);
    let here = format!("{}:2", file.display());
    assert_eq!(
        shown["alias"],
        json!([["gpt-4o=qwen3-8b,llama", "b=,c=d,e"], "file", here]),
        "{stderr}"
    );
    let ran = run_with(&["config", "show", "--config", text(&file)], &[]);
    for value in ["gpt-4o=qwen3-8b,llama", "b=,c=d,e"] {
        let line = ran.stdout.lines().find(|line| line.contains(value));
        let words: Vec<&str> = line
            .expect("a line of its own")
            .split_whitespace()
            .collect();
        assert_eq!(words, ["alias", value, "file", here.as_str()]);
    }
    let (shown, _) = show(&["--config", text(&file), "--", "--alias=x=y"], &[]);
    assert_eq!(shown["alias"], json!([["x=y"], "flag", "--alias"]));
    let (shown, _) = show(&[], &[]);
    assert_eq!(shown["alias"], json!([[], "default", null]));
    // As the flag takes it, too; and an agent with the same file is not concerned.
    let file = files.write("l.toml", "aliases = ['a=b,c', 'd=e']\n");
    let (shown, _) = show(&["--config", text(&file)], &[]);
    assert_eq!(shown["alias"][0], json!(["a=b,c", "d=e"]));
    let ran = run_with(&["config", "check", "--config", text(&file)], &[]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
}
