//! The typed renderer: a conversation straight to markers and text, in the dialect asked for.

use super::builtin::{BROWSER, PYTHON};
use super::message::{
    AssistantMessage, BuiltinTool, Item, Message, ToolCall, ToolKind, ToolOutput,
};
use super::python_json;
use super::render::{History, Prompt, RenderRequest};
use super::typescript::{self, TypeScript};
use crate::tokenizer::Special;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The sentence the models were trained with.
pub(super) const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";

/// Where harmony's renderers differ. The two presets are the forms in circulation; a field can be
/// changed to mix them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialect {
    /// Where a tool call names its recipient.
    pub recipient: RecipientPosition,
    /// How a tool call states its content type, unless the call has its own.
    pub content_type: ContentType,
    /// How tool results and tool-call arguments are written.
    pub tool_text: ToolText,
    /// How text beside a tool call in the same message is rendered.
    pub text_with_call: TextWithCall,
    /// The form of tool declarations.
    pub typescript: TypeScript,
    /// Whether instructions end in a blank line also when no tools follow.
    pub blank_after_instructions: bool,
    /// Whether there is always a date line; else only when the request has a date.
    pub always_dated: bool,
    /// Which analysis of earlier turns stays in the prompt.
    pub history: History,
}

/// Where a tool call names its recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecipientPosition {
    /// `<|start|>assistant to=functions.f<|channel|>commentary`
    InRole,
    /// `<|start|>assistant<|channel|>commentary to=functions.f`
    AfterChannel,
}

/// How a tool call states its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContentType {
    /// ` json`
    Plain,
    /// ` <|constrain|>json`
    Constrain,
}

/// How tool results and arguments are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolText {
    /// As they are.
    Raw,
    /// As JSON in Python's spacing: a result becomes a quoted string.
    Json,
}

/// How [`Item::Text`] before a tool call of the same message is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextWithCall {
    /// As a preamble, on the commentary channel.
    Preamble,
    /// As analysis, unless the message has analysis of its own.
    Analysis,
}

impl Dialect {
    /// What OpenAI's harmony library writes (with its `<|constrain|>` before content types, as models
    /// emit it), and the history its documentation asks for.
    pub fn harmony() -> Dialect {
        Dialect {
            recipient: RecipientPosition::InRole,
            content_type: ContentType::Constrain,
            tool_text: ToolText::Raw,
            text_with_call: TextWithCall::Preamble,
            typescript: TypeScript::Harmony,
            blank_after_instructions: false,
            always_dated: false,
            history: History::CurrentTurn,
        }
    }

    /// What the checkpoints' own chat template writes.
    pub fn template() -> Dialect {
        Dialect {
            recipient: RecipientPosition::InRole,
            content_type: ContentType::Plain,
            tool_text: ToolText::Json,
            text_with_call: TextWithCall::Analysis,
            typescript: TypeScript::Template,
            blank_after_instructions: true,
            always_dated: true,
            history: History::Template,
        }
    }
}

/// Renders `request`, whose date is settled, in `dialect`.
pub(super) fn render(dialect: &Dialect, request: &RenderRequest<'_>) -> Prompt {
    let mut writer = Writer { dialect, request, out: Prompt::default() };
    writer.system();
    let mut messages = request.messages.iter().enumerate();
    if let Some((_, Message::System { content } | Message::Developer { content })) =
        messages.clone().next()
    {
        messages.next();
        writer.developer(content, true);
    } else {
        writer.developer("", true);
    }
    for (index, message) in messages {
        match message {
            Message::System { content } | Message::Developer { content } => {
                writer.developer(content, false)
            }
            Message::User { content } => writer.message("user", content),
            Message::Assistant(message) => writer.assistant(index, message),
            Message::Tool(output) => writer.tool_output(output),
        }
    }
    if request.add_generation_prompt {
        writer.out.marker(Special::Start);
        writer.out.text("assistant");
    }
    writer.out
}

struct Writer<'a> {
    dialect: &'a Dialect,
    request: &'a RenderRequest<'a>,
    out: Prompt,
}

