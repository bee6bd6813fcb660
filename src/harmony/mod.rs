//! The harmony format: conversations to prompts, token streams to messages.
//!
//! Harmony is how gpt-oss models are spoken to. A conversation is a sequence of messages,
//! `<|start|>HEADER<|message|>CONTENT<|end|>`, whose markers are single tokens. The header names the
//! role (`system`, `developer`, `user`, `assistant`, or a tool), for an assistant's message the
//! channel (`<|channel|>analysis` for its chain of thought, `commentary` for tool calls and the words
//! before them, `final` for the answer), a recipient (`to=functions.get_weather`) and a content type
//! (`<|constrain|>json`). A tool call ends in `<|call|>` and the answer in `<|return|>`, and there
//! the model stops. A prompt ends in an open `<|start|>assistant`.
//!
//! | module | what |
//! |---|---|
//! | `message` | the typed conversation |
//! | `arguments`, `typed` | a call's arguments as a typed value, a tool's declaration from a type |
//! | [`openai`] | conversations from the shape of OpenAI's chat API |
//! | `render` | [`Renderer`]: a conversation to tokens, by one of the two below |
//! | `native`, `typescript`, `builtin` | the typed renderer and its [`Dialect`]s |
//! | `template`, `jinja`, `python_json` | a checkpoint's own chat template |
//! | `parse`, `header`, `draft`, `offer`, `event` | [`Parser`]: tokens to events, repairing what models get wrong |
//! | `collect` | events to messages |
//!
//! Everything here works on text and token ids; nothing knows of models or generation.

mod arguments;
mod builtin;
mod collect;
mod draft;
mod event;
mod header;
mod jinja;
mod message;
mod native;
mod offer;
pub mod openai;
mod parse;
mod python_json;
mod render;
mod template;
#[cfg(feature = "schemars")]
mod typed;
mod typescript;

pub use arguments::{ArgumentsError, ArgumentsRepair, RepairedArguments};
pub use collect::{Collector, ParsedMessage};
pub use event::{Channel, Content, Event, Header, Mode, Primed, Repair, RepairKind, Terminator};
pub use message::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolChoice, ToolKind,
    ToolOutput,
};
pub use native::{ContentType, Dialect, RecipientPosition, TextWithCall, ToolText};
pub use offer::UndeclaredTool;
pub use parse::Parser;
pub use render::{History, RenderRequest, Rendered, Renderer, RendererKind, Untrusted};
pub use template::Template;
pub use typescript::TypeScript;
