use std::future::poll_fn;

use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::relay::tests::{CHUNKED, Log, outgoing, read_request, upstream};
use bytes::Bytes;

use crate::relay::{Broken, Outgoing, RelayBody, SendError, send};

/// Sooner than this the dead are found.
const SOON: Duration = Duration::from_secs(2);
/// Longer than any test looks on.
const NEVER: Duration = Duration::from_hours(1);

async fn ask_for(vitals: &Arc<Vitals>, outgoing: &Outgoing) -> Result<RelayBody<Log>, SendError> {
    send(
        &vitals.origin,
        Peer::Engine,
        Some(vitals),
        outgoing,
        Log::default(),
    )
    .await
    .map(http::Response::into_body)
    .map_err(|(error, _)| error)
}

/// Accepts a request, and begins a stream with one frame.
async fn begin(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("a client");
    read_request(&mut stream, 2).await;
    stream.write_all(CHUNKED).await.expect("writes");
    stream.write_all(b"4\r\none \r\n").await.expect("writes");
    stream
}

/// Answers questions after its health until it is dropped with the runtime, and gives their number.
fn answer_health(listener: TcpListener) -> Arc<AtomicU32> {
    let answered = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&answered);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let asked = read_request(&mut stream, 0).await;
            assert!(
                asked.starts_with("GET /base/health HTTP/1.1\r\n"),
                "{asked}"
            );
            let answer = b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("writes");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    answered
}

/// An upstream with a base path, and what is known of it.
async fn watched(hung_after: Duration) -> (TcpListener, Arc<Vitals>) {
    let (listener, mut origin) = upstream().await;
    origin.base_path = "/base".to_owned();
    (
        listener,
        Vitals::new(origin, Peer::Engine, hung_after, None),
    )
}

async fn frame(body: &mut RelayBody<Log>) -> Result<Bytes, Broken> {
    let frame = body.frame().await.expect("not the end")?;
    Ok(frame.into_data().expect("data"))
}

/// Waits until the watcher has seen that there is nothing left to do.
async fn unwatched(vitals: &Vitals) {
    while vitals.watched.load(Ordering::Acquire) {
        tokio::time::sleep(TICK).await;
    }
}

