//! [`ChatStream`]: an answer while it is made.

use super::session::SessionState;
use super::{ChatEvent, ChatRequest, ChatResponse, Model, TokenLogprob, TopLogprob};
use crate::generation::{CancelHandle, FinishReason, GeneratedToken, Generator, Timings, Usage};
use crate::harmony::{Collector, Content, Event, Item, Mode, Parser, Primed, Repair, Terminator};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::sync::Arc;

/// An answer while it is made: an iterator of [`ChatEvent`]s, the last of which is
/// [`ChatEvent::Finish`].
///
/// The model runs while the next event is asked for, on the caller's thread. Dropping the stream ends
/// the answer.
pub struct ChatStream<'m> {
    tokenizer: Arc<Tokenizer>,
    /// Taken when the turn is settled.
    generator: Option<Generator<'m>>,
    cancel: CancelHandle,
    usage: Usage,
    timings: Timings,
    parser: Parser,
    collector: Collector,
    queue: VecDeque<ChatEvent>,
    /// What the message being read is.
    content: Option<Content>,
    /// Calls that began.
    calls: usize,
    /// Whether the message that closed last was a tool call.
    called: bool,
    /// The model began a message in another's name.
    foreign: bool,
    repairs: Vec<Repair>,
    logprobs: Vec<TokenLogprob>,
    /// The prompt (in a session) and every generated token.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    reasoning_tokens: usize,
    session: Option<&'m mut SessionState>,
    response: Option<ChatResponse>,
    ended: bool,
}

