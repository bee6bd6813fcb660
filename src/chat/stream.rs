//! [`ChatStream`]: an answer while it is made.

use super::budget::Budget;
use super::guide::Guide;
use super::session::SessionState;
use super::stop_strings::StopStrings;
use super::{ChatEvent, ChatRequest, ChatResponse, Model, ReasoningCut, TokenLogprob, TopLogprob};
use crate::generation::{CancelHandle, FinishReason, GeneratedToken, Generator, Timings, Usage};
use crate::harmony::{
    AssistantMessage, Collector, Content, Event, Item, Message, Mode, Parser, Repair, ToolCall,
};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::Instant;

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
    budget: Budget,
    guide: Option<Guide>,
    stops: StopStrings,
    /// Whether chain of thought is kept from the caller.
    hidden: bool,
    collector: Collector,
    queue: VecDeque<ChatEvent>,
    /// What the message being read is.
    content: Option<Content>,
    /// The number of the first call, above all of the conversation before, so that no id is given twice.
    earlier_calls: usize,
    /// Calls that began.
    calls: usize,
    /// Whether the message that closed last was a tool call.
    called: bool,
    logprobs: Vec<TokenLogprob>,
    /// The prompt (in a session) and every generated token.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Which of the generated ones were forced.
    forced: Vec<usize>,
    reasoning_tokens: usize,
    reasoning_cut: Option<ReasoningCut>,
    session: Option<&'m mut SessionState>,
    response: Option<ChatResponse>,
    ended: bool,
}

