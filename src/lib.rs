//! orchd: a control plane for GPU machines that run their own `llama-server`.
//!
//! One executable: `orchd serve` tracks nodes and routes OpenAI-compatible requests to the engines on them, `orchd agent`
//! stands on each GPU host, the other verbs are for people and scripts.
//!
//! ```text
//!  L5    main ─ cli ─ commands ─ config  argv in; stdout, stderr, exit code out
//!                       │
//!  L4             server │ agent │ demo   processes: bind, run, drain (siblings)
//!                 │         └───────┴─┐
//!  L3          api │ gateway       client      HTTP faces; the typed client (agent AND commands)
//!                 │    │            │
//!  L2    store ─ control ─ admission   relay  engines  listen  metrics  secrets  tls  socket  service  clock    the shells
//!                 │          │
//!  L1          registry    dispatch  agent::machine  auth     PURE: no async, IO, tracing, clock, rand, env
//!                 └──────────┴──────┘
//!  L0                    types                 the shared words (the contract in serde)
//! ```
//!
//! Imports point down, never sideways except where drawn. A test walks every `use crate::` and holds the picture.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admission;
pub mod agent;
pub mod api;
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod decisions;
pub mod demo;
pub mod dispatch;
pub mod engines;
pub mod fetch;
pub mod gateway;
pub mod listen;
pub mod metrics;
pub mod random;
pub mod registry;
pub mod relay;
pub mod secrets;
pub mod server;
pub mod service;
pub mod socket;
pub mod store;
pub mod tls;
pub mod types;
