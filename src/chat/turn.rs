//! [`Turn`]: what the tokens of one answer mean.

use super::budget::Budget;
use super::guide::Guide;
use super::stop_strings::StopStrings;
use super::{ChatEvent, ChatRequest, ChatResponse, Model, ReasoningCut, TokenLogprob, TopLogprob};
use crate::Result;
use crate::generation::{Drive, FinishReason, GeneratedToken, Lane, Timings, Usage};
use crate::harmony::{
    AssistantMessage, Collector, Content, Event, Item, Message, Mode, Parser, Repair, ToolCall,
};
use crate::tokenizer::Tokenizer;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// One answer, from its first token to its last: parser, budget, format, stop strings, and the events that tell
/// of it. Knows neither the model nor what is cached.
pub(crate) struct Turn {
    tokenizer: Arc<Tokenizer>,
    lane: Lane,
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
    /// Whether it can end in one.
    may_call: bool,
    /// Tokens of the prompt and of the messages that have closed.
    closed: usize,
    logprobs: Vec<TokenLogprob>,
    /// Which of the generated tokens were forced.
    forced: Vec<usize>,
    reasoning_tokens: usize,
    reasoning_cut: Option<ReasoningCut>,
    response: Option<ChatResponse>,
    ended: bool,
}

impl Turn {
    /// The turn that answers `request`, whose prompt `lane` begins with.
    pub(crate) fn new(model: &Model, mut lane: Lane, request: &ChatRequest) -> Result<Turn> {
        let tokenizer = model.tokenizer().clone();
        let parser = Parser::new(tokenizer.clone(), request.reasoning.primed(), Mode::Tolerant)?
            .tools(request.tools.iter().map(|tool| tool.name.as_str()))
            .builtin_tools(request.builtin_tools.iter().copied());
        let budget = Budget::new(request, &tokenizer, &mut lane)?;
        let mut guide = model.guidance().guide(request, &tokenizer, parser.header())?;
        if let Some(guide) = &mut guide {
            guide.lead(&mut lane)?;
        }
        Ok(Turn {
            budget,
            guide,
            stops: StopStrings::new(&request.stop)?,
            hidden: request.reasoning.hidden,
            usage: lane.usage(),
            timings: lane.timings(),
            lane,
            tokenizer,
            parser,
            collector: Collector::default(),
            queue: VecDeque::new(),
            content: None,
            earlier_calls: earlier_calls(request),
            calls: 0,
            called: false,
            may_call: request.offers_tools(),
            closed: 0,
            logprobs: Vec::new(),
            forced: Vec::new(),
            reasoning_tokens: 0,
            reasoning_cut: None,
            response: None,
            ended: false,
        })
    }

    /// The next event that nobody has taken.
    pub(crate) fn pop(&mut self) -> Option<ChatEvent> {
        self.queue.pop_front()
    }

    /// Forgets the events that nobody has taken.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Whether the last event is there.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The whole answer, once it has ended.
    pub(crate) fn take_response(&mut self) -> Option<ChatResponse> {
        self.response.take()
    }

    /// Token counts so far.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Times so far.
    pub(super) fn timings(&self) -> Timings {
        self.timings
    }

    /// Whether it ended in a call of a tool.
    pub(super) fn called(&self) -> bool {
        self.called
    }

    /// Whether the next prompt of the conversation begins with this turn as it was made: no chain of thought
    /// is dropped from it, and no call is written differently (see [`Drive::boundary`]).
    pub(crate) fn leads_on(&self) -> bool {
        !self.called && self.reasoning_tokens == 0
    }

    /// Brings counts and times up to date with the lane's.
    fn count(&mut self) {
        self.usage = Usage { reasoning_tokens: self.reasoning_tokens, ..self.lane.usage() };
        let Timings { reasoning, answer, grammar, .. } = self.timings;
        self.timings = Timings { reasoning, answer, grammar, ..self.lane.timings() };
    }

    fn take(&mut self, token: GeneratedToken) -> Result<()> {
        match self.content {
            Some(Content::Reasoning) => self.timings.reasoning += self.lane.step_time(),
            Some(Content::Text) => self.timings.answer += self.lane.step_time(),
            _ => {}
        }
        self.count();
        if token.forced {
            self.forced.push(self.usage.completion_tokens - 1);
        }
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
        if self.parser.is_done() {
            return Ok(());
        }
        let lane = &mut self.lane;
        let reasoning_tokens = self.reasoning_tokens;
        let (content, tokenizer) = (self.content, &*self.tokenizer);
        let cut = self.budget.follow(id, content, reasoning_tokens, tokenizer, lane)?;
        if let Some(cut) = cut {
            self.reasoning_cut = Some(cut);
            self.queue.push_back(ChatEvent::BudgetReached { reasoning_tokens, cut });
        }
        if let Some(guide) = &mut self.guide {
            let started = Instant::now();
            guide.take(id, self.parser.header())?;
            if !lane.is_forcing() && lane.finish_reason().is_none() {
                guide.lead(lane)?;
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
                self.closed = self.lane.tokens().len();
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
    pub(super) fn message(&self) -> AssistantMessage {
        let mut message = self.whole_message();
        message.items.retain(|item| !(self.hidden && matches!(item, Item::Reasoning { .. })));
        message
    }

    /// The answer so far.
    pub(super) fn whole_message(&self) -> AssistantMessage {
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
}

impl Drive for Turn {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn lane_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }

    fn follow(&mut self, token: GeneratedToken) -> Result<()> {
        self.take(token)
    }

    fn has_mask(&self) -> bool {
        self.guide.as_ref().is_some_and(Guide::has_mask)
    }

    fn mask(&mut self) -> Result<()> {
        let Some(guide) = &mut self.guide else { return Ok(()) };
        let started = Instant::now();
        let masked = guide.mask(&mut self.lane);
        self.timings.grammar += started.elapsed();
        masked
    }

    /// What led to a call stays in the prompt until the loop ends; the call itself is written in another order
    /// than models make it, and its arguments with other spaces.
    fn boundary(&self) -> Option<usize> {
        (self.may_call && self.closed > 0 && !self.is_done()).then_some(self.closed)
    }

    /// The parser also ends a turn in which the model goes on to speak for a user or a tool.
    fn is_done(&self) -> bool {
        self.lane.finish_reason().is_some()
            || self.parser.is_done()
            || self.stops.found().is_some()
            || self.guide.as_ref().is_some_and(Guide::is_done)
    }

    fn end(&mut self) -> Result<()> {
        self.ended = true;
        let events: Vec<Event> = self.parser.finish()?.collect();
        events.into_iter().for_each(|event| self.handle(event));
        self.count();
        let reason = self.lane.finish_reason().unwrap_or(FinishReason::Stop);
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
            tokens: self.lane.tokens()[usage.prompt_tokens..].to_vec(),
            forced: std::mem::take(&mut self.forced),
            reasoning_cut: self.reasoning_cut,
            seed: self.lane.seed(),
        });
        self.queue.push_back(ChatEvent::Finish { reason, usage, timings });
        Ok(())
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
