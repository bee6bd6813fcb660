//! Token generation: prefill in chunks, decode one token at a time, sample, stop.
//!
//! [`Generator`] drives one sequence of the model and is an iterator of tokens; what an answer does between
//! two tokens is a `Lane`'s, and one step for one answer or for many is in `step`. [`SamplingParams`]
//! says how a token is drawn from the logits and [`sampling`] documents the order of the steps;
//! [`GenerationConfig`] reads the checkpoint's defaults; [`StopTokens`] decides where an answer ends,
//! a [`TokenSet`] which tokens may come next;
//! [`logprobs`] reports how likely the tokens were.
//!
//! Everything here is token ids and logits. It sits above [`crate::model`] and [`crate::cache`] and
//! must not know of text, messages or channels: those belong to [`crate::chat`].

mod config;
mod drive;
mod generator;
mod lane;
pub mod logprobs;
mod options;
mod ranking;
pub mod sampling;
mod step;
mod stop;
mod token_set;

pub use config::GenerationConfig;
pub(crate) use drive::{Drive, Plain};
pub use generator::{GeneratedToken, Generator};
pub(crate) use lane::{Lane, Limits};
pub use logprobs::{Logprob, TokenLogprobs};
pub use options::{CancelHandle, FinishReason, GenerateOptions, Timings, Usage};
pub use sampling::{Sampler, SamplingParams};
pub(crate) use step::{Feed, Forward, advance, guarded, step};
pub use stop::StopTokens;
pub use token_set::TokenSet;
