//! Conversations: [`Model`] answers a [`ChatRequest`] with a stream of [`ChatEvent`]s or a
//! [`ChatResponse`], a [`ChatSession`] keeps a conversation together with its cached past, and
//! [`ChatSession::run_tools`] runs the tools that the model calls. [`openai`] has the shapes of
//! OpenAI's chat API; a [`Format`] is what an answer has to follow.
//!
//! The top of the crate: it loads a checkpoint into the layers below, has [`crate::harmony`] write
//! the prompt and read the answer, and has [`crate::generation`] run the model in between. It knows
//! nothing of tensors.

mod boundaries;
mod budget;
mod builder;
mod format;
#[cfg(feature = "structured")]
mod grammar;
#[cfg(not(feature = "structured"))]
#[path = "no_grammar.rs"]
mod grammar;
mod guide;
#[cfg(feature = "structured")]
mod json_schema;
mod model;
pub mod openai;
mod reasoning;
mod request;
mod response;
mod room;
mod session;
mod stop_strings;
mod stream;
mod tools;
mod turn;
mod typed;

pub(crate) use boundaries::boundaries;
pub use builder::ModelBuilder;
pub use format::Format;
pub use model::{Model, Prompt};
pub use reasoning::{Reasoning, ReasoningCut};
pub use request::ChatRequest;
pub use response::{ChatEvent, ChatResponse, TokenLogprob, TopLogprob};
pub use session::ChatSession;
pub use stop_strings::StopStrings;
pub use stream::ChatStream;
pub use tools::{ToolErrors, ToolLoop, ToolLoopHandle};
pub(crate) use turn::Turn;
pub use typed::AnswerError;
