//! [`Marks`]: where one sequence leaves marks in a prefix cache while it is fed.

use super::prefix::{Mark, PrefixCache};
use super::{PAGE_TOKENS, Sequence};
use std::collections::VecDeque;

/// The marks that one lane makes.
pub(crate) struct Marks {
    salt: Option<String>,
    /// Positions to come, ascending.
    ahead: VecDeque<(usize, Mark)>,
    /// Where the lane's last inner mark is, or where it began: the next inner one takes its place.
    replaces: Option<usize>,
    made: Vec<usize>,
}

impl Marks {
    /// For a lane that feeds `tokens` from position `from` on, and would like to have marks at `wanted`.
    pub(crate) fn new(
        prefix: &PrefixCache,
        salt: Option<&str>,
        tokens: &[u32],
        from: usize,
        wanted: &[(usize, Mark)],
    ) -> Marks {
        // A mark that it would make itself, had it not found it, is not given up.
        let is_wanted = |(position, mark): &(usize, Mark)| {
            *mark == Mark::Turn && position / PAGE_TOKENS * PAGE_TOKENS == from
        };
        Marks {
            salt: salt.map(str::to_owned),
            ahead: prefix.marks(salt, tokens, from, wanted).into(),
            replaces: (from > 0 && !wanted.iter().any(is_wanted)).then_some(from),
            made: Vec::new(),
        }
    }

    /// Would also like to have a mark inside the turn at `position`, beyond all others: one that is to come, or
    /// that was reached by the last step.
    pub(crate) fn want(&mut self, position: usize) {
        let position = position / PAGE_TOKENS * PAGE_TOKENS;
        let made = self.made.last().copied().max(self.replaces);
        if Some(position) > self.ahead().last().max(made) {
            self.ahead.push_back((position, Mark::Inner));
        }
    }

    /// The positions to come.
    pub(crate) fn ahead(&self) -> impl Iterator<Item = usize> + '_ {
        self.ahead.iter().map(|(position, _)| *position)
    }

    /// Before at most `most` tokens are fed: what a mark among them needs is held.
    pub(crate) fn before_step(&self, sequence: &mut Sequence, most: usize) {
        if let Some(next) = self.ahead().next().filter(|next| *next <= sequence.len() + most) {
            sequence.hold(next);
        }
    }

    /// Makes the marks that `sequence` has reached, which holds the first of `tokens`.
    pub(crate) fn after_step(
        &mut self,
        prefix: &mut PrefixCache,
        tokens: &[u32],
        sequence: &mut Sequence,
    ) {
        while let Some(&(position, mark)) = self.ahead.front()
            && position <= sequence.len()
        {
            self.ahead.pop_front();
            self.make(prefix, tokens, sequence, position, mark);
        }
        sequence.let_go();
    }

    /// Makes a mark where the answer ended.
    pub(crate) fn end(
        &mut self,
        prefix: &mut PrefixCache,
        tokens: &[u32],
        sequence: &mut Sequence,
    ) {
        let position = sequence.len() / PAGE_TOKENS * PAGE_TOKENS;
        if position > self.made.last().copied().unwrap_or(0) {
            self.make(prefix, tokens, sequence, position, Mark::Inner);
        }
    }

    /// Takes back every mark on the lane's way, those that it began from too: what led to them is not to be
    /// relied on, and whoever came next would begin from it again.
    pub(crate) fn forget(&mut self, prefix: &mut PrefixCache, tokens: &[u32]) {
        for position in (PAGE_TOKENS..=tokens.len()).step_by(PAGE_TOKENS) {
            prefix.remove(self.salt.as_deref(), tokens, position);
        }
        self.made.clear();
        self.ahead.clear();
    }

    fn make(
        &mut self,
        prefix: &mut PrefixCache,
        tokens: &[u32],
        sequence: &Sequence,
        position: usize,
        mark: Mark,
    ) {
        let inner = matches!(mark, Mark::Inner);
        let replaces = self.replaces.filter(|_| inner);
        prefix.insert(self.salt.as_deref(), tokens, sequence, position, mark, replaces);
        if inner {
            self.replaces = Some(position);
        }
        self.made.push(position);
    }
}
