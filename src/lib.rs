//! Run NVIDIA's gpt-oss-puzzle-88B and its parents, gpt-oss-120b and gpt-oss-20b, inside a Rust
//! program: no server, no Python, typed results.
//!
//! ```no_run
//! use gpt_oss_puzzle::{ChatEvent, ChatRequest, Model};
//!
//! let model = Model::load("path/to/gpt-oss-puzzle-88B")?;
//! for event in model.chat_stream(&ChatRequest::user("Why is the sky blue?"))? {
//!     match event? {
//!         ChatEvent::Reasoning(text) => eprint!("{text}"), // not for end users
//!         ChatEvent::Text(text) => print!("{text}"),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), gpt_oss_puzzle::Error>(())
//! ```
//!
//! # Reading order
//!
//! The modules in the order data flows through them; none reaches back.
//!
//! 1. [`config`]: config.json, typed and validated; what differs from layer to layer.
//! 2. [`weights`]: the checkpoint's tensors, mapped, checked, left as stored.
//! 3. `kernels`: the arithmetic over slices, each with an f64 reference and a stated accuracy.
//! 4. `ops`: the kernels as candle custom ops, the only place where the two meet.
//! 5. [`cache`]: keys and values in pages shared by all layers; sequences fork and truncate.
//! 6. [`model`]: the transformer, from a flat ragged batch of tokens to logits. candle's world.
//! 7. [`generation`]: sampling, stops, log-probabilities, and the loop that makes tokens.
//! 8. [`tokenizer`]: text to token ids and back, a character at a time.
//! 9. [`harmony`]: conversations to prompts, token streams to messages.
//! 10. [`chat`]: [`Model`], [`ChatStream`] and [`ChatSession`], what most programs use.
//! 11. [`serving`]: [`Engine`], which makes many answers at once, for services.
//!
//! # Features
//!
//! - `hub` (default): [`Model::builder`] takes `owner/name` and downloads it. Without it the crate has
//!   no network code.
//! - `schemars`: `harmony::Tool::typed` declares a tool from a type with `#[derive(JsonSchema)]`.
//! - `structured`: answers follow a [`chat::Format`], and the arguments of required calls their schema.
//!   With `schemars`, `Model::chat_as` answers with a value of such a type.
//! - `stream`: [`Answer`] is a `futures_core::Stream`, for any async runtime.
//! - `cuda`: the model on an NVIDIA GPU of compute capability 8.0 or above. Building needs nvcc 12.8 or
//!   newer and a C++ compiler; running needs the driver, cuBLAS and cuRAND.
//!
//! # Environment
//!
//! `MAX_CPU_ISA=scalar|avx2|avx512` caps the instruction set, for tests and bug reports. Nothing else
//! is read from the environment, but for the hub's own variables when a model is downloaded.

#![deny(unsafe_code)]
#![warn(unreachable_pub)]

pub mod config;
mod error;
pub mod weights;
#[doc(hidden)]
pub mod kernels;
mod ops;
pub mod cache;
pub mod model;
pub mod generation;
pub mod tokenizer;
pub mod harmony;
pub mod chat;
pub mod serving;

pub use chat::{
    ChatEvent, ChatRequest, ChatResponse, ChatSession, ChatStream, Model, ModelBuilder,
};
pub use config::{BlockConfig, ModelConfig, RopeConfig};
pub use error::{Error, ErrorKind, Result};
pub use serving::{Answer, Call, Engine, EngineOptions, Priority, Stats};

/// The README's examples compile.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;
