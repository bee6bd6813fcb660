//! gpt-oss-puzzle (docs to come)
#![deny(unsafe_code)]
#![warn(unreachable_pub)]

pub mod cache;
pub mod chat;
pub mod config;
mod error;
pub mod generation;
pub mod harmony;
#[doc(hidden)]
pub mod kernels;
pub mod model;
mod ops;
pub mod tokenizer;
pub mod weights;

pub use chat::{ChatEvent, ChatRequest, ChatResponse, ChatSession, ChatStream, Model, ModelBuilder};
pub use config::{BlockConfig, ModelConfig, RopeConfig};
pub use error::{Error, ErrorKind, Result};
