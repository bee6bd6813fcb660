//! [`Windows`]: how many pages sequences of a model hold, from their lengths alone.
//!
//! With `G` tokens a page, a token at position `n` sees, in a layer with window `W`, positions from
//! `n + 1 - W` on, the first of which is in page `max(0, n + 1 - W) div G`. A sequence of `n` positions gives
//! back what a token at its last page boundary no longer sees. What a step of `c` tokens takes from the pool
//! is `Sequence::pages_to_append`.

use crate::config::BlockConfig;
use crate::kernels::PAGE_TOKENS;

/// Windows of a model's layers: each that there is, and how many layers have it.
#[derive(Clone, Debug)]
pub(crate) struct Windows(Vec<(Option<usize>, usize)>);

impl Windows {
    pub(crate) fn of(blocks: &[BlockConfig]) -> Windows {
        let mut windows: Vec<(Option<usize>, usize)> = Vec::new();
        for block in blocks {
            match windows.iter_mut().find(|(window, _)| *window == block.sliding_window) {
                Some((_, layers)) => *layers += 1,
                None => windows.push((block.sliding_window, 1)),
            }
        }
        Windows(windows)
    }

    /// Pages that a sequence of `len` positions holds between two steps; at a page boundary, those that
    /// going on from there needs.
    pub(crate) fn held(&self, len: usize) -> usize {
        let boundary = len / PAGE_TOKENS * PAGE_TOKENS;
        self.sum(|window| {
            len.div_ceil(PAGE_TOKENS).saturating_sub(first_visible_page(window, boundary))
        })
    }

    /// Pages that a sequence holds at most, those included that its next step takes, until it has `total`
    /// positions, when no step appends more than `chunk` of them.
    ///
    /// A partly filled page that it shares with another sequence is copied by the first of both that writes
    /// to it, which takes a page more in each layer for that step.
    pub(crate) fn most(&self, total: usize, chunk: usize) -> usize {
        let all = total.div_ceil(PAGE_TOKENS);
        // The page being filled, which may lack one position, and what the rest of the chunk begins.
        let filled = chunk.saturating_sub(1).div_ceil(PAGE_TOKENS).saturating_add(1);
        self.sum(|window| match window {
            None => all,
            Some(window) => {
                let seen = window.saturating_sub(1).div_ceil(PAGE_TOKENS);
                all.min(seen.saturating_add(filled))
            }
        })
    }

    /// The most positions of a sequence that never holds more than `pages` pages, see [`Windows::most`];
    /// `usize::MAX` when no number of positions takes more.
    pub(crate) fn longest(&self, pages: usize, chunk: usize) -> usize {
        if self.most(usize::MAX, chunk) <= pages {
            return usize::MAX;
        }
        // Whole pages: `fits` pages do, `fits_not` do not.
        let (mut fits, mut fits_not) = (0, usize::MAX.div_ceil(PAGE_TOKENS));
        while fits_not - fits > 1 {
            let middle = fits + (fits_not - fits) / 2;
            match self.most(middle.saturating_mul(PAGE_TOKENS), chunk) <= pages {
                true => fits = middle,
                false => fits_not = middle,
            }
        }
        fits * PAGE_TOKENS
    }

    /// Layers of the model.
    pub(crate) fn layers(&self) -> usize {
        self.0.iter().map(|(_, layers)| layers).sum()
    }

    fn sum(&self, pages: impl Fn(Option<usize>) -> usize) -> usize {
        (self.0.iter()).fold(0, |sum, (window, layers)| {
            sum.saturating_add(pages(*window).saturating_mul(*layers))
        })
    }
}

/// The page of the earliest position that a token at `position` sees.
pub(super) fn first_visible_page(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |w| position.saturating_add(1).saturating_sub(w) / PAGE_TOKENS)
}

#[cfg(test)]
mod tests;
