//! Web pages as clients: what a browser asks before it lets a page of another origin read an answer.
//!
//! Purpose: a chat page that works with llama-server works with orchd. Invariants: no page gains anything by it that it
//! has no token for: a browser adds none of its own accord, there are no cookies, and `Allow-Credentials` is never said;
//! what engines say of it is replaced, since browsers talk to us. As measured, llama-server names the origin in every
//! answer and lets every page in unless told otherwise; it answers every OPTIONS with 200 and asks no key of it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};

use crate::types::CorsOrigins;

use super::GatewayBody;

/// How long a browser need not ask again. It is as long until it hears of another setting.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// What of ours a page may read besides the body, for its own retries and its users' questions.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-orchd-node, x-orchd-pool, x-orchd-queue-ms, x-orchd-attempts, x-orchd-version, retry-after, x-backoff-ms",
);
/// What is said of it in an answer that is no preflight's.
const OF_ENGINES: [HeaderName; 3] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

/// The page that asks, if it may read the answer.
pub(super) struct Page(Option<HeaderValue>);

impl Page {
    pub fn of(headers: &HeaderMap, allowed: &CorsOrigins) -> Self {
        let origin = headers.get(header::ORIGIN);
        let may = |origin: &&HeaderValue| origin.to_str().is_ok_and(|text| allowed.allow(text));
        Self(origin.filter(may).cloned())
    }

    /// The answer to OPTIONS. `asked` are the request's headers; `allow` is what the path takes.
    pub fn preflight(&self, asked: &HeaderMap, allow: &'static str) -> Response<GatewayBody> {
        let mut response = Response::new(GatewayBody::whole(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        if self.0.is_some() {
            let methods = HeaderValue::from_static(allow);
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            // Not `*`, which does not stand for Authorization.
            let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
            let wanted = wanted.unwrap_or(HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
        response
    }

    /// Says in an answer who may read it, in place of what its engine said.
    pub fn mark(self, headers: &mut HeaderMap) {
        for name in &OF_ENGINES {
            headers.remove(name);
        }
        // Also of an answer that nobody may read: whoever keeps it must not give it to a page that may.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = self.0 else { return };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}
