//! [`Json`]: a response.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::borrow::Borrow;

/// A value as a response. axum has the same, with a feature of `serde_json` that would have much of what the
/// crate depends on built twice.
pub struct Json<T>(pub T);

impl<T: Borrow<Value>> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let Json(value) = self;
        ([(header::CONTENT_TYPE, "application/json")], value.borrow().to_string()).into_response()
    }
}
