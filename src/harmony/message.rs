//! The typed conversation: messages, tool declarations, and what an assistant's turn is made of.
//! Plain data with serde; rendering and parsing live in the sibling modules.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Message {
    /// Instructions in the OpenAI sense of a system message. Harmony has its own system message
    /// (identity, date, effort, channels), so these are rendered as developer instructions.
    System {
        /// The instructions.
        content: String,
    },
    /// Instructions of the application.
    Developer {
        /// The instructions.
        content: String,
    },
    /// What the user says.
    User {
        /// The text.
        content: String,
    },
    /// A turn of the model.
    Assistant(AssistantMessage),
    /// The result of a tool call.
    Tool(ToolOutput),
}

impl Message {
    /// Instructions, rendered as a developer message.
    pub fn system(content: impl Into<String>) -> Message {
        Message::System { content: content.into() }
    }

    /// Instructions of the application.
    pub fn developer(content: impl Into<String>) -> Message {
        Message::Developer { content: content.into() }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Message {
        Message::User { content: content.into() }
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::Assistant(AssistantMessage { items: vec![Item::text(content)] })
    }

    /// The result of `call`.
    pub fn tool(call: &ToolCall, content: impl Into<String>) -> Message {
        Message::Tool(ToolOutput {
            name: call.name.clone(),
            kind: call.kind,
            call_id: Some(call.id.clone()),
            content: content.into(),
        })
    }
}

impl From<AssistantMessage> for Message {
    fn from(message: AssistantMessage) -> Message {
        Message::Assistant(message)
    }
}

/// A turn of the model: its parts in the order in which they were said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// The parts.
    pub items: Vec<Item>,
}

impl AssistantMessage {
    /// The answer: all [`Item::Text`] joined.
    pub fn text(&self) -> String {
        self.items
            .iter()
            .filter_map(|i| if let Item::Text { text } = i { Some(text.as_str()) } else { None })
            .collect()
    }

    /// The analysis: all [`Item::Reasoning`], separated by newlines. Not meant for end users.
    pub fn reasoning(&self) -> String {
        let parts: Vec<&str> = self
            .items
            .iter()
            .filter_map(
                |i| if let Item::Reasoning { text } = i { Some(text.as_str()) } else { None },
            )
            .collect();
        parts.join("\n")
    }

    /// The tool calls in order.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.items
            .iter()
            .filter_map(|i| if let Item::ToolCall(call) = i { Some(call) } else { None })
    }
}

/// A part of an assistant's turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Item {
    /// Chain of thought, on the analysis channel. Not meant for end users.
    Reasoning {
        /// The text.
        text: String,
    },
    /// What the model tells the user before it calls tools, on the commentary channel.
    Preamble {
        /// The text.
        text: String,
    },
    /// A request to run a tool.
    ToolCall(ToolCall),
    /// The answer, on the final channel.
    Text {
        /// The text.
        text: String,
    },
}

impl Item {
    /// Chain of thought.
    pub fn reasoning(text: impl Into<String>) -> Item {
        Item::Reasoning { text: text.into() }
    }

    /// Words to the user before a tool call.
    pub fn preamble(text: impl Into<String>) -> Item {
        Item::Preamble { text: text.into() }
    }

    /// Part of the answer.
    pub fn text(text: impl Into<String>) -> Item {
        Item::Text { text: text.into() }
    }
}

