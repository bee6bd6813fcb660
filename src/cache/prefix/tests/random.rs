//! Random use of a prefix cache, and of a list beside it that must agree.

use super::naive::Naive;
use super::*;

const SALTS: [Option<&str>; 3] = [None, Some(""), Some("tenant")];

/// A sequence that runs, and the text that it is fed.
struct Lane {
    salt: Option<&'static str>,
    tokens: Vec<u32>,
    sequence: Sequence,
    last: Option<usize>,
}

struct Run {
    random: Random,
    pool: KvCache,
    prefixes: PrefixCache,
    naive: Naive,
    lanes: Vec<Lane>,
    /// Blocks of a text at most.
    longest: usize,
    hits: usize,
    evictions: usize,
}

impl Run {
    fn new(windows: &[Option<usize>], pages: usize, most: usize, longest: usize, seed: u64) -> Run {
        let pool = cache(windows, pages);
        Run {
            random: Random(seed),
            prefixes: PrefixCache::new(&pool, most),
            naive: Naive::new(&pool, most),
            pool,
            lanes: Vec::new(),
            longest,
            hits: 0,
            evictions: 0,
        }
    }

    fn any_text(&mut self) -> (Option<&'static str>, Vec<u32>) {
        let salt = SALTS[self.random.below(SALTS.len())];
        let count = self.random.below(self.longest + 1);
        // Mostly the same, so that texts share long beginnings.
        let rare = (self.longest / 2).max(6);
        let blocks: Vec<u32> =
            (0..count).map(|_| u32::from(self.random.below(rare) == 0)).collect();
        let tail = [0, 1, 33, 63][self.random.below(4)];
        (salt, text(&blocks, tail))
    }

