//! [`Edits`]: what somebody who keeps a copy of a sequence's page tables has to bring up to date.

/// When entries of the page tables became others, but for those that were added and those that a window
/// has left.
#[derive(Clone, Debug, Default)]
pub(super) struct Edits {
    count: u64,
    /// Number of an edit and the first page that was others' after it, both ascending: of edits with a
    /// later one that goes as far back nobody needs to know.
    first_pages: Vec<(u64, usize)>,
}

impl Edits {
    /// From page `page` on entries are, or will be, others.
    pub(super) fn add(&mut self, page: usize) {
        self.count += 1;
        while self.first_pages.last().is_some_and(|(_, other)| *other >= page) {
            self.first_pages.pop();
        }
        self.first_pages.push((self.count, page));
    }

    /// How many there were.
    #[cfg(feature = "cuda")]
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The first page that became another after edit number `count`.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn first_page_since(&self, count: u64) -> Option<usize> {
        let behind = self.first_pages.partition_point(|(edit, _)| *edit <= count);
        self.first_pages.get(behind).map(|(_, page)| *page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_known_to_whoever_saw_any_of_them_last() {
        let (mut edits, mut all) = (Edits::default(), Vec::new());
        for i in 0..200usize {
            let page = i * 7919 % 31 + i / 20;
            edits.add(page);
            all.push(page);
            assert!(edits.first_pages.len() <= 42, "what nobody asks for is not kept");
            for seen in 0..=all.len() {
                let want = all[seen..].iter().min().copied();
                assert_eq!(edits.first_page_since(seen as u64), want, "{all:?} since {seen}");
            }
        }
    }
}
