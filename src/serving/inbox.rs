//! [`Inbox`]: where requests come in.

use std::sync::{Condvar, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// Requests that the engine has not seen yet.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<(Vec<Job>, bool)>,
    changed: Condvar,
}

impl Inbox {
    pub(super) fn put(&self, job: Job) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.push(job);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    pub(super) fn take(&self) -> Option<Vec<Job>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.0.is_empty() {
                return Some(std::mem::take(&mut state.0));
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
