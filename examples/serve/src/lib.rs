//! A server for one model, in the shapes of OpenAI's API: routes over [`gpt_oss_puzzle::Engine`].
//!
//! [`App`] is the state that routes share and [`app::router`] the table of routes. Every route turns a
//! request's JSON into calls of the engine, whose [`answers::Answers`] become one JSON object or, by
//! [`sse`], a stream of events. Whatever goes wrong is an [`ApiError`].

pub mod answers;
pub mod app;
pub mod chat;
pub mod completions;
pub mod error;
pub mod fields;
mod json;
pub mod metrics;
pub mod models;
pub mod page;
pub mod request;
pub mod responses;
pub mod server;
pub mod sse;
pub mod state;

pub use error::ApiError;
pub use json::Json;
pub use state::{App, Options};
