//! [`ApiError`]: what went wrong, as a status and OpenAI's error object.

use crate::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gpt_oss_puzzle::{Error, ErrorKind};
use serde_json::{Value, json};
use std::time::Duration;

/// An error of a request. Clients get `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The status, where none was sent yet.
    pub status: StatusCode,
    /// What is wrong and what to do, in one line.
    pub message: String,
    /// What programs tell errors apart by.
    pub code: Option<&'static str>,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError { status, message, code: None, param: None, retry_after: None }
    }

    /// A request that is wrong in the field `param`.
    pub fn invalid(param: &str, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// Sets [`ApiError::code`].
    pub fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// An error of the engine about `request`, whose field it may name.
    pub fn about(request: &Value, error: Error) -> ApiError {
        let error = ApiError::from(error);
        // The crate's messages begin with the name of what is wrong.
        let name = error.message.split([' ', '.', '[']).next().unwrap_or_default();
        let name = match name {
            "message" => "messages",
            "tool" => "tools",
            name => name,
        };
        let param = (error.status == StatusCode::BAD_REQUEST && request.get(name).is_some())
            .then(|| name.to_owned());
        ApiError { param: error.param.or(param), ..error }
    }

    /// Tells whoever runs the server, of what is not the client's fault nor a matter of time.
    pub fn log(&self) {
        let is_fault = self.status == StatusCode::INTERNAL_SERVER_ERROR;
        if is_fault || self.code == Some("device_error") {
            eprintln!("error: {}", self.message);
        }
    }

    /// The error object.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let (status, code) = match error.kind() {
            ErrorKind::InvalidRequest
            | ErrorKind::InvalidMessage
            | ErrorKind::Template
            | ErrorKind::Tokenizer => (StatusCode::BAD_REQUEST, None),
            ErrorKind::ContextOverflow => {
                (StatusCode::BAD_REQUEST, Some("context_length_exceeded"))
            }
            ErrorKind::Busy => (StatusCode::TOO_MANY_REQUESTS, Some("queue_full")),
            ErrorKind::CacheFull => (StatusCode::SERVICE_UNAVAILABLE, Some("cache_full")),
            ErrorKind::Deadline => (StatusCode::SERVICE_UNAVAILABLE, Some("deadline_exceeded")),
            ErrorKind::Stopped => (StatusCode::SERVICE_UNAVAILABLE, Some("shutting_down")),
            ErrorKind::Device => (StatusCode::SERVICE_UNAVAILABLE, Some("device_error")),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        ApiError {
            code,
            retry_after: error.retry_after(),
            ..ApiError::new(status, error.to_string())
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.status, Json(self.json())).into_response();
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: 0 would be an invitation to ask in a loop.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
