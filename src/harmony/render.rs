//! What a prompt is made from, and the two ways to make it: [`Renderer`].

use super::message::{BuiltinTool, Effort, Message, Tool};
use super::native::{self, Dialect};
use super::template::Template;
use crate::tokenizer::{Special, Tokenizer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything a prompt is made from. `RenderRequest { messages, ..Default::default() }` reads well.
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
    /// Who the model is; `None` for the sentence it was trained with.
    pub identity: Option<&'a str>,
    /// The current date as `YYYY-MM-DD`; `None` for today in UTC, except in [`Dialect::harmony`],
    /// which then has no date line. Reproducible prompts need an explicit one.
    pub date: Option<&'a str>,
    /// Whether the prompt ends in an open `<|start|>assistant` for the model to go on from. Without,
    /// the conversation is rendered as for training: the last answer ends in `<|return|>`.
    pub add_generation_prompt: bool,
    /// What control tokens spelled in the conversation's text become.
    pub untrusted: Untrusted,
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
            untrusted: Untrusted::Escape,
            variables: None,
        }
    }
}

/// What becomes of control tokens that the caller's text spells: a user who types `<|end|>`, a tool
/// that returns it, a schema or an identity that has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Untrusted {
    /// They are text, as in OpenAI's library: the model reads them, and they mean nothing.
    #[default]
    Escape,
    /// They are an error, [`crate::ErrorKind::InvalidMessage`], whatever the vocabulary.
    Reject,
    /// They are control tokens, as where a rendered prompt is tokenized whole (transformers). Whoever
    /// wrote any part of the conversation can then forge any other part.
    Trusted,
}

/// Which analysis of earlier turns stays in the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum History {
    /// The chat template's rule: only analysis beside a tool call, and only while no later message of
    /// the assistant is without one.
    Template,
    /// Analysis since the last user message, until there is a final answer: what the model needs to
    /// go on after tool results, and no more.
    #[default]
    CurrentTurn,
    /// All.
    KeepAll,
    /// None.
    DropAll,
}

impl History {
    /// Whether the analysis of the assistant's message at `index` stays.
    pub(super) fn keeps(self, request: &RenderRequest<'_>, index: usize) -> bool {
        let is_call =
            |m: &Message| matches!(m, Message::Assistant(a) if a.tool_calls().next().is_some());
        let is_answer = |m: &Message| matches!(m, Message::Assistant(_)) && !is_call(m);
        let messages = request.messages;
        let training = !request.add_generation_prompt && index + 1 == messages.len();
        let later = messages.get(index + 1..).unwrap_or_default();
        match self {
            History::KeepAll => true,
            History::DropAll => false,
            _ if training => true,
            History::Template => is_call(&messages[index]) && !later.iter().any(is_answer),
            History::CurrentTurn => {
                !is_answer(&messages[index])
                    && !later.iter().any(|m| is_answer(m) || matches!(m, Message::User { .. }))
            }
        }
    }
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rendered {
    /// The prompt as token ids. Only the renderer's own markers are control tokens: those in the
    /// conversation's text are text, unless it was [`Untrusted::Trusted`].
    pub tokens: Vec<u32>,
    /// The same as text, in which that difference cannot be seen: for people, not for tokenizing.
    pub text: String,
    /// Which renderer made it.
    pub used: RendererKind,
}

/// Which renderer made a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RendererKind {
    /// The typed renderer of this crate.
    Native,
    /// A chat template.
    Template,
}

/// Makes prompts from conversations.
///
/// In both renderers control tokens typed by a user or returned by a tool are plain text, unless
/// [`RenderRequest::untrusted`] says otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Renderer {
    /// The typed renderer of this crate in one of harmony's dialects.
    Native(Dialect),
    /// A chat template, as transformers would apply it. What it cannot express (several tool calls in
    /// a message, preambles, calls of builtin tools, instructions after the first message) is
    /// rendered natively in [`Dialect::template`]; [`Rendered::used`] tells.
    Template(Box<Template>),
}

impl From<Template> for Renderer {
    fn from(template: Template) -> Renderer {
        Renderer::Template(Box::new(template))
    }
}

impl Renderer {
    /// The renderer for a checkpoint directory: its own template where it ships one, so that prompts
    /// are what transformers would make, else the native renderer in [`Dialect::template`].
    ///
    /// # Errors
    /// As [`Template::from_checkpoint`].
    pub fn from_checkpoint(dir: &std::path::Path) -> Result<Renderer> {
        Ok(match Template::from_checkpoint(dir)? {
            Some(template) => template.into(),
            None => Renderer::Native(Dialect::template()),
        })
    }