impl Writer<'_> {
    /// One message: header and content between its markers.
    fn write(
        &mut self,
        header: impl FnOnce(&mut Prompt) -> &mut Prompt,
        content: &str,
        end: Special,
    ) {
        self.out.marker(Special::Start);
        header(&mut self.out);
        self.out.marker(Special::Message);
        self.out.text(content);
        self.out.marker(end);
    }

    fn message(&mut self, role: &str, content: &str) {
        self.write(|out| out.text(role), content, Special::End);
    }

    /// A message of the assistant to nobody in particular.
    fn say(&mut self, channel: &str, content: &str, end: Special) {
        self.write(|out| out.text("assistant").channel(channel), content, end);
    }

    fn system(&mut self) {
        let request = self.request;
        let mut text =
            format!("{}\nKnowledge cutoff: 2024-06\n", request.identity.unwrap_or(IDENTITY));
        if let Some(date) = request.date {
            text += &format!("Current date: {date}\n");
        }
        text += &format!("\nReasoning: {}\n\n", request.effort.as_str());
        if !request.builtin_tools.is_empty() {
            text += "# Tools\n\n";
            for (tool, section) in [(BuiltinTool::Browser, BROWSER), (BuiltinTool::Python, PYTHON)]
            {
                if request.builtin_tools.contains(&tool) {
                    text += section;
                }
            }
        }
        text += "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
        if !request.tools.is_empty() {
            text += "\nCalls to these tools must go to the commentary channel: 'functions'.";
        }
        self.message("system", &text);
    }

    fn developer(&mut self, instructions: &str, first: bool) {
        let tools = if first { self.request.tools } else { &[] };
        if instructions.is_empty() && tools.is_empty() {
            return;
        }
        let mut text = String::new();
        if !instructions.is_empty() {
            text += &format!("# Instructions\n\n{instructions}");
            if self.dialect.blank_after_instructions || !tools.is_empty() {
                text += "\n\n";
            }
        }
        if !tools.is_empty() {
            text +=
                &format!("# Tools\n\n{}", typescript::functions(tools, self.dialect.typescript));
        }
        self.message("developer", &text);
    }

    fn assistant(&mut self, index: usize, message: &AssistantMessage) {
        let keep = self.dialect.history.keeps(self.request, index);
        let has_reasoning = message.items.iter().any(|i| matches!(i, Item::Reasoning { .. }));
        let last_call = message.items.iter().rposition(|i| matches!(i, Item::ToolCall(_)));
        let last_message = index + 1 == self.request.messages.len();
        for (at, item) in message.items.iter().enumerate() {
            let before_call = last_call.is_some_and(|call| at < call);
            match item {
                Item::Reasoning { text } if keep => self.say("analysis", text, Special::End),
                Item::Reasoning { .. } => {}
                Item::Preamble { text } => self.say("commentary", text, Special::End),
                Item::ToolCall(call) => self.tool_call(call),
                Item::Text { text } if before_call => {
                    let as_analysis =
                        self.dialect.text_with_call == TextWithCall::Analysis && !has_reasoning;
                    match text.as_str() {
                        "" => {}
                        text if !as_analysis => self.say("commentary", text, Special::End),
                        text if keep => self.say("analysis", text, Special::End),
                        _ => {}
                    }
                }
                Item::Text { text } => {
                    let last = last_message && at + 1 == message.items.len();
                    let training = last && !self.request.add_generation_prompt;
                    self.say("final", text, if training { Special::Return } else { Special::End });
                }
            }
        }
    }

    fn tool_call(&mut self, call: &ToolCall) {
        let Dialect { recipient: position, content_type: style, tool_text, .. } = *self.dialect;
        let recipient = format!(" to={}", call.recipient());
        let (channel, arguments) = match call.kind {
            ToolKind::Function if tool_text == ToolText::Json => {
                ("commentary", as_json(&call.arguments))
            }
            ToolKind::Function => ("commentary", call.arguments.clone()),
            ToolKind::Builtin => ("analysis", call.arguments.clone()),
        };
        let constrained =
            call.content_type.as_deref().and_then(|t| t.strip_prefix("<|constrain|>"));
        let (constrain, content_type) = match (constrained, call.content_type.as_deref(), call.kind)
        {
            (Some(rest), _, _) => (true, rest),
            (None, Some(content_type), _) => (false, content_type),
            (None, None, ToolKind::Function) => (style == ContentType::Constrain, "json"),
            (None, None, ToolKind::Builtin) => (false, "code"),
        };
        self.write(
            |out| {
                out.text("assistant");
                if position == RecipientPosition::InRole {
                    out.text(&recipient);
                }
                out.channel(channel);
                if position == RecipientPosition::AfterChannel {
                    out.text(&recipient);
                }
                out.text(" ");
                if constrain {
                    out.marker(Special::Constrain);
                }
                out.text(content_type)
            },
            &arguments,
            Special::Call,
        );
    }

    fn tool_output(&mut self, output: &ToolOutput) {
        let role = format!("{} to=assistant", output.kind.recipient(&output.name));
        let (channel, content) = match output.kind {
            ToolKind::Function if self.dialect.tool_text == ToolText::Json => {
                ("commentary", python_json::to_string(&Value::String(output.content.clone())))
            }
            ToolKind::Function => ("commentary", output.content.clone()),
            ToolKind::Builtin => ("analysis", output.content.clone()),
        };
        self.write(|out| out.text(&role).channel(channel), &content, Special::End);
    }
}

/// Arguments in Python's spacing; text that is not JSON becomes a JSON string, as in the template.
pub(super) fn arguments_value(arguments: &str) -> Value {
    serde_json::from_str(arguments).unwrap_or_else(|_| Value::String(arguments.to_owned()))
}

fn as_json(arguments: &str) -> String {
    python_json::to_string(&arguments_value(arguments))
}
