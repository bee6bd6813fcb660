//! What a generation is asked for and what it reports: plain data.

use super::SamplingParams;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a [`super::Generator`] is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Most tokens to generate, the one that ends the answer included; `None` goes on until the
    /// context is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Reports each token's log-probability and those of this many most likely tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<usize>,
    /// Further tokens that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop_tokens: Vec<u32>,
    /// Goes on past the model's own end of an answer (vLLM's `ignore_eos`), as measurements want it: only
    /// [`GenerateOptions::stop_tokens`] and the number of tokens end it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_eos: bool,
    /// Longest sequence, prompt included, in tokens; `None` for the model's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Most prompt tokens that go through the model at once: memory and cancellation against speed.
    /// `None` for [`GenerateOptions::PREFILL_CHUNK`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_chunk: Option<usize>,
}

impl GenerateOptions {
    /// The default of [`GenerateOptions::prefill_chunk`].
    pub const PREFILL_CHUNK: usize = 512;

    /// Sets [`GenerateOptions::sampling`].
    pub fn sampling(self, sampling: SamplingParams) -> Self {
        Self { sampling, ..self }
    }

    /// Sets [`GenerateOptions::max_tokens`].
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    /// Sets [`GenerateOptions::logprobs`].
    pub fn logprobs(self, top: usize) -> Self {
        Self { logprobs: Some(top), ..self }
    }

    /// Adds to [`GenerateOptions::stop_tokens`].
    pub fn stop_tokens(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens.extend(ids);
        self
    }

    /// Sets [`GenerateOptions::ignore_eos`].
    pub fn ignore_eos(self) -> Self {
        Self { ignore_eos: true, ..self }
    }

    /// Sets [`GenerateOptions::context`].
    pub fn context(self, tokens: usize) -> Self {
        Self { context: Some(tokens), ..self }
    }

    /// Sets [`GenerateOptions::prefill_chunk`].
    pub fn prefill_chunk(self, tokens: usize) -> Self {
        Self { prefill_chunk: Some(tokens), ..self }
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// The model called a tool and waits for the result; told apart from [`FinishReason::Stop`] by
    /// [`crate::chat`] alone.
    ToolCalls,
    /// It reached the requested number of tokens, or the context is full.
    Length,
    /// A [`CancelHandle`] was used.
    Cancelled,
    /// Its deadline passed; found by [`crate::serving`] alone.
    Deadline,
    /// This stop string came up in the answer; found by [`crate::chat`] alone.
    StopSequence(String),
}

/// How many tokens went where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already.
    pub cached_tokens: usize,
    /// Generated tokens, forced ones and the one that ended the answer included.
    pub completion_tokens: usize,
    /// Those of them that were chain of thought, without message headers; counted by [`crate::chat`].
    pub reasoning_tokens: usize,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timings {
    /// Running the model over the prompt.
    pub prefill: Duration,
    /// From the first call to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Making the tokens that were chain of thought; timed by [`crate::chat`].
    #[serde(default)]
    pub reasoning: Duration,
    /// Making the tokens of the answer's text; timed by [`crate::chat`].
    #[serde(default)]
    pub answer: Duration,
    /// Finding out which tokens a format allows; timed by [`crate::chat`].
    #[serde(default)]
    pub grammar: Duration,
}

impl Timings {
    /// Prompt tokens that were not cached, per second of prefill; 0 when nothing was timed.
    pub fn prefill_rate(&self, usage: &Usage) -> f64 {
        rate(usage.prompt_tokens.saturating_sub(usage.cached_tokens), self.prefill)
    }

    /// Tokens after the first, per second of decode; 0 when nothing was timed.
    pub fn decode_rate(&self, usage: &Usage) -> f64 {
        rate(usage.completion_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// Ends a generation from another thread, before its next step.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the generation to end. A step that is running finishes first.
    pub fn cancel(&self) {
        // Carries no data: the flag itself is all there is to see.
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once [`CancelHandle::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
