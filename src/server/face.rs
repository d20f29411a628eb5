//! One door for everybody: `/v1` to the gateway, the rest to the control face.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::api::ApiError;
use crate::gateway::{Gateway, GatewayBody, GatewayError};
use crate::listen::Handler;
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
#[expect(
    clippy::large_enum_variant,
    reason = "one allocation less for each request that is relayed"
)]
pub(super) enum FaceBody {
    Gateway(GatewayBody),
    Api(axum::body::Body),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for FaceBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Gateway(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Api(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Gateway(body) => body.is_end_stream(),
            Self::Api(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Gateway(body) => body.size_hint(),
            Self::Api(body) => body.size_hint(),
        }
    }
}

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
            self.gateway.handle(request).await.map(FaceBody::Gateway)
        } else {
            let request = request.map(axum::body::Body::new);
            let Ok(response) = self.router.clone().oneshot(request).await;
            response.map(FaceBody::Api)
        };
        signed(response)
    }

    fn panicked(&self, uri: &Uri) -> Response<FaceBody> {
        if is_gateways(uri.path()) {
            return signed(GatewayError::Internal.response().map(FaceBody::Gateway));
        }
        let message = "orchd failed while it handled this request; its log says more";
        signed(
            ApiError::new(ErrorCode::Internal, message)
                .into_response()
                .map(FaceBody::Api),
        )
    }
}
