//! What the formulas say is what sequences do.

use super::*;
use crate::cache::testing::{Random, cache, grow};

const WINDOWS: [Option<usize>; 6] = [Some(1), Some(64), Some(128), Some(130), Some(8192), None];

fn windows(windows: &[Option<usize>]) -> Windows {
    Windows(windows.iter().map(|window| (*window, 1)).collect())
}

/// Wherever in a page a chunk begins, and however long it is: `most` is what is reached, and no more.
#[test]
fn most_is_the_peak_of_every_window_and_chunk() {
    for window in 1..=8192 {
        let all = windows(&[Some(window)]);
        let start = (window + 128) / PAGE_TOKENS * PAGE_TOKENS;
        for chunk in 1..=512 {
            let peak = (start..start + PAGE_TOKENS).map(|len| {
                let boundary = len / PAGE_TOKENS * PAGE_TOKENS;
                (len + chunk).div_ceil(PAGE_TOKENS) - first_visible_page(Some(window), boundary)
            });
            assert_eq!(peak.max(), Some(all.most(1 << 20, chunk)), "window {window}, {chunk}");
        }
    }
}

/// Prompts and forced runs in chunks, answers token by token, in a pool that has no page more.
#[test]
fn sequences_hold_what_is_said_and_never_more_than_most() {
    let mut random = Random(1);
    for windows in WINDOWS.map(|w| vec![w]).into_iter().chain([WINDOWS.to_vec()]) {
        for (total, most_chunk) in
            [(1, 1), (63, 7), (64, 64), (65, 2), (700, 1), (700, 65), (3000, 100), (10_000, 512)]
        {
            let model = cache(&windows, 1).windows().clone();
            let most = model.most(total, most_chunk);
            let cache = cache(&windows, most);
            let mut peak = 0;
            for _ in 0..3 {
                let mut sequence = cache.sequence();
                while sequence.len() < total {
                    let decode = random.below(3) == 0;
                    let chunk = if decode { 1 } else { 1 + random.below(most_chunk) };
                    // To the last position of a page, from where a chunk reaches furthest.
                    let to_63 = PAGE_TOKENS - 1 - sequence.len() % PAGE_TOKENS;
                    let next = match random.below(4) {
                        0 if (1..=most_chunk).contains(&to_63) => to_63,
                        1 => most_chunk,
                        _ => chunk,
                    };
                    let next = next.min(total - sequence.len());
                    peak = peak.max(sequence.pages() + sequence.pages_to_append(next));
                    grow(&mut sequence, next);
                    assert_eq!(sequence.pages(), model.held(sequence.len()));
                    assert_eq!(cache.free_pages(), most - sequence.pages());
                }
            }
            assert!(peak <= most && most <= peak + windows.len(), "{peak}, {most}: {windows:?}");
        }
    }
}

#[test]
fn the_longest_sequence_of_some_pages_is_the_longest() {
    for windows in [windows(&WINDOWS), windows(&[None]), windows(&[Some(128), None])] {
        for pages in 0..700 {
            for chunk in [1, 64, 512] {
                let longest = windows.longest(pages, chunk);
                assert!(windows.most(longest, chunk) <= pages);
                assert!(windows.most(longest + 1, chunk) > pages, "{pages} hold {longest} + 1");
            }
        }
    }
    let bounded = windows(&[Some(128), Some(64)]);
    assert_eq!(bounded.longest(bounded.most(1 << 30, 512), 512), usize::MAX);
    assert_eq!(bounded.longest(bounded.most(1 << 30, 512) - 1, 512), 10 * PAGE_TOKENS);
}
