//! The server as its clients meet it, with the small model that comes with the crate.

mod accumulate;
mod chat;
mod completions;
mod connections;
mod http;
mod metrics;
mod program;
mod refused;
mod responses;
mod server;