#[tokio::test]
async fn the_stream_of_an_engine_that_closed_its_listener_and_nothing_else_ends_within_two_seconds()
{
    let (listener, vitals) = watched(NEVER).await;
    let request = outgoing("{}");
    let (body, engine) = tokio::join!(ask_for(&vitals, &request), begin(&listener));
    let (mut body, mut engine) = (body.expect("a stream"), engine);
    assert_eq!(frame(&mut body).await.expect("a frame"), "one ");

    drop(listener);
    let begun = Instant::now();
    let broken = frame(&mut body).await.expect_err("it is dead");
    assert!(matches!(broken, Broken::Died(Died::Gone)), "{broken}");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(body.load().take(), ["answering", "broken"]);
    assert!(body.frame().await.is_none());
    let left = timeout(PATIENCE, engine.read(&mut [0])).await;
    assert!(
        matches!(left.expect("in time"), Ok(0) | Err(_)),
        "its connection is closed"
    );
    assert!(
        vitals.takes_work(),
        "whoever comes is refused by the system"
    );
    unwatched(&vitals).await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_a_stream_too() {
    let (listener, vitals) = watched(NEVER).await;
    let engine = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        read_request(&mut stream, 2).await;
        drop(listener);
        stream.read(&mut [0]).await
    });
    let begun = Instant::now();
    let Err(error) = ask_for(&vitals, &outgoing("{}")).await else {
        panic!("nobody answered");
    };
    assert!(
        matches!(
            error,
            SendError::Died {
                source: Died::Gone,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let left = engine.await.expect("ran");
    assert!(matches!(left, Ok(0) | Err(_)), "its connection is closed");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_accepts_and_answers_nothing_gets_no_work_and_its_streams_end_later() {
    let (listener, vitals) = watched(Duration::from_secs(30)).await;
    let request = outgoing("{}");
    let (body, _engine) = tokio::join!(ask_for(&vitals, &request), begin(&listener));
    let mut body = body.expect("a stream");
    assert_eq!(frame(&mut body).await.expect("a frame"), "one ");

    let begun = Instant::now();
    let hung = async {
        while vitals.takes_work() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    };
    let (hung, broken) = tokio::join!(hung, frame(&mut body));
    let ended = begun.elapsed();
    assert!((1_700..2_000).contains(&hung.as_millis()), "{hung:?}");
    assert!((30_400..34_000).contains(&ended.as_millis()), "{ended:?}");
    assert!(matches!(broken, Err(Broken::Died(Died::Hung))));

    // It is asked on, though nothing runs there, and taken back by its answer.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!vitals.takes_work());
    answer_health(listener);
    while !vitals.takes_work() {
        tokio::time::sleep(TICK).await;
    }
    unwatched(&vitals).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_asks_after_a_hung_engine_that_nobody_wants_any_more() {
    let (_listener, vitals) = watched(NEVER).await;
    let stream = vitals.enter();
    while vitals.takes_work() {
        tokio::time::sleep(TICK).await;
    }
    drop(stream);
    let weak = Arc::downgrade(&vitals);
    drop(vitals);
    while weak.strong_count() > 0 {
        tokio::time::sleep(TICK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_silent_prefill_of_an_engine_that_answers_goes_on() {
    let (listener, vitals) = watched(Duration::from_secs(5)).await;
    let request = outgoing("{}");
    let engine = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        read_request(&mut stream, 2).await;
        let asked = answer_health(listener);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(vitals.takes_work());
        stream.write_all(CHUNKED).await.expect("writes");
        stream
            .write_all(b"4\r\none \r\n0\r\n\r\n")
            .await
            .expect("writes");
        asked.load(Ordering::Relaxed)
    };
    let (body, asked) = tokio::join!(ask_for(&vitals, &request), engine);
    let whole = body.expect("a stream").collect().await.expect("whole");
    assert_eq!(whole.to_bytes(), "one ");
    assert!((30..=60).contains(&asked), "once a second at most: {asked}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_sends_to_a_client_that_does_not_read_is_not_dead() {
    let (listener, vitals) = watched(Duration::from_secs(5)).await;
    let request = outgoing("{}");
    let (body, mut engine) = tokio::join!(ask_for(&vitals, &request), begin(&listener));
    let mut body = body.expect("a stream");
    let asked = answer_health(listener);
    let sender = tokio::spawn(async move {
        let chunk = [b"1000\r\n".as_slice(), &[b'x'; 0x1000], b"\r\n"].concat();
        for _ in 0..5_000 {
            engine.write_all(&chunk).await.expect("writes");
        }
        engine.write_all(b"0\r\n\r\n").await.expect("writes");
    });
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        poll_fn(|cx| {
            body.poll_unread(cx);
            Poll::Ready(())
        })
        .await;
        tokio::time::sleep(TICK).await;
    }
    assert!(!sender.is_finished(), "its client does not read");
    assert!(asked.load(Ordering::Relaxed) > 10);
    let whole = body.collect().await.expect("whole").to_bytes();
    assert_eq!(whole.len(), 4 + 5_000 * 0x1000);
}

#[tokio::test]
async fn a_dead_engine_is_left_though_the_client_does_not_read() {
    let (listener, vitals) = watched(NEVER).await;
    let request = outgoing("{}");
    let (body, mut engine) = tokio::join!(ask_for(&vitals, &request), begin(&listener));
    let mut body = body.expect("a stream");
    drop(listener);
    let mut byte = [0];
    let left = tokio::select! {
        left = engine.read(&mut byte) => left,
        () = poll_fn(|cx| { body.poll_unread(cx); Poll::Pending }) => unreachable!("it never ends"),
    };
    assert!(matches!(left, Ok(0) | Err(_)), "its connection is closed");
    assert!(!body.is_end_stream());
    assert_eq!(frame(&mut body).await.expect("what had come"), "one ");
    let broken = frame(&mut body).await.expect_err("it is dead");
    assert!(matches!(broken, Broken::Died(Died::Gone)), "{broken}");
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_moves_outlives_its_listener_and_an_idle_engine_is_left_alone() {
    let (listener, vitals) = watched(NEVER).await;
    let request = outgoing("{}");
    let (body, mut engine) = tokio::join!(ask_for(&vitals, &request), begin(&listener));
    let silent = vitals.enter();
    drop(listener);
    let sender = tokio::spawn(async move {
        for _ in 0..100 {
            engine.write_all(b"4\r\nmore\r\n").await.expect("writes");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        engine.write_all(b"0\r\n\r\n").await.expect("writes");
        engine
    });
    let (whole, died) = tokio::join!(
        body.expect("a stream").collect(),
        poll_fn(|cx| silent.poll_died(cx))
    );
    assert_eq!(whole.expect("whole").to_bytes().len(), 4 + 400);
    assert_eq!(died, Died::Gone);
    drop(silent);
    drop(sender.await.expect("ran"));

    unwatched(&vitals).await;
    let again = TcpListener::bind((vitals.origin.host.as_str(), vitals.origin.port)).await;
    let again = again.expect("the port is free");
    let nobody = timeout(Duration::from_secs(60), again.accept()).await;
    assert!(nobody.is_err(), "nobody asks after an idle engine");
}

#[tokio::test]
async fn streams_of_other_threads_are_watched_on_when_the_thread_that_watched_ends() {
    let (listener, vitals) = watched(NEVER).await;
    let first = Arc::clone(&vitals);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let stream = first.enter();
            entered.send(()).expect("the test waits");
            stopped.await.expect("the test says so");
            drop(stream);
        });
    });
    has_entered.await.expect("the thread runs");
    let (mine, idle) = (vitals.enter(), vitals.enter());
    let mut waits = tokio::spawn(async move { poll_fn(|cx| mine.poll_died(cx)).await });
    tokio::task::yield_now().await;
    stop.send(()).expect("the thread waits");
    thread.join().expect("no panic");
    drop(listener);
    let died = timeout(SOON, &mut waits).await.expect("it is watched");
    assert_eq!(died.expect("no panic"), Died::Gone);
    // It did not wait when the thread ended, and looks when it does.
    let died = timeout(SOON, poll_fn(|cx| idle.poll_died(cx))).await;
    assert_eq!(died.expect("it is watched"), Died::Gone);
}

#[tokio::test]
async fn what_an_engine_says_of_itself_is_told_from_a_refusal_and_from_silence() {
    let (listener, vitals) = watched(NEVER).await;
    let origin = &vitals.origin;
    for (answer, finding) in [
        (b"HTTP/1.1 500 Oh\r\n\r\n".as_slice(), Finding::Alive),
        (b"SSH-2.0-none\r\n\r\n", Finding::Silent),
        (b"", Finding::Silent),
    ] {
        let engine = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            read_request(&mut stream, 0).await;
            stream.write_all(answer).await.expect("writes");
        };
        assert_eq!(
            tokio::join!(ask(origin, Peer::Engine), engine).0,
            finding,
            "{answer:?}"
        );
    }
    let engine = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.read_exact(&mut [0]).await.expect("it asks");
        // What is not read makes the close a reset.
        drop(stream);
    };
    assert_eq!(
        tokio::join!(ask(origin, Peer::Engine), engine).0,
        Finding::Gone
    );
    drop(listener);
    assert_eq!(ask(origin, Peer::Engine).await, Finding::Gone);
}
