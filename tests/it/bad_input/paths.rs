//! Methods, paths and queries.

use crate::support::http::{self, written};

use super::{Server, may_refuse, must_refuse};

#[test]
fn every_method_on_every_path_is_answered_or_refused_in_words() {
    let server = Server::start();
    let paths = [
        ("/v2/nodes", "GET"),
        ("/v2/nodes/register", "POST"),
        ("/v2/nodes/n1", "GET DELETE"),
        ("/v2/nodes/n1/heartbeat", "POST"),
        ("/v2/nodes/n1/drain", "POST DELETE"),
        ("/v2/pools", "GET"),
        ("/v2/catalog/availability", "GET"),
        ("/v2/meta/version", "GET"),
        ("/health", "GET"),
        ("/livez", "GET"),
        ("/readyz", "GET"),
    ];
    for (path, takes) in paths {
        for method in [
            "HEAD",
            "OPTIONS",
            "PUT",
            "PATCH",
            "TRACE",
            "GET",
            "POST",
            "DELETE",
            "FROBNICATE",
        ] {
            let taken = takes.split(' ').any(|known| known == method);
            if taken || (method == "HEAD" && takes.contains("GET")) {
                continue;
            }
            let request = written(method, path, &[("connection", "close")], b"");
            let response = http::send(server.address(), &request).expect("an answer");
            if method == "HEAD" {
                assert_eq!(response.status, 405, "HEAD {path}");
            } else {
                must_refuse(
                    &format!("{method} {path}"),
                    response,
                    405,
                    "METHOD_NOT_ALLOWED",
                );
            }
        }
        if takes.contains("GET") {
            let request = written("HEAD", path, &[("connection", "close")], b"");
            let response = http::send(server.address(), &request).expect("an answer");
            assert_eq!(response.status, 200, "HEAD {path}");
        }
    }
    for path in [
        "/",
        "/v2",
        "/v2/",
        "/v2/node",
        "/v2/nodes/",
        "/v2/nodes/n1/",
        "/v2/nodes/n1/drain/x",
        "//v2/nodes",
        "/V2/nodes",
        "/v3/nodes",
        "/health/",
        "/v2/nodes/n1/../n1/../../x",
        "/%76%32/nodes",
    ] {
        for method in ["GET", "POST", "PUT", "OPTIONS", "DELETE"] {
            let response = server.ask(method, path, b"").expect("an answer");
            assert!(
                [404, 405].contains(&response.status),
                "{method} {path}: {}",
                response.status
            );
            may_refuse(path, response);
        }
    }
    // Forms of a target that are not a path.
    for request in [
        "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        "CONNECT n1:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET http://other/v2/nodes?limit=0 HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET http://other HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET ?limit=1 HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let response = http::send(server.address(), request.as_bytes());
        let status = response.unwrap_or_else(|e| panic!("{request}: {e}")).status;
        assert!((400..500).contains(&status), "{request}: {status}");
    }
    server.must_be_well();
}

#[test]
fn absurd_queries_are_refused_in_words_or_have_a_meaning() {
    let server = Server::start();
    let long = format!("label={}=x", "k".repeat(60_000));
    for bad in [
        "limit=0",
        "limit=-1",
        "limit=",
        "limit=x",
        "limit=1.5",
        "limit=99999999999999999999999",
        "limit=1&limit=0",
        "limit=%2B%201",
        "after=",
        "after=%00",
        "after=../x",
        "after=%ff",
        "after=a%20b",
        "label=",
        "label=x",
        "status=online",
        "status=x",
        "status=Online,x",
        "status=",
        "status=,",
        "departed",
        "departed=yes",
        "departed=2",
        "departed=",
        "departed",
        "status=",
        "status=,",
        "limit",
    ] {
        let response = server
            .ask("GET", &format!("/v2/nodes?{bad}"), b"")
            .expect("an answer");
        must_refuse(bad, response, 400, "INVALID_REQUEST");
    }
    for good in [
        "limit=99999999999999",
        "limit=1",
        "after=zzz",
        "label==",
        "label=a=b=c",
        &long,
        "status=Online,Online",
        "x=y",
        "&&&",
        "=",
        "%00=%00",
        "after=a&after=b",
    ] {
        let response = server
            .ask("GET", &format!("/v2/nodes?{good}"), b"")
            .expect("an answer");
        assert_eq!(response.status, 200, "{good:.80}");
    }
    for query in ["forget=x", "forget=2", "forget"] {
        let response = server
            .ask("DELETE", &format!("/v2/nodes/n1?{query}"), b"")
            .expect("an answer");
        must_refuse(query, response, 400, "INVALID_REQUEST");
    }
    server.must_be_well();
}
