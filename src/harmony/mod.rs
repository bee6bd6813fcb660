//! The harmony format: conversations to prompts, token streams to messages.

mod message;
mod native;
mod parse;
mod render;
mod template;

pub use message::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolKind, ToolOutput,
};
pub use native::Dialect;
pub use parse::{
    Channel, Collector, Content, Event, Header, Mode, Parser, Primed, Repair, RepairKind,
    Terminator,
};
pub use render::{RenderRequest, Rendered, Renderer, RendererKind};
pub use template::Template;
