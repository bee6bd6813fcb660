//! [`App`]: what all routes share.

use crate::ApiError;
use crate::metrics::Requests;
use crate::responses::Store;
use axum::http::StatusCode;
use gpt_oss_puzzle::serving::EngineOptions;
use gpt_oss_puzzle::{Engine, Model};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model is called, at least one name; the first in answers that are asked for by none.
    pub names: Vec<String>,
    /// Keys that requests below /v1 have to come with, one of them; none for everybody.
    pub api_keys: Vec<String>,
    /// Origins whose pages may ask, `*` for all; the server's own page always may.
    pub allowed_origins: Vec<String>,
    /// Longest body of a request in bytes.
    pub body_limit: usize,
    /// Longest wait for a body that does not come.
    pub body_timeout: Duration,
    /// How long a stream may be silent before a comment says that it lives.
    pub keep_alive: Duration,
    /// How requests are batched.
    pub engine: EngineOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            names: vec!["puzzle-tiny".into()],
            api_keys: Vec::new(),
            allowed_origins: Vec::new(),
            body_limit: 8 << 20,
            body_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            engine: EngineOptions::default(),
        }
    }
}

impl Options {
    /// What the model is called by those who do not say.
    pub fn name(&self) -> &str {
        self.names.first().map_or("model", String::as_str)
    }

    /// Most requests that are taken in at once: those that run and those that wait.
    pub fn most_requests(&self) -> usize {
        self.engine.max_sequences.saturating_add(self.engine.queue)
    }
}

/// The state of the server, shared by its clones.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    options: Options,
    engine: OnceLock<Result<Engine, String>>,
    requests: Requests,
    responses: Store,
    started: u64,
    ids: (RandomState, AtomicU64),
}

impl App {
    /// A server whose model is not loaded yet.
    pub fn new(options: Options) -> App {
        App(Arc::new(Shared {
            options,
            engine: OnceLock::new(),
            requests: Requests::default(),
            responses: Store::default(),
            started: now(),
            ids: (RandomState::new(), AtomicU64::new(0)),
        }))
    }

    /// Answers from now on, or with the error that loading ended in.
    ///
    /// # Errors
    /// The same error, also of the engine.
    pub fn loaded(&self, model: Result<Model, String>) -> Result<(), String> {
        let engine = model.and_then(|model| {
            model.engine(self.0.options.engine.clone()).map_err(|e| e.to_string())
        });
        let error = engine.as_ref().err().cloned();
        // A second model is not taken.
        let _ = self.0.engine.set(engine);
        error.map_or(Ok(()), Err)
    }

    /// How to serve.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// The engine.
    ///
    /// # Errors
    /// 503 while the model is loading and when that failed.
    pub fn engine(&self) -> Result<&Engine, ApiError> {
        let unavailable = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        match self.0.engine.get() {
            Some(Ok(engine)) => Ok(engine),
            Some(Err(error)) => {
                Err(unavailable(format!("the model could not be loaded: {error}"))
                    .code("load_failed"))
            }
            None => Err(ApiError {
                retry_after: Some(Duration::from_secs(1)),
                ..unavailable("loading model".into()).code("loading")
            }),
        }
    }

    /// What `make` gives, on a thread that may be busy for long: rendering and tokenising are.
    ///
    /// # Errors
    /// As [`App::engine`], and what `make` ends in.
    pub async fn blocking<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Engine) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let engine = self.engine()?.clone();
        tokio::task::spawn_blocking(move || make(&engine)).await.unwrap_or_else(|panic| {
            let message = format!("the request made the server panic: {panic}");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        })
    }

    /// Counts of requests.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// Responses that are kept.
    pub fn responses(&self) -> &Store {
        &self.0.responses
    }

    /// When the server began, in seconds since 1970.
    pub fn started(&self) -> u64 {
        self.0.started
    }

    /// A new id such as `chatcmpl-5f0c…`, which nobody can guess from those before it.
    pub fn id(&self, prefix: &str) -> String {
        let (keys, counter) = &self.0.ids;
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let halves = (keys.hash_one((number, 0)), keys.hash_one((number, 1)));
        format!("{prefix}-{:016x}{:016x}", halves.0, halves.1)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
