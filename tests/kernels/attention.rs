//! Attention over pages: sinks, windows, formats, ragged rows.

use crate::common::*;
use gpt_oss_puzzle::kernels::cpu::Cpu;
use gpt_oss_puzzle::kernels::{
    AttentionRows, HeadShape, KvFormat, NO_PAGE, PAGE_TOKENS, reference,
};

pub const FORMATS: [KvFormat; 3] =
    [KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8 { k_scale: 0.02, v_scale: 0.5 }];

/// Sequences with all their positions written, in pages scattered over a pool.
pub struct Cache {
    pub heads: HeadShape,
    pub format: KvFormat,
    pub pages: Input<u32>,
    pub tables: Vec<Vec<u32>>,
    pub sinks: Input<f32>,
}

impl Cache {
    /// One sequence per length. What no position wrote holds NaN in every format.
    pub fn new(rng: &mut Rng, heads: HeadShape, format: KvFormat, lengths: &[usize]) -> Cache {
        let used: usize = lengths.iter().map(|n| n.div_ceil(PAGE_TOKENS)).sum();
        let mut free: Vec<u32> = (0..used as u32 + 2).collect();
        let page_words = heads.page_elements() * format.element_bytes() / 4;
        let mut pages = vec![u32::MAX; free.len() * page_words];
        let width = heads.kv_heads * heads.head_dim;
        let mut tables = Vec::new();
        for &length in lengths {
            let mut table = Vec::new();
            for _ in 0..length.div_ceil(PAGE_TOKENS) {
                table.push(free.swap_remove(rng.below(free.len())));
            }
            let slot = |p: usize| u64::from(table[p / PAGE_TOKENS]) * 64 + (p % PAGE_TOKENS) as u64;
            let slots: Vec<u64> = (0..length).map(slot).collect();
            let (k, v) = (rng.floats(length * width), rng.floats(length * width));
            let k: Vec<f32> = k.iter().map(|k| 2.0 * k).collect();
            reference::kv_write(&mut pages, &k, &v, &slots, heads, format);
            tables.push(table);
        }
        let sinks = rng.floats(heads.q_heads).iter().map(|s| 3.0 * s).collect();
        Cache { heads, format, pages: Input::new(pages, 1), tables, sinks: Input::new(sinks, 1) }
    }

    /// Attention of `rows: [(sequence, position)]` on `cpu`.
    pub fn run(
        &self,
        cpu: &Cpu,
        q: &[f32],
        rows: &[(usize, usize)],
        window: Option<usize>,
    ) -> Vec<f32> {
        self.with_rows(rows, window, |rows| {
            guarded(q.len(), 3, |out| {
                let Cache { heads, format, .. } = *self;
                cpu.attention(out, q, &self.pages, &self.sinks, rows, heads, format, SCALE);
            })
        })
    }

    pub fn with_rows<R>(
        &self,
        rows: &[(usize, usize)],
        window: Option<usize>,
        f: impl FnOnce(AttentionRows) -> R,
    ) -> R {
        let positions: Vec<u32> = rows.iter().map(|r| r.1 as u32).collect();
        let sequences: Vec<u32> = rows.iter().map(|r| r.0 as u32).collect();
        let tables: Vec<&[u32]> = self.tables.iter().map(|t| &t[..]).collect();
        f(AttentionRows {
            positions: &positions,
            sequences: &sequences,
            page_tables: &tables,
            window,
        })
    }

    pub fn queries(&self, rng: &mut Rng, rows: usize) -> Input<f32> {
        let n = rows * self.heads.q_heads * self.heads.head_dim;
        Input::new(rng.floats(n).iter().map(|q| 4.0 * q).collect(), 2)
    }
}

pub const SCALE: f32 = 0.125;

fn check(cache: &Cache, rng: &mut Rng, rows: &[(usize, usize)], window: Option<usize>) {
    let q = cache.queries(rng, rows.len());
    let Cache { heads, format, .. } = *cache;
    let want = cache.with_rows(rows, window, |rows| {
        reference::attention(&q, &cache.pages, &cache.sinks, rows, heads, format, SCALE)
    });
    let longest = rows.iter().map(|r| r.1 + 1).max().unwrap_or(0).min(window.unwrap_or(usize::MAX));
    for cpu in tiers() {
        let got = cache.run(cpu, &q, rows, window);
        let what = format!("{cpu:?} {heads:?} {format:?} window {window:?} rows {rows:?}");
        assert_bounded(&got, &want, 1.0, heads.head_dim + longest, &what);
    }
}

