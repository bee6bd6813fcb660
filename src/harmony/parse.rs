//! The streaming parser.

use super::message::AssistantMessage;
use crate::Result;
use crate::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The channel a message is on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Channel {
    /// Chain of thought.
    Analysis,
    /// Tool calls, and words to the user before them.
    Commentary,
    /// The answer.
    Final,
    /// Any other name.
    Other(String),
}

/// The header of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `assistant`, `user`, `system`, `developer`, or a tool's name.
    pub role: String,
    /// The channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// Whom it addresses, such as `functions.get_weather`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The content's type, such as `json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Whether `<|constrain|>` preceded the content type.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub constrained: bool,
}

/// What ended a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Terminator {
    /// `<|end|>`
    End,
    /// `<|call|>`
    Call,
    /// `<|return|>`
    Return,
    /// `<|endoftext|>`
    EndOfText,
    /// The next message began without any of these.
    Implicit,
    /// The stream ended.
    Truncated,
}

/// What the parser reports, in order: each message opens, delivers text, and closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "value", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A message begins.
    Open(Header),
    /// Part of its content: whole characters, never empty.
    Delta(String),
    /// It ends.
    Close(Terminator),
    /// The stream was malformed, and this is how it was understood.
    Repaired(Repair),
}

/// A malformed place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repair {
    /// What was wrong.
    pub kind: RepairKind,
    /// Index of the token at which it showed, counted from the first pushed.
    pub token_index: usize,
    /// The text concerned, as far as it is not part of an event.
    pub raw: String,
}

/// What was wrong with the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RepairKind {
    /// A message began without `<|start|>`.
    MissingStart,
}

/// How malformed streams are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Each is an error.
    Strict,
    /// Each is repaired and reported as [`Event::Repaired`].
    #[default]
    Tolerant,
}

/// What the prompt ended in, that is, where in the format the stream begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Primed {
    /// `<|start|>assistant`: the model goes on with the header. The usual case.
    #[default]
    Role,
    /// Inside the content of the message with this header, as after a prefilled beginning.
    Content(Header),
    /// Nothing: the stream is a transcript of any number of messages of any roles.
    Nothing,
}

/// A streaming parser of harmony's token stream.
#[derive(Debug)]
pub struct Parser {}

impl Parser {
    /// A parser for one turn, or one transcript.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Tokenizer`] when the vocabulary lacks a harmony control token.
    pub fn new(tokenizer: Arc<Tokenizer>, primed: Primed, mode: Mode) -> Result<Parser> {
        let _ = (tokenizer, primed, mode);
        unimplemented!()
    }

    /// Names the tools on offer, which settles headers that could be read in two ways.
    pub fn tools<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Parser {
        let _ = names.into_iter().map(Into::into).collect::<Vec<String>>();
        self
    }

    /// Takes the next token and yields the events it completes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Malformed`] in strict mode only.
    pub fn push(&mut self, token: u32) -> Result<std::vec::Drain<'_, Event>> {
        let _ = token;
        unimplemented!()
    }

    /// Ends the stream and yields the last events.
    ///
    /// # Errors
    /// As [`Parser::push`].
    pub fn finish(&mut self) -> Result<std::vec::Drain<'_, Event>> {
        unimplemented!()
    }

    /// The header of the message whose content is being read.
    pub fn header(&self) -> Option<&Header> {
        unimplemented!()
    }
}

/// What the content of a message is to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Content {
    /// Chain of thought.
    Reasoning,
    /// Words to the user before a tool call.
    Preamble,
    /// The arguments of a tool call.
    ToolCall,
    /// The answer.
    Text,
}

impl Header {
    /// What the content of an assistant's message with this header is. A recipient makes it a tool
    /// call on any channel but final.
    pub fn content(&self) -> Content {
        unimplemented!()
    }
}

/// Collects a parser's events into an [`AssistantMessage`].
#[derive(Clone, Debug, Default)]
pub struct Collector {}

impl Collector {
    /// Takes the next event.
    pub fn push(&mut self, event: &Event) {
        let _ = event;
    }

    /// The message so far.
    pub fn message(&self) -> &AssistantMessage {
        unimplemented!()
    }

    /// The message.
    pub fn finish(self) -> AssistantMessage {
        unimplemented!()
    }
}