impl<'m> ChatStream<'m> {
    pub(super) fn new(
        model: &'m Model,
        mut generator: Generator<'m>,
        request: &ChatRequest,
    ) -> Result<ChatStream<'m>> {
        let tokenizer = model.tokenizer().clone();
        let parser = Parser::new(tokenizer.clone(), request.reasoning.primed(), Mode::Tolerant)?
            .tools(request.tools.iter().map(|tool| tool.name.as_str()))
            .builtin_tools(request.builtin_tools.iter().copied());
        let budget = Budget::new(request, &tokenizer, &mut generator)?;
        let mut guide = model.guidance().guide(request, &tokenizer, parser.header())?;
        if let Some(guide) = &mut guide {
            guide.constrain(&mut generator)?;
        }
        Ok(ChatStream {
            budget,
            guide,
            stops: StopStrings::new(&request.stop)?,
            hidden: request.reasoning.hidden,
            cancel: generator.cancel_handle(),
            usage: generator.usage(),
            timings: generator.timings(),
            generator: Some(generator),
            tokenizer,
            parser,
            collector: Collector::default(),
            queue: VecDeque::new(),
            content: None,
            earlier_calls: earlier_calls(request),
            calls: 0,
            called: false,
            logprobs: Vec::new(),
            tokens: Vec::new(),
            prompt_tokens: 0,
            forced: Vec::new(),
            reasoning_tokens: 0,
            reasoning_cut: None,
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
        let started = Instant::now();
        let stopped =
            self.stops.found().is_some() || self.guide.as_ref().is_some_and(Guide::is_done);
        let next = match self.generator.as_mut() {
            // The parser also ends a turn in which the model goes on to speak for a user or a tool.
            Some(generator) if !self.parser.is_done() && !stopped => generator.next(),
            _ => None,
        };
        if let Some(generator) = &self.generator {
            self.usage = Usage { reasoning_tokens: self.reasoning_tokens, ..generator.usage() };
            let Timings { mut reasoning, mut answer, grammar, .. } = self.timings;
            match self.content {
                Some(Content::Reasoning) => reasoning += started.elapsed(),
                Some(Content::Text) => answer += started.elapsed(),
                _ => {}
            }
            self.timings = Timings { reasoning, answer, grammar, ..generator.timings() };
        }
        match next {
            Some(token) => self.take(token?),
            None => self.end(),
        }
    }

    fn take(&mut self, token: GeneratedToken) -> Result<()> {
        if token.forced {
            self.forced.push(self.tokens.len() - self.prompt_tokens);
        }
        self.tokens.push(token.id);
        // The message a token belongs to is the one that was open before it; markers are in none. A
        // header may turn out to be a chain of thought.
        let reasoning = self.content == Some(Content::Reasoning);
        let hidden = self.hidden && (reasoning || self.content.is_none());
        if let Some(logprobs) = token.logprobs.filter(|_| !hidden) {
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
        if reasoning && self.tokenizer.special(token.id).is_none() {
            self.reasoning_tokens += 1;
            self.usage.reasoning_tokens += 1;
        }
        let events: Vec<Event> = self.parser.push(token.id)?.collect();
        events.into_iter().for_each(|event| self.handle(event));
        self.steer(token.id)
    }

    /// Sees to what comes after a token: ends the chain of thought when it is time to, and keeps the
    /// turn to what is asked of it.
    fn steer(&mut self, id: u32) -> Result<()> {
        let Some(generator) = self.generator.as_mut().filter(|_| !self.parser.is_done()) else {
            return Ok(());
        };
        let reasoning_tokens = self.reasoning_tokens;
        let (content, tokenizer) = (self.content, &*self.tokenizer);
        let cut = self.budget.follow(id, content, reasoning_tokens, tokenizer, generator)?;
        if let Some(cut) = cut {
            self.reasoning_cut = Some(cut);
            self.queue.push_back(ChatEvent::BudgetReached { reasoning_tokens, cut });
        }
        if let Some(guide) = &mut self.guide {
            let started = Instant::now();
            guide.take(id, self.parser.header())?;
            if !generator.is_forcing() && generator.finish_reason().is_none() {
                guide.constrain(generator)?;
            }
            self.timings.grammar += started.elapsed();
        }
        Ok(())
    }

    /// Takes what the parser reports, up to a stop string.
    fn handle(&mut self, event: Event) {
        if self.stops.found().is_some() {
            return;
        }
        let event = match event {
            Event::Delta(text) if self.content == Some(Content::Text) => {
                Event::Delta(self.stops.push(&text))
            }
            Event::Close(_) => {
                let held = self.stops.flush();
                self.tell(Event::Delta(held));
                event
            }
            Event::Repaired(repair) if self.hidden => {
                Event::Repaired(Repair { raw: String::new(), ..repair })
            }
            event => event,
        };
        self.tell(event);
    }

    fn tell(&mut self, event: Event) {
        if matches!(&event, Event::Delta(text) if text.is_empty()) {
            return;
        }
        self.collector.push(event.clone());
        match event {
            Event::Open(header) => {
                self.content = header.content();
                if let Some(ToolCall { id, name, kind, .. }) = self.open_call() {
                    let index = self.calls;
                    self.queue.push_back(ChatEvent::ToolCallStart { index, id, name, kind });
                    self.calls += 1;
                }
            }
            Event::Delta(text) => self.queue.push_back(match self.content {
                Some(Content::Reasoning) if self.hidden => return,
                Some(Content::Reasoning) => ChatEvent::Reasoning(text),
                Some(Content::Preamble) => ChatEvent::Preamble(text),
                Some(Content::ToolCall) => {
                    ChatEvent::ToolCallDelta { index: self.calls - 1, arguments: text }
                }
                _ => ChatEvent::Text(text),
            }),
            Event::Close(_) => {
                self.called = self.open_call().is_some_and(|call| !call.incomplete);
                self.content = None;
                if self.called {
                    self.queue.push_back(ChatEvent::ToolCallDone { index: self.calls - 1 });
                }
            }
            Event::Repaired(repair) => self.queue.push_back(ChatEvent::Repaired(repair)),
        }
    }

    /// The call whose message is being read.
    fn open_call(&self) -> Option<ToolCall> {
        match (self.content, self.message().items.pop()) {
            (Some(Content::ToolCall), Some(Item::ToolCall(call))) => Some(call),
            _ => None,
        }
    }

    /// The answer so far, without what is hidden.
    fn message(&self) -> AssistantMessage {
        let mut message = self.whole_message();
        message.items.retain(|item| !(self.hidden && matches!(item, Item::Reasoning { .. })));
        message
    }

    /// The answer so far.
    fn whole_message(&self) -> AssistantMessage {
        let mut message = self.collector.assistant();
        let calls = message.items.iter_mut().filter_map(|item| match item {
            Item::ToolCall(call) => Some(call),
            _ => None,
        });
        for (number, call) in (self.earlier_calls..).zip(calls) {
            call.id = format!("call_{number}");
        }
        message
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let events: Vec<Event> = self.parser.finish()?.collect();
        events.into_iter().for_each(|event| self.handle(event));
        let Some(generator) = &self.generator else { return Ok(()) };
        let reason = generator.finish_reason().unwrap_or(FinishReason::Stop);
        let reason = match self.stops.found() {
            Some(stop) => FinishReason::StopSequence(stop.to_owned()),
            None if reason == FinishReason::Stop && self.called => FinishReason::ToolCalls,
            None => reason,
        };
        let (usage, timings) = (self.usage, self.timings);
        self.response = Some(ChatResponse {
            message: self.message(),
            finish_reason: reason.clone(),
            usage,
            timings,
            repairs: self.collector.repairs().to_vec(),
            logprobs: std::mem::take(&mut self.logprobs),
            tokens: self.tokens[self.prompt_tokens..].to_vec(),
            forced: std::mem::take(&mut self.forced),
            reasoning_cut: self.reasoning_cut,
            seed: generator.seed(),
        });
        self.queue.push_back(ChatEvent::Finish { reason, usage, timings });
        self.settle();
        Ok(())
    }

    /// Hands the turn over to the session, once.
    fn settle(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Until it has answered, the model needs the thought that led to its call.
        let message = if self.called { self.whole_message() } else { self.message() };
        if let Some(generator) = self.generator.take() {
            session.settle(message, self.prompt_tokens, &self.tokens, generator);
        }
    }
}

fn earlier_calls(request: &ChatRequest) -> usize {
    let assistants = request.messages.iter().filter_map(|message| match message {
        Message::Assistant(assistant) => Some(assistant),
        _ => None,
    });
    let number = |call: &ToolCall| call.id.strip_prefix("call_")?.parse::<u32>().ok();
    let after = |number: u32| number as usize + 1;
    assistants.flat_map(|a| a.tool_calls()).filter_map(number).map(after).max().unwrap_or(0)
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
