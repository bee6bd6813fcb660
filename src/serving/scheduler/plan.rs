//! Which requests run, and what goes into the next step.
//!
//! Pages are accounted for exactly: all that the engine has are its own, and nothing takes any between the plan
//! of a step and the step. With `G` tokens a page, a request needs at most `most(T, G)` pages to get to its end
//! at `T` tokens; one that needs more than there are is refused when it comes. That nothing waits for ever:
//!
//! 1. The first running request that is read, by priority and then arrival, is never preempted by another: who
//!    needs pages takes them from those that nobody reads, and from those behind it.
//! 2. It can always go on by a page of tokens, since all others can be preempted and all marks evicted. So
//!    it ends.
//! 3. Priorities rise with age while arrival stays, so finitely many requests ever stand before another. The
//!    first of all is running, or is the next to be admitted, and with nothing running it fits.
//!
//! A preempted request comes back only with room for all it had and a page more, so it advances.

use super::Scheduler;
use crate::cache::{PAGE_TOKENS, Sequence};
use crate::serving::request::Request;
use std::cmp::Ordering;
use std::time::Instant;

/// What goes into a step so far.
struct Plan {
    /// Tokens of each running request.
    counts: Vec<usize>,
    /// Tokens that are left.
    budget: usize,
    /// Pages that the step takes.
    reserved: usize,
    /// Whether a request had to go for another's next tokens: nobody is admitted then.
    preempted: bool,
}

impl Scheduler {
    /// How many tokens of each running request go into the next step.
    pub(super) fn plan(&mut self, now: Instant) -> Vec<usize> {
        let aging = self.options.aging;
        self.running.sort_by_key(|request| request.rank(now, aging));
        let mut plan = Plan {
            counts: vec![0; self.running.len()],
            budget: self.options.max_step_tokens,
            reserved: 0,
            preempted: false,
        };
        let goes_on =
            |r: &Request, decodes: bool| r.unread_since.is_none() && r.is_decoding() == decodes;

        let arrivals = |running: &[Request], decodes: bool| -> Vec<u64> {
            running.iter().filter(|r| goes_on(r, decodes)).map(|r| r.arrival).collect()
        };
        let answers = arrivals(&self.running, true);
        for (number, arrival) in answers.iter().enumerate() {
            // A token is left for each that follows.
            let budget = plan.budget.saturating_sub(answers.len() - 1 - number).max(1);
            self.give_to(*arrival, budget, &mut plan);
        }
        // The first prompt gets all that is left but a page, which goes to who begins now, or else to the one
        // that is done soonest.
        let mut others = arrivals(&self.running, false).into_iter();
        let first = others.next();
        let is_alone = others.len() == 0 && self.running.len() == self.options.max_sequences;
        let shares = plan.budget > 2 * PAGE_TOKENS && !is_alone;
        if let Some(first) = first {
            let budget = plan.budget - if shares { PAGE_TOKENS } else { 0 };
            self.give_to(first, budget, &mut plan);
        }
        while !plan.preempted && plan.budget > 0 {
            if !self.admit(now, &mut plan) {
                break;
            }
        }
        let mut others: Vec<u64> = others.collect();
        others.sort_by_cached_key(|arrival| self.place(*arrival).map(|at| self.running[at].left()));
        others.into_iter().for_each(|other| self.give_to(other, plan.budget, &mut plan));
        if let Some(first) = first.filter(|_| shares && plan.budget > 0) {
            self.top_up(first, &mut plan);
        }
        plan.counts
    }

    /// Plans a prompt anew, with what nobody else has come for.
    fn top_up(&mut self, arrival: u64, plan: &mut Plan) {
        if let Some(at) = self.place(arrival) {
            let count = std::mem::take(&mut plan.counts[at]);
            plan.budget += count;
            plan.reserved -= self.running[at].need(count);
            self.give_to(arrival, plan.budget, plan);
        }
    }

    /// How many tokens of a prompt go into a step: whole pages, or what is left of it, and no more than there is
    /// room for, but a page.
    fn chunk(&self, at: usize, budget: usize, reserved: usize) -> usize {
        let request = &self.running[at];
        let (left, cached) = (request.left(), request.cached());
        let to_page = PAGE_TOKENS - cached % PAGE_TOKENS;
        let room = (self.cache.free_pages() + self.prefix.evictable()).saturating_sub(reserved);
        let mut count = left.min(budget);
        if count < left && count > to_page {
            count -= (cached + count) % PAGE_TOKENS;
        }
        while count > to_page && request.need(count) > room {
            count = to_page + (count - 1 - to_page) / PAGE_TOKENS * PAGE_TOKENS;
        }
        count
    }

    /// Where the request is among those that run.
    fn place(&self, arrival: u64) -> Option<usize> {
        self.running.iter().position(|request| request.arrival == arrival)
    }

    /// Plans at most `budget` tokens of a request, unless another has taken its place.
    fn give_to(&mut self, arrival: u64, budget: usize, plan: &mut Plan) {
        if let Some(at) = self.place(arrival) {
            let count = self.chunk(at, budget.min(plan.budget), plan.reserved);
            if count > 0 {
                self.give(at, count, plan);
            }
        }
    }

