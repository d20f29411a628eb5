//! The built-in engine: a small server that speaks llama-server's API and is no language model, which is the first thing
//! it says. It lets somebody without a GPU or a model see a fleet at work.
//!
//! Invariants: it behaves as the real one wherever orchd depends on it (slots and queue, readings, the frames of a
//! stream, errors that close their connection); what it cannot do it refuses. Called by `commands::demo`, in a process
//! of its own.

mod about;
mod answer;
mod text;
mod work;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame as BodyFrame};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Sleep};
use tracing::info;

use crate::clock::Clock;
use crate::listen::{self, Handler, Workers};
use crate::random;

use answer::{Answer, Frame, Kind, Refusal};
use work::{Seat, Work};

/// The model it serves.
pub const MODEL: &str = "orchd-demo";
/// Its build, as engines tell theirs.
const BUILD: &str = concat!("orchd-demo-", env!("CARGO_PKG_VERSION"));
/// Requests it works on at one time.
const SLOTS: usize = 2;
/// Tokens of one slot: as many as `orchd probe` finds enough.
const N_CTX: usize = 4_096;
/// How long a token takes: slow enough to watch, as fast as one reads.
const TOKEN_MS: usize = 50;
/// The pause after each token.
const TOKEN: Duration = Duration::from_millis(TOKEN_MS as u64);
/// The largest request, as that of the gateway.
const MAX_BODY_BYTES: usize = 64 << 20;
/// How long a request may pause.
const BODY_IDLE: Duration = Duration::from_secs(10);
/// Many more than its slots: others wait.
const MAX_CONNECTIONS: usize = 256;

/// Serves on `listen` as the engine of `node`, until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on, or the system has no thread left.
pub async fn run(node: String, listen: SocketAddr) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen::bind(listen)?;
    let address = listener.local_addr()?;
    let clock = Clock::new();
    let engine = Engine(Arc::new(Shared {
        node,
        clock,
        started_s: clock.wall().0 / 1_000,
        work: Arc::new(Work::new(SLOTS)),
    }));
    let settings = listen::Settings {
        tls: None,
        max_connections: MAX_CONNECTIONS,
    };
    let workers = Workers::spawn("orchd-engine", &listener, 1, &settings, &engine)?;
    drop(listener);
    info!("listening on http://{address}: the built-in engine of orchd's demo, no language model");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let stop = tokio::task::spawn_blocking(move || workers.stop(Duration::ZERO));
    let _ = stop.await;
    Ok(())
}

#[derive(Clone)]
struct Engine(Arc<Shared>);

struct Shared {
    node: String,
    clock: Clock,
    started_s: u64,
    work: Arc<Work>,
}

type Answered = Response<Either<Full<Bytes>, Spoken>>;

impl Handler for Engine {
    type Body = Either<Full<Bytes>, Spoken>;

    async fn handle(&self, request: Request<Incoming>) -> Answered {
        let work = &self.0.work;
        let path = request.uri().path().to_owned();
        let get = request.method() == Method::GET;
        let post = request.method() == Method::POST;
        match path.as_str() {
            "/health" | "/v1/health" if get => json_answer(200, &json!({"status": "ok"})),
            "/props" if get => json_answer(200, &about::props(work)),
            "/slots" if get => self.slots(request.uri()),
            "/metrics" if get => text_answer(about::metrics(work)),
            "/v1/models" | "/models" if get => json_answer(200, &about::models(self.0.started_s)),
            "/v1/chat/completions" | "/chat/completions" if post => {
                self.generate(Kind::Chat, request).await
            }
            "/v1/completions" if post => self.generate(Kind::Completion, request).await,
            "/v1/embeddings" | "/embeddings" | "/v1/rerank" | "/v1/responses" | "/v1/messages"
                if post =>
            {
                let message =
                    format!("The built-in engine of orchd's demo does not support {path}");
                refused(&Refusal::new(501, "not_supported_error", &message))
            }
            _ => refused(&Refusal::new(404, "not_found_error", "File Not Found")),
        }
    }

    fn panicked(&self, _: &Uri) -> Answered {
        refused(&Refusal::new(500, "server_error", "a defect of orchd's"))
    }
}

impl Engine {
    fn slots(&self, uri: &Uri) -> Answered {
        let work = &self.0.work;
        let must_be_free = uri
            .query()
            .is_some_and(|query| query.split('&').any(|part| part == "fail_on_no_slot=1"));
        if must_be_free && work.slots().iter().all(|busy| *busy) {
            return refused(&Refusal::new(503, "unavailable_error", "no slot available"));
        }
        json_answer(200, &about::slots(work))
    }

    async fn generate(&self, kind: Kind, request: Request<Incoming>) -> Answered {
        let body = match listen::collect(request.into_body(), MAX_BODY_BYTES, BODY_IDLE).await {
            Ok(body) => body,
            Err(e) => return refused(&Refusal::new(400, "invalid_request_error", &e.to_string())),
        };
        let id = format!("chatcmpl-{}{}", random::name(), random::name());
        let created = self.0.clock.wall().0 / 1_000;
        let answer = match Answer::to(kind, &body, &self.0.node, id, created) {
            Ok(answer) => answer,
            Err(refusal) => return refused(&refusal),
        };
        // Beyond its slots it queues without sending anything; whoever leaves meanwhile is forgotten.
        let seat = self.0.work.seat().await;
        let given = answer.prompt_tokens() as u64;
        self.0
            .work
            .prompt_tokens
            .fetch_add(given, Ordering::Relaxed);
        if answer.stream {
            let mut response = Response::new(Either::Right(Spoken::new(&answer, seat)));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(
                HeaderName::from_static("x-accel-buffering"),
                HeaderValue::from_static("no"),
            );
            return response;
        }
        for _ in 0..answer.len() {
            tokio::time::sleep(TOKEN).await;
            seat.count_token();
        }
        json_answer(200, &answer.whole())
    }
}

fn json_answer(status: u16, body: &Value) -> Answered {
    let mut response = Response::new(Either::Left(Full::from(body.to_string())));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn text_answer(text: String) -> Answered {
    let mut response = Response::new(Either::Left(Full::from(text)));
    let plain = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// An error, which closes its connection as llama-server's do.
fn refused(refusal: &Refusal) -> Answered {
    let mut response = json_answer(refusal.status, &refusal.body);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// The body of a stream, a token at a time. Dropping it, as when its client leaves, frees its slot.
struct Spoken {
    frames: VecDeque<Frame>,
    seat: Seat,
    due: Pin<Box<Sleep>>,
}

impl Spoken {
    fn new(answer: &Answer, seat: Seat) -> Self {
        Self {
            frames: answer.frames().into(),
            seat,
            due: Box::pin(tokio::time::sleep(TOKEN)),
        }
    }
}

impl Body for Spoken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        if self.frames.front().is_some_and(|frame| frame.token) {
            ready!(self.due.as_mut().poll(cx));
            let next = self.due.deadline() + TOKEN;
            // A client that reads slowly is not given the rest in one go.
            self.due.as_mut().reset(next.max(Instant::now()));
            self.seat.count_token();
        }
        let frame = self.frames.pop_front();
        Poll::Ready(frame.map(|frame| Ok(BodyFrame::data(Bytes::from(frame.text)))))
    }
}

impl listen::Answer for Spoken {}
