//! What a prompt is made from, and the two ways to make it.

use super::message::{BuiltinTool, Effort, Message, Tool};
use super::native::Dialect;
use super::template::Template;
use crate::Result;
use crate::tokenizer::Tokenizer;

/// Everything a prompt is made from. `RenderRequest { messages, ..RenderRequest::default() }` reads well.
#[derive(Clone, Copy, Debug)]
pub struct RenderRequest<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// Function tools on offer.
    pub tools: &'a [Tool],
    /// Builtin tools on offer.
    pub builtin_tools: &'a [BuiltinTool],
    /// How much to think.
    pub effort: Effort,
    /// Who the model is; `None` for the trained sentence.
    pub identity: Option<&'a str>,
    /// The current date as `YYYY-MM-DD`; `None` for today in UTC, except in [`Dialect::harmony`],
    /// which then has no date line. Reproducible prompts need an explicit one.
    pub date: Option<&'a str>,
    /// Whether the prompt ends in an open `<|start|>assistant` for the model to go on from. Without,
    /// the conversation is rendered as for training: the last answer ends in `<|return|>`.
    pub add_generation_prompt: bool,
    /// Further variables for a checkpoint's own template; the native renderer has no use for them.
    pub variables: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

impl Default for RenderRequest<'_> {
    fn default() -> Self {
        RenderRequest {
            messages: &[],
            tools: &[],
            builtin_tools: &[],
            effort: Effort::default(),
            identity: None,
            date: None,
            add_generation_prompt: true,
            variables: None,
        }
    }
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The prompt as token ids. Only the renderer's own markers are control tokens: those in the
    /// conversation's text are text.
    pub tokens: Vec<u32>,
    /// The same as text, in which that difference cannot be seen: for people, not for tokenizing.
    pub text: String,
    /// Which renderer made it.
    pub used: RendererKind,
}

/// Which renderer made a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RendererKind {
    /// The typed renderer of this crate.
    Native,
    /// A chat template.
    Template,
}

/// Makes prompts from conversations.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Renderer {
    /// The typed renderer of this crate in one of harmony's dialects.
    Native(Dialect),
    /// A chat template, as transformers would apply it; what it cannot express (several tool calls in
    /// a message, preambles, instructions after the first message) is rendered natively in
    /// [`Dialect::template`].
    Template(Box<Template>),
}

impl Renderer {
    /// Renders to token ids and text.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidMessage`] names the message that cannot be rendered,
    /// [`crate::ErrorKind::Template`] is a template's own refusal.
    pub fn render(&self, request: &RenderRequest<'_>, tokenizer: &Tokenizer) -> Result<Rendered> {
        let _ = (request, tokenizer);
        unimplemented!()
    }

    /// Renders to text alone, without a tokenizer.
    ///
    /// # Errors
    /// As [`Renderer::render`].
    pub fn render_text(&self, request: &RenderRequest<'_>) -> Result<String> {
        let _ = request;
        unimplemented!()
    }
}
