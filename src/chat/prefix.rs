//! [`PrefixCache`]: what a conversation has in the key-value cache, and where it can be gone on from.

use super::Model;
use super::room::{FORKS, pages_to_fork};
use crate::cache::{KvCache, Sequence};

/// The boundaries of one conversation that are still cached, the oldest first.
///
/// A windowed layer cannot be rewound past its window, so a sequence is kept at the end of each prompt
/// and of each answer. The next prompt usually drops the chain of thought of the last answer and goes
/// on from the end of the last prompt. In a loop of tool calls it goes on from the end of the answer;
/// after the loop, whose chain of thought is dropped as a whole, from where the loop began, which is
/// why the ends of other prompts are given up last.
#[derive(Default)]
pub(super) struct PrefixCache(Vec<Boundary>);

struct Boundary {
    /// What `sequence` holds.
    tokens: Vec<u32>,
    sequence: Sequence,
    /// Whether a turn of the user or the application ends here, that no tool call has come after.
    turn: bool,
}

impl Boundary {
    /// How many tokens of `prompt` a fork of this boundary can start with. At least one token is left
    /// to feed, for its logits.
    fn usable(&self, prompt: &[u32]) -> usize {
        let most = prompt.len().saturating_sub(1);
        let common = self.tokens.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
        if self.sequence.can_truncate(common) { common } else { 0 }
    }
}

impl PrefixCache {
    /// A sequence that holds as much of `prompt` as is cached.
    pub(super) fn resume(&self, model: &Model, prompt: &[u32]) -> Sequence {
        let best = self.0.iter().max_by_key(|boundary| boundary.usable(prompt));
        let mut sequence = model.cache().sequence();
        if let Some(best) = best {
            let mut fork = best.sequence.fork();
            if fork.truncate(best.usable(prompt)).is_ok() {
                sequence = fork;
            }
        }
        sequence
    }

    /// Makes room in the cache for `tokens` tokens that begin with `prompt`, `held` pages of which a
    /// sequence has already: boundaries are given up for it where needed.
    pub(super) fn make_room(&mut self, model: &Model, prompt: &[u32], tokens: usize, held: usize) {
        // The others belong to a past that was changed.
        self.0.retain(|boundary| prompt.starts_with(&boundary.tokens));
        let (config, chunk) = (model.config(), model.prefill_chunk());
        let needed =
            KvCache::pages_for(config, tokens, chunk) + pages_to_fork(config, tokens, chunk);
        while !self.0.is_empty() && model.cache().free_pages() + held < needed {
            self.give_up();
        }
    }

    /// Gives up the boundary that is least likely to be gone on from: the oldest one inside a turn,
    /// else the oldest.
    fn give_up(&mut self) {
        self.0.remove(self.0.iter().position(|boundary| !boundary.turn).unwrap_or(0));
    }

    /// Keeps `sequence`, which holds the first tokens of `tokens` and is the end of a `turn` or not.
    pub(super) fn keep(&mut self, tokens: &[u32], sequence: Sequence, turn: bool) {
        if sequence.is_empty() {
            return;
        }
        let tokens = tokens[..sequence.len().min(tokens.len())].to_vec();
        if self.0.len() == FORKS {
            self.give_up();
        }
        self.0.push(Boundary { tokens, sequence, turn });
    }

    /// Gives every page back.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
