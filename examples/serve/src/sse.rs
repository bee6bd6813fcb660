//! Streams of server-sent events.

use crate::ApiError;
use crate::answers::{Answers, Happened, Next};
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Writes what happens in answers as events.
pub trait Writer<E: gpt_oss_puzzle::serving::Event>: Send + Unpin + 'static {
    /// What is due after an event of answer `index`.
    fn event(&mut self, index: usize, event: E) -> Vec<Event>;

    /// What is due when answer `index` has ended.
    fn whole(&mut self, index: usize, whole: E::Whole) -> Vec<Event>;

    /// Whether more of answer `index` is wanted.
    fn wants(&self, _index: usize) -> bool {
        true
    }

    /// What a stream ends in, after an error or once all answers have ended.
    fn end(&mut self, error: Option<ApiError>) -> Vec<Event>;
}

/// An event without a name.
pub fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// The error, if there is one, and `[DONE]` if not: how streams of chunks end.
pub fn done(error: Option<ApiError>) -> Vec<Event> {
    match error {
        Some(error) => {
            error.log();
            vec![data(&error.json())]
        }
        None => vec![Event::default().data("[DONE]")],
    }
}

/// Streams answers.
///
/// Waits for the first event, but no longer than `keep_alive`: so that an error that comes before it
/// has a status of its own, and a client that waits for a long prompt to be read still hears that the
/// connection lives.
///
/// # Errors
/// What came instead of a first event.
pub async fn respond<E: gpt_oss_puzzle::serving::Event, W: Writer<E>>(
    answers: Answers<E>,
    writer: W,
    keep_alive: Duration,
) -> Result<Response, ApiError>
where
    Answers<E>: Unpin + Send + 'static,
{
    let mut events = Events { answers, writer, due: VecDeque::new(), ended: false };
    let first = poll_fn(|cx| events.answers.poll_next(cx));
    if let Ok(first) = tokio::time::timeout(keep_alive, first).await {
        match first {
            Some(Err(error)) => return Err(error),
            first => events.take(first),
        }
    }
    let alive = KeepAlive::new().interval(keep_alive);
    let mut response = Sse::new(events).keep_alive(alive).into_response();
    // Proxies that collect a response before they pass it on are asked not to.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    Ok(response)
}

struct Events<E: gpt_oss_puzzle::serving::Event, W> {
    answers: Answers<E>,
    writer: W,
    due: VecDeque<Event>,
    ended: bool,
}

impl<E: gpt_oss_puzzle::serving::Event, W: Writer<E>> Events<E, W> {
    fn take(&mut self, happened: Option<Next<E>>) {
        let due = match happened {
            Some(Ok((index, Happened::Event(event)))) => {
                let due = self.writer.event(index, event);
                if !self.writer.wants(index) {
                    self.answers.stop(index);
                }
                due
            }
            Some(Ok((index, Happened::Whole(whole)))) => self.writer.whole(index, whole),
            Some(Err(error)) => {
                self.ended = true;
                self.writer.end(Some(error))
            }
            None => {
                self.ended = true;
                self.writer.end(None)
            }
        };
        self.due.extend(due);
    }
}

impl<E: gpt_oss_puzzle::serving::Event, W: Writer<E>> Stream for Events<E, W>
where
    Answers<E>: Unpin,
{
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let happened = ready!(self.answers.poll_next(cx));
            self.take(happened);
        }
    }
}
