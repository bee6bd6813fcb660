//! The streaming parser: token ids in, events out.
//!
//! It works on ids, not text, so that a quoted marker is never a marker and nothing is held back but
//! half characters and headers. Malformed streams, which real models emit in about one turn in a
//! hundred, are repaired and reported; time is linear in the tokens.

use super::event::{Event, Header, Mode, Primed, Repair, RepairKind, Terminator};
use super::header::{Marker, Opened, RawHeader, Resolved};
use super::message::BuiltinTool;
use super::offer::{Offer, UndeclaredTool};
use crate::tokenizer::{Special, TextStream, Tokenizer};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::vec::Drain;

/// A streaming parser of one turn of the model, or of a transcript.
#[derive(Debug)]
pub struct Parser {
    tokenizer: Arc<Tokenizer>,
    mode: Mode,
    /// Whether messages of all roles follow one another, and a call or return ends only one of them.
    transcript: bool,
    parallel_calls: bool,
    offer: Offer,
    state: State,
    text: TextStream,
    /// Tokens pushed so far.
    pushed: usize,
    events: Vec<Event>,
    error: Option<Error>,
}

#[derive(Debug)]
enum State {
    /// Between messages.
    Start,
    /// After `<|start|>`.
    Header(RawHeader),
    /// After `<|message|>`.
    Content(Header),
    /// After the end of the turn: why what still comes is left out, how many tokens, their text.
    Done(RepairKind, usize, Vec<u8>),
}

impl Parser {
    /// A parser for a stream that begins where `primed` says.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] when the vocabulary lacks a harmony control token.
    pub fn new(tokenizer: Arc<Tokenizer>, primed: Primed, mode: Mode) -> Result<Parser> {
        tokenizer.special_tokens()?;
        let transcript = primed == Primed::Nothing;
        let mut events = Vec::new();
        let state = match primed {
            Primed::Role => State::Header(RawHeader::new(Opened::Primed)),
            Primed::Nothing => State::Start,
            Primed::Content(header) => {
                events.push(Event::Open(header.clone()));
                State::Content(header)
            }
        };
        Ok(Parser {
            tokenizer,
            mode,
            transcript,
            parallel_calls: false,
            offer: Offer::default(),
            state,
            text: TextStream::default(),
            pushed: 0,
            events,
            error: None,
        })
    }

    /// Names the function tools on offer, without `functions.`: that settles headers that could be
    /// read in two ways, and makes a call of any other function undeclared.
    #[must_use]
    pub fn tools<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Parser {
        self.offer.functions = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Names the builtin tools on offer, which makes a call of another one undeclared.
    #[must_use]
    pub fn builtin_tools(mut self, tools: impl IntoIterator<Item = BuiltinTool>) -> Parser {
        self.offer.builtin = Some(tools.into_iter().collect());
        self
    }

    /// What to make of calls of undeclared tools. Without [`Parser::tools`] no function is one, and
    /// without [`Parser::builtin_tools`] no builtin tool.
    #[must_use]
    pub fn undeclared(mut self, policy: UndeclaredTool) -> Parser {
        self.offer.undeclared = policy;
        self
    }

    /// Whether a turn goes on after `<|call|>`, so that it may have several calls. Off by default: the
    /// models are trained to stop there, and what they add is rarely meant.
    #[must_use]
    pub fn parallel_calls(mut self, allowed: bool) -> Parser {
        self.parallel_calls = allowed;
        self
    }

    /// The header of the message whose content is being read.
    pub fn header(&self) -> Option<&Header> {
        match &self.state {
            State::Content(header) => Some(header),
            _ => None,
        }
    }

    /// Whether the turn is over: `<|return|>`, `<|endoftext|>` or (without parallel calls) `<|call|>`
    /// has come, or a message that is not the assistant's. Never in a transcript.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(..))
    }