/// The model's request to run a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Identifies the call within its conversation; harmony itself has no ids.
    #[serde(default)]
    pub id: String,
    /// The tool's name, without the `functions.` that addresses function tools.
    pub name: String,
    /// The arguments exactly as the model wrote them: usually JSON, never checked.
    pub arguments: String,
    /// Which namespace the name lives in.
    #[serde(default, skip_serializing_if = "ToolKind::is_function")]
    pub kind: ToolKind,
    /// The content type of `arguments` where it is not JSON (`code`), or to be rendered in place of
    /// the dialect's own; a leading `<|constrain|>` is that control token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Whether the stream ended inside the arguments. Such a call must not be run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl ToolCall {
    /// A call of a function tool with JSON arguments.
    pub fn function(
        id: impl Into<String>,
        name: impl Into<String>,
        arguments: impl Into<String>,
    ) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
            ..ToolCall::default()
        }
    }

    /// How harmony addresses the tool: `functions.NAME`, or the bare name of a builtin tool.
    pub fn recipient(&self) -> String {
        self.kind.recipient(&self.name)
    }
}

/// Which namespace a tool's name lives in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolKind {
    /// A function of the application, addressed as `functions.NAME`.
    #[default]
    Function,
    /// A tool the model knows by itself, such as `python` or `browser.search`, addressed by its name.
    Builtin,
}

impl ToolKind {
    fn is_function(&self) -> bool {
        *self == ToolKind::Function
    }

    pub(crate) fn recipient(self, name: &str) -> String {
        match self {
            ToolKind::Function => format!("functions.{name}"),
            ToolKind::Builtin => name.to_owned(),
        }
    }
}

/// What a tool returned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutput {
    /// The tool's name, as in [`ToolCall::name`].
    pub name: String,
    /// Which namespace the name lives in.
    #[serde(default, skip_serializing_if = "ToolKind::is_function")]
    pub kind: ToolKind,
    /// The call this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The result.
    pub content: String,
}

/// A function tool offered to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(default)]
    pub description: String,
    /// JSON schema of its arguments, an object; `None` for a function without arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

impl Tool {
    /// A function tool with a JSON schema of its arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Tool {
        Tool { name: name.into(), description: description.into(), parameters: Some(parameters) }
    }
}

/// Whether the model may call tools, or has to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// The prompt offers no tools. A call that the model invents all the same is reported as the call
    /// it is. The prompt's beginning changes with this, so of what is cached little is reused.
    None,
    /// The model calls a tool on offer, after thinking as long as it likes: its turn cannot become an
    /// answer. With the feature `structured` a function's arguments follow their schema. The prompt is
    /// that of [`ToolChoice::Auto`].
    Required,
    /// The same with the function of this name.
    Named(String),
}

/// A tool the model was trained with and knows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BuiltinTool {
    /// Web search: `browser.search`, `browser.open`, `browser.find`.
    Browser,
    /// A Jupyter kernel: `python`.
    Python,
}

impl BuiltinTool {
    /// The tool that calls of `name`, such as `browser.search`, are for.
    pub(crate) fn of(name: &str) -> Option<BuiltinTool> {
        let namespace = name.split('.').next();
        let all = [BuiltinTool::Browser, BuiltinTool::Python];
        all.into_iter().find(|tool| Some(tool.namespace()) == namespace)
    }

    /// How its functions are addressed.
    pub(crate) fn recipients(self) -> &'static [&'static str] {
        match self {
            BuiltinTool::Browser => &["browser.search", "browser.open", "browser.find"],
            BuiltinTool::Python => &["python"],
        }
    }

    /// What the names of its functions begin with: `browser`, `python`.
    pub(crate) fn namespace(self) -> &'static str {
        match self {
            BuiltinTool::Browser => "browser",
            BuiltinTool::Python => "python",
        }
    }
}

/// How much the model is asked to think before it answers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Effort {
    /// Little.
    Low,
    /// The model's default.
    #[default]
    Medium,
    /// Much.
    High,
}

impl Effort {
    /// `low`, `medium` or `high`, as written in the prompt.
    pub fn as_str(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

impl std::str::FromStr for Effort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Effort> {
        match text {
            "low" => Ok(Effort::Low),
            "medium" => Ok(Effort::Medium),
            "high" => Ok(Effort::High),
            _ => Err(Error::invalid_request(format!(
                "reasoning effort is {text:?}, expected low, medium or high"
            ))),
        }
    }
}
