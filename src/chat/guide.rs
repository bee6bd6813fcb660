//! [`Guide`]: keeps a turn to what a request asks of it beyond the model's own will: an answer of a
//! [`super::Format`], a call of a tool.
//!
//! A turn that is guided is well-formed. Its headers are of a list made here, token for token as the
//! model was trained to write them; thoughts and words before a call are any text, the latter once in a
//! turn; the answer, and the arguments of calls that are required, follow grammars, each from the
//! `<|message|>` on that the parser takes for the beginning of that content, so that no header is ever
//! held against them. The turn can end after an answer or a call and nowhere else.

use super::grammar::{Grammar, Grammars};
use super::{ChatRequest, Format};
use crate::generation::{Lane, TokenSet};
use crate::harmony::{Content, Header, Tool, ToolChoice};
use crate::tokenizer::{SpecialTokens, Tokenizer};
use crate::{Error, Result};
use serde_json::json;
use std::sync::{Arc, OnceLock};

/// What is made once for a vocabulary, when the first turn is guided.
#[derive(Default)]
pub(super) struct Guidance {
    text: OnceLock<Arc<TokenSet>>,
    grammars: OnceLock<Grammars>,
}

/// Keeps one turn to what is asked of it.
pub(super) struct Guide {
    /// The headers to choose from.
    headers: Vec<Vec<u32>>,
    /// The one of words before a call.
    preamble: Vec<u32>,
    /// What the answer follows.
    answer: Option<Grammar>,
    /// What the arguments of calls follow, by recipient.
    arguments: Vec<(String, Grammar)>,
    state: State,
    /// The tokens that are not control tokens.
    text: Arc<TokenSet>,
    special: SpecialTokens,
}

enum State {
    /// The header being read, from its `<|start|>` on; empty between messages.
    Header(Vec<u32>),
    Content(Content, Option<Grammar>),
    /// After the answer.
    Ended,
}

impl Guidance {
    fn text(&self, tokenizer: &Tokenizer) -> &Arc<TokenSet> {
        self.text.get_or_init(|| {
            let is_text =
                |id: &u32| tokenizer.special(*id).is_none() && tokenizer.token_bytes(*id).is_some();
            Arc::new((0..tokenizer.vocab_size() as u32).filter(is_text).collect())
        })
    }

    fn grammars(&self, tokenizer: &Arc<Tokenizer>) -> Result<&Grammars> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        // Made twice when two turns are the first: the second is dropped.
        let made = Grammars::new(tokenizer)?;
        Ok(self.grammars.get_or_init(|| made))
    }

    /// A guide for the turn that answers `request` and begins inside the message with the header
    /// `open`, or else after `<|start|>assistant`. `None` when nothing is asked of the turn.
    ///
    /// # Errors
    /// `InvalidRequest` for a format that cannot be followed, and for a call that is required of a tool
    /// that is not on offer; `Tokenizer` for a vocabulary that lacks a harmony control token.
    pub(super) fn guide(
        &self,
        request: &ChatRequest,
        tokenizer: &Arc<Tokenizer>,
        open: Option<&Header>,
    ) -> Result<Option<Guide>> {
        let is_required = request.requires_call();
        if request.format.is_none() && !is_required {
            return Ok(None);
        }
        let special = tokenizer.special_tokens()?;
        let functions = callable(request)?;
        let mut headers = Headers { tokenizer, special, all: Vec::new() };
        headers.message("analysis")?;
        let mut answer = None;
        if !is_required {
            headers.message("final")?;
            if let Some(format) = &request.format {
                answer = Some(self.grammars(tokenizer)?.compile(format, "the answer")?);
            }
        }
        let preamble = headers.header("", "commentary", None)?;
        if request.offers_tools() {
            headers.all.push(preamble.clone());
        }
        for tool in &functions {
            headers.call(&format!("functions.{}", tool.name), &["json"])?;
        }
        if !matches!(request.tool_choice, ToolChoice::Named(_)) {
            let builtin = request.offered().1.iter().flat_map(|tool| tool.recipients());
            for recipient in builtin {
                headers.call(recipient, &["code", "json"])?;
            }
        }
        let mut arguments = Vec::new();
        if is_required && cfg!(feature = "structured") {
            for tool in &functions {
                let of = format!("the arguments of tool {}", tool.name);
                let grammar = self.grammars(tokenizer)?.compile(&schema(tool), &of)?;
                arguments.push((format!("functions.{}", tool.name), grammar));
            }
        }
        let role = headers.role()?;
        let mut guide = Guide {
            headers: headers.all,
            preamble,
            answer,
            arguments,
            state: State::Header(role),
            text: Arc::clone(self.text(tokenizer)),
            special,
        };
        if let Some(header) = open {
            guide.open(header);
        }
        Ok(Some(guide))
    }
}

