//! A server to ask.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use gpt_oss_puzzle::{Model, Stats};
use serde_json::{Value, json};
use serve::{App, Options, app};
use std::time::Duration;
use tower::ServiceExt;

/// The router without a socket.
pub struct Server {
    pub app: App,
    router: Router,
}

/// A response as it came.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

/// The shipped model; each engine has all pages of one.
pub fn model() -> Model {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/puzzle-tiny");
    Model::builder(dir).threads(1).load().expect("the shipped model loads")
}

pub fn server() -> Server {
    server_with(Options::default())
}

pub fn server_with(options: Options) -> Server {
    let server = loading(options);
    server.app.loaded(Ok(model())).expect("the engine starts");
    server
}

/// A server whose model is not there yet.
pub fn loading(options: Options) -> Server {
    let app = App::new(options);
    Server { router: app::router(app.clone()), app }
}

impl Server {
    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.expect("never fails");
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a whole body");
        let text = String::from_utf8(body.into()).expect("UTF-8");
        Reply { status: parts.status, headers: parts.headers, text }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: impl ToString) -> Reply {
        self.send(post(path, body)).await
    }

    /// The JSON of an answer.
    pub async fn ask(&self, path: &str, body: Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        reply.json()
    }

    /// The events of a streamed answer, which ends well.
    pub async fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        assert_eq!(reply.headers["cache-control"], "no-cache");
        let mut events = reply.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    pub fn stats(&self) -> Stats {
        self.app.engine().expect("loaded").stats()
    }

    /// Waits until the statistics say so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Stats) -> bool) {
        for _ in 0..2000 {
            if holds(&self.stats()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not within 10 s: {what}: {:?}", self.stats());
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// What the lines `data: …` have. Each event is such a line and an empty one.
    pub fn events(&self) -> Vec<String> {
        let events = self.text.strip_suffix("\n\n").expect("ends in an empty line").split("\n\n");
        let data = |event: &str| event.strip_prefix("data: ").expect("data alone").to_owned();
        events.filter(|event| !event.starts_with(':')).map(data).collect()
    }

    /// The error object, whose shape clients rely on.
    pub fn error(&self) -> Value {
        let value = self.json();
        let error = value["error"].as_object().unwrap_or_else(|| panic!("no error: {value}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
        error.clone().into()
    }
}

pub fn post(path: &str, body: impl ToString) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(path);
    let request = request.header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

/// A question that the model answers right.
pub fn question() -> Value {
    json!({
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0, "date": "2026-01-02",
    })
}

/// A request that runs for as long as nobody ends it: some four thousand tokens.
pub fn endless() -> Value {
    json!({"prompt": "What", "max_tokens": 4000, "ignore_eos": true, "seed": 1})
}

/// `body` with more fields.
pub fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}
