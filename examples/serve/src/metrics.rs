//! `GET /metrics`, in Prometheus' text format.

use crate::{ApiError, App};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

/// Counts of requests.
#[derive(Default)]
pub struct Requests {}

/// Counts a request by its route and how it was answered.
pub async fn count(State(_app): State<App>, request: Request, next: Next) -> Response {
    next.run(request).await
}

/// What there is to be watched.
///
/// # Errors
/// 503 while the model is loading.
pub async fn metrics(State(_app): State<App>) -> Result<String, ApiError> {
    Ok(String::new())
}
