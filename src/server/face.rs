//! One door for everybody: `/v1` to the gateway, the rest to the control face.

use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::Either;
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::api::ApiError;
use crate::gateway::{Gateway, GatewayBody, GatewayError};
use crate::listen::{Answer, Handler};
use crate::types::{ErrorCode, VERSION, VERSION_HEADER};

/// What the serving threads answer with.
#[derive(Clone)]
pub(super) struct Face {
    router: Router,
    gateway: Arc<Gateway>,
}

impl Face {
    pub fn new(router: Router, gateway: Arc<Gateway>) -> Self {
        Self { router, gateway }
    }
}

/// An answer of either face.
pub(super) type FaceBody = Either<GatewayBody, axum::body::Body>;

/// Waits for nothing that its client does not wait for.
impl Answer for axum::body::Body {}

fn is_gateways(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

fn signed(mut response: Response<FaceBody>) -> Response<FaceBody> {
    let header = HeaderName::from_static(VERSION_HEADER);
    response
        .headers_mut()
        .insert(header, HeaderValue::from_static(VERSION));
    response
}

impl Handler for Face {
    type Body = FaceBody;

    async fn handle(&self, request: Request<Incoming>) -> Response<FaceBody> {
        let response = if is_gateways(request.uri().path()) {
            self.gateway.handle(request).await.map(FaceBody::Left)
        } else {
            let request = request.map(axum::body::Body::new);
            let Ok(response) = self.router.clone().oneshot(request).await;
            response.map(FaceBody::Right)
        };
        signed(response)
    }

    fn panicked(&self, uri: &Uri) -> Response<FaceBody> {
        if is_gateways(uri.path()) {
            return signed(GatewayError::Internal.response().map(FaceBody::Left));
        }
        let message = "orchd failed while it handled this request; its log says more";
        signed(
            ApiError::new(ErrorCode::Internal, message)
                .into_response()
                .map(FaceBody::Right),
        )
    }
}
