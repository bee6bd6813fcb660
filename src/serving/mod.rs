//! Many answers at once: an [`Engine`] makes the answers of all who ask it together, so that a step reads the
//! weights once for all of them.
//!
//! A request is written and checked on its caller's thread and goes through the `inbox` to the engine's own
//! (`run`), which has a `scheduler`: a turn of it plans a step (`scheduler::plan`), has the model compute it
//! ([`crate::generation`]) and sends what came of it to each [`Answer`]. Answers that run have pages and go on in
//! every step; others wait. What prompts begin with stays cached for those that begin alike, for as long as its
//! pages are not needed.
//!
//! An answer is the same whoever else is answered: bit for bit on the CPU, and on a GPU where its kernels give a
//! row the same bits in any company, which they do for steps of up to 256 tokens. In longer steps there, which
//! prompts of some length make, the last bits may depend on how a prompt was cut into steps.
//!
//! It sits above [`crate::chat`], whose turns it drives, and knows nothing of tensors, HTTP or async runtimes.

mod answer;
mod engine;
mod inbox;
mod job;
mod options;
mod request;
mod run;
mod scheduler;
mod stats;
#[cfg(test)]
mod tests;
mod timed;

pub use answer::{Answer, Event, Generated};
pub use engine::Engine;
pub use options::{Call, EngineOptions, Priority};
pub use stats::{Histogram, Stats};
