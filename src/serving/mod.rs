//! Many answers at once: an [`Engine`] makes the answers of all who ask it together, so that a step reads the
//! weights once for all of them.

mod answer;
mod engine;
mod inbox;
mod job;
mod options;
mod request;
mod run;
mod scheduler;
mod stats;

pub use answer::{Answer, Event, Generated};
pub use engine::Engine;
pub use options::{Call, EngineOptions, Priority};
pub use stats::{Histogram, Stats};
