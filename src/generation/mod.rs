//! Token generation: prefill in chunks, decode one token at a time, sample, stop.
//!
//! [`Generator`] drives one sequence of the model and is an iterator of tokens. [`SamplingParams`]
//! says how a token is drawn from the logits and [`sampling`] documents the order of the steps;
//! [`GenerationConfig`] reads the checkpoint's defaults; [`StopTokens`] decides where an answer ends,
//! a [`TokenSet`] which tokens may come next;
//! [`logprobs`] reports how likely the tokens were.
//!
//! Everything here is token ids and logits. It sits above [`crate::model`] and [`crate::cache`] and
//! must not know of text, messages or channels: those belong to [`crate::chat`].

mod config;
mod generator;
pub mod logprobs;
mod options;
mod ranking;
pub mod sampling;
mod stop;
mod token_set;

pub use config::GenerationConfig;
pub use generator::{GeneratedToken, Generator};
pub use logprobs::{Logprob, TokenLogprobs};
pub use options::{CancelHandle, FinishReason, GenerateOptions, Timings, Usage};
pub use sampling::{Sampler, SamplingParams};
pub use stop::StopTokens;
pub use token_set::TokenSet;
