//! [`Answer`]: what whoever asked an engine holds, and the queue between the two.

use super::inbox::Inbox;
use crate::chat::{ChatEvent, ChatResponse};
use crate::generation::{CancelHandle, FinishReason, GeneratedToken, Timings, Usage};
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// What an [`Answer`] is made of: a [`ChatEvent`] or a [`GeneratedToken`].
pub trait Event: sealed::Sealed + Send + Sized + 'static {
    /// The whole answer.
    type Whole: Send + 'static;

    /// Goes on with `later`, or gives it back where the two are to be told of one by one.
    #[doc(hidden)]
    fn append(&mut self, later: Self) -> Option<Self>;

    /// Whether it does not wait for others.
    #[doc(hidden)]
    fn is_urgent(&self) -> bool;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::chat::ChatEvent {}
    impl Sealed for crate::generation::GeneratedToken {}
}

impl Event for ChatEvent {
    type Whole = ChatResponse;

    fn append(&mut self, later: ChatEvent) -> Option<ChatEvent> {
        use ChatEvent::{Preamble, Reasoning, Text, ToolCallDelta};
        match (self, later) {
            (Text(text), Text(more))
            | (Reasoning(text), Reasoning(more))
            | (Preamble(text), Preamble(more)) => text.push_str(&more),
            (
                ToolCallDelta { index, arguments },
                ToolCallDelta { index: same, arguments: more },
            ) if *index == same => {
                arguments.push_str(&more);
            }
            (_, later) => return Some(later),
        }
        None
    }

    fn is_urgent(&self) -> bool {
        use ChatEvent::{Logprob, Preamble, Reasoning, Text, ToolCallDelta};
        !matches!(self, Text(_) | Reasoning(_) | Preamble(_) | ToolCallDelta { .. } | Logprob(_))
    }
}

/// A continuation as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Generated {
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<GeneratedToken>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The seed of the draws, which gives the same tokens again.
    pub seed: u64,
}

impl Event for GeneratedToken {
    type Whole = Generated;

    fn append(&mut self, later: GeneratedToken) -> Option<GeneratedToken> {
        Some(later)
    }

    fn is_urgent(&self) -> bool {
        false
    }
}

/// An answer while an engine makes it: an iterator of its events that waits for the next, and with the feature
/// `stream` a `futures_core::Stream` of them.
///
/// It is made whether it is read or not, as far as [`super::EngineOptions::unread`] events ahead. Dropping it
/// ends it before the model's next step, and gives its pages back.
pub struct Answer<E: Event = ChatEvent> {
    queue: Arc<Queue<E>>,
    inbox: Arc<Inbox>,
    cancel: CancelHandle,
    prompt_tokens: usize,
    whole: Option<E::Whole>,
    ended: bool,
}

impl<E: Event> Answer<E> {
    pub(super) fn new(
        queue: Arc<Queue<E>>,
        inbox: Arc<Inbox>,
        cancel: CancelHandle,
        prompt_tokens: usize,
    ) -> Answer<E> {
        Answer { queue, inbox, cancel, prompt_tokens, whole: None, ended: false }
    }

