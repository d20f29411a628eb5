//! Answers of others, read whole, and no further than they may go: whoever is asked may be anybody. Called by `engines` and
//! `client`.

/// Why there is no answer that could be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is larger than anything that was asked for.
    #[error("its answer is larger than {most} bytes")]
    TooLarge {
        /// The most that is read.
        most: usize,
    },
    /// It broke off, or did not come in time.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

/// All of an answer's body, of at most `most` bytes.
///
/// # Errors
/// See [`FetchError`]. What is left is not read, and its connection is closed.
pub async fn whole(mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Err(FetchError::TooLarge { most });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
