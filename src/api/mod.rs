//! The control face: `/v2`, health, metrics and version.
//!
//! Purpose: HTTP in, `control` asked, HTTP out. Invariants: refusals come in the contract's order (profile, route, size,
//! type, body, conflict, node), each with a code from the one table in `types`; nothing is acknowledged that `control`
//! has not. Called by `server` for everything that is not `/v1`.

mod body;
mod events;
mod metrics;
mod nodes;
mod openapi;
mod parts;
mod refusal;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Area, Denied, Guard};
use crate::clock::Clock;
use crate::control::{Catalog, Control};
use crate::listen;
use crate::metrics::Relayed;
use crate::types::{Availability, ErrorCode, NodeId, PoolList, VERSION, Version, millis};

use openapi::Guarded;

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
    /// What tells people the time.
    pub clock: Clock,
    /// The control plane.
    pub control: Arc<Control>,
    /// What the process is for.
    pub profile: Profile,
    /// Whether it is ready.
    pub readiness: Arc<Readiness>,
    /// Who is let in.
    pub guard: Guard,
    /// What the gateway counts.
    pub relayed: Relayed,
}

impl Api {
    /// The routes.
    pub fn router(self) -> Router {
        Router::from(routes())
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(middleware::from_fn_with_state(
                self.clone(),
                refuse_at_the_door,
            ))
            .layer(middleware::from_fn_with_state(self.clone(), metrics::count))
            .with_state(self)
    }
}

/// Every route with its description.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::register))
        .routes(routes!(nodes::get, nodes::deregister))
        .routes(routes!(nodes::heartbeat))
        .routes(routes!(nodes::drain, nodes::undrain))
        .routes(routes!(events::follow))
        .routes(routes!(pools))
        .routes(routes!(availability))
        .routes(routes!(version))
        .routes(routes!(openapi::show))
        .routes(routes!(health))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(metrics::show))
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

/// Every pool with its slots, sorted by node, then by name.
#[utoipa::path(
    get,
    path = "/v2/pools",
    operation_id = "list_pools",
    tag = "engines",
    responses((status = 200, description = "All pools", body = PoolList), Guarded)
)]
async fn pools(State(api): State<Api>) -> Response {
    let part = |node_ids: &[NodeId]| api.control.pools(node_ids);
    let pools = Vec::new();
    let rest = |count| PoolList { pools, count };
    parts::written("pools", &api.control.node_ids(), part, rest).await
}

/// Where each model can be had.
#[utoipa::path(
    get,
    path = "/v2/catalog/availability",
    operation_id = "availability",
    tag = "engines",
    responses((status = 200, description = "All models", body = Availability), Guarded)
)]
async fn availability(State(api): State<Api>) -> Json<Availability> {
    let mut catalog = Catalog::default();
    let look = |node_ids: &[NodeId]| api.control.add_to_catalog(node_ids, &mut catalog);
    parts::each(&api.control.node_ids(), look).await;
    Json(catalog.availability())
}

/// Which version answers, and what it is for.
#[utoipa::path(
    get,
    path = "/v2/meta/version",
    operation_id = "version",
    tag = "server",
    responses((status = 200, description = "This server", body = Version), Guarded)
)]
async fn version(State(api): State<Api>) -> Json<Version> {
    Json(Version {
        version: VERSION.to_owned(),
        profile: api.profile.as_str().to_owned(),
    })
}

/// What a process that lives says of itself.
#[derive(Debug, Serialize, ToSchema)]
struct Alive {
    /// Always `ok`.
    status: &'static str,
    /// Of the package.
    version: &'static str,
    /// `home` or `cloud`.
    profile: &'static str,
}

/// Whether the process lives.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "server",
    security(()),
    responses((status = 200, description = "It does", body = Alive))
)]
async fn health(State(api): State<Api>) -> Json<Alive> {
    Json(Alive {
        status: "ok",
        version: VERSION,
        profile: api.profile.as_str(),
    })
}

/// Whether the process lives, in one word.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "live",
    tag = "server",
    security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"))
)]
async fn live() -> &'static str {
    "ok\n"
}

/// Whether the process takes requests: not before everything is open, nor from the first moment of a stop on.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "ready",
    tag = "server",
    security(()),
    responses(
        (status = 200, description = "It does", body = String, content_type = "text/plain"),
        (status = 503, description = "Not now", body = String, content_type = "text/plain"),
    )
)]
async fn ready(State(api): State<Api>) -> (StatusCode, &'static str) {
    if api.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
