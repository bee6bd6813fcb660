use crate::ErrorKind;
use crate::cache::testing::{cache, grow};

const WINDOWS: [Option<usize>; 2] = [Some(64), None];

#[test]
fn a_carved_pool_takes_pages_from_its_lender_and_gives_them_back() {
    let pool = cache(&WINDOWS, 30);
    let mut direct = pool.sequence();
    grow(&mut direct, 100);
    assert_eq!(direct.pages(), 4);
    let carved = pool.carve(20).unwrap();
    assert_eq!((carved.pages(), carved.free_pages(), carved.used_bytes()), (20, 20, 0));
    assert_eq!((pool.pages(), pool.free_pages()), (30, 6));
    assert!(pool.used_bytes() > 0 && pool.used_bytes().is_multiple_of(4), "{}", pool.used_bytes());
    assert_eq!(pool.used_bytes(), 4 * pool.used_bytes() / direct.pages(), "lent ones do not count");
    assert!(!carved.same_pool(&pool) && !pool.same_pool(&carved));
    assert!(carved.same_pool(&carved.clone()));

    let mut sequence = carved.sequence();
    grow(&mut sequence, 600);
    let held = |s: &crate::cache::Sequence| -> Vec<u32> {
        (0..2).flat_map(|layer| s.page_table(layer).to_vec()).collect()
    };
    assert!(held(&sequence).iter().all(|page| !held(&direct).contains(page)), "a page of both");
    assert_eq!((carved.free_pages(), pool.free_pages()), (20 - sequence.pages(), 6));

    let carved_again = carved.clone();
    drop(carved);
    drop(carved_again);
    assert_eq!(pool.free_pages(), 6, "a sequence outlives the last clone");
    grow(&mut sequence, 64);
    drop(sequence);
    assert_eq!(pool.free_pages(), 26);
    drop(direct);
    assert_eq!(pool.used_bytes(), 0);
    let message = "the key-value cache has 30 of 30 pages free, this step needs 31";
    assert_eq!(pool.allocate(31).unwrap_err().to_string(), message, "none are lent");
    let all: std::collections::HashSet<u32> = pool.allocate(30).unwrap().into_iter().collect();
    assert_eq!(all.len(), 30, "every page is there once");
}

/// Pages that were allocated and never given back, as by a step that panicked, do not stay lent.
#[test]
fn pages_without_a_holder_come_back_too() {
    let pool = cache(&WINDOWS, 10);
    let carved = pool.carve(8).unwrap();
    drop(carved.allocate(3).unwrap());
    let inner = carved.carve(2).unwrap();
    drop(carved);
    assert_eq!(pool.free_pages(), 2, "an engine of an engine keeps it");
    drop(inner);
    assert_eq!(pool.free_pages(), 10);
}

#[test]
fn whoever_finds_no_page_reads_how_many_are_lent() {
    let pool = cache(&WINDOWS, 30);
    let error = pool.carve(31).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull);
    let message = "the key-value cache has 30 of 30 pages free, an engine asks for 31";
    assert_eq!(error.to_string(), message);
    assert_eq!(pool.free_pages(), 30, "refused, none are taken");

    let carved = pool.carve(28).unwrap();
    let error = pool.allocate(3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull);
    let message =
        "the key-value cache has 2 of 30 pages free and 28 lent to an engine, this step needs 3";
    assert_eq!(error.to_string(), message);
    let message = "the key-value cache has 28 of 28 pages free, this step needs 29";
    assert_eq!(carved.allocate(29).unwrap_err().to_string(), message);
    drop(carved);
    assert_eq!(pool.allocate(30).unwrap().len(), 30);
}

#[test]
fn copies_stay_in_the_memory_of_the_lender() {
    let pool = cache(&[None], 8);
    let carved = pool.carve(4).unwrap();
    assert_eq!(carved.words().dims(), pool.words().dims(), "the same tensor");
    let mut first = carved.sequence();
    grow(&mut first, 10);
    let mut second = first.fork();
    grow(&mut second, 1);
    assert_ne!(first.page_table(0), second.page_table(0), "copied on write");
    assert_eq!((carved.free_pages(), pool.free_pages()), (2, 4));
}
