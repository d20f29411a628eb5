//! What every TCP connection of this process is made with, whoever made it.
//!
//! A path may lose a connection without a word: a cable, a firewall that forgets. Who waits for bytes on it would wait for
//! ever, and a slot with it. So the system asks the other side now and then; a process that is only busy, or stopped,
//! still answers, because its system does. While something is under way that was not acknowledged, it asks nothing: then
//! its own limit for sending again holds (on Linux a quarter of an hour). Called by `listen` and `relay`.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A connection on which nothing came for so long is asked about, so often, and is given up after so many questions: a lost
/// one is found out within 30 s, as a node is.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const QUESTIONS: u32 = 3;

/// Has a connection asked about; or, of a listener, all that come in there: they inherit it.
///
/// # Errors
/// What the system says: the connection has ended.
pub fn keep_alive<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(ASK_AFTER)
        .with_interval(ASK_EVERY)
        .with_retries(QUESTIONS);
    socket.into().set_tcp_keepalive(&keepalive)
}

/// A connection to somebody else.
///
/// # Errors
/// What the system says.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Without it every small write waits for the other side's acknowledgement of the one before.
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen;

    #[tokio::test]
    async fn a_silent_connection_is_asked_about_from_both_ends_for_thirty_seconds() {
        let listener = listen::bind(([127, 0, 0, 1], 0).into()).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let (ours, theirs) = tokio::join!(connect("127.0.0.1", port), listener.accept());
        let (ours, (theirs, _)) = (ours.expect("connected"), theirs.expect("accepted"));
        for stream in [&ours, &theirs] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().expect("an option"));
            let found_out = socket.tcp_keepalive_time().expect("an option")
                + socket.tcp_keepalive_interval().expect("an option")
                    * socket.tcp_keepalive_retries().expect("an option");
            assert_eq!(found_out, Duration::from_secs(30));
        }
        assert!(ours.nodelay().expect("an option"));
    }
}
