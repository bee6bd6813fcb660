//! [`Drive`]: what a token means to an answer.

use super::lane::Lane;
use super::{FinishReason, GeneratedToken};
use crate::Result;
use std::collections::VecDeque;

/// Between two steps of the model: takes what was drawn and says how to go on. The same for an answer that is
/// made alone and for one of many.
pub(crate) trait Drive: Send {
    /// Its tokens.
    fn lane(&self) -> &Lane;

    /// Its tokens.
    fn lane_mut(&mut self) -> &mut Lane;

    /// Takes the next token, and finds out whether others follow it of themselves.
    fn follow(&mut self, token: GeneratedToken) -> Result<()>;

    /// Whether [`Drive::mask`] has something to find out before the next token is drawn.
    fn has_mask(&self) -> bool {
        false
    }

    /// Finds out which tokens may come next, while the model computes what is drawn from them. Asked again, it
    /// finds out the same.
    fn mask(&mut self) -> Result<()> {
        Ok(())
    }

    /// After how many tokens the next prompt may go on differently, as far as the answer has come.
    fn boundary(&self) -> Option<usize> {
        None
    }

    /// Whether nothing follows.
    fn is_done(&self) -> bool;

    /// Takes that nothing follows. It may do so before it is done.
    fn end(&mut self) -> Result<()>;
}

/// A continuation that is nothing but tokens.
pub(crate) struct Plain {
    lane: Lane,
    /// Nobody has taken them yet.
    made: VecDeque<GeneratedToken>,
}

impl Plain {
    pub(crate) fn new(lane: Lane) -> Plain {
        Plain { lane, made: VecDeque::new() }
    }

    /// The next token.
    pub(crate) fn pop(&mut self) -> Option<GeneratedToken> {
        self.made.pop_front()
    }
}

impl Drive for Plain {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn lane_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }

    fn follow(&mut self, token: GeneratedToken) -> Result<()> {
        self.made.push_back(token);
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.lane.finish_reason().is_some()
    }

    fn end(&mut self) -> Result<()> {
        self.lane.finish(FinishReason::Stop);
        Ok(())
    }
}
