//! [`Scheduler`]: the requests of an engine, and one turn of its thread.

mod plan;

use super::EngineOptions;
use super::inbox::Closed;
use super::request::Request;
use super::stats::Stats;
use super::timed::Timed;
use crate::cache::{KvCache, PrefixCache, Windows};
use crate::generation::{Feed, FinishReason, Forward, GeneratedToken, guarded, step};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Instant;

/// The requests of an engine and what they share.
pub(super) struct Scheduler {
    model: Arc<dyn Forward>,
    cache: KvCache,
    prefix: PrefixCache,
    windows: Windows,
    options: EngineOptions,
    /// Those that have no pages.
    waiting: Vec<Request>,
    /// Those that have.
    running: Vec<Request>,
    arrivals: u64,
    stats: Stats,
    /// Steps that failed since the last that did not.
    failed_steps: usize,
}

/// Steps in a row that a device may fail before it counts as lost.
const MOST_FAILED_STEPS: usize = 2;

impl Scheduler {
    pub(super) fn new(
        model: Arc<dyn Forward>,
        cache: KvCache,
        options: EngineOptions,
    ) -> Scheduler {
        let most = (f64::from(options.prefix_cache) * cache.pages() as f64) as usize;
        Scheduler {
            model,
            prefix: PrefixCache::new(&cache, most),
            windows: cache.windows().clone(),
            stats: Stats { pages: cache.pages(), ..Stats::default() },
            cache,
            options,
            waiting: Vec::new(),
            running: Vec::new(),
            arrivals: 0,
            failed_steps: 0,
        }
    }

    /// Takes a request in.
    pub(super) fn add(&mut self, mut request: Request) {
        request.arrival = self.arrivals;
        self.arrivals += 1;
        // An answer may have to begin with tokens that need no step.
        let followed = request.follow(None);
        self.stats.completion_tokens += request.lane().usage().completion_tokens as u64;
        match followed {
            Ok(()) if request.job.is_done() => self.end(request, Ok(FinishReason::Stop)),
            Ok(()) => self.waiting.push(request),
            Err(error) => self.end(request, Err(error)),
        }
    }

    /// Whether there is no request.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Ends every request that waits and has not begun.
    pub(super) fn refuse_waiting(&mut self, why: impl Fn() -> Error) {
        let (begun, others) =
            std::mem::take(&mut self.waiting).into_iter().partition(|r| r.has_begun);
        self.waiting = begun;
        let others: Vec<Request> = others;
        others.into_iter().for_each(|request| self.end(request, Err(why())));
    }

    /// Ends every request: as it is, or with an error.
    pub(super) fn end_all(&mut self, how: impl Fn() -> Result<FinishReason>) {
        let all = self.running.drain(..).chain(self.waiting.drain(..)).collect::<Vec<_>>();
        all.into_iter().for_each(|request| self.end(request, how()));
    }

    /// What it has done and has to do.
    pub(super) fn stats(&mut self) -> &Stats {
        self.stats.waiting = self.waiting.len();
        self.stats.running = self.running.len();
        self.stats.paused = self.running.iter().filter(|r| r.unread_since.is_some()).count();
        self.stats.free_pages = self.cache.free_pages();
        self.stats.cached_pages = self.prefix.pages();
        &self.stats
    }

    /// Tokens that those which wait have yet to read and to say.
    pub(super) fn queued_tokens(&self) -> usize {
        self.waiting.iter().map(|request| request.most_tokens() - request.cached()).sum()
    }

    /// Pages that requests and prefixes hold, each once.
    #[cfg(test)]
    pub(super) fn pages_in_use(&self) -> usize {
        let mut pages = std::collections::HashSet::<u32>::new();
        for sequence in self.running.iter().filter_map(|request| request.sequence.as_ref()) {
            for layer in 0..self.cache.layers() {
                pages.extend(sequence.page_table(layer));
            }
        }
        pages.remove(&crate::cache::NO_PAGE);
        pages.len() + self.prefix.evictable()
    }

    /// Makes a step, if anything can go on; says whether it did.
    ///
    /// # Errors
    /// `Device` when the device is lost; every request has then been told.
    pub(super) fn turn(&mut self) -> Result<bool> {
        let began = Instant::now();
        self.look_after(began);
        let plan = self.plan(began);
        if plan.iter().all(|count| *count == 0) {
            return Ok(false);
        }
        let model = Arc::clone(&self.model);
        let model = Timed::new(&*model);
        let mut feeds = Vec::new();
        for (request, &count) in self.running.iter_mut().zip(&plan).filter(|(_, count)| **count > 0)
        {
            request.before_step(count);
            if let Some(sequence) = &mut request.sequence {
                feeds.push(Feed { drive: request.job.as_mut(), sequence, most: count });
            }
        }
        let outcomes = guarded(|| step(&model, &mut feeds));
        let in_model = model.spent();
        match outcomes {
            Ok(outcomes) => self.take(outcomes, &plan),
            Err(error) => self.fail(&error, &plan)?,
        }
        self.stats.steps += 1;
        self.stats.step_tokens += plan.iter().sum::<usize>() as u64;
        self.stats.in_model += in_model;
        self.stats.outside_model += began.elapsed().saturating_sub(in_model);
        Ok(true)
    }

