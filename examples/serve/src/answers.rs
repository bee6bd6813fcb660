//! [`Answers`]: the answers to one request, as they come.

use crate::ApiError;
use futures_core::Stream;
use gpt_oss_puzzle::serving::{Answer, Event};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Several answers side by side. Dropped, as hyper does with all it holds for a client that is gone, it
/// ends those that still run.
pub struct Answers<E: Event> {
    running: Vec<Option<Answer<E>>>,
    /// Whose turn it is to be asked first: none is to starve the others.
    first: usize,
}

/// What happened in an answer.
pub enum Happened<E: Event> {
    /// An event.
    Event(E),
    /// It has ended, and this is all of it.
    Whole(E::Whole),
}

/// What comes next: what happened in which answer, or the error that ends all.
pub type Next<E> = Result<(usize, Happened<E>), ApiError>;

impl<E: Event> Answers<E> {
    /// Follows these answers.
    pub fn new(answers: Vec<Answer<E>>) -> Answers<E> {
        Answers { running: answers.into_iter().map(Some).collect(), first: 0 }
    }

    /// How many answers there are, ended ones included.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Ends an answer, of which no more is wanted; its whole still comes.
    pub fn stop(&self, index: usize) {
        if let Some(Some(answer)) = self.running.get(index) {
            answer.cancel_handle().cancel();
        }
    }

    /// What happened next, and in which answer; `None` once all have ended. The first error ends all.
    pub async fn next(&mut self) -> Option<Next<E>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// All answers whole, once they have ended.
    ///
    /// # Errors
    /// The first error of any.
    pub async fn wholes(mut self) -> Result<Vec<E::Whole>, ApiError> {
        let mut wholes: Vec<Option<E::Whole>> = self.running.iter().map(|_| None).collect();
        while let Some(happened) = self.next().await {
            if let (index, Happened::Whole(whole)) = happened? {
                wholes[index] = Some(whole);
            }
        }
        Ok(wholes.into_iter().flatten().collect())
    }

    /// [`Answers::next`] for a stream.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next<E>>> {
        let n = self.running.len();
        let mut is_waiting = false;
        for index in (0..n).map(|i| (self.first + i) % n) {
            let Some(answer) = &mut self.running[index] else { continue };
            match Pin::new(&mut *answer).poll_next(cx) {
                Poll::Pending => is_waiting = true,
                Poll::Ready(Some(Ok(event))) => {
                    self.first = index + 1;
                    return Poll::Ready(Some(Ok((index, Happened::Event(event)))));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.running.iter_mut().for_each(|answer| *answer = None);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => {
                    let whole = answer.take_whole();
                    self.running[index] = None;
                    if let Some(whole) = whole {
                        self.first = index + 1;
                        return Poll::Ready(Some(Ok((index, Happened::Whole(whole)))));
                    }
                }
            }
        }
        if is_waiting { Poll::Pending } else { Poll::Ready(None) }
    }
}
