//! `/metrics`, and the counting of the calls agents make.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::metrics::{self, Call, Counters, Outcome};
use crate::types::ErrorCode;

use super::Api;

/// What the process counts and sees, for Prometheus, as OpenMetrics.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "server",
    security(()),
    responses((status = 200, description = "All metrics", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn show(State(api): State<Api>) -> impl IntoResponse {
    let control = api.control.scrape(api.profile.as_str());
    let kind = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (kind, metrics::expose(&[&control, &api.relayed.registry()]))
}

/// Counts the calls of agents by their outcome, whoever refuses them: the one place where that happens.
pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(call) = call(&request) else {
        return next.run(request).await;
    };
    let mut pending = Pending {
        counters: api.control.counters(),
        call,
        outcome: None,
    };
    let response = next.run(request).await;
    let refused = response.extensions().get::<ErrorCode>().copied();
    pending.outcome = Some(refused.map_or(Outcome::Ok, Outcome::from));
    drop(pending);
    response
}

fn call(request: &Request) -> Option<Call> {
    let route = request.extensions().get::<MatchedPath>()?.as_str();
    match (request.method(), route) {
        (&Method::POST, "/v2/nodes/register") => Some(Call::Registration),
        (&Method::POST, "/v2/nodes/{id}/heartbeat") => Some(Call::Heartbeat),
        (&Method::DELETE, "/v2/nodes/{id}") => Some(Call::Deregistration),
        _ => None,
    }
}

/// A call that is counted when it ends, however it does.
struct Pending<'a> {
    counters: &'a Counters,
    call: Call,
    outcome: Option<Outcome>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let unanswered = if std::thread::panicking() {
            Outcome::Internal
        } else {
            Outcome::Abandoned
        };
        self.counters
            .called(self.call, self.outcome.unwrap_or(unanswered));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::{About, Fleet, scrape};
    use crate::types::UnixMs;

    fn pending(counters: &Counters) -> Pending<'_> {
        Pending {
            counters,
            call: Call::Heartbeat,
            outcome: None,
        }
    }

    #[test]
    fn a_call_that_panics_is_counted_as_a_defect_and_one_that_is_dropped_as_abandoned() {
        let counters = Arc::new(Counters::default());
        let in_panic = std::panic::catch_unwind(|| {
            let _pending = pending(&counters);
            panic!("as a handler might");
        });
        assert!(in_panic.is_err());
        drop(pending(&counters));
        let about = About {
            profile: "cloud",
            started_at: UnixMs(0),
        };
        let text = metrics::expose(&[&scrape(&counters, Fleet::default(), about)]);
        for outcome in ["internal", "abandoned"] {
            let line = format!("orchd_node_heartbeats_total{{outcome=\"{outcome}\"}} 1\n");
            assert!(text.contains(&line), "{text}");
        }
    }
}