    /// Ends what is cancelled or late, and pauses what nobody reads.
    fn look_after(&mut self, now: Instant) {
        let is_over = |request: &Request| {
            request.terms.cancel.is_cancelled()
                || request.terms.deadline.is_some_and(|deadline| deadline <= now)
        };
        for requests in [&mut self.waiting, &mut self.running] {
            let over: Vec<Request> = requests.extract_if(.., |request| is_over(request)).collect();
            for request in over {
                let how = if request.terms.cancel.is_cancelled() {
                    Ok(FinishReason::Cancelled)
                } else if request.has_begun {
                    Ok(FinishReason::Deadline)
                } else {
                    Err(Error::new(
                        ErrorKind::Deadline,
                        "the request waited until its deadline, others were before it",
                    ))
                };
                end(request, how, &mut self.prefix, &mut self.stats);
            }
        }
        for request in self.running.iter_mut().chain(&mut self.waiting) {
            match request.job.is_read() {
                true => request.unread_since = None,
                false => _ = request.unread_since.get_or_insert(now),
            }
        }
        let grace = self.options.reader_grace;
        let left = |r: &Request| r.unread_since.is_some_and(|since| now - since >= grace);
        while let Some(at) = self.running.iter().position(left) {
            self.preempt(at);
        }
    }

    /// Takes what a step has led to.
    fn take(&mut self, outcomes: Vec<Result<Option<GeneratedToken>>>, plan: &[usize]) {
        self.failed_steps = 0;
        let now = Instant::now();
        let mut outcomes = outcomes.into_iter();
        let mut ended = Vec::new();
        for (at, request) in self.running.iter_mut().enumerate() {
            if plan[at] == 0 {
                continue;
            }
            request.failed_steps = 0;
            request.after_step(&mut self.prefix);
            let before = request.lane().usage().completion_tokens;
            let followed = match outcomes.next() {
                Some(Ok(Some(token))) => request.follow(Some(token)),
                Some(Err(error)) => Err(error),
                _ => continue,
            };
            let made = request.lane().usage().completion_tokens - before + 1;
            self.stats.completion_tokens += made as u64;
            match request.last_token.replace(now) {
                None => self.stats.first_token.add(now - request.terms.submitted),
                Some(last) => self.stats.between_tokens.add(now - last),
            }
            match followed {
                Ok(()) if request.job.is_done() => ended.push((at, Ok(FinishReason::Stop))),
                Ok(()) => {}
                Err(error) => ended.push((at, Err(error))),
            }
        }
        for (at, how) in ended.into_iter().rev() {
            let request = self.running.remove(at);
            self.end(request, how);
        }
    }

    /// A step failed. Its requests try again from what they know; those it fails a second time end.
    fn fail(&mut self, error: &Error, plan: &[usize]) -> Result<()> {
        tracing::warn!(
            "a step of {} requests failed: {error}",
            plan.iter().filter(|c| **c > 0).count()
        );
        self.failed_steps += 1;
        let lost = Closed::Lost(error.to_string());
        let is_lost = self.failed_steps >= MOST_FAILED_STEPS && error.kind() == ErrorKind::Device;
        let why = || match is_lost {
            true => lost.error(),
            false => Error::new(error.kind(), error.to_string()),
        };
        for at in (0..plan.len()).rev().filter(|at| plan[*at] > 0) {
            let request = &mut self.running[at];
            request.failed_steps += 1;
            if request.failed_steps < MOST_FAILED_STEPS {
                self.preempt(at);
            } else {
                let request = self.running.remove(at);
                self.end(request, Err(why()));
            }
        }
        if !is_lost {
            return Ok(());
        }
        self.prefix.clear();
        self.end_all(|| Err(why()));
        Err(Error::new(error.kind(), error.to_string()))
    }

    fn end(&mut self, request: Request, how: Result<FinishReason>) {
        end(request, how, &mut self.prefix, &mut self.stats);
    }
}

fn end(request: Request, how: Result<FinishReason>, prefix: &mut PrefixCache, stats: &mut Stats) {
    let was_cancelled = matches!(how, Ok(FinishReason::Cancelled));
    match request.end(prefix, how) {
        Ok(()) if was_cancelled => stats.cancelled += 1,
        Ok(()) => stats.finished += 1,
        Err(error) => {
            tracing::debug!("a request ended with an error: {error}");
            stats.failed += 1;
        }
    }
}