impl<'m> ChatStream<'m> {
    pub(super) fn new(
        model: &'m Model,
        generator: Generator<'m>,
        request: &ChatRequest,
    ) -> Result<ChatStream<'m>> {
        let tokenizer = model.tokenizer().clone();
        let parser = Parser::new(tokenizer.clone(), Primed::Role, Mode::Tolerant)?
            .tools(request.tools.iter().map(|tool| tool.name.as_str()));
        Ok(ChatStream {
            cancel: generator.cancel_handle(),
            usage: generator.usage(),
            timings: generator.timings(),
            generator: Some(generator),
            tokenizer,
            parser,
            collector: Collector::default(),
            queue: VecDeque::new(),
            content: None,
            calls: 0,
            called: false,
            foreign: false,
            repairs: Vec::new(),
            logprobs: Vec::new(),
            tokens: Vec::new(),
            prompt_tokens: 0,
            reasoning_tokens: 0,
            session: None,
            response: None,
            ended: false,
        })
    }

    /// Gives the turn back to `session` when it ends.
    pub(super) fn in_session(self, session: &'m mut SessionState, prompt: Vec<u32>) -> Self {
        // The struct has a destructor, so its fields cannot be taken apart here.
        let mut stream = self;
        stream.prompt_tokens = prompt.len();
        stream.tokens = prompt;
        stream.session = Some(session);
        stream
    }

    /// A handle that ends the answer from any thread, before the model's next step.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Times so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Runs to the end and returns the whole answer, the part that was already streamed included.
    ///
    /// # Errors
    /// The first error of the stream; `InvalidRequest` when it had already yielded one.
    pub fn finish(mut self) -> Result<ChatResponse> {
        for event in self.by_ref() {
            event?;
        }
        self.response.take().ok_or_else(|| {
            Error::invalid_request("the stream ended with an error, no answer is left")
        })
    }

    /// Runs one step of the model, or ends the answer.
    fn advance(&mut self) -> Result<()> {
        let next = match self.generator.as_mut() {
            Some(generator) if !self.foreign => generator.next(),
            _ => None,
        };
        if let Some(generator) = &self.generator {
            self.usage = Usage { reasoning_tokens: self.reasoning_tokens, ..generator.usage() };
            self.timings = generator.timings();
        }
        match next {
            Some(token) => self.take(token?),
            None => self.end(),
        }
    }

    fn take(&mut self, token: GeneratedToken) -> Result<()> {
        self.tokens.push(token.id);
        if let Some(logprobs) = token.logprobs {
            let bytes = |id| self.tokenizer.token_bytes(id).unwrap_or_default().to_vec();
            let logprob = TokenLogprob {
                id: token.id,
                bytes: bytes(token.id),
                logprob: logprobs.logprob,
                top: (logprobs.top.iter())
                    .map(|top| TopLogprob {
                        id: top.id,
                        bytes: bytes(top.id),
                        logprob: top.logprob,
                    })
                    .collect(),
            };
            self.logprobs.push(logprob.clone());
            self.queue.push_back(ChatEvent::Logprob(logprob));
        }
        // The message a token belongs to is the one that was open before it; markers are in none.
        let reasoning = self.content == Some(Content::Reasoning);
        if reasoning && self.tokenizer.special(token.id).is_none() {
            self.reasoning_tokens += 1;
            self.usage.reasoning_tokens += 1;
        }
        let events: Vec<Event> = self.parser.push(token.id)?.collect();
        events.into_iter().for_each(|event| self.handle(event));
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        if let Event::Open(header) = &event {
            self.foreign |= header.role != "assistant";
        }
        // The model speaks for the user or a tool: the answer was over before.
        if self.foreign {
            return;
        }
        self.collector.push(&event);
        let index = self.calls.saturating_sub(1);
        match event {
            Event::Open(header) => {
                self.content = Some(header.content());
                if let (Content::ToolCall, Some(Item::ToolCall(call))) =
                    (header.content(), self.collector.message().items.last())
                {
                    let (id, name, kind) = (call.id.clone(), call.name.clone(), call.kind);
                    let index = self.calls;
                    self.queue.push_back(ChatEvent::ToolCallStart { index, id, name, kind });
                    self.calls += 1;
                }
            }
            Event::Delta(text) => self.queue.push_back(match self.content {
                Some(Content::Reasoning) => ChatEvent::Reasoning(text),
                Some(Content::Preamble) => ChatEvent::Preamble(text),
                Some(Content::ToolCall) => ChatEvent::ToolCallDelta { index, arguments: text },
                _ => ChatEvent::Text(text),
            }),
            Event::Close(terminator) => {
                let call = self.content.take() == Some(Content::ToolCall);
                self.called = call && terminator != Terminator::Truncated;
                if self.called {
                    self.queue.push_back(ChatEvent::ToolCallDone { index });
                }
            }
            Event::Repaired(repair) => {
                self.repairs.push(repair.clone());
                self.queue.push_back(ChatEvent::Repaired(repair));
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let events: Vec<Event> = self.parser.finish()?.collect();
        events.into_iter().for_each(|event| self.handle(event));
        let Some(generator) = &self.generator else { return Ok(()) };
        let reason = match generator.finish_reason().unwrap_or(FinishReason::Stop) {
            FinishReason::Stop if self.called => FinishReason::ToolCalls,
            reason => reason,
        };
        let (usage, timings) = (self.usage, self.timings);
        self.response = Some(ChatResponse {
            message: self.collector.message().clone(),
            finish_reason: reason,
            usage,
            timings,
            repairs: self.repairs.clone(),
            logprobs: std::mem::take(&mut self.logprobs),
            tokens: self.tokens[self.prompt_tokens..].to_vec(),
            seed: generator.seed(),
        });
        self.queue.push_back(ChatEvent::Finish { reason, usage, timings });
        self.settle();
        Ok(())
    }

    /// Hands the turn over to the session, once.
    fn settle(&mut self) {
        if let (Some(session), Some(generator)) = (self.session.take(), self.generator.take()) {
            let message = self.collector.message().clone();
            session.settle(message, self.prompt_tokens, &self.tokens, generator);
        }
    }
}

impl Iterator for ChatStream<'_> {
    type Item = Result<ChatEvent>;

    /// The next event; `None` after [`ChatEvent::Finish`] or an error.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.ended = true;
                self.queue.clear();
                return Some(Err(error));
            }
        }
    }
}

impl FusedIterator for ChatStream<'_> {}

impl Drop for ChatStream<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}
