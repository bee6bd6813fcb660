//! What the parser reports: events, message headers, repairs.

use serde::{Deserialize, Serialize};

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

impl Channel {
    /// The channels the system message declares.
    pub(super) const KNOWN: [(&'static str, Channel); 3] = [
        ("analysis", Channel::Analysis),
        ("commentary", Channel::Commentary),
        ("final", Channel::Final),
    ];

    /// The channel's name.
    pub fn as_str(&self) -> &str {
        match self {
            Channel::Analysis => "analysis",
            Channel::Commentary => "commentary",
            Channel::Final => "final",
            Channel::Other(name) => name,
        }
    }
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

/// What the content of an assistant's message is to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// An assistant's header on `channel`, such as [`super::Primed::Content`] wants.
    pub fn assistant(channel: Channel) -> Header {
        Header { role: "assistant".into(), channel: Some(channel), ..Header::default() }
    }

    /// What the content of a message with this header is; `None` when it is not the assistant's.
    ///
    /// A recipient makes it a tool call on any channel but final: models put nearly half of theirs on
    /// analysis. An unknown channel is never shown to the user; no channel at all is an answer.
    pub fn content(&self) -> Option<Content> {
        if self.role != "assistant" {
            return None;
        }
        Some(match (&self.channel, &self.recipient) {
            (Some(Channel::Final), _) | (None, None) => Content::Text,
            (_, Some(_)) => Content::ToolCall,
            (Some(Channel::Commentary), None) => Content::Preamble,
            (Some(Channel::Analysis | Channel::Other(_)), None) => Content::Reasoning,
        })
    }
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
///
/// No string in an event contains a control token's text, unless ordinary tokens spelled it.
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
    /// The stream was malformed, and the events around this one are how it was understood.
    Repaired(Repair),
}

/// A malformed place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repair {
    /// What was wrong.
    pub kind: RepairKind,
    /// Index of the token at which it was noticed, counted from the first one pushed.
    pub token_index: usize,
    /// The text concerned, for a header all of it: what the repair leaves out of events is here.
    pub raw: String,
}

/// What was wrong with the stream, and what was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RepairKind {
    /// A header without `<|start|>`: taken as the assistant's.
    MissingStart,
    /// A header with a repeated `<|start|>` or role: taken once.
    RepeatedStart,
    /// A header without a role, or with one nobody has: taken as the assistant's, or as a call when
    /// the role is a tool's name.
    UnknownRole,
    /// A message of another role in an assistant's turn, such as an invented tool result: dropped,
    /// with all that follows.
    ForeignRole,
    /// A header without `<|message|>`: the channel's name was cut off, the rest is content.
    MissingMessage,
    /// Text without any header: taken as the answer.
    MissingHeader,
    /// A header that the end of the stream, or of the message, cut off: dropped.
    TruncatedHeader,
    /// `<|channel|>` without a name: no channel.
    EmptyChannel,
    /// Several channels: the last known one counts.
    DuplicateChannel,
    /// A misspelled channel: the known one it contains or begins.
    MisspelledChannel,
    /// An unknown channel: its content is treated as reasoning.
    UnknownChannel,
    /// Several recipients: the first counts, unless only another is a tool on offer.
    DuplicateRecipient,
    /// A channel named without `<|channel|>`: taken as the channel.
    BareChannel,
    /// A tool named without `to=`: taken as the recipient.
    BareRecipient,
    /// A recipient that is no tool (`assistant`, `user`, `all`): none.
    SelfRecipient,
    /// A decorated tool name (`functions.f.json`, `tool.functions.f`, `fjson`): the tool on offer.
    DecoratedName,
    /// A call of a tool that is not on offer: what becomes of it is the parser's
    /// [`super::UndeclaredTool`].
    UndeclaredTool,
    /// Words in a header that mean nothing, or bytes that are no characters: left out, or replaced.
    UnexpectedText,
    /// A message that a new one interrupted: closed.
    MissingEnd,
    /// A control token where it means nothing: left out.
    UnexpectedMarker,
    /// A token id that is not in the vocabulary: left out.
    UnknownToken,
    /// Tokens after the end of the turn: left out.
    AfterEnd,
}

impl RepairKind {
    /// What was wrong, as error messages say it.
    pub(super) fn problem(self) -> &'static str {
        match self {
            RepairKind::MissingStart => "a header without <|start|>",
            RepairKind::RepeatedStart => "a repeated <|start|> or role",
            RepairKind::UnknownRole => "a header without a known role",
            RepairKind::ForeignRole => "a message that is not the assistant's",
            RepairKind::MissingMessage => "a header without <|message|>",
            RepairKind::MissingHeader => "text without a header",
            RepairKind::TruncatedHeader => "a header that is cut off",
            RepairKind::EmptyChannel => "a channel without a name",
            RepairKind::DuplicateChannel => "several channels in a header",
            RepairKind::MisspelledChannel => "a misspelled channel",
            RepairKind::UnknownChannel => "an unknown channel",
            RepairKind::DuplicateRecipient => "several recipients in a header",
            RepairKind::BareChannel => "a channel without <|channel|>",
            RepairKind::BareRecipient => "a recipient without to=",
            RepairKind::SelfRecipient => "a recipient that is no tool",
            RepairKind::DecoratedName => "a decorated tool name",
            RepairKind::UndeclaredTool => "a call of a tool that is not on offer",
            RepairKind::UnexpectedText => "unexpected text in a header",
            RepairKind::MissingEnd => "a message without an end",
            RepairKind::UnexpectedMarker => "a control token out of place",
            RepairKind::UnknownToken => "a token that is not in the vocabulary",
            RepairKind::AfterEnd => "tokens after the end of the turn",
        }
    }
}

/// How malformed streams are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// The first malformed place is an error.
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
