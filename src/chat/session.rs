//! [`ChatSession`]: a conversation of many turns.

use super::prefix::PrefixCache;
use super::{ChatRequest, ChatStream, Model};
use crate::Result;
use crate::generation::Generator;
use crate::harmony::{AssistantMessage, Item, Message};

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
    prefix: PrefixCache,
}

impl ChatSession {
    pub(super) fn new(model: Model, mut request: ChatRequest) -> ChatSession {
        // Looked up once: another date in the first message would invalidate all that is cached.
        request.date = request.date.or_else(|| model.renderer().default_date());
        ChatSession { model, state: SessionState { request, prefix: PrefixCache::default() } }
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
            Ok((stream, prompt)) => Ok(stream.in_session(state, prompt)),
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
        let (stream, prompt) = state.start(model)?;
        Ok(stream.in_session(state, prompt))
    }

    /// Gives the cached past back to the pool; the conversation stays, and its next turn reads it anew.
    pub fn release(&mut self) {
        self.state.prefix.clear();
    }
}

impl SessionState {
    /// An answer to the conversation on what is cached of it, and its prompt.
    fn start<'m>(&mut self, model: &'m Model) -> Result<(ChatStream<'m>, Vec<u32>)> {
        let prompt = model.render(&self.request)?.tokens;
        let room = model.context().saturating_sub(prompt.len());
        let total = prompt.len() + self.request.max_tokens.map_or(room, |n| n.min(room));
        let sequence = self.prefix.resume(model, &prompt);
        let held = sequence.pages();
        let generator = model.continue_sequence(sequence, &prompt, &self.request)?;
        let stream = ChatStream::new(model, generator.keep_prompt(), &self.request)?;
        // Nothing is given up for a request that is refused.
        self.prefix.make_room(model, &prompt, total, held);
        Ok((stream, prompt))
    }

    /// Takes over what a turn leaves: `tokens` is its prompt and all it generated.
    pub(super) fn settle(
        &mut self,
        mut message: AssistantMessage,
        prompt_tokens: usize,
        tokens: &[u32],
        mut generator: Generator<'_>,
    ) {
        if let Some(prompt) = generator.take_prompt_sequence() {
            let turn = !matches!(self.request.messages.last(), Some(Message::Tool(_)));
            self.prefix.keep(&tokens[..prompt_tokens], prompt, turn);
        }
        self.prefix.keep(tokens, generator.into_sequence(), false);
        message.items.retain(|item| !matches!(item, Item::ToolCall(call) if call.incomplete));
        let said = |item: &Item| !matches!(item, Item::Reasoning { .. });
        if message.items.iter().any(said) {
            self.request.messages.push(message.into());
        }
    }
}
