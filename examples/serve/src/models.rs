//! `/v1/models` and `/health`.

use crate::request::unknown_model;
use crate::{ApiError, App, Json};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

/// `GET /v1/models`.
pub async fn list(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app.options().names.iter().map(|name| object(&app, name)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// 404 for another model.
pub async fn model(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match app.options().names.contains(&name) {
        true => Ok(Json(object(&app, &name))),
        false => Err(unknown_model(&app, &name)),
    }
}

fn object(app: &App, name: &str) -> Value {
    let mut model = json!({
        "id": name, "object": "model", "created": app.started(), "owned_by": "gpt-oss-puzzle",
        "root": app.options().name(), "parent": null,
    });
    if let Ok(engine) = app.engine() {
        model["max_model_len"] = engine.model().context().into();
    }
    model
}

/// `GET /health`: 200 when requests are answered.
///
/// # Errors
/// 503 while the model is loading, when that failed, once the device is lost, and while shutting down.
pub async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    app.engine()?.check().map_err(|error| ApiError {
        status: StatusCode::SERVICE_UNAVAILABLE,
        ..ApiError::from(error)
    })?;
    Ok(Json(json!({"status": "ok"})))
}
