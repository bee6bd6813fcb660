//! `POST /v1/completions`.

use crate::ApiError;
use axum::http::StatusCode;
use axum::response::Response;

/// Continues a raw prompt.
///
/// # Errors
/// 501.
pub async fn create() -> Result<Response, ApiError> {
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not yet"))
}
