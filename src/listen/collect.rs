//! Request bodies, whole: they are small beside their answers, and a retry needs them again.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// How much of a refused body is read, and for how long.
const DISCARD_BYTES: usize = 8 << 20;
const DISCARD_FOR: Duration = Duration::from_secs(2);

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

/// Reads and forgets what is left of a small body, before it is refused unread: a client that is still sending would see
/// its connection break instead of the answer. Gives up on a large or a slow one.
pub async fn discard<B>(body: B)
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(Limited::new(body, DISCARD_BYTES));
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // What comes later than that is not waited for.
    let _ = tokio::time::timeout(DISCARD_FOR, all).await;
}
