//! `GET /v1/models` and `GET /v1/models/{id}`.

use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use crate::admission::ModelView;
use crate::types::UnixMs;

use super::GatewayBody;

fn json_response(value: &Value) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::whole(value.to_string().into()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn describe(model: &ModelView, since: UnixMs) -> Value {
    json!({
        "id": &*model.id,
        "object": "model",
        "created": since.0 / 1_000,
        "owned_by": "orchd",
        "meta": {
            "n_ctx": model.n_ctx.map(|(least, _)| least),
            "n_ctx_max": model.n_ctx.map(|(_, most)| most),
            "slots": model.slots,
            "state": model.state.as_str(),
        },
    })
}

/// `GET /v1/models`.
pub(super) fn models(models: &[ModelView], since: UnixMs) -> Response<GatewayBody> {
    let data: Vec<Value> = models.iter().map(|model| describe(model, since)).collect();
    json_response(&json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`.
pub(super) fn model(model: &ModelView, since: UnixMs) -> Response<GatewayBody> {
    json_response(&describe(model, since))
}
