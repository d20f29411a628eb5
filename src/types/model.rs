//! Names of models.

/// The name under which a model is listed. An engine without `--alias` calls its model by the path of its file, which
/// differs from host to host: it is listed by the file's name, without `.gguf` and without the number of a shard.
#[must_use]
pub fn listed_model_id(id: &str) -> &str {
    let Some(path) = id.strip_suffix(".gguf") else {
        return id;
    };
    let file = path.rsplit(['/', '\\']).next().unwrap_or(path);
    // llama.cpp's own pattern: NAME-00001-of-00003.gguf
    let is_number = |part: &str| part.len() == 5 && part.bytes().all(|b| b.is_ascii_digit());
    let unsharded = file.rsplit_once("-of-").and_then(|(rest, of)| {
        let (name, number) = rest.rsplit_once('-')?;
        (is_number(of) && is_number(number)).then_some(name)
    });
    unsharded.unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_listed_by_alias_or_by_the_name_of_their_file() {
        assert_eq!(listed_model_id("qwen3-8b"), "qwen3-8b");
        assert_eq!(listed_model_id("org/model:Q4"), "org/model:Q4");
        assert_eq!(
            listed_model_id("/models/SmolLM2-135M.Q4_1.gguf"),
            "SmolLM2-135M.Q4_1"
        );
        assert_eq!(
            listed_model_id("C:\\models\\big-00001-of-00003.gguf"),
            "big"
        );
        assert_eq!(listed_model_id("a-1-of-3.gguf"), "a-1-of-3");
    }
}
