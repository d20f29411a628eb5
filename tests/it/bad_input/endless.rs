//! Those whom orchd asks may answer without end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::time::Instant;

use crate::fake_control_plane::{Ran, orchd};
use crate::support::eventually;
use crate::support::http;
use crate::support::orchd::Orchd;

use super::{GROWTH_BYTES, memory};

/// Somebody who answers everything with 200 and then never stops. Ends with the process of the test.
fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4_096]);
                let head = b"HTTP/1.1 200 OK\r\nx-orchd-version: 9\r\ncontent-type: application/json\r\n\r\n[";
                let mut more = stream.write_all(head);
                while more.is_ok() {
                    more = stream.write_all(&[b' '; 64 << 10]);
                }
            });
        }
    });
    address
}

#[test]
fn an_engine_that_answers_without_end_takes_no_memory() {
    let server = Orchd::serve_home(&[format!("http://{}", endless())], &[]);
    let before = memory(&server);
    let limit = Duration::from_secs(10);
    eventually(limit, "the engine is found out", || {
        let pools = http::get_json(server.address, "/v2/pools");
        let pool = &pools["pools"][0];
        if pool["state"] == "misconfigured" {
            Ok(())
        } else {
            Err(pools.to_string())
        }
    });
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < GROWTH_BYTES, "grown by {grown} bytes");
}

#[test]
fn a_control_plane_that_answers_without_end_is_none() {
    let server = format!("http://{}", endless());
    let begun = Instant::now();
    let ran = Ran::from(
        orchd(&["nodes", "get", "n", "--server", &server])
            .output()
            .expect("orchd runs"),
    );
    assert_eq!(ran.exit, Some(6), "{}", ran.stderr);
    assert!(ran.stderr.contains("larger than"), "{}", ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
