//! The node calls: those of the original system, and the operator's.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use crate::control::NodeFilter;
use crate::types::{
    DrainRequest, ErrorCode, HeartbeatReply, HeartbeatRequest, MAX_GPUS, MAX_LABELS, MAX_POOLS,
    NodeId, NodeList, NodeStatus, NodeView, RegisterReply, RegisterRequest, millis, name_engines,
};

use super::openapi::{
    LabelSelector, OfDeregister, OfDrain, OfHeartbeat, OfNode, OfNodes, OfRegister, OfUndrain,
};
use super::{Api, ApiError, body, parts};

/// Nodes on a page unless told otherwise.
const PAGE: usize = 1_000;

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// The node a path names.
type NodePath = Result<Path<String>, PathRejection>;

trait Named {
    /// What cannot be a node id is unknown.
    fn node_id(&self) -> Result<NodeId, ApiError>;
}

impl Named for NodePath {
    fn node_id(&self) -> Result<NodeId, ApiError> {
        let unknown = |what: String| ApiError::new(ErrorCode::NodeNotFound, what);
        let Path(text) = self
            .as_ref()
            .map_err(|_| unknown("the node id in the path is not UTF-8".to_owned()))?;
        NodeId::new(text).map_err(|e| unknown(format!("no node {text:?} is registered: it {e}")))
    }
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<(), ApiError> {
    if count > limit {
        Err(invalid(format!(
            "{count} {what} are given; at most {limit} are accepted"
        )))
    } else {
        Ok(())
    }
}

/// Registers a node, or describes it anew. Idempotent; starts the lease.
#[utoipa::path(
    post,
    path = "/v2/nodes/register",
    operation_id = "register_node",
    tag = "nodes",
    request_body = RegisterRequest,
    responses((status = 200, description = "Registered", body = RegisterReply), OfRegister)
)]
pub(super) async fn register(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RegisterReply>, ApiError> {
    let bytes = body::collect(&headers, body)
        .await
        .map_err(|e| e.of_register(String::new()))?;
    let asked = asked_name(&bytes);
    let result = async {
        let request: RegisterRequest = body::parse(&bytes)?;
        at_most("pools", request.pools.len(), MAX_POOLS)?;
        at_most("engines", request.engines.len(), MAX_POOLS)?;
        at_most("GPUs", request.capabilities.gpus.len(), MAX_GPUS)?;
        at_most("labels", request.labels.len(), MAX_LABELS)?;
        name_engines(&request.engines).map_err(|e| invalid(format!("`engines`: {e}")))?;
        Ok(api.control.register(request).await?)
    };
    result
        .await
        .map(Json)
        .map_err(|e: ApiError| e.of_register(asked))
}

/// The name a registration asks for, for a refusal to repeat, as far as it can be read.
fn asked_name(bytes: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    value
        .as_ref()
        .and_then(|v| v.get("node_id"))
        .and_then(|v| v.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Takes a heartbeat: renews the lease and replaces the node's pool status.
#[utoipa::path(
    post,
    path = "/v2/nodes/{id}/heartbeat",
    operation_id = "heartbeat",
    tag = "nodes",
    params(("id" = NodeId, Path, description = "The node")),
    request_body = HeartbeatRequest,
    responses((status = 200, description = "Heard", body = HeartbeatReply), OfHeartbeat)
)]
pub(super) async fn heartbeat(
    State(api): State<Api>,
    id: NodePath,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HeartbeatReply>, ApiError> {
    let interval_ms = millis(api.control.heartbeat_interval());
    let result = async {
        let bytes = body::collect(&headers, body).await?;
        let request: HeartbeatRequest = body::parse(&bytes)?;
        at_most("pools", request.pools.len(), MAX_POOLS)?;
        for (at, pool) in request.pools.iter().enumerate() {
            if request.pools[..at]
                .iter()
                .any(|other| other.pool_id == pool.pool_id)
            {
                return Err(invalid(format!("pool {:?} is given twice", pool.pool_id)));
            }
            for model in &pool.models_available {
                crate::types::check_model_id(model).map_err(|e| {
                    invalid(format!(
                        "pool {:?}: the model id {model:?} {e}",
                        pool.pool_id
                    ))
                })?;
            }
        }
        Ok(api.control.beat(&id.node_id()?, request)?)
    };
    result
        .await
        .map(Json)
        .map_err(|e: ApiError| e.of_heartbeat(interval_ms))
}

/// Ends a registration. What an operator asked of the node stays, unless it is to be forgotten.
#[utoipa::path(
    delete,
    path = "/v2/nodes/{id}",
    operation_id = "deregister_node",
    tag = "nodes",
    params(
        ("id" = NodeId, Path, description = "The node"),
        ("instance_id" = Option<String>, Query, description = "The agent process that asks"),
        ("forget" = Option<bool>, Query, description = "Drop what an operator asked of it, too"),
    ),
    responses((status = 204, description = "It is gone"), OfDeregister)
)]
pub(super) async fn deregister(
    State(api): State<Api>,
    id: NodePath,
    RawQuery(query): RawQuery,
) -> Result<StatusCode, ApiError> {
    let (mut instance_id, mut forget) = (None, false);
    for (key, value) in pairs(query.as_deref()) {
        match key.as_str() {
            "instance_id" => instance_id = Some(value),
            "forget" => forget = flag(&key, &value)?,
            _ => {}
        }
    }
    api.control
        .deregister(id.node_id()?, instance_id, forget)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All registered nodes, sorted by name.
#[utoipa::path(
    get,
    path = "/v2/nodes",
    operation_id = "list_nodes",
    tag = "nodes",
    params(
        ("status" = Option<Vec<NodeStatus>>, Query, explode = false, min_items = 1, description = "Any of these words"),
        ("label" = Option<Vec<LabelSelector>>, Query, description = "KEY=VALUE; all of them must hold"),
        ("limit" = Option<u64>, Query, minimum = 1, description = "Nodes on a page; 1,000 unless told otherwise"),
        ("after" = Option<NodeId>, Query, description = "Names after this one: `next` of the page before"),
        ("departed" = Option<bool>, Query, description = "Only nodes that left but still hold what was asked of them"),
    ),
    responses((status = 200, description = "A page of nodes", body = NodeList), OfNodes)
)]
pub(super) async fn list(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut filter = NodeFilter {
        limit: PAGE,
        ..NodeFilter::default()
    };
    for (key, value) in pairs(query.as_deref()) {
        match key.as_str() {
            "status" => {
                for word in value.split(',') {
                    filter.status.push(status(word)?);
                }
            }
            "label" => match value.split_once('=') {
                Some((k, v)) => filter.labels.push((k.to_owned(), v.to_owned())),
                None => {
                    return Err(invalid(format!(
                        "label={value:?} must be written label=KEY=VALUE"
                    )));
                }
            },
            "limit" => match value.parse() {
                Ok(limit @ 1..) => filter.limit = limit,
                _ => {
                    return Err(invalid(format!(
                        "limit={value:?} must be a whole number from 1 on"
                    )));
                }
            },
            "after" => {
                let after = NodeId::new(&value)
                    .map_err(|e| invalid(format!("after={value:?}: a node id {e}")))?;
                filter.after = Some(after);
            }
            "departed" => filter.departed = flag(&key, &value)?,
            _ => {}
        }
    }
    Ok(written(&api, &filter).await)
}

