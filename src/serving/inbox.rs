//! [`Inbox`]: where requests come in, and where an engine is stopped.

use super::request::Request;
use super::stats::Stats;
use crate::{Error, ErrorKind, Result};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between those who ask and the thread that makes the steps.
pub(super) struct Inbox {
    state: Mutex<State>,
    /// Of `state`, seen by the engine's thread.
    changed: Condvar,
    /// Most requests at a time.
    most: usize,
}

#[derive(Default)]
struct State {
    arrivals: Vec<Request>,
    /// Requests that the thread has.
    present: usize,
    /// Tokens that those which wait have yet to read and to say.
    queued_tokens: usize,
    woken: bool,
    closed: Option<Closed>,
    stats: Stats,
}

/// Why no request is taken any more.
#[derive(Clone)]
pub(super) enum Closed {
    /// Nobody can ask.
    Unowned,
    /// It was shut down; what still runs then ends.
    Shutdown(Instant),
    /// Its device fails.
    Lost(String),
}

impl Closed {
    pub(super) fn error(&self) -> Error {
        match self {
            Closed::Unowned | Closed::Shutdown(_) => {
                Error::new(ErrorKind::Stopped, "the engine was shut down, start another")
            }
            Closed::Lost(why) => Error::new(
                ErrorKind::Device,
                format!("the engine has lost its device, load the model anew: {why}"),
            ),
        }
    }
}

impl Inbox {
    pub(super) fn new(most: usize) -> Inbox {
        Inbox { state: Mutex::default(), changed: Condvar::new(), most }
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// `Busy` when there are too many, `Stopped` or `Device` when none is taken any more.
    pub(super) fn submit(&self, request: Request) -> Result<()> {
        let mut state = self.lock();
        if let Some(closed) = &state.closed {
            return Err(closed.error());
        }
        let present = state.present + state.arrivals.len();
        if present >= self.most {
            let message = format!(
                "the engine has {present} requests running and waiting, as many as it takes; ask again later"
            );
            let busy = Error::new(ErrorKind::Busy, message);
            return Err(busy.with_retry_after(state.retry_after()));
        }
        state.arrivals.push(request);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Has the thread look after its requests.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_all();
    }

    /// Takes no further requests.
    pub(super) fn close(&self, why: Closed) {
        let mut state = self.lock();
        match (&state.closed, &why) {
            (Some(Closed::Lost(_)), _) => {}
            // The earlier end counts.
            (Some(Closed::Shutdown(first)), Closed::Shutdown(other)) if first <= other => {}
            (Some(Closed::Shutdown(_)), Closed::Unowned) => {}
            _ => state.closed = Some(why),
        }
        state.woken = true;
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.lock().closed.clone()
    }

    /// What came in since. Waits for it, or to be woken, for at most `limit`; for ever without one.
    pub(super) fn take(&self, limit: Option<Duration>) -> (Vec<Request>, Option<Closed>) {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        while state.arrivals.is_empty() && !state.woken {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.woken = false;
        let arrivals = std::mem::take(&mut state.arrivals);
        state.present += arrivals.len();
        state.stats.waiting += arrivals.len();
        (arrivals, state.closed.clone())
    }

    /// Tells what the thread has done and has to do.
    pub(super) fn publish(&self, stats: &Stats, queued_tokens: usize) {
        let mut state = self.lock();
        state.present = stats.waiting + stats.running;
        state.queued_tokens = queued_tokens;
        state.stats.clone_from(stats);
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        let mut stats = state.stats.clone();
        stats.waiting += state.arrivals.len();
        stats
    }

    /// What is in it is plain data: a panic elsewhere while it was held leaves it consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When those that wait will have begun, by how fast steps have been so far.
    fn retry_after(&self) -> Duration {
        let time = (self.stats.in_model + self.stats.outside_model).as_secs_f64();
        let rate = self.stats.step_tokens as f64 / time.max(1e-9);
        let seconds = self.queued_tokens as f64 / rate.max(1e-9);
        Duration::from_secs_f64(seconds.clamp(1.0, 600.0))
    }
}
