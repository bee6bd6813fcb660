use super::*;
use crate::cache::testing::{self, grow};
use crate::cache::{KvCacheConfig, KvDtype};
use crate::weights::KvScales;
use crate::{ErrorKind, ModelConfig};
use candle_core::Device;

fn cache(model: &ModelConfig, pages: usize) -> KvCache {
    let scales = vec![KvScales { k: 1.0, v: 1.0 }; model.num_hidden_layers()];
    let config = KvCacheConfig { dtype: KvDtype::Fp8, pages, scales: Some(scales) };
    KvCache::new(model, &config, &Device::Cpu).unwrap()
}

/// The reduction published for Puzzle: 58.4 % of its parent's cache at 131,072 tokens.
#[test]
fn memory_is_what_the_windows_need_to_within_a_page_per_layer() {
    let tokens = 131_072;
    let held = |model: &ModelConfig| {
        let cache = cache(model, KvCache::pages_for(model, tokens, 512));
        let mut sequence = cache.sequence();
        while sequence.len() < tokens {
            grow(&mut sequence, 512);
        }
        let needed: usize = (model.block_configs.iter())
            .map(|b| b.sliding_window.unwrap_or(tokens).min(tokens))
            .sum();
        let layers = model.num_hidden_layers();
        let pages = sequence.pages();
        assert!(pages * PAGE_TOKENS >= needed - layers, "{pages} pages for {needed} positions");
        assert!(pages * PAGE_TOKENS <= needed + layers * PAGE_TOKENS, "{pages} for {needed}");
        assert_eq!(cache.used_bytes(), pages * KvCache::page_bytes(model, KvDtype::Fp8));
        pages as f64
    };
    let share = held(&ModelConfig::puzzle_88b()) / held(&ModelConfig::gpt_oss_120b());
    assert!((share - 0.584).abs() < 0.002, "{share}");
}

#[test]
fn a_window_keeps_exactly_what_a_token_at_the_last_page_boundary_sees() {
    let model = ModelConfig::gpt_oss_20b();
    let cache = cache(&model, 4000);
    for chunk in [1, 7, 64, 100] {
        let mut sequence = cache.sequence();
        while sequence.len() < 700 {
            grow(&mut sequence, chunk);
            let boundary = sequence.len() / PAGE_TOKENS * PAGE_TOKENS;
            let first_seen = (boundary + 1).saturating_sub(128);
            let table = sequence.page_table(0);
            for (page, entry) in table.iter().enumerate() {
                let seen = (page + 1) * PAGE_TOKENS > first_seen;
                assert_eq!(*entry != NO_PAGE, seen, "page {page} at {}", sequence.len());
            }
            assert!(sequence.page_table(1).iter().all(|e| *e != NO_PAGE));
        }
    }
    assert_eq!(cache.free_pages(), 4000, "dropped sequences give everything back");
}

#[test]
fn forks_share_pages_and_copy_only_the_one_they_write() {
    let model = ModelConfig::gpt_oss_20b();
    let (cache, layers) = (cache(&model, 1000), model.num_hidden_layers());
    let mut first = cache.sequence();
    grow(&mut first, 100);
    let used = 1000 - cache.free_pages();
    let mut second = first.fork();
    assert_eq!(1000 - cache.free_pages(), used, "a fork takes no page");
    grow(&mut second, 1);
    assert_eq!(1000 - cache.free_pages(), used + layers, "one copied page per layer");
    for layer in 0..layers {
        assert_eq!(first.page_table(layer)[0], second.page_table(layer)[0]);
        assert_ne!(first.page_table(layer)[1], second.page_table(layer)[1]);
    }
    grow(&mut first, 1);
    assert_eq!(1000 - cache.free_pages(), used + layers, "the last holder writes in place");
    drop(second);
    assert_eq!(1000 - cache.free_pages(), used);
    drop(first);
    assert_eq!(cache.free_pages(), 1000);
}

#[test]
fn truncation_is_refused_where_a_window_has_passed() {
    let model = ModelConfig::gpt_oss_20b();
    let cache = cache(&model, 1000);
    let mut sequence = cache.sequence();
    grow(&mut sequence, 130);
    assert!(sequence.can_truncate(64), "still within the window of 128");
    let early = sequence.fork();
    grow(&mut sequence, 400);
    assert!(sequence.can_truncate(520) && !sequence.can_truncate(300));
    let error = sequence.truncate(300).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("530 positions to 300"), "{error}");
    assert_eq!(sequence.len(), 530, "refused, unchanged");
    sequence.truncate(520).unwrap();
    assert_eq!(sequence.len(), 520);
    assert_eq!(early.len(), 130);
    assert!(sequence.truncate(521).is_err());
}

