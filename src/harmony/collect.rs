//! From events back to messages.

use super::event::{Content, Event, Header, Repair, Terminator};
use super::message::{AssistantMessage, Item, ToolCall, ToolKind};
use serde::{Deserialize, Serialize};

/// A message as it stood in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParsedMessage {
    /// Its header.
    #[serde(flatten)]
    pub header: Header,
    /// Its content, whole.
    pub content: String,
    /// What ended it; `None` while it is open.
    pub end: Option<Terminator>,
}

/// Collects a parser's events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collector {
    messages: Vec<ParsedMessage>,
    repairs: Vec<Repair>,
}

impl Collector {
    /// Takes the next event.
    pub fn push(&mut self, event: Event) {
        match event {
            Event::Open(header) => {
                self.messages.push(ParsedMessage { header, content: String::new(), end: None })
            }
            Event::Delta(text) => {
                if let Some(message) = self.messages.last_mut() {
                    message.content += &text;
                }
            }
            Event::Close(end) => {
                if let Some(message) = self.messages.last_mut() {
                    message.end = Some(end);
                }
            }
            Event::Repaired(repair) => self.repairs.push(repair),
        }
    }

    /// The messages so far.
    pub fn messages(&self) -> &[ParsedMessage] {
        &self.messages
    }

    /// The repairs so far.
    pub fn repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// The assistant's messages so far as one turn, empty ones left out. Tool calls are numbered:
    /// `call_0`, `call_1`.
    pub fn assistant(&self) -> AssistantMessage {
        let mut items = Vec::new();
        let mut calls = 0;
        for message in &self.messages {
            let text = message.content.clone();
            match message.header.content() {
                Some(Content::ToolCall) => {
                    items.push(Item::ToolCall(message.tool_call(format!("call_{calls}"))));
                    calls += 1;
                }
                _ if text.is_empty() => {}
                Some(Content::Reasoning) => items.push(Item::Reasoning { text }),
                Some(Content::Preamble) => items.push(Item::Preamble { text }),
                Some(Content::Text) => items.push(Item::Text { text }),
                None => {}
            }
        }
        AssistantMessage { items }
    }
}

impl ParsedMessage {
    /// The message as a tool call. It is incomplete when the stream ended inside it, or when another
    /// message interrupted what does not read as JSON.
    fn tool_call(&self, id: String) -> ToolCall {
        let recipient = self.header.recipient.as_deref().unwrap_or_default();
        let (kind, name) = match recipient.strip_prefix("functions.") {
            Some(name) => (ToolKind::Function, name),
            None => (ToolKind::Builtin, recipient),
        };
        let expected = match kind {
            ToolKind::Function => "json",
            ToolKind::Builtin => "code",
        };
        let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&self.content).is_ok();
        ToolCall {
            id,
            name: name.to_owned(),
            arguments: self.content.clone(),
            kind,
            content_type: self.header.content_type.clone().filter(|t| t != expected),
            incomplete: match self.end {
                Some(Terminator::Truncated) | None => true,
                Some(Terminator::Implicit) => !is_json(),
                Some(_) => false,
            },
        }
    }
}
