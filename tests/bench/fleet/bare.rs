//! The other side of comparisons, a bare handler of heartbeats, and how this program becomes that or the engine of all
//! pools, each in a process of its own.

use std::net::{Ipv4Addr, TcpListener};

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use orchd::types::{HeartbeatReply, HeartbeatRequest, NodeStatus, Object};

use super::engine;

/// The argument by which this program becomes the bare handler.
pub const HANDLER: &str = "--bare-handler";
/// The argument by which it becomes the engine of every pool.
pub const ENGINE: &str = "--engine";
/// Becomes what the arguments say, if they do, and then never returns.
pub fn become_one() {
    for (name, serve) in [(HANDLER, handler as fn(u16) -> !), (ENGINE, engine::run)] {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        if let (Some(_), Some(port)) = (arguments.next(), arguments.next()) {
            serve(port.parse().expect("a port"));
        }
    }
}

/// Serves heartbeats as orchd does, a runtime for each thread, and does nothing with them. Never returns.
fn handler(port: u16) -> ! {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    listener.set_nonblocking(true).expect("a socket option");
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let serve = |listener: TcpListener| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let beat =
                async |Path(_): Path<String>,
                       Json(Object(request)): Json<Object<HeartbeatRequest>>| {
                    std::hint::black_box(request);
                    Json(HeartbeatReply {
                        success: true,
                        next_heartbeat_ms: 10_000,
                        node_timeout_ms: 30_000,
                        status: NodeStatus::Online,
                        drain: None,
                    })
                };
            let app = Router::new()
                .route("/readyz", get(async || "ready\n"))
                .route("/v2/nodes/{id}/heartbeat", post(beat));
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket option");
                let service = TowerToHyperService::new(app.clone());
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let listener = listener.try_clone().expect("a descriptor is free");
            scope.spawn(move || serve(listener));
        }
    });
    unreachable!("the threads serve for ever")
}
