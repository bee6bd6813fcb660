//! Answers whose own code panics.

use super::Asked;
use crate::Result;
use crate::generation::{Drive, GeneratedToken, Lane};
use crate::serving::Generated;
use crate::serving::job::{Continuation, Tells};
use std::sync::Arc;
use std::task::{Wake, Waker};

/// A continuation that panics when the time has come.
pub(super) struct Touchy {
    pub(super) continuation: Continuation,
    /// Tokens until it cannot take one.
    pub(super) follow_in: usize,
    /// Masks until it cannot make one.
    pub(super) mask_in: usize,
}

impl Touchy {
    pub(super) fn new(asked: &Asked) -> Touchy {
        let continuation = Continuation::new(asked.lane());
        Touchy { continuation, follow_in: usize::MAX, mask_in: usize::MAX }
    }
}

impl Drive for Touchy {
    fn lane(&self) -> &Lane {
        self.continuation.lane()
    }

    fn lane_mut(&mut self) -> &mut Lane {
        self.continuation.lane_mut()
    }

    fn follow(&mut self, token: GeneratedToken) -> Result<()> {
        self.follow_in = self.follow_in.checked_sub(1).expect("planned");
        self.continuation.follow(token)
    }

    fn has_mask(&self) -> bool {
        true
    }

    fn mask(&mut self) -> Result<()> {
        self.mask_in = self.mask_in.checked_sub(1).expect("planned");
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.continuation.is_done()
    }

    fn end(&mut self) -> Result<()> {
        self.continuation.end()
    }
}

impl Tells for Touchy {
    type Event = GeneratedToken;

    fn pop(&mut self) -> Option<GeneratedToken> {
        self.continuation.pop()
    }

    fn whole(&mut self) -> Option<Generated> {
        self.continuation.whole()
    }

    fn leads_on(&self) -> bool {
        true
    }
}

/// A task that cannot be woken up.
struct Sleeper;

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        panic!("planned");
    }
}

pub(super) fn sleeper() -> Waker {
    Waker::from(Arc::new(Sleeper))
}
