use std::time::Duration;

use http::Method;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn get<'a>(method: &Method, body: &'a [u8]) -> Message<'a> {
    Message::new(method, ["", "/x"], "here", &HeaderMap::new(), body)
}

async fn read(wire: &mut Wire<DuplexStream>) -> Result<(Vec<u8>, usize), WireError> {
    let (mut all, mut pieces) = (Vec::new(), 0);
    while let Some(piece) = poll_fn(|cx| wire.poll_data(cx)).await {
        let piece = piece?;
        assert!(!piece.is_empty());
        all.extend_from_slice(&piece);
        pieces += 1;
    }
    Ok((all, pieces))
}

/// What a client makes of an answer that comes cut into these pieces, and is followed by the end of the connection.
fn made_of(method: &Method, pieces: &[&[u8]]) -> Result<(Parts, Vec<u8>, bool), WireError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = duplex(1 << 20);
        let mut wire = Wire::new(ours);
        let send = async {
            for piece in pieces {
                theirs.write_all(piece).await.expect("there is room");
                // Time passes when nobody else has anything to do: each piece is read before the next one comes.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(theirs);
        };
        let message = get(method, b"");
        let receive = async {
            let parts = wire.ask(&message).await?;
            let (body, _) = read(&mut wire).await?;
            Ok((parts, body, wire.is_reusable()))
        };
        tokio::join!(send, receive).1
    })
}

fn whole(answer: &[u8]) -> Result<(Vec<u8>, bool), WireError> {
    made_of(&Method::GET, &[answer]).map(|(_, body, reusable)| (body, reusable))
}

#[test]
fn an_answer_ends_where_its_framing_says() {
    let cases: [(&str, &str, bool); 12] = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\nContent-Length: 5\r\n\r\nhello",
            "hello",
            true,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
        (
            "HTTP/1.1 200 OK\r\n\r\nas long as it lasts",
            "as long as it lasts",
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            "hi",
            false,
        ),
        (
            "HTTP/1.1 200\r\nConnection: x, Close\r\ncontent-length: 2\r\n\r\nhi",
            "hi",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n1 \r\n!\r\n00\r\nx: y\r\n\r\n",
            "hello!",
            true,
        ),
        // Of two words on its length the stronger counts, and nothing after it.
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            "x",
            false,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            "hi",
            true,
        ),
        // What comes behind an answer is none of it, and the connection is not used again.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi!",
            "hi",
            false,
        ),
    ];
    for (answer, body, reusable) in cases {
        let (told, again) = whole(answer.as_bytes()).unwrap_or_else(|e| panic!("{answer:?}: {e}"));
        assert_eq!(
            (String::from_utf8_lossy(&told).as_ref(), again),
            (body, reusable),
            "{answer:?}"
        );
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    let (parts, body, reusable) = made_of(&Method::HEAD, &[head]).expect("an answer to a HEAD");
    assert!(body.is_empty() && reusable && parts.headers["content-length"] == "5");
}

#[test]
fn of_a_body_s_length_only_what_counts_goes_on() {
    let said = |answer: &str| {
        let (parts, ..) = made_of(&Method::GET, &[answer.as_bytes()]).expect("an answer");
        let lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
        lengths
            .map(|length| length.to_str().expect("digits").to_owned())
            .collect::<Vec<_>>()
    };
    let both = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(said(both), [""; 0]);
    let list = "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(said(list), ["2"]);
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(said(twice), ["2"]);
}

#[test]
fn what_is_no_answer_is_an_error_and_what_breaks_off_is_lost() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let malformed = [
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "HTTP/1.1 99 Low\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
            "y".repeat(MAX_HEAD_BYTES)
        ),
        format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "x: y\r\n".repeat(MAX_HEADERS + 1)
        ),
        format!("{chunked}x\r\n"),
        format!("{chunked}\r\n"),
        format!("{chunked}-1\r\nx"),
        format!("{chunked}10000000000000000\r\n"),
        format!("{chunked}2\r\nhello\r\n0\r\n\r\n"),
        format!("{chunked}1{}", "0".repeat(MAX_CHUNK_LINE_BYTES)),
        format!("{chunked}1;{}\r\nx\r\n", "x".repeat(MAX_CHUNK_LINE_BYTES)),
        "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1_000),
        format!(
            "{chunked}0\r\n{}",
            "x: y\r\n".repeat(1 + MAX_TRAILER_BYTES as usize / 6)
        ),
    ];
    for answer in malformed {
        let told = whole(answer.as_bytes());
        assert!(
            matches!(told, Err(WireError::Malformed(_))),
            "{:?}: {told:?}",
            answer.get(..80)
        );
    }
    for answer in [
        String::new(),
        "HTTP/1.1 200 OK\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell".to_owned(),
        format!("{chunked}5\r\nhello"),
        format!("{chunked}5\r\nhello\r\n"),
        format!("{chunked}5\r\nhello\r\n0\r\n"),
    ] {
        let told = whole(answer.as_bytes());
        assert!(
            matches!(told, Err(WireError::Closed)),
            "{answer:?}: {told:?}"
        );
    }
}

#[tokio::test]
async fn many_small_events_that_lie_ready_are_one_piece_and_no_byte_of_it_is_copied_twice() {
    let (ours, mut theirs) = duplex(1 << 20);
    let mut wire = Wire::new(ours);
    let event = "data: word\n\n";
    let mut answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..100 {
        answer += &format!("{:x}\r\n{event}\r\n", event.len());
    }
    theirs
        .write_all(format!("{answer}0\r\n\r\n").as_bytes())
        .await
        .expect("there is room");
    wire.ask(&get(&Method::GET, b"")).await.expect("an answer");
    let (body, pieces) = read(&mut wire).await.expect("all of it");
    assert_eq!(String::from_utf8_lossy(&body), event.repeat(100));
    assert!(
        pieces <= 2,
        "{pieces} pieces: one for what came with the head"
    );
    assert!(wire.is_reusable());
}

