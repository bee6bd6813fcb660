//! [`ChatStream`]: an answer while it is made, on the caller's thread.

use super::session::SessionState;
use super::turn::Turn;
use super::{ChatEvent, ChatResponse, Model};
use crate::cache::Sequence;
use crate::generation::{CancelHandle, Feed, Timings, Usage, advance};
use crate::{Error, ErrorKind, Result};
use std::iter::FusedIterator;

/// An answer while it is made: an iterator of [`ChatEvent`]s, the last of which is
/// [`ChatEvent::Finish`].
///
/// The model runs while the next event is asked for, on the caller's thread. Dropping the stream ends
/// the answer.
pub struct ChatStream<'m> {
    model: &'m Model,
    sequence: Sequence,
    turn: Turn,
    cancel: CancelHandle,
    /// Taken when the turn is settled.
    session: Option<&'m mut SessionState>,
    response: Option<ChatResponse>,
    /// Nothing comes after the turn's events.
    ended: bool,
}

impl<'m> ChatStream<'m> {
    /// Goes on with `turn` on `sequence`.
    pub(super) fn new(model: &'m Model, sequence: Sequence, turn: Turn) -> ChatStream<'m> {
        ChatStream {
            model,
            sequence,
            turn,
            cancel: CancelHandle::default(),
            session: None,
            response: None,
            ended: false,
        }
    }

    /// Gives the turn back to `session` when it ends.
    pub(super) fn in_session(mut self, session: &'m mut SessionState) -> Self {
        self.session = Some(session);
        self
    }

    /// A handle that ends the answer from any thread, before the model's next step.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.turn.usage()
    }

    /// Times so far.
    pub fn timings(&self) -> Timings {
        self.turn.timings()
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
        let (model, most) = (self.model, self.model.prefill_chunk());
        if let Some(session) = &mut self.session {
            session.before_step(&self.turn, &mut self.sequence, most);
        }
        let feed = Feed { drive: &mut self.turn, sequence: &mut self.sequence, most };
        advance(model, feed, &self.cancel)?;
        if let Some(session) = &mut self.session {
            session.after_step(model, &self.turn, &mut self.sequence);
        }
        if self.turn.has_ended() {
            self.ended = true;
            self.response = self.turn.take_response();
            self.settle();
        }
        Ok(())
    }

    /// Hands the turn over to the session, once.
    fn settle(&mut self) {
        if let Some(session) = self.session.take() {
            session.settle(self.model, &self.turn, &mut self.sequence);
        }
    }
}

impl Iterator for ChatStream<'_> {
    type Item = Result<ChatEvent>;

    /// The next event; `None` after [`ChatEvent::Finish`] or an error.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.turn.pop() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.advance() {
                self.ended = true;
                self.turn.clear();
                if let Some(session) =
                    self.session.as_mut().filter(|_| error.kind() == ErrorKind::Numeric)
                {
                    session.distrust(self.model, &self.turn);
                }
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