    fn any_mark(&mut self) -> Mark {
        [Mark::Inner, Mark::Turn][self.random.below(2)]
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=3 => self.begin(),
            4..=10 if !self.lanes.is_empty() => self.feed(),
            11 | 12 if !self.lanes.is_empty() => {
                let at = self.random.below(self.lanes.len());
                self.lanes.swap_remove(at);
            }
            13 if !self.lanes.is_empty() => self.go_back(),
            14 => {
                let (salt, tokens) = self.any_text();
                let position = self.random.below(tokens.len() + 130);
                self.prefixes.remove(salt, &tokens, position);
                self.naive.remove(salt, &tokens, position);
            }
            15 => self.nonsense(),
            16 => {
                let pages = self.random.below(self.pool.pages() + 2);
                self.make_free(pages);
            }
            17 if self.random.below(3) == 0 => {
                let (salt, tokens) = self.any_text();
                self.prefixes.remove_branch(salt, &tokens);
                self.naive.remove_branch(salt, &tokens);
            }
            18 if self.random.below(20) == 0 => {
                self.prefixes.clear();
                self.naive.clear();
            }
            _ => {
                let (salt, tokens) = self.any_text();
                assert_eq!(self.prefixes.cached(salt, &tokens), self.naive.cached(salt, &tokens));
            }
        }
        self.check();
    }

    fn begin(&mut self) {
        let (salt, tokens) = self.any_text();
        let cached = self.naive.cached(salt, &tokens);
        assert_eq!(self.prefixes.cached(salt, &tokens), cached);
        let sequence = self.prefixes.resume(salt, &tokens);
        self.naive.refresh(salt, &tokens[..cached]);
        assert!(cached == 0 || cached < tokens.len(), "a token is left to feed");
        assert_eq!(sequence.len(), cached);
        assert!(sequence.cache().same_pool(&self.pool));
        self.hits += usize::from(cached > 0);
        for layer in 0..self.pool.layers() {
            let want = self.naive.page_table(salt, &tokens[..cached], layer);
            assert_eq!(sequence.page_table(layer), want, "layer {layer} at {cached}");
        }
        assert_eq!(sequence.pages(), self.pool.windows().held(cached));
        self.lanes.push(Lane { salt, tokens, sequence, last: Some(cached) });
    }

    /// A chunk of a lane, in which marks may be made, as an engine feeds it.
    fn feed(&mut self) {
        let at = self.random.below(self.lanes.len());
        let Lane { salt, tokens, .. } = &self.lanes[at];
        let (salt, tokens, from) = (*salt, tokens.clone(), self.lanes[at].sequence.len());
        let wanted: Vec<(usize, Mark)> = (0..self.random.below(3))
            .map(|_| (self.random.below(tokens.len() + 70), self.any_mark()))
            .collect();
        let marks = self.prefixes.marks(salt, &tokens, from, &wanted);
        assert_eq!(marks, self.naive.marks(salt, &tokens, from, &wanted));
        let chunk = (1 + self.random.below(300)).min(tokens.len() - from);
        let need = self.lanes[at].sequence.pages_to_append(chunk);
        if !self.make_free(need) {
            // The lane is preempted.
            self.lanes.swap_remove(at);
            return;
        }
        let end = from + chunk;
        if let Some((first, _)) = marks.first() {
            self.lanes[at].sequence.hold(*first);
        }
        grow(&mut self.lanes[at].sequence, chunk);
        for (position, mark) in marks.into_iter().filter(|(position, _)| *position <= end) {
            let replaces = self.lanes[at].last.filter(|_| self.random.below(4) > 0);
            self.insert(at, position, mark, replaces);
            self.lanes[at].last = Some(position);
        }
        self.lanes[at].sequence.let_go();
    }

    fn insert(&mut self, at: usize, position: usize, mark: Mark, replaces: Option<usize>) {
        let Lane { salt, tokens, sequence, .. } = &self.lanes[at];
        self.prefixes.insert(*salt, tokens, sequence, position, mark, replaces);
        let before = self.naive.marks.len();
        self.naive.insert(*salt, tokens, sequence, position, mark, replaces);
        self.evictions += (before + 1).saturating_sub(self.naive.marks.len());
    }

    fn make_free(&mut self, pages: usize) -> bool {
        let possible = self.pool.free_pages() + self.prefixes.evictable() >= pages;
        assert_eq!(self.prefixes.make_free(pages), possible);
        if !possible {
            return false;
        }
        assert!(self.pool.free_pages() >= pages);
        // Those that are gone were the first in order, and the last of them was needed.
        let gone = self.naive.marks.len() - self.prefixes.listed().len();
        for _ in 0..gone {
            let was = self.naive.free_pages(&self.held());
            let first = self.naive.first_to_go(None).expect("a mark that is gone");
            assert!(was < pages, "{first:?} was evicted with {was} of {pages} free");
            self.naive.forget(&first);
        }
        self.evictions += gone;
        true
    }

    /// A sequence goes back into what is cached, and on with another text: that must be a copy.
    fn go_back(&mut self) {
        let at = self.random.below(self.lanes.len());
        let lane = &mut self.lanes[at];
        let len = lane.sequence.len() - self.random.below(130).min(lane.sequence.len());
        if lane.sequence.truncate(len).is_err() {
            return;
        }
        lane.tokens.truncate(len);
        lane.tokens.extend([8; 70]);
        let need = lane.sequence.pages_to_append(20);
        if self.make_free(need) {
            let lane = &mut self.lanes[at];
            grow(&mut lane.sequence, 20);
            let cached = self.naive.cached_pages();
            for layer in 0..self.pool.layers() {
                let written = &lane.sequence.page_table(layer)[len / PAGE_TOKENS..];
                let is_cached = written.iter().any(|page| cached.contains(page));
                assert!(!is_cached, "position {len} was written to a cached page");
            }
        }
    }

    /// What no engine should ask for changes nothing.
    fn nonsense(&mut self) {
        let (salt, tokens) = self.any_text();
        let mark = self.any_mark();
        let carved = self.pool.carve(self.pool.free_pages()).unwrap();
        let (empty, mut foreign) = (self.pool.sequence(), carved.sequence());
        if carved.free_pages() >= foreign.pages_to_append(tokens.len()) {
            foreign.hold(0);
            grow(&mut foreign, tokens.len());
        }
        for position in [0, 63, 64, tokens.len() + 64, usize::MAX] {
            self.prefixes.insert(salt, &tokens, &empty, position, mark, Some(usize::MAX));
            self.prefixes.insert(salt, &tokens, &foreign, position, mark, Some(position));
        }
        drop((foreign, carved));
        if let Some(lane) = self.lanes.first() {
            // Beyond what it holds, or its tokens.
            let beyond = lane.sequence.len() / PAGE_TOKENS * PAGE_TOKENS + PAGE_TOKENS;
            let (sequence, short) = (&lane.sequence, &lane.tokens[..lane.tokens.len().min(63)]);
            self.prefixes.insert(lane.salt, &lane.tokens, sequence, beyond, mark, None);
            self.prefixes.insert(lane.salt, short, sequence, 64, mark, None);
        }
        self.prefixes.remove(salt, &[], usize::MAX);
        let wanted = [(usize::MAX, mark), (0, mark)];
        assert_eq!(self.prefixes.marks(salt, &[], 0, &wanted), []);
        assert!(self.prefixes.marks(salt, &tokens, usize::MAX, &wanted).is_empty());
        assert!(!self.prefixes.make_free(usize::MAX));
        assert_eq!(self.prefixes.cached(salt, &[]), 0);
    }

    fn held(&self) -> Vec<u32> {
        let table = |s: &Sequence, layer| s.page_table(layer).to_vec();
        let pages = self.lanes.iter().flat_map(|lane| {
            (0..self.pool.layers()).flat_map(|layer| table(&lane.sequence, layer))
        });
        pages.filter(|page| *page != NO_PAGE).collect()
    }

    fn check(&self) {
        let held = self.held();
        assert_eq!(self.prefixes.listed(), self.naive.listed(), "other marks are there");
        assert_eq!(self.pool.free_pages(), self.naive.free_pages(&held), "a page is lost");
        let cached = self.naive.cached_pages();
        assert_eq!(self.prefixes.pages(), cached.len());
        let only = cached.iter().filter(|page| !held.contains(page)).count();
        assert_eq!(self.prefixes.evictable(), only);
        assert_eq!(self.prefixes.trie.len(), self.naive.blocks());
        assert!(cached.len().max(self.prefixes.trie.len()) <= self.prefixes.most_pages);
    }
}

