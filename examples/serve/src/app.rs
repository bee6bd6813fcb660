//! The table of routes, and what every request goes through.

use crate::{ApiError, App, chat, completions, metrics, models, page, responses};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, Any as Anybody, CorsLayer};

/// All routes.
pub fn router(app: App) -> Router {
    let limit = DefaultBodyLimit::max(app.options().body_limit);
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(models::health))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/models", get(models::list))
        // Names of the hub have a slash in them.
        .route("/v1/models/{*name}", get(models::model))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_route)
        .layer(limit)
        .layer(from_fn_with_state(app.clone(), authorize))
        .layer(cors(&app.options().allowed_origins))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), metrics::count))
        .with_state(app)
}

/// Lets requests below /v1 through that come with a key, where there are any.
async fn authorize(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = &app.options().api_keys;
    let is_open = keys.is_empty() || !request.uri().path().starts_with("/v1");
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    // All are compared, whichever fits: the time says nothing about them.
    let fits = keys.iter().fold(false, |fits, key| fits | same(key.as_bytes(), given));
    if is_open || fits {
        return next.run(request).await;
    }
    let message = "the API key is missing or wrong, expected `Authorization: Bearer KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").into_response()
}

/// Whether two texts are the same, in a time that depends on their lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differing =
        a.iter().zip(b).fold(0, |differing, (a, b)| differing | std::hint::black_box(a ^ b));
    a.len() == b.len() && differing == 0
}

fn cors(origins: &[String]) -> CorsLayer {
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(
            origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // `Authorization` is not among what `*` stands for.
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(Anybody)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let message = format!("there is no {method} {}, see GET / for what there is", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, message).code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} cannot be asked with {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}

/// A fault of the server ends the request that met it.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let message = format!("the server panicked: {text}");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
}