    /// Takes the next token and yields the events it completes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] in strict mode, and for undeclared tools that are rejected, naming the
    /// problem and the token's index. The parser is then done.
    pub fn push(&mut self, token: u32) -> Result<Drain<'_, Event>> {
        let tokenizer = Arc::clone(&self.tokenizer);
        match (tokenizer.special(token), tokenizer.token_bytes(token)) {
            (Some(special), _) => self.push_special(special),
            (None, Some(bytes)) => self.push_text(bytes),
            (None, None) => self.repair(RepairKind::UnknownToken, token.to_string()),
        }
        self.pushed += 1;
        self.yield_events()
    }

    /// Ends the stream and yields the last events.
    ///
    /// # Errors
    /// As [`Parser::push`].
    pub fn finish(&mut self) -> Result<Drain<'_, Event>> {
        match std::mem::replace(&mut self.state, State::Start) {
            State::Start => {}
            State::Header(raw) => self.end_header(raw, Terminator::Truncated),
            State::Content(_) => self.close(Terminator::Truncated),
            State::Done(kind, count, left_out) => {
                if count > 0 {
                    self.repair(kind, String::from_utf8_lossy(&left_out).into_owned());
                }
            }
        }
        self.yield_events()
    }

    fn yield_events(&mut self) -> Result<Drain<'_, Event>> {
        match self.error.take() {
            Some(error) => {
                self.events.clear();
                self.state = State::Done(RepairKind::AfterEnd, 0, Vec::new());
                Err(error)
            }
            None => Ok(self.events.drain(..)),
        }
    }

    fn push_text(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Content(_) => {
                let text = self.text.push(bytes);
                self.delta(text);
            }
            State::Done(..) => self.leave_out(bytes),
            State::Start => {
                let mut raw = RawHeader::new(Opened::Implicit);
                raw.push(bytes);
                self.state = State::Header(raw);
            }
            State::Header(raw) => {
                raw.push(bytes);
                if raw.is_overdue() {
                    let text = raw.text();
                    match raw.salvage(&self.offer, self.mode) {
                        Some((resolved, content)) => {
                            self.open_with(resolved, text, &content);
                        }
                        None if raw.is_hopeless() => {
                            let content = raw.last_part().to_vec();
                            self.open_with(Resolved::answer(), text, &content);
                        }
                        None => {}
                    }
                }
            }
        }
    }

    /// Opens a message whose content had been taken for its header.
    fn open_with(&mut self, resolved: Resolved, raw: String, content: &[u8]) -> bool {
        let opened = self.open(resolved, raw);
        // Else the text goes with what follows it: its end may be half a word or character.
        self.push_text(content);
        opened
    }

    fn push_special(&mut self, special: Special) {
        let end = match special {
            Special::End => Some(Terminator::End),
            Special::Call => Some(Terminator::Call),
            Special::Return => Some(Terminator::Return),
            Special::EndOfText => Some(Terminator::EndOfText),
            _ => None,
        };
        let marker = match special {
            Special::Channel => Some(Marker::Channel),
            Special::Constrain => Some(Marker::Constrain),
            _ => None,
        };
        match std::mem::replace(&mut self.state, State::Start) {
            done @ State::Done(..) => {
                self.state = done;
                self.leave_out(&[]);
            }
            State::Content(header) => match (end, special) {
                (Some(end), _) => self.close(end),
                (None, Special::Start) => {
                    self.interrupt();
                    self.state = State::Header(RawHeader::new(Opened::Start));
                }
                (None, Special::Channel) => {
                    self.interrupt();
                    self.header_with(Opened::Implicit, Marker::Channel);
                }
                (None, _) => {
                    self.state = State::Content(header);
                    self.repair(RepairKind::UnexpectedMarker, String::new());
                }
            },
            State::Start => match (end, special) {
                (_, Special::Start) => self.state = State::Header(RawHeader::new(Opened::Start)),
                (_, Special::StartOfText) if self.transcript => {}
                (_, Special::Message) => self.message(RawHeader::new(Opened::Implicit)),
                (Some(end), _) => {
                    self.repair(RepairKind::UnexpectedMarker, String::new());
                    self.after(end);
                }
                (None, _) => match marker {
                    Some(marker) => self.header_with(Opened::Implicit, marker),
                    None => self.repair(RepairKind::UnexpectedMarker, String::new()),
                },
            },
            State::Header(mut raw) => match (end, special) {
                (Some(end), _) => self.end_header(raw, end),
                (_, Special::Message) => self.message(raw),
                (_, Special::Start) if raw.is_bare() => {
                    self.repair(RepairKind::RepeatedStart, raw.text());
                    self.state = State::Header(RawHeader::new(Opened::Start));
                }
                (_, Special::Start) => {
                    self.end_header(raw, Terminator::Implicit);
                    if !self.is_done() {
                        self.state = State::Header(RawHeader::new(Opened::Start));
                    }
                }
                (None, _) => {
                    match marker {
                        Some(marker) => raw.marker(marker),
                        None => self.repair(RepairKind::UnexpectedMarker, String::new()),
                    }
                    self.state = State::Header(raw);
                }
            },
        }
    }

    /// A token after the end of the turn. They are reported together, when the stream ends.
    fn leave_out(&mut self, bytes: &[u8]) {
        if self.mode == Mode::Strict {
            self.repair(RepairKind::AfterEnd, String::from_utf8_lossy(bytes).into_owned());
        } else if let State::Done(_, count, left_out) = &mut self.state {
            *count += 1;
            left_out.extend_from_slice(bytes);
        }
    }

    fn header_with(&mut self, opened: Opened, marker: Marker) {
        let mut raw = RawHeader::new(opened);
        raw.marker(marker);
        self.state = State::Header(raw);
    }

    /// `<|message|>` after a header.
    fn message(&mut self, raw: RawHeader) {
        let resolved = raw.resolve(&self.offer, self.mode);
        self.open(resolved, raw.text());
    }

    /// A terminator, a new `<|start|>` or the stream's end inside a header.
    fn end_header(&mut self, raw: RawHeader, end: Terminator) {
        // A header that the stream's end cut off in a recipient is not content.
        let cut = end == Terminator::Truncated && raw.text().contains("to=");
        match raw.salvage(&self.offer, self.mode).filter(|_| !cut) {
            Some((resolved, content)) => {
                if self.open_with(resolved, raw.text(), &content) {
                    self.close(end);
                }
            }
            None => {
                let untouched = raw.is_bare() && end == Terminator::Truncated;
                if !untouched {
                    self.repair(RepairKind::TruncatedHeader, raw.text());
                }
                self.after(end);
            }
        }
    }

    /// Opens a message, unless it is none of this turn.
    fn open(&mut self, resolved: Resolved, raw: String) -> bool {
        let Resolved { header, repairs } = resolved;
        for kind in repairs {
            self.repair(kind, raw.clone());
        }
        if !self.transcript && header.role != "assistant" {
            self.repair(RepairKind::ForeignRole, raw);
            self.state = State::Done(RepairKind::ForeignRole, 0, Vec::new());
            return false;
        }
        self.events.push(Event::Open(header.clone()));
        self.state = State::Content(header);
        true
    }

    fn delta(&mut self, text: String) {
        if !text.is_empty() {
            self.events.push(Event::Delta(text));
        }
    }

    fn close(&mut self, end: Terminator) {
        let rest = self.text.finish();
        self.delta(rest);
        self.events.push(Event::Close(end));
        self.after(end);
    }

    /// Closes a message in whose content a new one begins.
    fn interrupt(&mut self) {
        self.close(Terminator::Implicit);
        self.repair(RepairKind::MissingEnd, String::new());
    }

    fn after(&mut self, end: Terminator) {
        let ends_turn = match end {
            Terminator::Return | Terminator::EndOfText => true,
            Terminator::Call => !self.parallel_calls,
            _ => false,
        };
        self.state = if ends_turn && !self.transcript {
            State::Done(RepairKind::AfterEnd, 0, Vec::new())
        } else {
            State::Start
        };
    }

    fn repair(&mut self, kind: RepairKind, raw: String) {
        let token_index = self.pushed;
        let is_error = match kind {
            RepairKind::UndeclaredTool => self.offer.undeclared == UndeclaredTool::Reject,
            _ => self.mode == Mode::Strict,
        };
        if !is_error {
            self.events.push(Event::Repaired(Repair { kind, token_index, raw }));
        } else if self.error.is_none() {
            let found = if raw.is_empty() { String::new() } else { format!(": {raw:?}") };
            let message = format!(
                "malformed harmony stream at token {token_index}: {}{found}",
                kind.problem()
            );
            self.error = Some(Error::new(ErrorKind::Malformed, message));
        }
    }
}