    /// A handle that ends the answer from any thread, before the model's next step; what there is of it by then
    /// is the whole. Nothing waits for it: an idle engine sees it when the answer is read or dropped.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The next event, if it comes within `limit`; `Pending` if not. `Ready(None)` after the last.
    pub fn next_within(&mut self, limit: Duration) -> Poll<Option<Result<E>>> {
        let until = Instant::now().checked_add(limit);
        let queue = Arc::clone(&self.queue);
        let mut state = queue.lock();
        loop {
            if let Some(next) = self.take(&mut state) {
                return Poll::Ready(next);
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Poll::Pending,
                Some(left) => {
                    let waited = queue.ready.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => queue.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits for the end and returns the whole answer, what was already read of it included.
    ///
    /// # Errors
    /// The first error of the answer; `InvalidRequest` when it had already yielded one, or the whole was taken.
    pub fn finish(mut self) -> Result<E::Whole> {
        for event in self.by_ref() {
            event?;
        }
        self.take_whole().ok_or_else(|| {
            Error::invalid_request("the answer ended with an error or was taken, none is left")
        })
    }

    /// The whole answer, once: after the last event.
    pub fn take_whole(&mut self) -> Option<E::Whole> {
        self.whole.take()
    }

    /// What is there to be read: an event, or that there is none any more.
    fn take(&mut self, state: &mut State<E>) -> Option<Option<Result<E>>> {
        if self.ended {
            return Some(None);
        }
        if let Some(event) = state.events.pop_front() {
            if state.resume_at.is_some_and(|length| state.events.len() <= length) {
                state.resume_at = None;
                self.inbox.wake();
            }
            return Some(Some(Ok(event)));
        }
        let end = state.end.take()?;
        self.ended = true;
        match end {
            Ok(whole) => self.whole = Some(whole),
            Err(error) => return Some(Some(Err(error))),
        }
        Some(None)
    }
}

#[cfg(test)]
impl<E: Event> Answer<E> {
    pub(super) fn queue(&self) -> &Queue<E> {
        &self.queue
    }
}

impl<E: Event> std::fmt::Debug for Answer<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<E: Event> Iterator for Answer<E> {
    type Item = Result<E>;

    /// Waits for the next event; `None` after the last, or after an error.
    fn next(&mut self) -> Option<Self::Item> {
        match self.next_within(Duration::MAX) {
            Poll::Ready(next) => next,
            // Nobody waits for so long.
            Poll::Pending => None,
        }
    }
}

impl<E: Event> FusedIterator for Answer<E> {}

// Nothing in it is ever pinned.
impl<E: Event> Unpin for Answer<E> {}

#[cfg(feature = "stream")]
impl<E: Event> futures_core::Stream for Answer<E> {
    type Item = Result<E>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        let answer = self.get_mut();
        let queue = Arc::clone(&answer.queue);
        let mut state = queue.lock();
        match answer.take(&mut state) {
            Some(next) => Poll::Ready(next),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<E: Event> Drop for Answer<E> {
    fn drop(&mut self) {
        let unread = {
            let mut state = self.queue.lock();
            state.dropped = true;
            mem::take(&mut state.events)
        };
        drop(unread);
        if !self.ended {
            self.cancel.cancel();
            self.inbox.wake();
        }
    }
}

/// Between an engine and who reads an answer. Neither waits for the other to send.
pub(super) struct Queue<E: Event> {
    state: Mutex<State<E>>,
    ready: Condvar,
}

struct State<E: Event> {
    events: VecDeque<E>,
    /// After the events.
    end: Option<Result<E::Whole>>,
    /// How few events may be left until the engine is told that it can go on.
    resume_at: Option<usize>,
    waker: Option<Waker>,
    dropped: bool,
}

impl<E: Event> Queue<E> {
    pub(super) fn new() -> Arc<Queue<E>> {
        let state = State {
            events: VecDeque::new(),
            end: None,
            resume_at: None,
            waker: None,
            dropped: false,
        };
        Arc::new(Queue { state: Mutex::new(state), ready: Condvar::new() })
    }

    /// Adds events.
    pub(super) fn send(&self, events: impl Iterator<Item = E>) {
        let waker = {
            let mut state = self.lock();
            if state.dropped {
                return;
            }
            state.events.extend(events);
            state.waker.take()
        };
        self.tell(waker);
    }

    /// Ends the answer, after these events. Whoever is woken up and panics finds it ended.
    pub(super) fn end(&self, events: impl Iterator<Item = E>, end: Result<E::Whole>) {
        let waker = {
            let mut state = self.lock();
            if !state.dropped {
                state.events.extend(events);
            }
            state.end.get_or_insert(end);
            state.waker.take()
        };
        self.tell(waker);
    }

    /// Whether at most `most` events are unread, or nobody will read them. The engine is woken up when no more
    /// than `least` are.
    pub(super) fn has_room(&self, most: usize, least: usize) -> bool {
        let mut state = self.lock();
        if state.dropped {
            return true;
        }
        let most = if state.resume_at.is_some() { least } else { most };
        let has_room = state.events.len() <= most;
        state.resume_at = (!has_room).then_some(least);
        has_room
    }

    fn tell(&self, waker: Option<Waker>) {
        self.ready.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What is in it is plain data: a panic elsewhere while it was held leaves it consistent.
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl<E: Event> Queue<E> {
    /// Has `waker` be told of what comes next, as a task that waits for it does.
    pub(super) fn wake_next(&self, waker: Waker) {
        self.lock().waker = Some(waker);
    }
}

/// Of an answer that nobody makes any more.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "the engine was stopped before it answered")
}
