//! What has nothing to do with answers: keys, methods, bodies, pages of others.

use crate::server::{CHAT, COMPLETIONS, loading, post, question, server, server_with};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse;
use serve::{ApiError, Options};
use std::time::Duration;

#[tokio::test]
async fn what_there_is_not_is_said_in_the_shape_of_errors() {
    let server = server();
    let unknown = server.get("/v1/nothing").await;
    assert_eq!(
        (unknown.status, unknown.error()["code"].as_str()),
        (StatusCode::NOT_FOUND, Some("unknown_url"))
    );
    let method = server.get(CHAT).await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(method.error()["code"], "method_not_allowed");
    assert_eq!(method.headers["allow"], "POST");
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let mut request = post(CHAT, question());
        request.headers_mut().remove("content-type");
        if let Some(kind) = kind {
            request.headers_mut().insert("content-type", kind.parse().unwrap());
        }
        let reply = server.send(request).await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(reply.error()["message"].as_str().unwrap().contains("application/json"));
    }
    let mut charset = post(CHAT, question());
    let kind = "Application/JSON; charset=utf-8".parse().unwrap();
    charset.headers_mut().insert("content-type", kind);
    assert_eq!(server.send(charset).await.status, StatusCode::OK);
}

/// Bodies that were made to hurt are refused, and the server goes on.
#[tokio::test]
async fn hostile_bodies_are_bad_requests() {
    let server = server();
    let deep = "[".repeat(1_000_000);
    let deep_field = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{\"messages\":[{}]}",
        "{\"a\":1,}",
        "\u{0}",
        &deep,
        &deep_field,
    ] {
        let reply = server.post(CHAT, body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", &body[..body.len().min(50)]);
        reply.error();
    }
    let invalid = Request::post(CHAT).header("content-type", "application/json");
    let invalid = invalid.body(Body::from(&b"{\"messages\": \"\xff\xfe\"}"[..])).unwrap();
    assert_eq!(server.send(invalid).await.status, StatusCode::BAD_REQUEST);
    // A schema inside the limit of JSON's depth is still not followed down for ever.
    let nested = (0..60).fold("{}".to_owned(), |inner, _| format!("{{\"items\":{inner}}}"));
    let schema = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"max_tokens\":5,\"response_format\":\
         {{\"type\":\"json_schema\",\"json_schema\":{{\"schema\":{nested}}}}}}}"
    );
    let status = server.post(CHAT, schema).await.status;
    assert!([StatusCode::OK, StatusCode::BAD_REQUEST].contains(&status), "{status}");
    assert_eq!(server.post(CHAT, question()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_have_a_limit_and_a_time() {
    let options =
        Options { body_limit: 1000, body_timeout: Duration::from_millis(50), ..Options::default() };
    let server = server_with(options);
    let reply = server.post(CHAT, " ".repeat(1001)).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(reply.error()["message"].as_str().unwrap().contains("1000"));
    assert_eq!(server.post(CHAT, question()).await.status, StatusCode::OK);
    // Half a body, and then nothing.
    struct Stalled;
    impl futures_core::Stream for Stalled {
        type Item = Result<&'static str, std::io::Error>;
        fn poll_next(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Self::Item>> {
            std::task::Poll::Pending
        }
    }
    let stalled = Request::post(CHAT).header("content-type", "application/json");
    let reply = server.send(stalled.body(Body::from_stream(Stalled)).unwrap()).await;
    assert_eq!(reply.status, StatusCode::REQUEST_TIMEOUT);
    reply.error();
}

#[tokio::test]
async fn keys_open_what_is_below_v1() {
    let api_keys = vec!["first key".to_owned(), "second".to_owned()];
    let server = server_with(Options { api_keys, ..Options::default() });
    let ask = |key: Option<&str>| {
        let mut request = post(CHAT, question());
        if let Some(key) = key {
            request.headers_mut().insert("authorization", key.parse().unwrap());
        }
        server.send(request)
    };
    for wrong in [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer secon"),
        Some("Bearer second "),
        Some("Bearer Second"),
        Some("Basic second"),
        Some("second"),
    ] {
        let reply = ask(wrong).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{wrong:?}");
        assert_eq!(reply.error()["code"], "invalid_api_key");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        // Nothing of the keys is told.
        assert!(!reply.text.contains("second"));
    }
    for right in ["Bearer first key", "Bearer second"] {
        assert_eq!(ask(Some(right)).await.status, StatusCode::OK);
    }
    for (path, status) in [
        ("/v1/models", StatusCode::UNAUTHORIZED),
        ("/v1/nothing", StatusCode::UNAUTHORIZED),
        ("/health", StatusCode::OK),
        ("/metrics", StatusCode::OK),
    ] {
        assert_eq!(server.get(path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn pages_of_allowed_origins_may_ask() {
    let preflight = |origin: &str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri(CHAT)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-stainless-os")
            .body(Body::empty())
            .unwrap()
    };
    let allowed_origins = vec!["https://example.org".to_owned()];
    let api_keys = vec!["key".to_owned()];
    let server = server_with(Options { allowed_origins, api_keys, ..Options::default() });
    // Browsers ask without the key.
    let reply = server.send(preflight("https://example.org")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["access-control-allow-origin"], "https://example.org");
    assert!(reply.headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    let headers = reply.headers["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("authorization") && headers.contains("x-stainless-os"), "{headers}");
    let other = server.send(preflight("https://evil.example")).await;
    assert!(other.headers.get("access-control-allow-origin").is_none());
    // An error can be read by the page too.
    let mut request = post(CHAT, question());
    request.headers_mut().insert("origin", "https://example.org".parse().unwrap());
    let reply = server.send(request).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.headers["access-control-allow-origin"], "https://example.org");
    let none = loading(Options::default()).send(preflight("https://example.org")).await;
    assert!(none.headers.get("access-control-allow-origin").is_none());
    let all = loading(Options { allowed_origins: vec!["*".into()], ..Options::default() });
    let all = all.send(preflight("https://anywhere.example")).await;
    assert_eq!(all.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn a_server_is_ready_when_its_model_is_loaded() {
    let server = loading(Options::default());
    let replies = [
        server.get("/health").await,
        server.post(CHAT, question()).await,
        server.post(COMPLETIONS, "{\"prompt\": \"a\"}").await,
    ];
    for reply in replies {
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.error()["message"], "loading model");
        assert_eq!(reply.headers["retry-after"], "1");
    }
    assert_eq!(server.get("/metrics").await.status, StatusCode::OK);
    assert_eq!(server.get("/v1/models").await.status, StatusCode::OK);
    server.app.loaded(Ok(crate::server::model())).unwrap();
    let health = server.get("/health").await;
    assert_eq!((health.status, health.text.as_str()), (StatusCode::OK, "{\"status\":\"ok\"}"));
    let broken = loading(Options::default());
    assert_eq!(broken.app.loaded(Err("no such file".into())), Err("no such file".into()));
    let reply = broken.get("/health").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.error()["message"].as_str().unwrap().contains("no such file"));
}

/// A time to come back in is never none at all, which would be an invitation to ask in a loop.
#[test]
fn times_to_come_back_in_are_whole_seconds() {
    for (millis, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")] {
        let error = ApiError {
            retry_after: Some(Duration::from_millis(millis)),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "later")
        };
        assert_eq!(error.into_response().headers()["retry-after"], expected);
    }
}

/// Each response has an id, none like another, by which a log can be searched.
#[tokio::test]
async fn responses_have_ids() {
    let server = loading(Options::default());
    let (a, b) = (server.get("/health").await, server.get("/v1/nothing").await);
    assert_ne!(a.headers["x-request-id"], b.headers["x-request-id"]);
}
