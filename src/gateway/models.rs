//! `GET /v1/models` and `GET /v1/models/{id}`: what can be asked for, as OpenAI's clients read it, and more in `meta`.

use http::{HeaderValue, Response, header};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::admission::{Admission, ModelView, Variant};
use crate::types::UnixMs;

use super::GatewayBody;

/// All models there are; `since` is when this process began, which is as old as any of them is to its clients.
pub(super) fn list(admission: &Admission, since: UnixMs) -> Response<GatewayBody> {
    let models = admission.models();
    let data: Vec<Value> = models.iter().map(|model| describe(model, since)).collect();
    answer(&json!({"object": "list", "data": data}))
}

/// The model that a path names. Ids have slashes, which clients encode or do not.
///
/// # Errors
/// The id, when there is no such model.
pub(super) fn one(
    admission: &Admission,
    path: &str,
    since: UnixMs,
) -> Result<Response<GatewayBody>, String> {
    let id = path.strip_prefix("/v1/models/").unwrap_or_default();
    let id = percent_decode_str(id).decode_utf8_lossy();
    match admission.model_view(&id) {
        Some(model) => Ok(answer(&describe(&model, since))),
        None => Err(id.into_owned()),
    }
}

fn answer(value: &Value) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::whole(value.to_string().into()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn describe(model: &ModelView, since: UnixMs) -> Value {
    let names = |names: &[std::sync::Arc<str>]| -> Value {
        names.iter().map(|name| Value::from(&**name)).collect()
    };
    let variants: Vec<Value> = model.variants.iter().map(variant).collect();
    let mut meta = json!({
        "n_ctx": model.n_ctx.map(|(least, _)| least),
        "n_ctx_max": model.n_ctx.map(|(_, most)| most),
        "slots": model.slots,
        "state": model.state.as_str(),
        "variants": variants,
    });
    // An alias stands for models, and no alias for it.
    if model.alias_of.is_empty() {
        meta["aliases"] = names(&model.aliases);
    } else {
        meta["alias_of"] = names(&model.alias_of);
    }
    json!({
        "id": &*model.id,
        "object": "model",
        "created": since.0 / 1_000,
        "owned_by": "orchd",
        "meta": meta,
    })
}

fn variant(variant: &Variant) -> Value {
    json!({
        "engine": variant.engine,
        "engine_version": variant.engine_version,
        "n_ctx": variant.n_ctx,
        "pools": variant.pools,
        "slots": variant.slots,
    })
}
