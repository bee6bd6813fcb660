//! A request's body, and what of it concerns the engine and not the answer.

use crate::fields::short;
use crate::{ApiError, App};
use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use gpt_oss_puzzle::serving::{Call, Priority};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A body of JSON: an object.
pub struct Body(pub Value);

impl FromRequest<App> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Body, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        // Pages of others may post forms and plain texts without asking, but not JSON.
        let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let message = format!(
                "the content type is {}, expected application/json",
                kind.map_or("missing".into(), |kind| format!("{kind:?}"))
            );
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let options = app.options();
        let too_large = || {
            let message =
                format!("the body has more than {} bytes, see --body-limit", options.body_limit);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        // Where its length is told beforehand, none of it has to be read.
        if request.body().size_hint().lower() > options.body_limit as u64 {
            return Err(too_large());
        }
        let body = Bytes::from_request(request, app);
        let body = tokio::time::timeout(options.body_timeout, body).await.map_err(|_| {
            let message = format!("the body did not come within {:?}", options.body_timeout);
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            status => ApiError::new(status, rejection.body_text()),
        })?;
        let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
        let value: Value = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the body is no valid JSON: {error}")))?;
        match value.is_object() {
            true => Ok(Body(value)),
            false => Err(bad("the body is no JSON object".into())),
        }
    }
}

/// A field; null is as good as absent.
pub fn field<'a>(request: &'a Value, name: &str) -> Option<&'a Value> {
    request.get(name).filter(|value| !value.is_null())
}

/// A field of a type.
///
/// # Errors
/// Names the field, its value and what was expected.
pub fn read<T: DeserializeOwned>(
    request: &Value,
    name: &str,
    expected: &str,
) -> Result<Option<T>, ApiError> {
    let read = |value: &Value| {
        T::deserialize(value).map_err(|_| {
            ApiError::invalid(name, format!("{name} is {}, expected {expected}", short(value)))
        })
    };
    field(request, name).map(read).transpose()
}

/// The name that answers carry: the one that the request asks for.
///
/// # Errors
/// 404 for another model.
pub fn model(app: &App, request: &Value) -> Result<String, ApiError> {
    let options = app.options();
    let Some(name) = read::<String>(request, "model", "a model's name")? else {
        return Ok(options.name().to_owned());
    };
    if options.names.contains(&name) {
        return Ok(name);
    }
    Err(unknown_model(app, &name))
}

/// 404 for a model of this name.
pub fn unknown_model(app: &App, name: &str) -> ApiError {
    let names = app.options().names.join(", ");
    let message = format!("the model {name:?} does not exist here, only {names}");
    let error = ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found");
    ApiError { param: Some("model".into()), ..error }
}

/// How many answers are asked for, `n`.
///
/// # Errors
/// 400 for none and for more than run at once.
pub fn choices(app: &App, request: &Value) -> Result<usize, ApiError> {
    let most = app.options().engine.max_sequences;
    let expected = format!("1 to {most}");
    match read(request, "n", &expected)? {
        None => Ok(1),
        Some(n) if (1..=most).contains(&n) => Ok(n),
        Some(n) => Err(ApiError::invalid("n", format!("n is {n}, expected {expected}"))),
    }
}

/// That an answer is to be streamed.
pub struct Streamed {
    /// Whether token counts come at the end.
    pub include_usage: bool,
}

/// Whether the answer is to be streamed, and how.
///
/// # Errors
/// 400 for other types.
pub fn stream(request: &Value) -> Result<Option<Streamed>, ApiError> {
    let stream = read(request, "stream", "true or false")?.unwrap_or(false);
    let options = field(request, "stream_options").unwrap_or(&Value::Null);
    let include_usage = read(options, "include_usage", "true or false")?.unwrap_or(false);
    Ok(stream.then_some(Streamed { include_usage }))
}

/// Takes a `top_k` out that asks for any token, as -1 does with vLLM.
pub fn any_top_k(fields: &mut Map<String, Value>) {
    if fields.get("top_k").and_then(Value::as_i64) == Some(-1) {
        fields.shift_remove("top_k");
    }
}

/// A call with the request's `priority` (as with vLLM a number, lower first, 0 is normal; or a name)
/// and `cache_salt`.
///
/// # Errors
/// 400 for other types.
pub fn call<R>(request: &Value, what: R) -> Result<Call<R>, ApiError> {
    let mut call = Call::new(what);
    if let Some(priority) = field(request, "priority") {
        let priority = match (priority.as_i64(), priority.as_str()) {
            (Some(..0), _) | (_, Some("high")) => Priority::High,
            (Some(0), _) | (_, Some("normal")) => Priority::Normal,
            (Some(1..), _) | (_, Some("low")) => Priority::Low,
            _ => {
                let expected = "a whole number, or \"high\", \"normal\" or \"low\"";
                let message = format!("priority is {priority}, expected {expected}");
                return Err(ApiError::invalid("priority", message));
            }
        };
        call = call.priority(priority);
    }
    if let Some(salt) = read::<String>(request, "cache_salt", "a text")? {
        call = call.cache_salt(salt);
    }
    Ok(call)
}
