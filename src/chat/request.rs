//! [`ChatRequest`]: what a chat is asked for.

use super::{Format, Reasoning};
use crate::generation::SamplingParams;
use crate::harmony::{BuiltinTool, Effort, Message, RenderRequest, Tool, ToolChoice};
use serde::{Deserialize, Serialize};

/// A conversation and how to go on with it.
///
/// ```
/// use gpt_oss_puzzle::chat::ChatRequest;
/// use gpt_oss_puzzle::harmony::{Effort, Message};
///
/// let request = ChatRequest::new([Message::system("Be brief."), Message::user("Why is the sky blue?")])
///     .effort(Effort::Low)
///     .max_tokens(200)
///     .date("2026-01-02");
/// # assert_eq!(request.messages.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Function tools on offer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Builtin tools on offer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub builtin_tools: Vec<BuiltinTool>,
    /// Whether the tools are on offer in this turn, and whether one has to be called.
    pub tool_choice: ToolChoice,
    /// How much to think.
    pub effort: Effort,
    /// Who the model is; `None` for the sentence it was trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The current date as `YYYY-MM-DD`; `None` for today in UTC, which a [`super::ChatSession`] looks
    /// up once. Answers are reproducible only with an explicit one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// How tokens are drawn; what it leaves open is the checkpoint's default.
    pub sampling: SamplingParams,
    /// Most tokens to generate, chain of thought and message headers included; `None` goes on until
    /// the context is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Reports each token's log-probability and those of this many most likely tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<usize>,
    /// How long to think, and what of it to show.
    #[serde(skip_serializing_if = "Reasoning::is_default")]
    pub reasoning: Reasoning,
    /// Texts that end the answer, none of them empty; the first to come up does, and neither it nor
    /// what follows is part of the answer. Looked for in the answer alone: not in the chain of thought,
    /// words before a tool call, or arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What the answer's text has to follow; `None` for any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
}

impl ChatRequest {
    /// Goes on with a conversation.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> ChatRequest {
        ChatRequest { messages: messages.into_iter().collect(), ..ChatRequest::default() }
    }

    /// Asks one question.
    pub fn user(text: impl Into<String>) -> ChatRequest {
        ChatRequest::new([Message::user(text)])
    }

    /// Adds a message.
    pub fn message(mut self, message: impl Into<Message>) -> Self {
        self.messages.push(message.into());
        self
    }

    /// Adds to [`ChatRequest::tools`].
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// Adds to [`ChatRequest::builtin_tools`].
    pub fn builtin_tools(mut self, tools: impl IntoIterator<Item = BuiltinTool>) -> Self {
        self.builtin_tools.extend(tools);
        self
    }

    /// Sets [`ChatRequest::tool_choice`].
    pub fn tool_choice(self, tool_choice: ToolChoice) -> Self {
        Self { tool_choice, ..self }
    }

    /// Sets [`ChatRequest::effort`].
    pub fn effort(self, effort: Effort) -> Self {
        Self { effort, ..self }
    }

    /// Sets [`ChatRequest::identity`].
    pub fn identity(self, identity: impl Into<String>) -> Self {
        Self { identity: Some(identity.into()), ..self }
    }

    /// Sets [`ChatRequest::date`].
    pub fn date(self, date: impl Into<String>) -> Self {
        Self { date: Some(date.into()), ..self }
    }

    /// Sets [`ChatRequest::sampling`].
    pub fn sampling(self, sampling: SamplingParams) -> Self {
        Self { sampling, ..self }
    }

    /// Sets [`ChatRequest::max_tokens`].
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    /// Sets [`ChatRequest::logprobs`].
    pub fn logprobs(self, top: usize) -> Self {
        Self { logprobs: Some(top), ..self }
    }

    /// The tools on offer in this turn.
    pub(super) fn offered(&self) -> (&[Tool], &[BuiltinTool]) {
        match self.tool_choice {
            ToolChoice::None => (&[], &[]),
            _ => (&self.tools, &self.builtin_tools),
        }
    }

    /// Sets [`ChatRequest::reasoning`].
    pub fn reasoning(self, reasoning: Reasoning) -> Self {
        Self { reasoning, ..self }
    }

    /// Adds to [`ChatRequest::stop`].
    pub fn stop<S: Into<String>>(mut self, texts: impl IntoIterator<Item = S>) -> Self {
        self.stop.extend(texts.into_iter().map(Into::into));
        self
    }

    /// Sets [`ChatRequest::format`].
    pub fn format(self, format: Format) -> Self {
        Self { format: Some(format), ..self }
    }

    /// Whether the model may call tools.
    pub(super) fn offers_tools(&self) -> bool {
        let (tools, builtin_tools) = self.offered();
        !tools.is_empty() || !builtin_tools.is_empty()
    }

    /// Whether the model has to call one.
    pub(super) fn requires_call(&self) -> bool {
        matches!(self.tool_choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// What the renderer is given.
    pub(super) fn render_request(&self) -> RenderRequest<'_> {
        let (tools, builtin_tools) = self.offered();
        RenderRequest {
            messages: &self.messages,
            tools,
            builtin_tools,
            effort: self.effort,
            identity: self.identity.as_deref(),
            date: self.date.as_deref(),
            ..RenderRequest::default()
        }
    }
}
