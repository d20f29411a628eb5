//! The typed client against a scripted control plane.

use std::net::TcpListener;
use std::time::Duration;

use orchd::client::{Client, ClientError, NodesQuery};
use orchd::types::{DrainAck, DrainRequest, ErrorCode, HeartbeatRequest, HttpUrl, NodeStatus};
use serde_json::{Value, json};

use crate::fake_control_plane::{
    DRAIN, Fake, LIST, NODE, client, node, node_id, refusal, silent_port, step,
};

#[tokio::test]
async fn the_client_gathers_all_pages_of_the_list() {
    let page = |names: &[&str], next: Value| {
        let nodes: Vec<Value> = names.iter().map(|name| node(name, &json!({}))).collect();
        json!({"nodes": nodes, "count": nodes.len(), "total": 3, "next": next})
    };
    let fake = Fake::start([
        step(
            "GET /v2/nodes?limit=1000&status=Online",
            200,
            &page(&["a", "b"], json!("b")),
        ),
        step(
            "GET /v2/nodes?limit=1000&status=Online&after=b",
            200,
            &page(&["c"], Value::Null),
        ),
    ]);
    let query = NodesQuery {
        status: vec![NodeStatus::Online],
        ..NodesQuery::default()
    };
    let all = fake.client().nodes(&query).await.expect("a list");
    let names: Vec<&str> = all.nodes.iter().map(|node| node.node_id.as_str()).collect();
    assert_eq!(
        (names, all.count, all.total, all.next),
        (vec!["a", "b", "c"], 3, 3, None)
    );
    fake.asked();

    let endless = Fake::start([
        step(LIST, 200, &page(&["a", "b"], json!("b"))),
        step(
            "GET /v2/nodes?limit=1000&after=b",
            200,
            &page(&["a", "b"], json!("b")),
        ),
    ]);
    let error = endless
        .client()
        .nodes(&NodesQuery::default())
        .await
        .expect_err("no end");
    assert!(matches!(error, ClientError::NotOrchd { .. }), "{error}");
    endless.asked();
}

#[tokio::test]
async fn the_client_tries_its_servers_in_turn_and_remembers_who_answered() {
    let mut stranger = step(
        "DELETE /v2/nodes/a?instance_id=i1&forget=true",
        200,
        &json!({}),
    );
    stranger.headers.clear();
    let stranger = Fake::start([stranger]);
    let good = Fake::start([
        step(
            "DELETE /v2/nodes/a?instance_id=i1&forget=true",
            204,
            &Value::Null,
        ),
        step("DELETE /v2/nodes/a", 204, &Value::Null),
    ]);
    let client = client(
        vec![silent_port(), stranger.url(), good.url()],
        Some("sesame"),
    );
    client
        .deregister(&node_id("a"), Some("i1"), true)
        .await
        .expect("the third one answers");
    assert_eq!(client.server(), &good.url());
    client
        .deregister(&node_id("a"), None, false)
        .await
        .expect("asked first now");
    stranger.asked();
    let authorized = good
        .asked()
        .iter()
        .all(|asked| asked.authorization.as_deref() == Some("Bearer sesame"));
    assert!(authorized);
}

#[tokio::test]
async fn the_client_names_every_server_when_none_answers() {
    let mut stranger = step(LIST, 200, &json!({}));
    stranger.headers.clear();
    let stranger = Fake::start([stranger]);
    let silent = silent_port();
    let error = client(vec![silent.clone(), stranger.url()], None)
        .nodes(&NodesQuery::default())
        .await
        .expect_err("nobody answers");
    assert_eq!(
        error.to_string(),
        format!(
            "none of the 2 control planes answers: {silent}: Connection refused; {}: it answers 200 OK without the \
             header x-orchd-version",
            stranger.url()
        )
    );
}