impl Guide {
    /// Takes a token of the turn, after which the message with the header `open` is being read.
    ///
    /// # Errors
    /// As [`Grammar::take`].
    pub(super) fn take(&mut self, id: u32, open: Option<&Header>) -> Result<()> {
        match (&mut self.state, open) {
            (State::Header(_), Some(header)) => self.open(header),
            (State::Header(read), None) => read.push(id),
            (State::Content(_, Some(grammar)), Some(_)) => grammar.take(id)?,
            (State::Content(Content::Text, _), None) => self.state = State::Ended,
            (State::Content(..), None) => self.state = State::Header(Vec::new()),
            (State::Content(..) | State::Ended, _) => {}
        }
        Ok(())
    }

    /// Whether the answer is complete, and the turn with it.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Forces what is the only way to go on, as far as that is found out without a mask, or says what of a
    /// header may come next.
    ///
    /// # Errors
    /// As [`Lane::force`].
    pub(super) fn lead(&mut self, lane: &mut Lane) -> Result<()> {
        let forced = match &mut self.state {
            State::Header(read) => {
                let next = next_of(&self.headers, read, &self.special);
                match next.only() {
                    Some(id) => vec![id],
                    None => {
                        lane.allow(next);
                        return Ok(());
                    }
                }
            }
            State::Content(_, Some(grammar)) => {
                let mut forced = grammar.forced();
                // What asks for a control token gets an error with the mask.
                let text = forced.iter().take_while(|id| self.text.contains(**id)).count();
                forced.truncate(text);
                forced
            }
            State::Content(_, None) | State::Ended => return Ok(()),
        };
        lane.force(&forced)
    }

    /// Whether [`Guide::mask`] has something to say.
    pub(super) fn has_mask(&self) -> bool {
        matches!(self.state, State::Content(..))
    }

    /// Has the next token be one that may come next, inside a message; the only one is forced.
    ///
    /// # Errors
    /// As [`Grammar::next`]; `InvalidRequest` when the text can neither go on nor end.
    pub(super) fn mask(&mut self, lane: &mut Lane) -> Result<()> {
        let State::Content(content, grammar) = &mut self.state else { return Ok(()) };
        // Found out before, for a step that failed.
        if lane.is_forcing() {
            return Ok(());
        }
        let ends = ends(*content, &self.special);
        let (mut allowed, may_end) = match grammar {
            None => ((*self.text).clone(), true),
            Some(grammar) => {
                let (mut allowed, may_end) = grammar.next()?;
                allowed.intersect(&self.text);
                (allowed, may_end)
            }
        };
        match (allowed.is_empty(), may_end) {
            // The first is the one that ends a turn.
            (true, true) => allowed.insert(ends[0]),
            (true, false) => {
                return Err(Error::invalid_request(
                    "the format allows no token of text here, and the text cannot end",
                ));
            }
            (false, true) => ends.iter().for_each(|id| allowed.insert(*id)),
            (false, false) => {}
        }
        match allowed.only() {
            Some(id) => lane.force(&[id])?,
            None => lane.allow(allowed),
        }
        Ok(())
    }

    fn open(&mut self, header: &Header) {
        let content = header.content().unwrap_or(Content::Reasoning);
        let grammar = match content {
            Content::Text => self.answer.take(),
            Content::ToolCall => {
                let is_of = |(to, _): &(String, _)| Some(to) == header.recipient.as_ref();
                let at = self.arguments.iter().position(is_of);
                at.map(|at| self.arguments.swap_remove(at).1)
            }
            Content::Preamble => {
                // Once in a turn, or a model can put off the rest with ever more words.
                self.headers.retain(|header| *header != self.preamble);
                None
            }
            Content::Reasoning => None,
        };
        self.state = State::Content(content, grammar);
    }
}

