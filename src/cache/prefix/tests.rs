//! Against a cache that is a list of prefixes, and on conversations.

mod conversation;
mod naive;
mod random;

use super::*;
use crate::cache::testing::{Random, cache, grow};
use naive::{Prefix, prefix};

/// Blocks of a text. Two that differ do so in their last token alone.
fn text(blocks: &[u32], tail: usize) -> Vec<u32> {
    let block = |block: &u32| {
        let mut tokens = [7; PAGE_TOKENS];
        tokens[PAGE_TOKENS - 1] = *block;
        tokens
    };
    let mut tokens: Vec<u32> = blocks.iter().flat_map(block).collect();
    tokens.extend(std::iter::repeat_n(9, tail));
    tokens
}

impl PrefixCache {
    /// Marks by what they are at the end of, in the order of that.
    fn listed(&self) -> Vec<Prefix> {
        let marks = self.trie.texts(|block| block.mark.is_some());
        let mut marks: Vec<_> = marks.iter().map(|(salt, text)| prefix(*salt, text)).collect();
        marks.sort();
        marks
    }
}

/// A sequence that was fed all of `tokens`.
fn fed(pool: &KvCache, tokens: &[u32]) -> Sequence {
    let mut sequence = pool.sequence();
    sequence.hold(0);
    grow(&mut sequence, tokens.len());
    sequence
}

#[test]
fn a_cache_of_no_pages_keeps_nothing() {
    let pool = cache(&[Some(64), None], 100);
    let mut prefixes = PrefixCache::new(&pool, 0);
    let tokens = text(&[1, 2, 3], 1);
    let sequence = fed(&pool, &tokens);
    assert_eq!(prefixes.marks(None, &tokens, 0, &[(128, Mark::Turn)]), []);
    prefixes.insert(None, &tokens, &sequence, 128, Mark::Turn, None);
    assert_eq!((prefixes.cached(None, &tokens), prefixes.pages()), (0, 0));
    assert!(prefixes.resume(None, &tokens).is_empty());
}

/// What is evicted under a sequence stays with it, and comes back when it is dropped.
#[test]
fn nothing_that_runs_is_pinned() {
    let pool = cache(&[Some(64), None], 20);
    let mut prefixes = PrefixCache::new(&pool, 20);
    let tokens = text(&[1, 2, 3, 4], 1);
    let sequence = fed(&pool, &tokens);
    prefixes.insert(None, &tokens, &sequence, 256, Mark::Turn, None);
    assert_eq!((prefixes.pages(), prefixes.evictable()), (5, 0), "the sequence holds them too");
    drop(sequence);
    assert_eq!((prefixes.evictable(), pool.free_pages()), (5, 15));
    let resumed = prefixes.resume(None, &tokens);
    assert_eq!((resumed.pages(), prefixes.evictable()), (5, 0));
    assert!(!prefixes.make_free(16), "evicting would free nothing");
    assert_eq!(prefixes.cached(None, &tokens), 256, "so nothing is");
    prefixes.remove(None, &tokens, 256);
    assert_eq!((prefixes.pages(), pool.free_pages()), (0, 15));
    drop(resumed);
    assert_eq!(pool.free_pages(), 20);
    let sequence = fed(&pool, &tokens[..65]);
    prefixes.insert(None, &tokens, &sequence, 64, Mark::Turn, None);
    drop(sequence);
    drop(prefixes);
    assert_eq!(pool.free_pages(), 20, "dropped, it gives everything back");
}

/// Inside a turn before turns, what was used longest ago first, ends before beginnings.
#[test]
fn marks_go_in_the_order_that_is_said() {
    let pool = cache(&[Some(64), None], 200);
    let mut prefixes = PrefixCache::new(&pool, 200);
    let (old, new) = (text(&[1, 1, 1, 1], 1), text(&[1, 2, 2, 2], 1));
    for (tokens, position, mark) in [
        (&old, 256, Mark::Turn),
        (&old, 128, Mark::Inner),
        (&old, 64, Mark::Turn),
        (&new, 192, Mark::Inner),
        (&new, 128, Mark::Inner),
    ] {
        prefixes.insert(None, tokens, &fed(&pool, tokens), position, mark, None);
    }
    // The last use of all.
    assert_eq!(prefixes.resume(None, &old).len(), 256);
    let gone = [(&new, 128), (&old, 128), (&new, 192), (&old, 256), (&old, 64)];
    for (tokens, position) in gone {
        let ends_there = |p: &PrefixCache| p.listed().contains(&prefix(None, &tokens[..position]));
        assert!(ends_there(&prefixes), "{position} went too early");
        assert!(prefixes.evict(None));
        assert!(!ends_there(&prefixes), "{position} was to go next");
    }
    assert_eq!(pool.free_pages(), 200);
}

/// A mark for which others must go is not the first of them, also where it would be.
#[test]
fn what_is_new_is_not_evicted_for_itself() {
    let pool = cache(&[Some(64), None], 200);
    let mut prefixes = PrefixCache::new(&pool, 8);
    let (tokens, other) = (text(&[1, 1, 1, 1], 1), text(&[2, 2], 1));
    let sequence = fed(&pool, &tokens);
    prefixes.insert(None, &tokens, &sequence, 256, Mark::Turn, None);
    prefixes.insert(None, &other, &fed(&pool, &other), 128, Mark::Turn, None);
    assert_eq!(prefixes.pages(), 8);
    prefixes.insert(None, &tokens, &sequence, 128, Mark::Inner, None);
    assert_eq!(prefixes.cached(None, &tokens), 128, "256 was not used for longest");
    assert_eq!((prefixes.cached(None, &other), prefixes.pages()), (128, 6));
}

/// Many texts that begin alike to the last token of a block, and the same text of many tenants.
#[test]
fn texts_that_are_almost_equal_and_tenants_never_meet() {
    let pool = cache(&[Some(64), None], 9000);
    let mut prefixes = PrefixCache::new(&pool, 9000);
    let salts: Vec<String> = (0..1000).map(|salt| salt.to_string()).collect();
    let mut pages = Vec::new();
    for (n, salt) in (0..).zip(&salts) {
        for (salt, last) in [(None, n), (Some(salt.as_str()), 0)] {
            let tokens = text(&[last, 0], 1);
            assert_eq!(prefixes.cached(salt, &tokens), 0);
            let sequence = fed(&pool, &tokens);
            prefixes.insert(salt, &tokens, &sequence, 128, Mark::Turn, None);
            pages.push((salt, tokens, sequence.page_table(1)[..2].to_vec()));
        }
    }
    for (salt, tokens, pages) in &pages {
        assert_eq!(prefixes.resume(*salt, tokens).page_table(1), pages);
    }
    assert_eq!(prefixes.cached(Some("1000"), &text(&[0, 0], 1)), 0);
    assert_eq!(prefixes.cached(None, &text(&[1000, 0], 1)), 0);
    assert_eq!(prefixes.pages(), 2000 * 3);
    prefixes.clear();
    assert!(prefixes.trie.is_unused(), "salts are not kept for ever");
}