#[tokio::test]
async fn the_client_gives_an_answer_that_never_comes_its_time_and_no_more() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Accepts in its backlog, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let server =
        HttpUrl::new(&format!("http://{}", listener.local_addr().expect("bound"))).expect("a URL");
    let client =
        Client::new(vec![server.clone()], None, Duration::from_millis(50)).expect("a client");
    let error = client.node(&node_id("a")).await.expect_err("no answer");
    assert_eq!(
        error.to_string(),
        format!("cannot reach the control plane at {server}: no answer in time")
    );
    assert!(matches!(error, ClientError::Unreachable { .. }));
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_with_code_and_time_to_wait() {
    let fake = Fake::start([
        refusal(DRAIN, 503, "STORE_UNAVAILABLE", "the disk is full").header("retry-after", "2"),
        step(NODE, 200, &json!({"node_id": "gpu-1"})),
    ]);
    let client = fake.client();
    let error = client
        .drain(&node_id("gpu-1"), &DrainRequest::default())
        .await
        .expect_err("refused");
    let ClientError::Refused {
        status,
        body,
        retry_after,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (status, body.code, body.message.as_str(), retry_after),
        (
            503,
            ErrorCode::StoreUnavailable,
            "the disk is full",
            Some(Duration::from_secs(2))
        )
    );
    let error = client
        .node(&node_id("gpu-1"))
        .await
        .expect_err("half a node");
    assert!(matches!(error, ClientError::NotOrchd { .. }), "{error}");
    assert_eq!(
        fake.asked()[0].body,
        json!({}),
        "an empty request is an empty object"
    );
}

fn beat() -> HeartbeatRequest {
    HeartbeatRequest {
        timestamp: None,
        pools: Vec::new(),
        instance_id: Some("i1".to_owned()),
        seq: Some(7),
        health: None,
        drain_ack: Some(DrainAck {
            id: "d1".to_owned(),
            in_flight: 2,
        }),
    }
}

#[tokio::test]
async fn the_client_speaks_for_an_agent_in_the_shared_words() {
    let fake = Fake::start([
        step(
            "POST /v2/nodes/gpu-1/heartbeat",
            200,
            &json!({"success": true, "next_heartbeat_ms": 10_000, "node_timeout_ms": 30_000, "status": "Draining",
                "drain": {"id": "d1", "remaining_ms": null, "force": false}, "word_of_a_newer_version": 1}),
        ),
        refusal(
            "POST /v2/nodes/gpu-1/heartbeat",
            409,
            "SUPERSEDED",
            "another agent process has taken gpu-1",
        ),
        step(
            "DELETE /v2/nodes/gpu-1/drain",
            200,
            &node("gpu-1", &json!({})),
        ),
    ]);
    let client = fake.client();
    let beat = beat();
    let reply = client
        .heartbeat(&node_id("gpu-1"), &beat)
        .await
        .expect("accepted");
    assert_eq!(reply.drain.expect("a drain").id, "d1");
    let error = client
        .heartbeat(&node_id("gpu-1"), &beat)
        .await
        .expect_err("superseded");
    assert_eq!(error.code(), Some(ErrorCode::Superseded));
    assert!(
        client
            .undrain(&node_id("gpu-1"))
            .await
            .expect("a node")
            .schedulable
    );
    assert_eq!(
        fake.asked()[0].body,
        json!({"pools": [], "instance_id": "i1", "seq": 7, "drain_ack": {"id": "d1", "in_flight": 2}})
    );
}

#[tokio::test]
async fn a_newer_control_plane_may_have_a_word_for_the_node_that_an_agent_does_not_know() {
    let fake = Fake::start([step(
        "POST /v2/nodes/gpu-1/heartbeat",
        200,
        &json!({"success": true, "next_heartbeat_ms": 7_000, "node_timeout_ms": 30_000, "status": "Hibernating",
            "drain": null}),
    )]);
    let reply = fake
        .client()
        .heartbeat(&node_id("gpu-1"), &beat())
        .await
        .expect("it was taken");
    assert_eq!((reply.next_heartbeat_ms, reply.drain), (7_000, None));
    fake.asked();
}

#[tokio::test]
async fn a_conflict_that_is_not_said_to_be_over_the_name_is_not_taken_for_one() {
    let say = |body: Value| Fake::start([step("POST /v2/nodes/gpu-1/heartbeat", 409, &body)]);
    for (body, message) in [
        (
            json!({"error": "the request conflicts"}),
            r#"it answers 409 Conflict: {"error":"the request conflicts"}"#,
        ),
        (
            json!({"code": "LEASE_FENCED", "message": "elsewhere"}),
            "LEASE_FENCED: elsewhere",
        ),
    ] {
        let fake = say(body);
        let error = fake
            .client()
            .heartbeat(&node_id("gpu-1"), &beat())
            .await
            .expect_err("refused");
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            (Some(ErrorCode::Internal), message)
        );
        fake.asked();
    }
}
