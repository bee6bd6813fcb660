//! [`Request`]: what an engine has of one request.

use super::Priority;
use super::job::Job;
use crate::cache::{Mark, Marks, PrefixCache, Sequence};
use crate::generation::{CancelHandle, FinishReason, GeneratedToken, Lane, guarded};
use crate::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};

/// A request, from its call to the end of its answer.
pub(super) struct Request {
    pub(super) job: Box<dyn Job>,
    /// What is cached of it; nothing while it waits.
    pub(super) sequence: Option<Sequence>,
    pub(super) marks: Option<Marks>,
    pub(super) terms: Terms,
    /// Its number in the order of arrival.
    pub(super) arrival: u64,
    /// Since when nobody reads its answer.
    pub(super) unread_since: Option<Instant>,
    /// When its last token was made.
    pub(super) last_token: Option<Instant>,
    /// Whether it was counted among those begun.
    pub(super) has_begun: bool,
    /// Steps that failed with it since the last that did not.
    pub(super) failed_steps: usize,
}

/// What it was called with.
pub(super) struct Terms {
    pub(super) priority: Priority,
    pub(super) submitted: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) cache_salt: Option<String>,
    pub(super) cancel: CancelHandle,
    /// Where other prompts may leave its own.
    pub(super) boundaries: Vec<(usize, Mark)>,
}

impl Request {
    pub(super) fn new(mut job: Box<dyn Job>, terms: Terms) -> Request {
        job.lane_mut().start();
        Request {
            job,
            sequence: None,
            marks: None,
            terms,
            arrival: 0,
            unread_since: None,
            last_token: None,
            has_begun: false,
            failed_steps: 0,
        }
    }

    pub(super) fn lane(&self) -> &Lane {
        self.job.lane()
    }

    pub(super) fn salt(&self) -> Option<&str> {
        self.terms.cache_salt.as_deref()
    }

    /// Positions that are cached.
    pub(super) fn cached(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::len)
    }

    /// Pages that it holds, shared ones included.
    pub(super) fn pages(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::pages)
    }

    /// Tokens that are to be fed before the next can be drawn.
    pub(super) fn left(&self) -> usize {
        self.lane().tokens().len() - self.cached()
    }

    /// Pages that a step of `count` of its tokens takes.
    pub(super) fn need(&self, count: usize) -> usize {
        self.sequence.as_ref().map_or(0, |sequence| sequence.pages_to_append(count))
    }

    /// Tokens of prompt and answer at most.
    pub(super) fn most_tokens(&self) -> usize {
        self.lane().usage().prompt_tokens + self.lane().max_tokens()
    }

    pub(super) fn is_decoding(&self) -> bool {
        self.lane().is_decoding(self.cached())
    }

    /// Its place among others: the smaller goes first.
    pub(super) fn rank(&self, now: Instant, aging: Duration) -> (std::cmp::Reverse<Priority>, u64) {
        (std::cmp::Reverse(self.class(now, aging)), self.arrival)
    }

    /// Its priority, one higher for each `aging` that it has been there.
    pub(super) fn class(&self, now: Instant, aging: Duration) -> Priority {
        let age = now.saturating_duration_since(self.terms.submitted);
        match (self.terms.priority, age) {
            (Priority::Low, age) if age < aging => Priority::Low,
            (Priority::Low, age) if age < aging.saturating_mul(2) => Priority::Normal,
            (Priority::Normal, age) if age < aging => Priority::Normal,
            _ => Priority::High,
        }
    }

    /// Begins to be made, on what is cached of it.
    pub(super) fn begin(&mut self, prefix: &PrefixCache, sequence: Sequence) {
        let lane = self.job.lane();
        let (tokens, salt) = (lane.tokens(), self.terms.cache_salt.as_deref());
        let wanted = &self.terms.boundaries;
        self.marks = Some(Marks::new(prefix, salt, tokens, sequence.len(), wanted));
        if !self.has_begun {
            self.job.lane_mut().set_cached(sequence.len());
        }
        self.has_begun = true;
        self.sequence = Some(sequence);
    }

    /// Gives its pages back, to go on later.
    pub(super) fn leave(&mut self) {
        (self.sequence, self.marks) = (None, None);
    }

    /// Before at most `most` of its tokens are fed.
    pub(super) fn before_step(&mut self, most: usize) {
        if let (Some(sequence), Some(marks)) = (&mut self.sequence, &mut self.marks) {
            self.job.boundary().into_iter().for_each(|boundary| marks.want(boundary));
            marks.before_step(sequence, most);
        }
    }

    /// Keeps what a step has led to.
    pub(super) fn after_step(&mut self, prefix: &mut PrefixCache) {
        if let (Some(sequence), Some(marks)) = (&mut self.sequence, &mut self.marks) {
            marks.after_step(prefix, self.job.lane().tokens(), sequence);
        }
    }

    /// Takes the token that was drawn, if one was, and those that follow of themselves, and tells of them.
    pub(super) fn follow(&mut self, drawn: Option<GeneratedToken>) -> Result<()> {
        let job = &mut self.job;
        guarded(|| {
            if let Some(token) = drawn {
                job.follow(token)?;
            }
            while !job.is_done()
                && let Some(token) = job.lane_mut().take_forced()
            {
                job.follow(token)?;
            }
            job.deliver();
            Ok(())
        })
    }

    /// Ends it: as it is, for `reason` if it goes on, or with an error.
    pub(super) fn end(
        mut self,
        prefix: &mut PrefixCache,
        reason: Result<FinishReason>,
    ) -> Result<()> {
        let job = &mut self.job;
        let result = reason.and_then(|reason| {
            guarded(|| {
                if !job.is_done() {
                    job.lane_mut().finish(reason);
                }
                job.end()
            })
        });
        if let (Some(mut sequence), Some(mut marks)) = (self.sequence.take(), self.marks.take()) {
            let tokens = self.job.lane().tokens();
            match &result {
                Ok(()) if self.job.leads_on() => marks.end(prefix, tokens, &mut sequence),
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Numeric => marks.forget(prefix, tokens),
                Err(_) => {}
            }
        }
        let said = result.as_ref().err().map(|e| Error::new(e.kind(), e.to_string()));
        // Whoever is told may panic.
        let job = self.job;
        guarded(move || {
            job.conclude(result);
            Ok(())
        })?;
        said.map_or(Ok(()), Err)
    }
}
