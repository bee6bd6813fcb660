//! gpt-oss-puzzle (docs to come)
#![deny(unsafe_code)]

pub mod config;
mod error;
pub mod weights;
#[doc(hidden)]
pub mod kernels;
pub mod cache;
pub mod model;
mod ops;
pub mod generation;
pub mod tokenizer;
pub mod harmony;
mod chat;

pub use config::{BlockConfig, ModelConfig, RopeConfig};
pub use error::{Error, ErrorKind, Result};
