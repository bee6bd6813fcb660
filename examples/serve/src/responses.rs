//! `/v1/responses` and the page.

use crate::ApiError;
use axum::http::StatusCode;
use axum::response::Response;

/// `POST /v1/responses`.
///
/// # Errors
/// 501.
pub async fn create() -> Result<Response, ApiError> {
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not yet"))
}

/// `GET /v1/responses/{id}`.
///
/// # Errors
/// 501.
pub async fn retrieve() -> Result<Response, ApiError> {
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not yet"))
}

/// `DELETE /v1/responses/{id}`.
///
/// # Errors
/// 501.
pub async fn delete() -> Result<Response, ApiError> {
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not yet"))
}

/// `GET /`.
///
/// # Errors
/// 501.
pub async fn page() -> Result<Response, ApiError> {
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "not yet"))
}