    /// Plans `count` tokens of the request at `at`, for which those may have to go whom nobody reads, those behind
    /// it, or it itself.
    fn give(&mut self, mut at: usize, count: usize, plan: &mut Plan) {
        loop {
            let need = self.running[at].need(count);
            if self.prefix.make_free(plan.reserved + need) {
                plan.counts[at] = count;
                plan.budget -= count;
                plan.reserved += need;
                return;
            }
            let paused = self.running.iter().rposition(|other| other.unread_since.is_some());
            let victim = paused.unwrap_or(self.running.len() - 1);
            self.unplan(victim, plan);
            match victim.cmp(&at) {
                Ordering::Less => at -= 1,
                Ordering::Equal => return,
                Ordering::Greater => {}
            }
        }
    }

    /// Takes the place of a running request in this step, and its pages.
    fn unplan(&mut self, at: usize, plan: &mut Plan) {
        let count = plan.counts.remove(at);
        plan.budget += count;
        plan.reserved -= self.running[at].need(count);
        plan.preempted = true;
        self.preempt(at);
    }

    /// Takes the pages of a running request, which goes on later.
    pub(super) fn preempt(&mut self, at: usize) {
        let mut request = self.running.remove(at);
        request.leave();
        self.stats.preempted += 1;
        self.waiting.push(request);
    }

    /// Lets the first of those that wait begin, if there is room for it.
    fn admit(&mut self, now: Instant, plan: &mut Plan) -> bool {
        let aging = self.options.aging;
        let ready = (0..self.waiting.len()).filter(|at| self.waiting[*at].unread_since.is_none());
        let Some(head) = ready.min_by_key(|at| self.waiting[*at].rank(now, aging)) else {
            return false;
        };
        if self.waits_for_another(head) {
            return false;
        }
        let request = &self.waiting[head];
        let class = request.class(now, aging);
        // Held from here on, so that its pages do not count as evictable.
        let sequence = self.prefix.resume(request.salt(), request.lane().tokens());
        // Whoever is not read, or else of a lower class, makes room for it, if that is enough; those before it
        // do not.
        let may_go =
            |other: &Request| other.unread_since.is_some() || other.class(now, aging) < class;
        let layers = self.windows.layers();
        let theirs = self.running.iter().filter(|other| may_go(other));
        let gives: usize = theirs.map(|other| other.pages() + layers).sum();
        if self.lacks(head, &sequence, plan) > gives {
            return false;
        }
        while self.running.len() >= self.options.max_sequences
            || self.lacks(head, &sequence, plan) > 0
        {
            let Some(victim) = self.running.iter().rposition(may_go) else { return false };
            self.unplan(victim, plan);
        }
        self.begin(head, sequence, plan);
        true
    }

    /// Whether a running request is about to leave a mark that the one which waits at `head` can begin from.
    fn waits_for_another(&self, head: usize) -> bool {
        let head = &self.waiting[head];
        let tokens = head.lane().tokens();
        let most = tokens.len().saturating_sub(1);
        let mut cached = None;
        self.running.iter().filter(|other| other.unread_since.is_none()).any(|other| {
            let Some(marks) = &other.marks else { return false };
            let Some(last) = marks.ahead().filter(|at| *at <= most).last() else { return false };
            if other.salt() != head.salt() || last > other.lane().tokens().len() {
                return false;
            }
            let common =
                tokens.iter().zip(other.lane().tokens()).take_while(|(a, b)| a == b).count();
            let reached = marks.ahead().filter(|at| *at <= common.min(most)).last();
            let cached = *cached.get_or_insert_with(|| self.prefix.cached(head.salt(), tokens));
            reached.is_some_and(|reached| reached > cached)
        })
    }

    /// Pages that the waiting request at `head` lacks to begin on `sequence`: it needs those for all that it has
    /// read and said, a page more in each layer, and a page in each layer for everybody else.
    fn lacks(&self, head: usize, sequence: &Sequence, plan: &Plan) -> usize {
        let request = &self.waiting[head];
        let (known, most) = (request.lane().tokens().len(), request.most_tokens());
        let held = self.windows.held(sequence.len());
        let room = self.cache.free_pages() + self.prefix.evictable();
        let others = plan.reserved + self.windows.layers() * self.running.len();
        let lacks = |chunk: usize| {
            let all = self.windows.most(most.min(known + PAGE_TOKENS), chunk);
            (all.saturating_sub(held) + others).saturating_sub(room)
        };
        lacks(plan.budget.max(PAGE_TOKENS)).min(lacks(PAGE_TOKENS))
    }

    /// Begins the waiting request at `head` on what is cached of it, and plans its first tokens.
    fn begin(&mut self, head: usize, sequence: Sequence, plan: &mut Plan) {
        let mut request = self.waiting.swap_remove(head);
        if !request.has_begun {
            let (prompt, cached) = (request.lane().usage().prompt_tokens, sequence.len());
            self.stats.prompt_tokens += prompt as u64;
            self.stats.cached_tokens += cached as u64;
            match cached {
                0 => self.stats.prefix_misses += 1,
                _ => self.stats.prefix_hits += 1,
            }
        }
        request.begin(&self.prefix, sequence);
        self.running.push(request);
        plan.counts.push(0);
        let at = self.running.len() - 1;
        let count = self.chunk(at, plan.budget, plan.reserved);
        self.give(at, count, plan);
    }
}
