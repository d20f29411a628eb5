//! Request bodies, whole: they are small beside their answers, and a retry needs them again.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Why a request body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It is larger than it may be.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The most that is accepted.
        limit: usize,
    },
    /// It stopped coming.
    #[error("the request body stopped coming; send it without a pause of {} s", .idle.as_secs())]
    Stalled {
        /// The longest pause that is accepted.
        idle: Duration,
    },
    /// The connection or its framing broke.
    #[error("the request body could not be read: {0}")]
    Broken(String),
}

/// All of a body, of at most `limit` bytes and without a pause of `idle`.
///
/// # Errors
/// See [`CollectError`].
pub async fn collect<B>(body: B, limit: usize, idle: Duration) -> Result<Bytes, CollectError>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(Limited::new(body, limit));
    let mut chunks: Vec<Bytes> = Vec::new();
    loop {
        let frame = tokio::time::timeout(idle, body.frame())
            .await
            .map_err(|_| CollectError::Stalled { idle })?;
        match frame {
            None => break,
            Some(Ok(frame)) => chunks.extend(frame.into_data()),
            Some(Err(e)) if e.is::<LengthLimitError>() => {
                return Err(CollectError::TooLarge { limit });
            }
            Some(Err(e)) => return Err(CollectError::Broken(e.to_string())),
        }
    }
    Ok(match chunks.len() {
        0 => Bytes::new(),
        1 => chunks.remove(0),
        _ => chunks.concat().into(),
    })
}