async fn written(api: &Api, filter: &NodeFilter) -> Response {
    let (node_ids, list) = api.control.listing(filter);
    let part = |node_ids: &[NodeId]| api.control.listed(filter, node_ids);
    parts::written("nodes", &node_ids, part, |count| NodeList { count, ..list }).await
}

fn status(word: &str) -> Result<NodeStatus, ApiError> {
    NodeStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == word)
        .ok_or_else(|| {
            let all = NodeStatus::ALL.map(NodeStatus::as_str).join(", ");
            invalid(format!("status={word:?} is none of {all}"))
        })
}

fn flag(key: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(invalid(format!("{key}={value:?} must be true or false"))),
    }
}

/// Keys and values of a query, in order.
pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned()
}

/// One node.
#[utoipa::path(
    get,
    path = "/v2/nodes/{id}",
    operation_id = "get_node",
    tag = "nodes",
    params(("id" = NodeId, Path, description = "The node")),
    responses((status = 200, description = "The node", body = NodeView), OfNode)
)]
pub(super) async fn get(State(api): State<Api>, id: NodePath) -> Result<Json<NodeView>, ApiError> {
    Ok(Json(api.control.node(&id.node_id()?)?))
}

/// No new requests to a node; running ones finish. Idempotent.
#[utoipa::path(
    post,
    path = "/v2/nodes/{id}/drain",
    operation_id = "drain_node",
    tag = "nodes",
    params(("id" = NodeId, Path, description = "The node")),
    request_body = DrainRequest,
    responses((status = 202, description = "It drains", body = NodeView), OfDrain)
)]
pub(super) async fn drain(
    State(api): State<Api>,
    id: NodePath,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<NodeView>), ApiError> {
    let bytes = body::collect(&headers, body).await?;
    let request = if bytes.is_empty() {
        DrainRequest::default()
    } else {
        body::parse(&bytes)?
    };
    let view = api.control.drain(id.node_id()?, request).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// The end of a drain, also when there was none.
#[utoipa::path(
    delete,
    path = "/v2/nodes/{id}/drain",
    operation_id = "undrain_node",
    tag = "nodes",
    params(("id" = NodeId, Path, description = "The node")),
    responses((status = 200, description = "It does not drain", body = NodeView), OfUndrain)
)]
pub(super) async fn undrain(
    State(api): State<Api>,
    id: NodePath,
) -> Result<Json<NodeView>, ApiError> {
    Ok(Json(api.control.undrain(id.node_id()?).await?))
}
