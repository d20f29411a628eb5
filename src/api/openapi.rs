//! `/openapi.json`: the control face described by the definition its routes are made of.
//!
//! A route is added with its description or not at all: `routes!` takes both from the handler.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder, Schema};
use utoipa::{IntoResponses, Modify, OpenApi, PartialSchema, ToSchema};

use crate::auth;
use crate::types::{ErrorBody, ErrorCode};

/// What holds for all routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "orchd control API",
        description = "The control plane of a fleet of GPU nodes. Every refusal under `/v2` carries `code`, `message`, \
                       `error` and `retryable`, every answer `x-orchd-version`. In the HOME profile every call under \
                       `/v2/nodes` is refused with `CLOUD_PROFILE_DISABLED`. Once a token is configured, everything \
                       but health and metrics needs it."
    ),
    components(schemas(ErrorBody, ErrorCode, LabelSelector)),
    security(("bearer" = []), ("api_key" = [])),
    modifiers(&Schemes)
)]
pub(super) struct Frame;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let key = ApiKey::Header(ApiKeyValue::new(auth::API_KEY.as_str()));
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(key));
    }
}

/// How a label is asked for.
pub(super) enum LabelSelector {}

impl PartialSchema for LabelSelector {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("`KEY=VALUE`"))
            .pattern(Some("="))
            .into()
    }
}

impl ToSchema for LabelSelector {}

/// Sets of refusals, by the codes they carry.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)+;)+) => {$(
        $(#[$doc])*
        pub(super) enum $name {}

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                refusals(&[$(ErrorCode::$code),+])
            }
        }
    )+};
}

refusals! {
    /// Of every call that takes a token.
    Guarded: Unauthorized Forbidden;
    /// Of the stream of events.
    OfEvents: Unauthorized Forbidden InvalidRequest;
    /// Of the list of nodes.
    OfNodes: Unauthorized Forbidden InvalidRequest CloudProfileDisabled;
    /// Of a question about one node.
    OfNode: Unauthorized Forbidden NodeNotFound CloudProfileDisabled;
    /// Of a registration.
    OfRegister: Unauthorized Forbidden InvalidRequest NodeIdConflict PayloadTooLarge UnsupportedMediaType CloudProfileDisabled
        StoreUnavailable ShuttingDown;
    /// Of a heartbeat.
    OfHeartbeat: Unauthorized Forbidden InvalidRequest NodeNotFound Superseded PayloadTooLarge UnsupportedMediaType
        CloudProfileDisabled ShuttingDown;
    /// Of a deregistration.
    OfDeregister: Unauthorized Forbidden InvalidRequest NodeNotFound Superseded CloudProfileDisabled StoreUnavailable
        ShuttingDown;
    /// Of a drain.
    OfDrain: Unauthorized Forbidden InvalidRequest NodeNotFound PayloadTooLarge UnsupportedMediaType CloudProfileDisabled
        StoreUnavailable ShuttingDown;
    /// Of the end of a drain.
    OfUndrain: Unauthorized Forbidden NodeNotFound CloudProfileDisabled StoreUnavailable ShuttingDown;
}

/// The refusals of a call, by status.
fn refusals(codes: &[ErrorCode]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    by_status
        .into_iter()
        .map(|(status, codes)| {
            let words: Vec<String> = codes
                .iter()
                .map(|code| json!(code).as_str().map(|word| format!("`{word}`")))
                .map(Option::unwrap_or_default)
                .collect();
            let body = Content::new(Some(Ref::from_schema_name("ErrorBody")));
            let mut response = ResponseBuilder::new()
                .description(words.join(", "))
                .content("application/json", body);
            if codes.iter().any(|code| code.retryable()) {
                let seconds = ObjectBuilder::new()
                    .schema_type(SchemaType::new(Type::Integer))
                    .minimum(Some(1));
                let header = HeaderBuilder::new()
                    .schema(Some(seconds))
                    .description(Some("Seconds after which to try again, where that helps."))
                    .build();
                response = response.header("Retry-After", header);
            }
            (status.to_string(), response.build().into())
        })
        .collect()
}

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let document = super::routes().into_openapi();
    let mut document = serde_json::to_value(&document).expect("a description is plain data");
    bound_integers(&mut document);
    // A drain may be asked for with an empty body; one that is there is an object. The macros know no such body.
    document["paths"]["/v2/nodes/{id}/drain"]["post"]["requestBody"]["required"] = json!(false);
    Bytes::from(document.to_string())
});

/// Says how large a number may be: what does not fit the type that reads it is refused.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(bound_integers),
        Value::Object(fields) => {
            // utoipa writes the registered names of these formats with a hyphen that they do not have.
            let known = match fields.get("format").and_then(Value::as_str) {
                Some("u-int32" | "uint32") => Some(("uint32", json!(u32::MAX))),
                Some("u-int64" | "uint64") => Some(("uint64", json!(u64::MAX))),
                _ => None,
            };
            if let Some((format, most)) = known {
                fields.insert("format".to_owned(), json!(format));
                fields.entry("maximum").or_insert(most);
            }
            fields.values_mut().for_each(bound_integers);
        }
        _ => {}
    }
}

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "server",
    responses((status = 200, description = "An OpenAPI document", body = Object), Guarded)
)]
pub(super) async fn show() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, DOCUMENT.clone())
}