#[test]
fn running_out_of_pages_names_both_numbers_and_takes_none() {
    let model = ModelConfig::gpt_oss_20b();
    let cache = cache(&model, 30);
    let mut sequence = cache.sequence();
    grow(&mut sequence, 64);
    let error = cache.allocate(sequence.pages_to_append(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull);
    assert_eq!(error.to_string(), "the key-value cache has 6 of 30 pages free, this step needs 24");
    assert_eq!(cache.free_pages(), 6);
}

#[test]
fn a_pool_the_system_refuses_is_an_error() {
    let model = ModelConfig::gpt_oss_20b();
    // 2^31 pages of 256 KiB are more than 47 bits of addresses.
    for pages in [0, 1 << 31, usize::MAX] {
        let config = KvCacheConfig { dtype: KvDtype::F32, pages, scales: None };
        let error = KvCache::new(&model, &config, &Device::Cpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(
            error.to_string(),
            format!("a key-value cache of {pages} pages of 262144 bytes cannot be addressed")
        );
    }
    assert!(KvCache::pages_for(&model, usize::MAX, usize::MAX) > 1 << 32, "no wrap-around");
}

#[test]
fn a_failed_step_gives_its_pages_back() {
    let model = ModelConfig::gpt_oss_20b();
    let cache = cache(&model, 1000);
    let mut sequence = cache.sequence();
    grow(&mut sequence, 100);
    let held = sequence.pages();
    let mut pages = cache.allocate(sequence.pages_to_append(300)).unwrap();
    sequence.append(300, &mut pages).unwrap();
    assert!(sequence.pages() > held);
    sequence.drop_pages_beyond_len();
    assert_eq!((sequence.pages(), sequence.len()), (held, 100));
    assert_eq!(cache.free_pages(), 1000 - held);
}

#[test]
fn fp8_without_scales_is_refused() {
    let model = ModelConfig::gpt_oss_20b();
    let make = |scales| {
        let config = KvCacheConfig { dtype: KvDtype::Fp8, pages: 1, scales };
        KvCache::new(&model, &config, &Device::Cpu).unwrap_err().to_string()
    };
    assert!(make(None).contains("needs calibrated scales"));
    assert!(make(Some(vec![])).contains("0 key-value scales were passed for 24 layers"));
    let mut scales = vec![KvScales { k: 1.0, v: 1.0 }; 24];
    scales[7].v = f32::NAN;
    assert!(make(Some(scales)).contains("v_scale of layer 7 is NaN"));
}

/// At every length the last page boundary can be gone on from, also one position before the next.
#[test]
fn the_last_page_boundary_is_whole() {
    let cache = testing::cache(&[Some(1), Some(64), Some(100), Some(128), Some(130), None], 100);
    for chunk in [1, 7, 63, 100] {
        let mut sequence = cache.sequence();
        while sequence.len() < 600 {
            grow(&mut sequence, chunk);
            let boundary = sequence.len() / PAGE_TOKENS * PAGE_TOKENS;
            assert!(sequence.can_truncate(boundary), "{boundary} of {}", sequence.len());
        }
    }
}

#[test]
fn a_position_that_is_held_can_be_gone_on_from_after_the_chunk() {
    let cache = testing::cache(&[Some(1), Some(64), Some(128), None], 200);
    let windows = cache.windows().clone();
    for position in (64..=512).step_by(64) {
        let mut sequence = cache.sequence();
        grow(&mut sequence, 63);
        sequence.hold(position);
        sequence.hold(position + 64); // The earlier of both counts.
        grow(&mut sequence, 512);
        assert!(sequence.can_truncate(position) && sequence.can_truncate(512), "{position}");
        grow(&mut sequence, 1);
        assert!(sequence.can_truncate(position), "held through every commit");
        let gone_before = position >= 128 && sequence.can_truncate(position - 128);
        assert!(!gone_before, "and no more than that");
        sequence.let_go();
        assert_eq!(sequence.pages(), windows.held(sequence.len()));
        assert_eq!(cache.free_pages(), 200 - sequence.pages());
        assert!(!sequence.can_truncate(position) && sequence.can_truncate(576));
        grow(&mut sequence, 200);
        assert_eq!(sequence.pages(), windows.held(sequence.len()), "it held once");
    }
    let mut sequence = cache.sequence();
    sequence.hold(64);
    sequence.clear();
    grow(&mut sequence, 300);
    assert_eq!(sequence.pages(), windows.held(300), "what starts over holds nothing");
}
