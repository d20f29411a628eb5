//! Request bodies, whole: they are small beside their answers, and a retry needs them again.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, timeout, timeout_at};

/// How much of a refused body is read, and for how long.
const DISCARD_BYTES: usize = 8 << 20;
const DISCARD_FOR: Duration = Duration::from_secs(2);

/// A body may come in as small pieces as its client likes, if not more slowly than this on the whole: a byte now and then
/// would hold its connection and what was read of it for days.
const SLOWEST_BYTES_PER_SECOND: usize = 1_024;

/// Why a request body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It is larger than it may be.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The most that is accepted.
        limit: usize,
    },
    /// It stopped coming, or came so slowly that it might as well have.
    #[error(
        "the request body stopped coming; send it without a pause of {} s, and not below {SLOWEST_BYTES_PER_SECOND} bytes/s",
        .idle.as_secs()
    )]
    Stalled {
        /// The longest pause that is accepted.
        idle: Duration,
    },
    /// The connection or its framing broke.
    #[error("the request body could not be read: {0}")]
    Broken(String),
}

/// All of a body, of at most `limit` bytes, without a pause of `idle` and not too slowly on the whole.
///
/// # Errors
/// See [`CollectError`]. What is left of a body that is too large was read and forgotten, see [`discard`].
pub async fn collect<B>(body: B, limit: usize, idle: Duration) -> Result<Bytes, CollectError>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let declared = body.size_hint().lower();
    if declared > (limit + DISCARD_BYTES) as u64 {
        // So much is not read for the sake of an answer.
        return Err(CollectError::TooLarge { limit });
    }
    let too_large = declared > limit as u64;
    let mut body = std::pin::pin!(body);
    let begun = Instant::now();
    let mut chunks: Vec<Bytes> = Vec::new();
    let mut length = 0;
    loop {
        // Most of the time it is there, and nobody need know what time it is.
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                let paced = Duration::from_secs((length / SLOWEST_BYTES_PER_SECOND) as u64);
                let deadline = (begun + idle + paced).min(Instant::now() + idle);
                (timeout_at(deadline, body.frame()).await).map_err(|_| match too_large {
                    true => CollectError::TooLarge { limit },
                    false => CollectError::Stalled { idle },
                })?
            }
        };
        match frame {
            None => break,
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                length += data.len();
                if length > limit {
                    discard(body).await;
                    return Err(CollectError::TooLarge { limit });
                }
                if !too_large {
                    chunks.push(data);
                }
            }
            Some(Err(e)) => {
                let e: Box<dyn Error + Send + Sync> = e.into();
                return Err(CollectError::Broken(e.to_string()));
            }
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
    let _ = timeout(DISCARD_FOR, all).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::time::sleep;

    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    /// A body of so many pieces, one after each pause; counts those that were taken.
    fn pieces(
        count: usize,
        bytes: usize,
        pause: Duration,
        taken: &AtomicUsize,
    ) -> impl Body<Data = Bytes, Error = std::io::Error> + Send {
        StreamBody::new(Box::pin(stream::unfold(0, move |n| async move {
            if n == count {
                return None;
            }
            sleep(pause).await;
            taken.fetch_add(1, Ordering::Relaxed);
            Some((Ok(Frame::data(Bytes::from(vec![b'x'; bytes]))), n + 1))
        })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_pause_and_be_slow_but_not_for_ever() {
        let second = Duration::from_secs(1);
        let read = async |count, bytes, pause| {
            let begun = Instant::now();
            let read = collect(pieces(count, bytes, pause, &0.into()), 1 << 20, IDLE).await;
            (read.map(|bytes| bytes.len()), begun.elapsed().as_secs())
        };
        assert!(matches!(read(9, 1, second).await, (Ok(9), 9)));
        let stalled = |read| matches!(read, (Err(CollectError::Stalled { .. }), 10));
        assert!(stalled(read(1_000, 1, second).await), "a byte a second");
        assert!(stalled(read(2, 1, 11 * second).await), "a pause");
        assert!(matches!(read(300, 1_100, second).await, (Ok(330_000), 300)));
        // Quick at first, and then no more.
        let (ended, after) = read(3, 200_000, 9 * second).await;
        assert!(matches!((ended, after), (Ok(600_000), 27)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_is_read_for_a_while_so_that_its_client_hears_the_answer() {
        let taken = AtomicUsize::new(0);
        let body = pieces(64, 1 << 16, Duration::from_millis(1), &taken);
        let read = collect(body, 1 << 20, IDLE).await;
        assert!(matches!(read, Err(CollectError::TooLarge { limit }) if limit == 1 << 20));
        assert_eq!(taken.into_inner(), 64);
        let taken = AtomicUsize::new(0);
        let body = pieces(10_000, 1 << 16, Duration::from_millis(1), &taken);
        let begun = Instant::now();
        let read = collect(body, 1 << 20, IDLE).await;
        assert!(matches!(read, Err(CollectError::TooLarge { .. })));
        assert!(begun.elapsed() < Duration::from_secs(3), "not for ever");
    }
}
