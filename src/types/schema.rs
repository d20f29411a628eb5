//! How the validated names and the open words look in the API's description. The other types derive theirs.

use std::borrow::Cow;

use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::ids::{MAX_ID_BYTES, MAX_MODEL_BYTES};
use super::{HttpUrl, MAX_LABELS, NodeId, PoolId, PoolState};

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String))
}

fn id(description: &str) -> RefOr<Schema> {
    text()
        .description(Some(description))
        .min_length(Some(1))
        .max_length(Some(MAX_ID_BYTES))
        .pattern(Some("^[A-Za-z0-9][A-Za-z0-9._-]*$"))
        .into()
}

macro_rules! described {
    ($name:ident, $schema:expr) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    };
}

described!(
    NodeId,
    id("The name of a machine in the fleet. `local` and `register` are reserved.")
);
described!(PoolId, id("The name of an engine within its node."));
described!(
    HttpUrl,
    text()
        .description(Some(
            "An http or https URL with a host and without credentials, query or fragment."
        ))
        .pattern(Some(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\\s][^?#@\\\s]*$"))
        .examples(["http://192.168.1.100:9200"])
        .into()
);
// An enum would refuse what a newer agent may say.
described!(
    PoolState,
    text()
        .description(Some(
            "What an engine is doing: `loading`, `ready`, `busy`, `sleeping`, `unreachable`, `misconfigured`, or \
             `unknown`, as which every other word is taken."
        ))
        .examples(["ready"])
        .into()
);

/// A list of model ids.
pub(super) fn model_ids() -> RefOr<Schema> {
    list_of_model_ids().into()
}

/// The same in a request, where it may be left out.
pub(super) fn model_ids_or_null() -> RefOr<Schema> {
    list_of_model_ids()
        .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
        .into()
}

fn list_of_model_ids() -> ArrayBuilder {
    let id = text()
        .min_length(Some(1))
        .max_length(Some(MAX_MODEL_BYTES))
        .pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]*$"));
    ArrayBuilder::new().items(id).description(Some(
        "Model ids: 1 to 512 bytes each, without control characters.",
    ))
}

/// Names with their values, at most as many as a registration may have; or none.
pub(super) fn labels() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .additional_properties(Some(text()))
        .max_properties(Some(MAX_LABELS))
        .description(Some("For people and selectors."))
        .into()
}
