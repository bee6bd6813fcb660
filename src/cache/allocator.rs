//! [`Allocator`]: which pages of a pool are free, and how many hold each of the others.

use crate::kernels::NO_PAGE;

/// Counts of one pool. Holders are page tables of sequences, and marks of a prefix cache.
#[derive(Debug)]
pub(super) struct Allocator {
    free: Vec<u32>,
    /// By page number. A pool that was carved out of another has its pages alone, the rest is not looked at.
    holders: Vec<Holders>,
    /// Pages of the pool, those that are lent included.
    pages: usize,
    lent: usize,
    cached: usize,
    evictable: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Holders {
    all: u32,
    /// Those of them that are a prefix cache.
    caches: u32,
}

impl Holders {
    fn are_caches_alone(self) -> bool {
        self.caches > 0 && self.caches == self.all
    }
}

impl Allocator {
    /// For the pages `free`, whose numbers are below `end`.
    pub(super) fn new(free: Vec<u32>, end: usize) -> Allocator {
        let (pages, holders) = (free.len(), vec![Holders::default(); end]);
        Allocator { free, holders, pages, lent: 0, cached: 0, evictable: 0 }
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Numbers of its pages are below this.
    pub(super) fn end(&self) -> usize {
        self.holders.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Pages that sequences or a prefix cache hold.
    pub(super) fn used(&self) -> usize {
        self.pages - self.lent - self.free.len()
    }

    /// Pages that a prefix cache holds.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Pages that nobody but a prefix cache holds.
    pub(super) fn evictable(&self) -> usize {
        self.evictable
    }

    /// `count` pages, each held once; `None` when fewer are free.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let pages = self.take_free(count)?;
        for page in &pages {
            self.holders[*page as usize].all = 1;
        }
        Some(pages)
    }

    /// `count` pages for a pool of their own.
    pub(super) fn lend(&mut self, count: usize) -> Option<Vec<u32>> {
        let pages = self.take_free(count)?;
        self.lent += count;
        Some(pages)
    }

    /// Pages that were lent are free again.
    pub(super) fn take_back(&mut self, pages: Vec<u32>) {
        self.lent -= pages.len();
        self.free.extend(pages);
    }

    /// Every page, whoever holds it.
    pub(super) fn give_up(&mut self) -> Vec<u32> {
        let held = |(page, holders): (usize, &Holders)| (holders.all > 0).then_some(page as u32);
        let held: Vec<u32> = self.holders.iter().enumerate().filter_map(held).collect();
        let mut pages = std::mem::take(&mut self.free);
        pages.extend(held);
        pages
    }

    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.holders[page as usize].all > 1
    }

    pub(super) fn retain(&mut self, page: u32) {
        self.change(page, |holders| holders.all += 1);
    }

    pub(super) fn release(&mut self, page: u32) {
        self.change(page, |holders| holders.all -= 1);
    }

    /// As [`Allocator::retain`], for a prefix cache.
    pub(super) fn retain_cached(&mut self, page: u32) {
        self.change(page, |holders| {
            holders.all += 1;
            holders.caches += 1;
        });
    }

    /// As [`Allocator::release`], for a prefix cache.
    pub(super) fn release_cached(&mut self, page: u32) {
        self.change(page, |holders| {
            holders.all -= 1;
            holders.caches -= 1;
        });
    }

    fn take_free(&mut self, count: usize) -> Option<Vec<u32>> {
        let mut pages = self.free.split_off(self.free.len().checked_sub(count)?);
        pages.reverse();
        Some(pages)
    }

    fn change(&mut self, page: u32, change: impl FnOnce(&mut Holders)) {
        debug_assert_ne!(page, NO_PAGE);
        let holders = &mut self.holders[page as usize];
        let before = *holders;
        change(holders);
        let after = *holders;
        self.cached += usize::from(after.caches > 0);
        self.cached -= usize::from(before.caches > 0);
        self.evictable += usize::from(after.are_caches_alone());
        self.evictable -= usize::from(before.are_caches_alone());
        if after.all == 0 {
            self.free.push(page);
        }
    }
}
