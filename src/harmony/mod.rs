//! The harmony format: conversations to prompts, token streams to messages.

mod builtin;
mod message;
mod native;
pub mod openai;
mod parse;
mod python_json;
mod render;
mod template;
mod typescript;

pub use message::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolKind, ToolOutput,
};
pub use native::{ContentType, Dialect, RecipientPosition, TextWithCall, ToolText};
pub use parse::{
    Channel, Collector, Content, Event, Header, Mode, Parser, Primed, Repair, RepairKind,
    Terminator,
};
pub use render::{History, RenderRequest, Rendered, Renderer, RendererKind};
pub use template::Template;
pub use typescript::TypeScript;