    /// Renders to token ids and text.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidMessage`] names the message that cannot be rendered,
    /// [`crate::ErrorKind::Template`] is a template's own refusal, and
    /// [`crate::ErrorKind::Tokenizer`] a vocabulary without the control tokens used.
    pub fn render(&self, request: &RenderRequest<'_>, tokenizer: &Tokenizer) -> Result<Rendered> {
        let (prompt, used) = self.prompt(request)?;
        Ok(Rendered {
            tokens: prompt.tokens(tokenizer, request.untrusted)?,
            text: prompt.into_text(),
            used,
        })
    }

    /// Renders to text alone, without a tokenizer.
    ///
    /// # Errors
    /// As [`Renderer::render`].
    pub fn render_text(&self, request: &RenderRequest<'_>) -> Result<String> {
        Ok(self.prompt(request)?.0.into_text())
    }

    /// The date a request without one is rendered with now: today in UTC, `None` for a dialect whose
    /// date line is optional.
    pub(crate) fn default_date(&self) -> Option<String> {
        match self {
            Renderer::Native(dialect) if !dialect.always_dated => None,
            _ => Some(today()),
        }
    }

    fn prompt(&self, request: &RenderRequest<'_>) -> Result<(Prompt, RendererKind)> {
        if request.messages.is_empty() {
            return Err(Error::invalid_request("the conversation has no messages"));
        }
        let today = today();
        let dated = RenderRequest { date: request.date.or(Some(&today)), ..*request };
        let (prompt, used) = match self {
            Renderer::Template(template) if Template::can_express(request) => {
                (template.render(&dated)?, RendererKind::Template)
            }
            Renderer::Template(_) => {
                (native::render(&Dialect::template(), &dated), RendererKind::Native)
            }
            Renderer::Native(dialect) if dialect.always_dated => {
                (native::render(dialect, &dated), RendererKind::Native)
            }
            Renderer::Native(dialect) => (native::render(dialect, request), RendererKind::Native),
        };
        match prompt.spelled_control() {
            Some(token) if request.untrusted == Untrusted::Reject => Err(spelled(request, token)),
            _ => Ok((prompt, used)),
        }
    }
}

/// A prompt as the renderers make it: markers, and text in which nothing is a marker.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Marker(String),
    Text(String),
}

impl Prompt {
    pub(super) fn marker(&mut self, special: Special) {
        let named = Special::NAMED.iter().find(|(s, _)| *s == special);
        self.control(named.map_or("", |(_, text)| *text));
    }

    /// A control token by its text.
    pub(super) fn control(&mut self, text: &str) {
        self.pieces.push(Piece::Marker(text.to_owned()));
    }

    /// Text; adjoining texts are one, so that they are tokenized together.
    pub(super) fn text(&mut self, text: &str) -> &mut Prompt {
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
        self
    }

    pub(super) fn channel(&mut self, name: &str) -> &mut Prompt {
        self.marker(Special::Channel);
        self.text(name)
    }

    fn tokens(&self, tokenizer: &Tokenizer, untrusted: Untrusted) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) if untrusted == Untrusted::Trusted => {
                    tokens.extend(tokenizer.encode_with_special(text)?)
                }
                Piece::Text(text) => tokens.extend(tokenizer.encode(text)?),
                Piece::Marker(text) => tokens
                    .push(tokenizer.special_id(text).ok_or_else(|| {
                    Error::new(
                        crate::ErrorKind::Tokenizer,
                        format!(
                            "the prompt needs the control token {text}, which the vocabulary lacks"
                        ),
                    )
                })?),
            }
        }
        Ok(tokens)
    }

    /// The first control token that text spells: the renderers write none of their own as text.
    fn spelled_control(&self) -> Option<&str> {
        self.pieces.iter().find_map(|piece| match piece {
            Piece::Text(text) => text.match_indices("<|").find_map(|(at, _)| {
                let name = &text[at + 2..];
                let length = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                (length > 0 && name[length..].starts_with("|>")).then(|| &text[at..at + length + 4])
            }),
            Piece::Marker(_) => None,
        })
    }

    fn into_text(self) -> String {
        self.pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Marker(text) | Piece::Text(text) => text,
            })
            .collect()
    }
}

/// The error for a control token that the text of `request` spells and must not.
fn spelled(request: &RenderRequest<'_>, token: &str) -> Error {
    let spells = |m: &Message| serde_json::to_string(m).is_ok_and(|json| json.contains(token));
    let place = match request.messages.iter().position(spells) {
        Some(index) => format!("message {index}"),
        None => "the request".to_owned(),
    };
    let message = format!("{place} spells the control token {token}, which is to be rejected");
    Error::new(crate::ErrorKind::InvalidMessage, message)
}

/// Today in UTC as `YYYY-MM-DD`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date(seconds / 86_400)
}

/// The civil date `days` after 1970-01-01, counting years from March, so that the leap day is a
/// year's last: 400 years are 146,097 days, and 719,468 days lie between 0000-03-01 and 1970.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (10_957, "2000-01-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
