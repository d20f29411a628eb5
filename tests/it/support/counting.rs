//! Whether a text counts: one, two, three … forty, and one again. The models that write it are made by
//! `tests/engine/counting_model.py`.
//!
//! Used by `chat`, to see to the word whether an answer lost, repeated or mixed up anything.

const ONES: [&str; 9] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];
const TEENS: [&str; 10] = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];

/// Where the counting begins again, or ends.
pub const FORTY: usize = 40;

/// The word for 1 to 40.
pub fn word(number: usize) -> String {
    match number {
        1..=9 => ONES[number - 1].to_owned(),
        10..=19 => TEENS[number - 10].to_owned(),
        40 => "forty".to_owned(),
        20..=39 => {
            let tens = if number < 30 { "twenty" } else { "thirty" };
            let one = number % 10;
            format!("{tens}{}", if one == 0 { "" } else { ONES[one - 1] })
        }
        _ => unreachable!("the circle has forty words"),
    }
}

/// How far a text counts, from one on and in a circle; what is wrong with it, and where, if it does not.
pub fn counts(text: &str) -> Result<usize, String> {
    let mut rest = text;
    let mut count = 0;
    while !rest.is_empty() {
        let expected = word(count % FORTY + 1);
        let Some(after) = rest.strip_prefix(' ') else {
            return Err(format!("no space before word {}: {rest:.40?}", count + 1));
        };
        let found = after.split(' ').next().unwrap_or_default();
        if found != expected {
            return Err(format!(
                "word {} should be {expected:?} and is {found:?}",
                count + 1
            ));
        }
        rest = &after[found.len()..];
        count += 1;
    }
    Ok(count)
}

#[test]
fn a_gap_a_repetition_and_a_broken_word_are_no_counting() {
    let circle = |count| -> String {
        (0..count)
            .map(|n| format!(" {}", word(n % FORTY + 1)))
            .collect()
    };
    assert_eq!(counts(""), Ok(0));
    assert_eq!(counts(" one two three"), Ok(3));
    assert_eq!(counts(&circle(FORTY)), Ok(40));
    assert_eq!(counts(&circle(95)), Ok(95));
    assert!(circle(FORTY).ends_with(" thirtyeight thirtynine forty"));
    for (text, complaint) in [
        (" one three", "word 2 should be \"two\" and is \"three\""),
        (" one two two", "word 3 should be \"three\" and is \"two\""),
        (" one tw", "word 2 should be \"two\" and is \"tw\""),
        ("one two", "no space before word 1: \"one two\""),
        (" two", "word 1 should be \"one\" and is \"two\""),
        (" one two ", "word 3 should be \"three\" and is \"\""),
    ] {
        assert_eq!(counts(text), Err(complaint.to_owned()), "{text:?}");
    }
}
