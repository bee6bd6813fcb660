//! [`ChatSession`]: a conversation of many turns.

use super::boundaries::boundaries;
use super::turn::Turn;
use super::{ChatRequest, ChatStream, Model};
use crate::Result;
use crate::cache::{Marks, Sequence};
use crate::generation::Drive;
use crate::harmony::{Item, Message};
use std::collections::VecDeque;

/// A conversation that goes on from turn to turn and keeps what the model has read of it.
///
/// A turn runs the model only over the tokens after the longest part of the prompt that is still
/// cached ([`crate::generation::Usage::cached_tokens`]); the answers are those of a fresh
/// [`Model::chat`] with the same messages.
///
/// ```no_run
/// use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, Model};
/// use gpt_oss_puzzle::harmony::Message;
///
/// let model = Model::load("gpt-oss-puzzle-88B")?;
/// let mut session = model.session(ChatRequest::new([Message::system("Be brief.")]));
/// for question in ["Why is the sky blue?", "And at sunset?"] {
///     for event in session.send(question)? {
///         if let ChatEvent::Text(text) = event? {
///             print!("{text}");
///         }
///     }
/// }
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
pub struct ChatSession {
    model: Model,
    state: SessionState,
}

/// What a running turn changes.
pub(super) struct SessionState {
    request: ChatRequest,
    /// Of the turn that runs.
    marks: Option<Marks>,
    /// What each of the last turns read and said, with marks in it.
    past: VecDeque<Vec<u32>>,
}

/// Turns whose marks [`ChatSession::release`] gives up; those of turns before have most often been replaced.
const PAST: usize = 16;

impl ChatSession {
    pub(super) fn new(model: Model, mut request: ChatRequest) -> ChatSession {
        // Looked up once: another date in the first message would invalidate all that is cached.
        request.date = request.date.or_else(|| model.renderer().default_date());
        let state = SessionState { request, marks: None, past: VecDeque::new() };
        ChatSession { model, state }
    }

    /// The model this is a conversation with.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.state.request.messages
    }

    /// The conversation and its settings.
    pub fn request(&self) -> &ChatRequest {
        &self.state.request
    }

    /// The conversation and its settings, to be changed between turns. Messages that stay the same
    /// stay cached.
    pub fn request_mut(&mut self) -> &mut ChatRequest {
        &mut self.state.request
    }

    /// Adds a message, such as a tool's result, without asking for an answer.
    pub fn push(&mut self, message: impl Into<Message>) {
        self.state.request.messages.push(message.into());
    }

    /// Adds what the user says and answers it.
    ///
    /// # Errors
    /// As [`Model::chat_stream`]; the conversation is then as it was.
    pub fn send(&mut self, text: impl Into<String>) -> Result<ChatStream<'_>> {
        let ChatSession { model, state } = self;
        state.request.messages.push(Message::user(text));
        match state.start(model) {
            Ok(stream) => Ok(stream.in_session(state)),
            Err(error) => {
                state.request.messages.pop();
                Err(error)
            }
        }
    }

    /// Answers the conversation as it is.
    ///
    /// The answer is added to the conversation when the stream ends or is dropped, as far as it came;
    /// an answer of chain of thought alone is not, and neither is a tool call that was cut off.
    ///
    /// # Errors
    /// As [`Model::chat_stream`].
    pub fn respond(&mut self) -> Result<ChatStream<'_>> {
        let ChatSession { model, state } = self;
        Ok(state.start(model)?.in_session(state))
    }

    /// Gives the cached past back to the pool, but for what other conversations begin with; this one stays, and
    /// its next turn reads it anew. Without it the past stays cached, also when the session is dropped, until
    /// its pages are needed.
    pub fn release(&mut self) {
        let mut prefix = self.model.prefix_cache();
        self.state.past.drain(..).for_each(|tokens| prefix.remove_branch(None, &tokens));
    }
}

impl SessionState {
    /// An answer to the conversation on what is cached of it.
    fn start<'m>(&mut self, model: &'m Model) -> Result<ChatStream<'m>> {
        let prompt = model.render(&self.request)?.tokens;
        let mut prefix = model.prefix_cache();
        let cached = prefix.cached(None, &prompt);
        let lane = model.lane(cached, &prompt, &self.request)?;
        let turn = Turn::new(model, lane, &self.request)?;
        let wanted = boundaries(model.tokenizer(), &prompt, Some(&self.request));
        let sequence = prefix.resume(None, &prompt);
        self.marks = Some(Marks::new(&prefix, None, &prompt, sequence.len(), &wanted));
        Ok(ChatStream::new(model, sequence, turn))
    }

    /// Before at most `most` tokens are fed.
    pub(super) fn before_step(&mut self, turn: &Turn, sequence: &mut Sequence, most: usize) {
        if let Some(marks) = &mut self.marks {
            turn.boundary().into_iter().for_each(|boundary| marks.want(boundary));
            marks.before_step(sequence, most);
        }
    }

    /// Keeps what the step has led to.
    pub(super) fn after_step(&mut self, model: &Model, turn: &Turn, sequence: &mut Sequence) {
        if let Some(marks) = &mut self.marks {
            marks.after_step(&mut model.prefix_cache(), turn.lane().tokens(), sequence);
        }
    }

    /// The numbers went wrong: what led to them is not to be gone on from.
    pub(super) fn distrust(&mut self, model: &Model, turn: &Turn) {
        if let Some(mut marks) = self.marks.take() {
            marks.forget(&mut model.prefix_cache(), turn.lane().tokens());
        }
    }

    /// Takes over what a turn leaves.
    pub(super) fn settle(&mut self, model: &Model, turn: &Turn, sequence: &mut Sequence) {
        let tokens = turn.lane().tokens();
        if let Some(mut marks) = self.marks.take() {
            if turn.leads_on() {
                marks.end(&mut model.prefix_cache(), tokens, sequence);
            }
            self.past.push_back(tokens.to_vec());
            self.past.drain(..self.past.len().saturating_sub(PAST));
        }
        // Until it has answered, the model needs the thought that led to its call.
        let mut message = if turn.called() { turn.whole_message() } else { turn.message() };
        message.items.retain(|item| !matches!(item, Item::ToolCall(call) if call.incomplete));
        let said = |item: &Item| !matches!(item, Item::Reasoning { .. });
        if message.items.iter().any(said) {
            self.request.messages.push(message.into());
        }
    }
}
