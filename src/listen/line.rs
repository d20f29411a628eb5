//! A connection's socket, within reach of two: hyper reads requests from it, and the connection itself looks whether the
//! client is still there while hyper does not. Hyper reads no further once it has bytes behind the request that is in
//! hand, and so would not see whoever sent them leave.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of a next request is kept for hyper while one is in hand. Of a client that has sent more it is seen only when
/// it is answered whether it is still there.
const AHEAD_BYTES: usize = 16 << 10;
/// How much is read at a time.
const PIECE_BYTES: usize = 1 << 10;

struct Shared<IO> {
    io: IO,
    /// What was read while hyper did not want it: hyper's before anything else.
    ahead: Vec<u8>,
    /// Hyper has asked for bytes and was told to wait: it will see for itself what comes, and the end.
    asked: bool,
}

/// A socket. Both who share it run in the connection's task: nobody ever waits for the lock.
pub(super) struct Line<IO>(Arc<Mutex<Shared<IO>>>);

impl<IO> Clone for Line<IO> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<IO> Line<IO> {
    pub fn new(io: IO) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            io,
            ahead: Vec::new(),
            asked: false,
        })))
    }

    fn locked(&self) -> MutexGuard<'_, Shared<IO>> {
        // What a panic leaves behind is dropped with the connection.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hyper is about to run.
    pub fn begin(&self) {
        self.locked().asked = false;
    }
}

impl<IO: AsyncRead + Unpin> Line<IO> {
    /// Is ready when the client has left. To be asked after hyper ran, while a request is in hand: hyper looks at the
    /// end of the connection itself otherwise.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &mut *self.locked();
        if shared.asked {
            return Poll::Pending;
        }
        let mut piece = [0; PIECE_BYTES];
        while shared.ahead.len() < AHEAD_BYTES {
            let mut piece = ReadBuf::new(&mut piece);
            match Pin::new(&mut shared.io).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    shared.ahead.extend_from_slice(piece.filled());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Line<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &mut *self.locked();
        if !shared.ahead.is_empty() {
            let length = shared.ahead.len().min(buffer.remaining());
            buffer.put_slice(&shared.ahead[..length]);
            shared.ahead.drain(..length);
            if shared.ahead.is_empty() {
                // Most connections never need it again.
                shared.ahead = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut shared.io).poll_read(cx, buffer);
        shared.asked = polled.is_pending();
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Line<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.locked().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.locked().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.locked().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.locked().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.locked().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn look(line: &Line<impl AsyncRead + Unpin>) -> bool {
        poll_fn(|cx| Poll::Ready(line.poll_left(cx).is_ready())).await
    }

    #[tokio::test]
    async fn what_comes_while_nobody_reads_is_read_later_in_order_and_the_end_is_seen() {
        let (mut client, server) = duplex(1 << 20);
        let mut line = Line::new(server);
        assert!(!look(&line).await);
        client.write_all(b"abc").await.expect("there is room");
        assert!(!look(&line).await);
        client.write_all(b"def").await.expect("there is room");
        let mut two = [0; 2];
        line.read_exact(&mut two).await.expect("it came");
        assert_eq!(&two, b"ab");
        assert!(!look(&line).await);
        let mut rest = [0; 4];
        line.read_exact(&mut rest).await.expect("it came");
        assert_eq!(&rest, b"cdef");
        client.write_all(b"more").await.expect("there is room");
        drop(client);
        assert!(look(&line).await);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_there_is_room_for() {
        let (mut client, server) = duplex(1 << 20);
        let mut line = Line::new(server);
        let sent = vec![b'x'; 3 * AHEAD_BYTES];
        client.write_all(&sent).await.expect("there is room");
        drop(client);
        assert!(!look(&line).await, "it is not read so far");
        assert!(line.locked().ahead.len() < AHEAD_BYTES + PIECE_BYTES);
        let mut all = Vec::new();
        line.read_to_end(&mut all).await.expect("it came");
        assert_eq!(all, sent);
    }

    #[tokio::test]
    async fn whoever_waits_for_bytes_sees_the_end_itself() {
        let (client, server) = duplex(1 << 10);
        let mut line = Line::new(server);
        line.begin();
        poll_fn(|cx| {
            let mut byte = [0];
            let mut byte = ReadBuf::new(&mut byte);
            assert!(Pin::new(&mut line).poll_read(cx, &mut byte).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(client);
        assert!(!look(&line).await);
        assert_eq!(line.read(&mut [0]).await.expect("an end"), 0);
    }
}