/// What may follow the beginning of a header. One that is on no list, which only another's forced
/// tokens can have made, ends.
fn next_of(headers: &[Vec<u32>], read: &[u32], special: &SpecialTokens) -> TokenSet {
    let next: TokenSet =
        headers.iter().filter_map(|header| header.strip_prefix(read)?.first().copied()).collect();
    if next.is_empty() { TokenSet::from_iter([special.message]) } else { next }
}

/// What may end a message, first what ends the turn with it if anything does.
fn ends(content: Content, special: &SpecialTokens) -> Vec<u32> {
    match content {
        Content::Reasoning | Content::Preamble => vec![special.end],
        Content::ToolCall => vec![special.call],
        Content::Text => vec![special.ret, special.end],
    }
}

/// The functions that may be called.
///
/// # Errors
/// `InvalidRequest` when a call is required and none can be made.
fn callable(request: &ChatRequest) -> Result<Vec<&Tool>> {
    let (tools, _) = request.offered();
    match &request.tool_choice {
        ToolChoice::Required if !request.offers_tools() => Err(Error::invalid_request(
            "tool_choice is required, and no tools are on offer, expected at least one",
        )),
        ToolChoice::Named(name) => match tools.iter().find(|tool| tool.name == *name) {
            Some(tool) => Ok(vec![tool]),
            None => {
                let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
                Err(Error::invalid_request(format!(
                    "tool_choice names {name:?}, expected a function on offer, of which there {}",
                    match names.as_slice() {
                        [] => "are none".to_owned(),
                        names => format!("is {}", names.join(", ")),
                    }
                )))
            }
        },
        _ => Ok(tools.iter().collect()),
    }
}

/// What the arguments of a function follow.
fn schema(tool: &Tool) -> Format {
    Format::JsonSchema(match &tool.parameters {
        Some(schema) => schema.clone(),
        None => json!({"type": "object", "additionalProperties": false}),
    })
}

/// The headers to choose from, as token ids.
struct Headers<'a> {
    tokenizer: &'a Tokenizer,
    special: SpecialTokens,
    all: Vec<Vec<u32>>,
}

impl Headers<'_> {
    /// What every header begins with: `<|start|>assistant`.
    fn role(&self) -> Result<Vec<u32>> {
        Ok([vec![self.special.start], self.tokenizer.encode("assistant")?].concat())
    }

    /// Adds the header of a message on `channel`.
    fn message(&mut self, channel: &str) -> Result<()> {
        let header = self.header("", channel, None)?;
        self.all.push(header);
        Ok(())
    }

    /// Adds the headers of a call: on either of the channels where models put calls, `to=` before or
    /// after it, the arguments' type plain, constrained or left out.
    fn call(&mut self, recipient: &str, types: &[&str]) -> Result<()> {
        let to = format!(" to={recipient}");
        for channel in ["commentary", "analysis"] {
            for (role, channel) in [("", format!("{channel}{to}")), (&to[..], channel.to_owned())] {
                self.all.push(self.header(role, &channel, None)?);
                for kind in types {
                    self.all.push(self.header(role, &format!("{channel} {kind}"), None)?);
                    self.all.push(self.header(role, &format!("{channel} "), Some(kind))?);
                }
            }
        }
        Ok(())
    }

    /// `<|start|>assistant{role}<|channel|>{channel}<|constrain|>{constrained}<|message|>`. The names
    /// in it are text, whatever they look like.
    fn header(&self, role: &str, channel: &str, constrained: Option<&str>) -> Result<Vec<u32>> {
        let mut header = self.role()?;
        header.extend(self.tokenizer.encode(role)?);
        header.push(self.special.channel);
        header.extend(self.tokenizer.encode(channel)?);
        if let Some(kind) = constrained {
            header.push(self.special.constrain);
            header.extend(self.tokenizer.encode(kind)?);
        }
        header.push(self.special.message);
        Ok(header)
    }
}