fn run(windows: &[Option<usize>], pages: usize, most: usize, longest: usize, steps: usize) {
    let mut run = Run::new(windows, pages, most, longest, pages as u64);
    (0..steps).for_each(|_| run.step());
    let (hits, evictions) = (run.hits, run.evictions);
    assert!(hits * 50 > steps && evictions * 300 > steps, "{hits} hits, {evictions} evictions");
    run.prefixes.clear();
    assert_eq!((run.prefixes.pages(), run.prefixes.trie.len()), (0, 0));
    run.lanes.clear();
    assert_eq!(run.pool.free_pages(), pages, "cleared, every page is free");
}

#[test]
fn it_is_the_list_of_its_prefixes() {
    run(&[Some(64), Some(512), None], 300, 150, 14, 20_000);
    run(&[Some(64), Some(512), None], 100, 100, 14, 10_000);
    run(&[Some(64), None], 60, 9, 14, 10_000);
    run(&[Some(130), None, None, Some(1), Some(130)], 400, 300, 14, 10_000);
}

#[test]
fn it_is_the_list_of_its_prefixes_with_windows_that_end_far_back() {
    run(&[Some(128), Some(8192), None], 900, 500, 160, 3000);
}

/// Marks want no page at all, and are bounded all the same.
#[test]
fn it_is_the_list_of_its_prefixes_where_a_token_sees_itself_alone() {
    run(&[Some(1)], 60, 20, 14, 10_000);
    run(&[Some(1), Some(2)], 60, 20, 14, 10_000);
    run(&[Some(1)], 60, 9, 14, 10_000);
}
