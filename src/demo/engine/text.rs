//! What the built-in engine says, cut into tokens. Pure.

/// How far it counts: with the words before it that makes an answer of some ten seconds, time enough to drain its node.
const COUNTS_TO: usize = 150;
/// How many words of a prompt it repeats.
const REPEATED: usize = 20;

/// A text in tokens: each is a word with what separates it from the one before.
pub(super) fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest
            .find(|c: char| !c.is_whitespace())
            .unwrap_or(rest.len());
        let end = rest[word..]
            .find(char::is_whitespace)
            .map_or(rest.len(), |length| word + length);
        tokens.push(&rest[..end]);
        rest = &rest[end..];
    }
    tokens
}

/// The answer to what was said, on the node of this name: first of all what it is that answers.
pub(super) fn answer(node: &str, said: &str) -> String {
    let mut words = said.split_whitespace();
    let repeated: Vec<&str> = words.by_ref().take(REPEATED).collect();
    let more = if words.next().is_some() { " …" } else { "" };
    let repeated = match repeated.join(" ") {
        nothing if nothing.is_empty() => "You said nothing.".to_owned(),
        repeated => format!("You said: “{repeated}{more}”."),
    };
    let numbers: Vec<String> = (1..=COUNTS_TO).map(|number| number.to_string()).collect();
    format!(
        "I am the built-in engine of orchd's demo, on {node}, and not a language model. {repeated} All I can do is count: {}.",
        numbers.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_words_and_together_they_are_the_text() {
        assert_eq!(tokens("one  two\nthree"), ["one", "  two", "\nthree"]);
        assert_eq!(tokens(" one "), [" one", " "]);
        assert_eq!(tokens(""), [""; 0]);
    }

    #[test]
    fn an_answer_says_what_answers_and_repeats_no_more_than_the_beginning_of_a_prompt() {
        let text = answer("node-2", "Hello,\n\nfleet!");
        assert!(text.starts_with("I am the built-in engine of orchd's demo, on node-2, and not"));
        assert!(text.contains("You said: “Hello, fleet!”. All"), "{text}");
        assert!(text.ends_with(" 148 149 150."));
        let long = answer("node-2", &"word ".repeat(1_000));
        assert!(tokens(&long).len() < 210, "{}", tokens(&long).len());
        assert!(long.contains("word …”"));
        assert!(answer("node-2", " ").contains("You said nothing."));
    }
}
