//! The control face: `/v2`, health and version.
//!
//! Purpose: HTTP in, `control` asked, HTTP out. Invariants: refusals come in the contract's order (profile, route, size,
//! type, body, conflict, node), each with a code from the one table in `types`; nothing is acknowledged that `control`
//! has not. Called by `server` for everything that is not `/v1`.

mod body;
mod nodes;
mod refusal;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::auth::{Area, Denied, Guard};
use crate::control::Control;
use crate::listen;
use crate::types::{ErrorCode, VERSION, Version, millis};

pub use refusal::ApiError;

/// What the process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// One machine, its own engines, no node registry.
    Home,
    /// A fleet.
    Cloud,
}

impl Profile {
    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Cloud => "cloud",
        }
    }
}

/// Whether the process is ready for requests: false until everything is open, and again from the first moment of
/// shutdown.
#[derive(Debug, Default)]
pub struct Readiness(AtomicBool);

impl Readiness {
    /// Says so.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Tells.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The control plane.
    pub control: Arc<Control>,
    /// What the process is for.
    pub profile: Profile,
    /// Whether it is ready.
    pub readiness: Arc<Readiness>,
    /// Who is let in.
    pub guard: Guard,
}

impl Api {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v2/nodes", get(nodes::list))
            .route("/v2/nodes/register", post(nodes::register))
            .route("/v2/nodes/{id}", get(nodes::get).delete(nodes::deregister))
            .route("/v2/nodes/{id}/heartbeat", post(nodes::heartbeat))
            .route(
                "/v2/nodes/{id}/drain",
                post(nodes::drain).merge(delete(nodes::undrain)),
            )
            .route("/v2/pools", get(pools))
            .route("/v2/catalog/availability", get(availability))
            .route("/v2/meta/version", get(version))
            .route("/health", get(health))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(middleware::from_fn_with_state(
                self.clone(),
                refuse_at_the_door,
            ))
            .with_state(self)
    }
}

/// Paths that need no token: probes, load balancers and scrapers have none.
const OPEN: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];

/// First who asks, then whether this profile has what is asked for: the node calls belong to CLOUD, whatever their body.
async fn refuse_at_the_door(State(api): State<Api>, request: Request, next: Next) -> Response {
    match api.refusal(request.uri().path(), request.headers()) {
        None => next.run(request).await,
        Some(refusal) => {
            listen::discard(request.into_body()).await;
            refusal
        }
    }
}

impl Api {
    fn refusal(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        if !OPEN.contains(&path)
            && let Err(denied) = self.guard.admit(headers, Area::Fleet)
        {
            let code = match denied {
                Denied::Missing | Denied::Wrong => ErrorCode::Unauthorized,
                Denied::Forbidden => ErrorCode::Forbidden,
            };
            let mut response = self.shaped(path, ApiError::new(code, denied.to_string()));
            if code == ErrorCode::Forbidden {
                return Some(response);
            }
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Some(response);
        }
        let about_nodes = path == "/v2/nodes" || path.starts_with("/v2/nodes/");
        if self.profile == Profile::Home && about_nodes {
            let message = "this is a HOME control plane: it has no nodes; start it with `orchd serve --cloud` (or \
                           ORCHESTRATORD_CLOUD_PROFILE=true) for a fleet";
            return Some(self.shaped(
                path,
                ApiError::new(ErrorCode::CloudProfileDisabled, message),
            ));
        }
        None
    }

    /// A refusal before the body was read, in the form that old clients of this call know.
    fn shaped(&self, path: &str, refusal: ApiError) -> Response {
        let of_node = path.strip_prefix("/v2/nodes/").unwrap_or_default();
        let refusal = if of_node == "register" {
            refusal.of_register(String::new())
        } else if of_node.ends_with("/heartbeat") {
            refusal.of_heartbeat(millis(self.control.heartbeat_interval()))
        } else {
            refusal
        };
        refusal.into_response()
    }
}

async fn no_route(request: Request) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no {}", request.uri().path()),
    )
}

async fn no_method(request: Request) -> ApiError {
    let message = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}

async fn pools(State(api): State<Api>) -> Response {
    Json(api.control.pools()).into_response()
}

async fn availability(State(api): State<Api>) -> Response {
    Json(api.control.availability()).into_response()
}

async fn version(State(api): State<Api>) -> Json<Version> {
    Json(Version {
        version: VERSION.to_owned(),
        profile: api.profile.as_str().to_owned(),
    })
}

async fn health(State(api): State<Api>) -> Response {
    Json(json!({"status": "ok", "version": VERSION, "profile": api.profile.as_str()}))
        .into_response()
}

async fn ready(State(api): State<Api>) -> (StatusCode, &'static str) {
    if api.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