#[tokio::test]
async fn a_request_is_written_as_it_should_be_and_a_large_body_in_any_pieces() {
    let (ours, mut theirs) = duplex(1 << 10);
    let mut wire = Wire::new(ours);
    let body = vec![b'x'; 100_000];
    let mut headers = HeaderMap::new();
    headers.insert("accept", HeaderValue::from_static("*/*"));
    headers.insert("host", HeaderValue::from_static("elsewhere"));
    let message = Message::new(
        &Method::POST,
        ["/base", "/v1/x?y=z"],
        "here:1",
        &headers,
        &body,
    );
    let server = async {
        let head = "POST /base/v1/x?y=z HTTP/1.1\r\nhost: here:1\r\naccept: */*\r\ncontent-length: 100000\r\n\r\n";
        let mut seen = vec![0; head.len() + body.len()];
        theirs.read_exact(&mut seen).await.expect("a request");
        assert_eq!(String::from_utf8_lossy(&seen[..head.len()]), head);
        assert!(seen[head.len()..].iter().all(|byte| *byte == b'x'));
        theirs
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await
            .expect("there is room");
    };
    let (asked, ()) = tokio::join!(wire.ask(&message), server);
    asked.expect("an answer");
    assert!(wire.is_reusable() && wire.is_quiet());
    // Without a body nothing is said of one, unless the method has one.
    assert!(!String::from_utf8_lossy(&get(&Method::GET, b"").head).contains("content-length"));
    assert!(
        String::from_utf8_lossy(&get(&Method::POST, b"").head).contains("content-length: 0\r\n")
    );
    theirs.write_all(b"unasked").await.expect("there is room");
    assert!(!wire.is_quiet());
}

#[tokio::test]
async fn an_answer_that_comes_before_all_was_sent_is_an_answer_and_the_connection_is_done_with() {
    let (ours, mut theirs) = duplex(1 << 10);
    let mut wire = Wire::new(ours);
    let body = vec![b'x'; 100_000];
    let refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    theirs.write_all(refusal).await.expect("there is room");
    let parts = wire
        .ask(&get(&Method::POST, &body))
        .await
        .expect("an answer");
    assert_eq!(parts.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(read(&mut wire).await.expect("all of it").0, b"no");
    assert!(!wire.is_reusable());
    // One that begins to answer well still hears the rest, and may need it.
    let (ours, mut theirs) = duplex(1 << 10);
    let mut wire = Wire::new(ours);
    theirs
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        .await
        .expect("there is room");
    let server = async {
        let mut seen = vec![0; get(&Method::POST, &body).head.len() + body.len()];
        theirs
            .read_exact(&mut seen)
            .await
            .expect("all of the request");
        theirs.write_all(b"ok").await.expect("there is room");
    };
    let message = get(&Method::POST, &body);
    let (asked, ()) = tokio::join!(wire.ask(&message), server);
    assert_eq!(asked.expect("an answer").status, StatusCode::OK);
    assert_eq!(read(&mut wire).await.expect("all of it").0, b"ok");
    assert!(wire.is_reusable());
    // The same of one that stops to listen as well.
    let (ours, mut theirs) = duplex(1 << 10);
    let mut wire = Wire::new(ours);
    theirs.write_all(refusal).await.expect("there is room");
    drop(theirs);
    let parts = wire
        .ask(&get(&Method::POST, &body))
        .await
        .expect("an answer");
    assert_eq!(parts.status, StatusCode::PAYLOAD_TOO_LARGE);
}

proptest! {
    /// Chunks of any size, cut anywhere on their way, are the body they were made of.
    #[test]
    fn however_a_body_is_cut_it_is_the_same(
        body in proptest::collection::vec(any::<u8>(), 0..3_000),
        chunks in proptest::collection::vec(1_usize..600, 1..20),
        cuts in proptest::collection::vec(1_usize..900, 1..30),
        chunked in any::<bool>(),
    ) {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        if chunked {
            answer.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            let (mut rest, mut sizes) = (body.as_slice(), chunks.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rest.len().min(*sizes.next().expect("endless")));
                answer.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                answer.extend_from_slice(chunk);
                answer.extend_from_slice(b"\r\n");
                rest = after;
            }
            answer.extend_from_slice(b"0\r\n\r\n");
        } else {
            answer.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            answer.extend_from_slice(&body);
        }
        let (mut pieces, mut rest, mut sizes) = (Vec::new(), answer.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*sizes.next().expect("endless")));
            pieces.push(piece);
            rest = after;
        }
        let (_, told, reusable) = made_of(&Method::GET, &pieces).expect("an answer");
        prop_assert_eq!(told, body);
        prop_assert!(reusable);
    }

    /// Whatever comes instead of an answer, nothing panics.
    #[test]
    fn noise_is_an_error(noise in proptest::collection::vec(any::<u8>(), 0..300), behind_head in any::<bool>()) {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let pieces: &[&[u8]] = if behind_head { &[head, &noise] } else { &[&noise] };
        // Noise may be an answer by chance; that it is read to some end is what counts.
        let _ = made_of(&Method::GET, pieces);
    }
}