#[test]
fn attention_is_bounded() {
    let mut rng = Rng(8);
    for format in FORMATS {
        for (q_heads, kv_heads, head_dim) in [(1, 1, 16), (6, 2, 48), (16, 2, 64), (5, 1, 80)] {
            let heads = HeadShape { q_heads, kv_heads, head_dim };
            // Around the vector width, the page and the partition of 512.
            let cache = Cache::new(&mut rng, heads, format, &[1, 17, 64, 65, 130, 600]);
            let rows = [(0, 0), (1, 0), (1, 15), (1, 16), (2, 63), (3, 63), (3, 64), (4, 129)];
            let long = [(5, 511), (5, 512), (5, 599), (4, 100)];
            for window in [None, Some(1), Some(2), Some(64), Some(65), Some(128), Some(8192)] {
                check(&cache, &mut rng, &rows, window);
                check(&cache, &mut rng, &long, window);
            }
            check(&cache, &mut rng, &[], None);
        }
    }
}

#[test]
fn attention_at_model_shape() {
    let mut rng = Rng(9);
    let heads = HeadShape { q_heads: 64, kv_heads: 8, head_dim: 64 };
    for (format, window) in FORMATS.into_iter().zip([None, Some(8192), Some(128)]) {
        let cache = Cache::new(&mut rng, heads, format, &[600]);
        check(&cache, &mut rng, &[(0, 599)], window);
    }
    // Beyond the widest window.
    let heads = HeadShape { q_heads: 2, kv_heads: 1, head_dim: 16 };
    for (format, window) in FORMATS.into_iter().zip([None, Some(8192), Some(8192)]) {
        let cache = Cache::new(&mut rng, heads, format, &[9000]);
        check(&cache, &mut rng, &[(0, 8999), (0, 8191), (0, 8192)], window);
    }
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_sink() {
    // Scores of some 1e4 against sinks that are far above or below them.
    let heads = HeadShape { q_heads: 4, kv_heads: 1, head_dim: 16 };
    let mut rng = Rng(10);
    let mut cache = Cache::new(&mut rng, heads, KvFormat::F32, &[70]);
    for sink in [-3e4, 3e4] {
        cache.sinks = Input::new(vec![sink; 4], 1);
        let q: Vec<f32> = cache.queries(&mut rng, 1).iter().map(|q| 1e3 * q).collect();
        for cpu in tiers() {
            let got = cache.run(cpu, &q, &[(0, 69)], None);
            assert!(got.iter().all(|x| x.is_finite()), "{cpu:?}: {got:?}");
            assert_eq!(got.iter().all(|&x| x == 0.0), sink > 0.0, "{cpu:?}: {got:?}");
        }
    }
}

#[test]
fn pages_outside_the_window_are_not_touched() {
    let heads = HeadShape { q_heads: 2, kv_heads: 1, head_dim: 16 };
    let mut rng = Rng(11);
    let mut cache = Cache::new(&mut rng, heads, KvFormat::F32, &[300]);
    let q = cache.queries(&mut rng, 2);
    let table = cache.tables[0].clone();
    for cpu in tiers() {
        cache.tables[0].clone_from(&table);
        let before = cache.run(cpu, &q, &[(0, 299), (0, 256)], Some(65));
        for page in &mut cache.tables[0][..3] {
            *page = NO_PAGE;
        }
        let after = cache.run(cpu, &q, &[(0, 299), (0, 256)], Some(65));
        assert_same_bits(&after, &before, &format!("{cpu:?}"));
    }
}

/// A page that row 0 needs is replaced by `page`; position 70 sees pages 0 and 1.
fn with_page(page: u32) {
    let heads = HeadShape { q_heads: 1, kv_heads: 1, head_dim: 16 };
    let mut rng = Rng(12);
    let mut cache = Cache::new(&mut rng, heads, KvFormat::F32, &[71]);
    cache.tables[0][0] = page;
    cache.run(&tiers()[0], &[0.0; 16], &[(0, 70)], None);
}

#[test]
#[should_panic(expected = "row 0 sees page 0 of its sequence, which was given back")]
fn a_page_given_back_is_refused() {
    with_page(NO_PAGE);
}

#[test]
#[should_panic(expected = "row 0 sees page 4, the pool has 4")]
fn a_page_outside_the_pool_is_refused() {
    with_page(4);
}

#[test]
#[should_panic(expected = "overflows")]
fn heads_whose_shape_wraps_around_are_refused() {
    // A page of 2^64 elements and some, of which 4096 remain.
    let kv_heads = (1 << 59) + 1;
    let heads = HeadShape { q_heads: kv_heads, kv_heads, head_dim: 16 };
    let mut pages = vec![0; 2 * PAGE_TOKENS * 16];
    let (k, slots) = ([0.0; 16], [0]);
    tiers()[0].kv_write(&mut pages, &k, &k, &slots, heads, KvFormat::F32);
}
