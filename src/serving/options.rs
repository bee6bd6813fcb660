//! What an engine and its requests are asked for: plain data.

use crate::chat::ChatRequest;
use crate::generation::GenerateOptions;
use crate::{Error, Result};
use std::time::Duration;

/// How an [`super::Engine`] runs; the names are vLLM's where they mean the same.
///
/// ```
/// use gpt_oss_puzzle::EngineOptions;
///
/// let options = EngineOptions::default().max_sequences(64).max_step_tokens(2048).queue(1000);
/// assert_eq!(options.stream_interval, 1);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Most answers that are made at the same time (vLLM's `max_num_seqs`); 16 by default. The others wait.
    pub max_sequences: usize,
    /// Most tokens that go through the model in a step (vLLM's `max_num_batched_tokens`), 512 by default:
    /// running answers take one each, prompts the rest. A long prompt holds up running answers for no longer
    /// than a step of that many tokens. At least [`EngineOptions::max_sequences`].
    pub max_step_tokens: usize,
    /// Most requests that wait, 256 by default; further ones are refused, see
    /// [`Busy`](crate::ErrorKind::Busy).
    pub queue: usize,
    /// Tokens of an answer that are told of together (vLLM's `stream_interval`), 1 by default. The first, calls
    /// and the end come at once.
    pub stream_interval: usize,
    /// Pages of the model's key-value cache that are the engine's alone; `None` for all that are free when it
    /// starts. [`crate::Model::chat`] and sessions of their own have those that it leaves.
    pub pages: Option<usize>,
    /// Share of its pages that may hold what later requests can begin with, 0 to 1; 1 by default, because such
    /// pages are given up when others need them, 0 for no prefix cache.
    pub prefix_cache: f32,
    /// Of requests that name none.
    pub priority: Priority,
    /// Of requests that name none: from its call on, after which an answer ends as it is. `None`, the default,
    /// for never.
    pub deadline: Option<Duration>,
    /// After so long a request counts as of the next higher priority, so that none waits for ever; 30 s by
    /// default.
    pub aging: Duration,
    /// Events of an answer that nobody has read yet, at which it pauses; 256 by default.
    pub unread: usize,
    /// After so long a paused answer gives its place to others, to go on when it is read again; 30 s by default.
    pub reader_grace: Duration,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            max_sequences: 16,
            max_step_tokens: 512,
            queue: 256,
            stream_interval: 1,
            pages: None,
            prefix_cache: 1.0,
            priority: Priority::default(),
            deadline: None,
            aging: Duration::from_secs(30),
            unread: 256,
            reader_grace: Duration::from_secs(30),
        }
    }
}

impl EngineOptions {
    /// Sets [`EngineOptions::max_sequences`].
    pub fn max_sequences(self, max_sequences: usize) -> Self {
        Self { max_sequences, ..self }
    }

    /// Sets [`EngineOptions::max_step_tokens`].
    pub fn max_step_tokens(self, max_step_tokens: usize) -> Self {
        Self { max_step_tokens, ..self }
    }

    /// Sets [`EngineOptions::queue`].
    pub fn queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }

    /// Sets [`EngineOptions::stream_interval`].
    pub fn stream_interval(self, stream_interval: usize) -> Self {
        Self { stream_interval, ..self }
    }

    /// Sets [`EngineOptions::pages`].
    pub fn pages(self, pages: usize) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// Sets [`EngineOptions::prefix_cache`].
    pub fn prefix_cache(self, prefix_cache: f32) -> Self {
        Self { prefix_cache, ..self }
    }

    /// Sets [`EngineOptions::priority`].
    pub fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Sets [`EngineOptions::deadline`].
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Sets [`EngineOptions::aging`].
    pub fn aging(self, aging: Duration) -> Self {
        Self { aging, ..self }
    }

    /// Sets [`EngineOptions::unread`].
    pub fn unread(self, unread: usize) -> Self {
        Self { unread, ..self }
    }

    /// Sets [`EngineOptions::reader_grace`].
    pub fn reader_grace(self, reader_grace: Duration) -> Self {
        Self { reader_grace, ..self }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// `InvalidRequest` names the option, its value and the range.
    pub(super) fn validate(&self) -> Result<()> {
        let counts = [
            ("max_sequences", self.max_sequences),
            ("max_step_tokens", self.max_step_tokens),
            ("stream_interval", self.stream_interval),
            ("unread", self.unread),
            ("pages", self.pages.unwrap_or(1)),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid_request(format!("{name} is 0, expected at least 1")));
        }
        if self.max_step_tokens < self.max_sequences {
            return Err(Error::invalid_request(format!(
                "max_step_tokens is {} and max_sequences {}, expected at least a token for each",
                self.max_step_tokens, self.max_sequences
            )));
        }
        if !(0.0..=1.0).contains(&self.prefix_cache) {
            return Err(Error::invalid_request(format!(
                "prefix_cache is {}, expected a share of 0 to 1",
                self.prefix_cache
            )));
        }
        Ok(())
    }
}

/// Which requests go first. Among equals the one that came first does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// What can wait.
    Low,
    /// What is not said to be anything else.
    #[default]
    Normal,
    /// What somebody waits for.
    High,
}

/// A request with what an [`super::Engine`] wants to know beside it. Every request is one.
///
/// ```
/// use gpt_oss_puzzle::{Call, ChatRequest, Priority};
///
/// let call = Call::new(ChatRequest::user("Hello")).priority(Priority::High).cache_salt("tenant 7");
/// assert_eq!(call.deadline, None);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Call<R> {
    /// The request.
    pub request: R,
    /// Whether it goes before or after others; `None` for [`EngineOptions::priority`].
    pub priority: Option<Priority>,
    /// From the call on, after which the answer ends as it is, with
    /// [`Deadline`](crate::generation::FinishReason::Deadline); one that has not begun by then is an error,
    /// [`Deadline`](crate::ErrorKind::Deadline). `None` for [`EngineOptions::deadline`].
    pub deadline: Option<Duration>,
    /// Only requests with the same salt begin with what each other have cached: one per tenant keeps the time
    /// to the first token from telling one tenant what another has asked.
    pub cache_salt: Option<String>,
}

impl<R> Call<R> {
    /// A call with nothing beside its request.
    pub fn new(request: R) -> Call<R> {
        Call { request, priority: None, deadline: None, cache_salt: None }
    }

    /// Sets [`Call::priority`].
    pub fn priority(self, priority: Priority) -> Self {
        Self { priority: Some(priority), ..self }
    }

    /// Sets [`Call::deadline`].
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Sets [`Call::cache_salt`].
    pub fn cache_salt(self, cache_salt: impl Into<String>) -> Self {
        Self { cache_salt: Some(cache_salt.into()), ..self }
    }

    /// The same beside another request.
    pub(super) fn with<T>(self, request: T) -> (Call<T>, R) {
        let Call { request: old, priority, deadline, cache_salt } = self;
        (Call { request, priority, deadline, cache_salt }, old)
    }
}

impl<R> From<R> for Call<R> {
    fn from(request: R) -> Call<R> {
        Call::new(request)
    }
}

impl From<&ChatRequest> for Call<ChatRequest> {
    fn from(request: &ChatRequest) -> Call<ChatRequest> {
        Call::new(request.clone())
    }
}

impl From<&GenerateOptions> for Call<GenerateOptions> {
    fn from(options: &GenerateOptions) -> Call<GenerateOptions> {
        Call::new(options.clone())
    }
}
