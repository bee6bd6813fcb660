//! Attention over pages: single rows in parts, runs of rows, and both in one call.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::{Gpu, Input, device};
use gpt_oss_puzzle::kernels::cuda::{AttentionBlocks, RowsOnDevice};
use gpt_oss_puzzle::kernels::reference::{self, Bounded};
use gpt_oss_puzzle::kernels::{AttentionRows, HeadShape, KvFormat, NO_PAGE, PAGE_TOKENS};

const FORMATS: [KvFormat; 3] =
    [KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8 { k_scale: 0.02, v_scale: 0.5 }];

/// Queries, heads of keys and values, dimensions: of the family, other sizes, more than 8 queries a head.
const SHAPES: [(usize, usize, usize); 5] =
    [(16, 2, 64), (6, 2, 48), (5, 1, 128), (11, 1, 64), (1, 1, 16)];

const SCALE: f32 = 0.125;

/// bf16 keeps 8 bits, hi and lo together 16: an error of 2^-18 of each factor, where n · eps is 2^-18 at
/// the smallest n of these tests.
const C: f64 = 4.0;

/// Rows as (sequence, position).
type Rows = [(usize, usize)];

/// Sequences with all their positions written, in pages scattered over a pool.
struct Cache {
    heads: HeadShape,
    format: KvFormat,
    pages: Vec<u32>,
    tables: Vec<Vec<u32>>,
    sinks: Vec<f32>,
}

impl Cache {
    /// One sequence per length. What no position wrote holds NaN in every format.
    fn new(
        rng: &mut Rng,
        shape: (usize, usize, usize),
        format: KvFormat,
        lengths: &[usize],
    ) -> Cache {
        let (q_heads, kv_heads, head_dim) = shape;
        let heads = HeadShape { q_heads, kv_heads, head_dim };
        let used: usize = lengths.iter().map(|n| n.div_ceil(PAGE_TOKENS)).sum();
        let mut free: Vec<u32> = (0..used as u32 + 2).collect();
        let words = heads.page_elements() * format.element_bytes() / 4;
        let mut pages = vec![u32::MAX; free.len() * words];
        let width = kv_heads * head_dim;
        let mut tables = Vec::new();
        for &length in lengths {
            let taken =
                (0..length.div_ceil(PAGE_TOKENS)).map(|_| free.swap_remove(rng.below(free.len())));
            let table: Vec<u32> = taken.collect();
            let slot = |p: usize| u64::from(table[p / PAGE_TOKENS]) * 64 + (p % PAGE_TOKENS) as u64;
            let slots: Vec<u64> = (0..length).map(slot).collect();
            let k: Vec<f32> = rng.floats(length * width).iter().map(|k| 2.0 * k).collect();
            let v = rng.floats(length * width);
            reference::kv_write(&mut pages, &k, &v, &slots, heads, format);
            tables.push(table);
        }
        let sinks = rng.floats(q_heads).iter().map(|s| 3.0 * s).collect();
        Cache { heads, format, pages, tables, sinks }
    }

    fn queries(&self, rng: &mut Rng, rows: usize) -> Vec<f32> {
        let n = rows * self.heads.q_heads * self.heads.head_dim;
        rng.floats(n).iter().map(|q| 4.0 * q).collect()
    }

    fn reference(&self, q: &[f32], rows: &Rows, window: Option<usize>) -> Bounded {
        let positions: Vec<u32> = rows.iter().map(|r| r.1 as u32).collect();
        let sequences: Vec<u32> = rows.iter().map(|r| r.0 as u32).collect();
        let page_tables: Vec<&[u32]> = self.tables.iter().map(|t| &t[..]).collect();
        let (positions, sequences, page_tables) =
            (&positions[..], &sequences[..], &page_tables[..]);
        let rows = AttentionRows { positions, sequences, page_tables, window };
        reference::attention(q, &self.pages, &self.sinks, rows, self.heads, self.format, SCALE)
    }

    /// With parts of `span`, or of the default.
    fn run(
        &self,
        gpu: &Gpu,
        q: &[f32],
        rows: &Rows,
        window: Option<usize>,
        span: Option<usize>,
    ) -> Vec<f32> {
        let longest = rows.iter().map(|r| r.1 + 1).max().unwrap_or(0);
        self.run_up_to(gpu, q, rows, window, span, longest)
    }

    fn run_up_to(
        &self,
        gpu: &Gpu,
        q: &[f32],
        rows: &Rows,
        window: Option<usize>,
        span: Option<usize>,
        longest: usize,
    ) -> Vec<f32> {
        let parts = span.map(|span| (span, usize::MAX));
        self.run_in_parts(gpu, q, rows, window, parts, longest)
    }

    /// With parts of a multiple of so many positions, as many at most.
    fn run_in_parts(
        &self,
        gpu: &Gpu,
        q: &[f32],
        rows: &Rows,
        window: Option<usize>,
        parts: Option<(usize, usize)>,
        longest: usize,
    ) -> Vec<f32> {
        let table_stride = self.tables.iter().map(Vec::len).max().unwrap() + 1;
        let padded = |t: &Vec<u32>| [&t[..], &vec![NO_PAGE; table_stride - t.len()]].concat();
        let tables: Vec<u32> = self.tables.iter().flat_map(padded).collect();
        let sequences: Vec<u32> = rows.iter().map(|r| r.0 as u32).collect();
        let positions: Vec<u32> = rows.iter().map(|r| r.1 as u32).collect();
        let upload = |values: &[u32]| -> Input<u32> { gpu.input(values, 1) };
        let (positions, on_device) = (upload(&positions), upload(&sequences));
        let (tables, pages) = (upload(&tables), gpu.input(&self.pages, 0));
        let (sinks, input) = (gpu.input(&self.sinks, 1), gpu.input(q, 3));
        let blocks = AttentionBlocks::new(&sequences);
        let list = upload(blocks.words());
        let rows = RowsOnDevice {
            positions: positions.view(),
            sequences: on_device.view(),
            page_tables: tables.view(),
            table_stride,
            blocks: &blocks,
            list: list.view(),
            window,
            longest,
        };
        let (q, pages, sinks) = (input.view(), pages.view(), sinks.view());
        let Cache { heads, format, .. } = *self;
        gpu.guarded(input.len(), 1, |out| match parts {
            None => gpu.cuda.attention(out, &q, &pages, &sinks, &rows, heads, format, SCALE),
            Some((span, most)) => {
                let cuda = &gpu.cuda;
                cuda.attention_in_parts(
                    out, &q, &pages, &sinks, &rows, heads, format, SCALE, span, most,
                )
            }
        })
    }

    fn check(
        &self,
        rng: &mut Rng,
        gpu: &Gpu,
        rows: &Rows,
        window: Option<usize>,
        spans: &[Option<usize>],
    ) {
        let q = self.queries(rng, rows.len());
        let want = self.reference(&q, rows, window);
        let longest = rows.iter().map(|r| r.1 + 1).max().unwrap_or(0);
        let n = self.heads.head_dim + longest.min(window.unwrap_or(usize::MAX));
        for &span in spans {
            let got = self.run(gpu, &q, rows, window, span);
            let Cache { heads, format, .. } = self;
            let what = format!("{heads:?} {format:?} window {window:?} span {span:?} {rows:?}");
            assert_bounded(&got, &want, C, n, &what);
        }
    }
}

#[test]
fn single_rows_are_bounded_whatever_the_parts() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    // Around a step, a page, and the parts of 32 and 64.
    let rows =
        [(0, 0), (1, 15), (0, 0), (1, 16), (2, 63), (3, 63), (2, 31), (3, 64), (4, 129), (4, 100)];
    for format in FORMATS {
        for shape in SHAPES {
            let cache = Cache::new(&mut rng, shape, format, &[1, 17, 64, 65, 130]);
            cache.check(&mut rng, gpu, &rows, None, &[None, Some(32), Some(64)]);
            for window in [1, 2, 65, 128, 8192] {
                cache.check(&mut rng, gpu, &rows[5..], Some(window), &[None]);
            }
            cache.check(&mut rng, gpu, &rows[6..], Some(64), &[Some(32)]);
        }
    }
}

#[test]
fn runs_of_rows_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    for format in FORMATS {
        for shape in SHAPES {
            let cache = Cache::new(&mut rng, shape, format, &[17, 150]);
            // 17 rows are a run and a row alone; then a run across a page's end, and one of two.
            let rows: Vec<_> = (0..17).map(|p| (0, p)).collect();
            cache.check(&mut rng, gpu, &rows, None, &[None]);
            let rows: Vec<_> = (120..132).map(|p| (1, p)).chain([(0, 3), (0, 4)]).collect();
            for window in [None, Some(1), Some(5), Some(64), Some(128)] {
                cache.check(&mut rng, gpu, &rows, window, &[None]);
            }
        }
    }
}

#[test]
fn attention_at_model_shape() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for (format, window) in FORMATS.into_iter().zip([None, Some(128), None]) {
        let cache = Cache::new(&mut rng, (64, 8, 64), format, &[140, 5]);
        cache.check(&mut rng, gpu, &[(0, 139)], window, &[None]);
        cache.check(&mut rng, gpu, &[(1, 2), (1, 3), (1, 4), (0, 139)], window, &[None]);
    }
    // Long enough for several parts of the usual length, and beyond the widest window.
    let cache = Cache::new(&mut rng, (8, 1, 64), FORMATS[2], &[8500]);
    for window in [None, Some(8192)] {
        cache.check(&mut rng, gpu, &[(0, 8499)], window, &[None, Some(256)]);
    }
}

/// Prefill chunks and decode steps share a call; each row has the bits it has without the others.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(4);
    for format in FORMATS {
        let cache = Cache::new(&mut rng, (16, 2, 64), format, &[100, 40, 129]);
        let run = |from: usize| (from..from + 5).map(|p| (0, p));
        let rows: Vec<_> = [(1, 39)].into_iter().chain(run(90)).chain([(2, 128), (1, 7)]).collect();
        let q = cache.queries(&mut rng, rows.len());
        let width = 16 * 64;
        let together = cache.run(gpu, &q, &rows, Some(100), Some(64));
        assert_same_bits(&cache.run(gpu, &q, &rows, Some(100), Some(64)), &together, "again");
        for part in [0..1, 1..6, 6..7, 7..8] {
            let alone = &q[part.start * width..part.end * width];
            let alone = cache.run(gpu, alone, &rows[part.clone()], Some(100), Some(64));
            let want = &together[part.start * width..part.end * width];
            assert_same_bits(&alone, want, &format!("{format:?} rows {part:?}"));
        }
        // A window that reaches the beginning is full attention.
        let full = cache.run(gpu, &q, &rows, None, Some(64));
        for window in [129, 130, usize::MAX] {
            assert_same_bits(&cache.run(gpu, &q, &rows, Some(window), Some(64)), &full, "window");
        }
    }
}

#[test]
fn pages_outside_the_window_are_not_touched() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(5);
    let mut cache = Cache::new(&mut rng, (2, 1, 16), KvFormat::F32, &[300]);
    let rows = [(0, 297), (0, 298), (0, 299)];
    let (q, window) = (cache.queries(&mut rng, 3), Some(40));
    let alone = [(0, 299)];
    let before = cache.run(gpu, &q, &rows, window, None);
    let decoded = cache.run(gpu, &q[64..], &alone, window, None);
    for page in &mut cache.tables[0][..4] {
        *page = NO_PAGE;
    }
    assert_same_bits(&cache.run(gpu, &q, &rows, window, None), &before, "run");
    assert_same_bits(&cache.run(gpu, &q[64..], &alone, window, None), &decoded, "single");
}

/// Which rows are NaN throughout; the others are finite throughout.
fn lost(cache: &Cache, got: &[f32]) -> Vec<bool> {
    let rows = got.chunks(cache.heads.q_heads * cache.heads.head_dim);
    let lost = |row: &[f32]| {
        let nan = row.iter().filter(|x| x.is_nan()).count();
        assert!(nan == 0 && row.iter().all(|x| x.is_finite()) || nan == row.len(), "{row:?}");
        nan > 0
    };
    rows.map(lost).collect()
}

#[test]
fn a_row_that_cannot_be_answered_is_nan() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(6);
    for format in FORMATS {
        let mut cache = Cache::new(&mut rng, (9, 1, 64), format, &[200, 70]);
        let pool = 8; // 4 pages, 2 pages, 2 that nobody has
        for page in [NO_PAGE, pool, pool - 1 + (1 << 31)] {
            cache.tables[0][1] = page;
            let rows = [(0, 63), (1, 69), (0, 64), (1, 3), (0, 199)];
            let q = cache.queries(&mut rng, rows.len());
            for span in [32, 256] {
                let got = cache.run(gpu, &q, &rows, None, Some(span));
                assert_eq!(lost(&cache, &got), [false, false, true, false, true], "{page}");
                let got = cache.run(gpu, &q, &rows, Some(8), Some(span));
                assert_eq!(lost(&cache, &got), [false, false, true, false, false], "{page}");
            }
            let rows: Vec<_> = (60..68).map(|p| (0, p)).collect();
            let got = cache.run(gpu, &cache.queries(&mut rng, 8), &rows, None, None);
            assert_eq!(lost(&cache, &got), [false, false, false, false, true, true, true, true]);
        }
        // Sequences and positions that are not there, alone and in runs; fewer positions than there are.
        let q = cache.queries(&mut rng, 4);
        for (missing, far) in [(2, 300), (u32::MAX as usize, u32::MAX as usize)] {
            let got = cache.run(gpu, &q, &[(1, 69), (missing, 1), (1, 69), (1, far)], None, None);
            assert_eq!(lost(&cache, &got)[..2], [false, true]);
            let rows = [(missing, 1), (missing, 2), (1, 1), (missing, far)];
            assert_eq!(
                lost(&cache, &cache.run_up_to(gpu, &q, &rows, None, Some(64), 100)),
                [true, true, false, true]
            );
        }
        for span in [32, 64] {
            let got =
                cache.run_up_to(gpu, &q, &[(1, 69), (0, 3), (1, 31), (0, 9)], None, Some(span), 32);
            assert_eq!(lost(&cache, &got), [true, false, false, false]);
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_sink() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(7);
    for format in FORMATS {
        // Scores of some 1e4 against sinks that are far above or below them.
        let mut cache = Cache::new(&mut rng, (4, 1, 16), format, &[70]);
        for sink in [-3e4, 3e4] {
            cache.sinks = vec![sink; 4];
            let q: Vec<f32> = cache.queries(&mut rng, 4).iter().map(|q| 1e3 * q).collect();
            for span in [32, 256] {
                let got = cache.run(gpu, &q, &[(0, 69), (0, 5), (0, 6), (0, 7)], None, Some(span));
                assert!(got.iter().all(|x| x.is_finite()), "{got:?}");
                assert_eq!(got.iter().all(|&x| x == 0.0), sink > 0.0, "{got:?}");
            }
        }
        // A sink that outweighs all positions by little, and one that is nothing.
        for sink in [8.0, -60.0] {
            cache.sinks = vec![sink; 4];
            cache.check(&mut rng, gpu, &[(0, 69), (0, 5), (0, 6), (0, 7)], None, &[None, Some(32)]);
        }
    }
}

/// A row has the bits it has alone, whatever the others see: with one part, with some, and with parts that
/// grow because there may not be more.
#[test]
fn a_row_has_its_bits_in_any_company() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(9);
    for format in FORMATS {
        let cache = Cache::new(&mut rng, (4, 2, 16), format, &[700, 400, 70]);
        let rows: Vec<_> =
            [(0, 699), (1, 0), (2, 69), (1, 96), (0, 95), (1, 399), (0, 256), (2, 31)]
                .into_iter()
                .cycle()
                .take(19)
                .collect();
        let q = cache.queries(&mut rng, rows.len());
        let of_row = q.len() / rows.len();
        for (window, parts) in
            [(None, None), (None, Some((32, 4))), (Some(100), None), (Some(100), Some((32, 2)))]
        {
            let together = cache.run_in_parts(gpu, &q, &rows, window, parts, 700);
            let want = cache.reference(&q, &rows, window);
            assert_bounded(
                &together,
                &want,
                C,
                16 + 700,
                &format!("{format:?} {window:?} {parts:?}"),
            );
            for (i, row) in rows.iter().enumerate() {
                let one = std::slice::from_ref(row);
                let q = &q[i * of_row..][..of_row];
                let alone = cache.run_in_parts(gpu, q, one, window, parts, row.1 + 1);
                let what = format!("{format:?}, window {window:?}, parts {parts:?}, row {row:?}");
                assert_same_bits(&together[i * of_row..][..of_row], &alone, &what);
            }
        }
    }
}

#[test]
fn no_rows_are_legal() {
    let Some(gpu) = device() else { return };
    let cache = Cache::new(&mut Rng(8), (2, 1, 16), KvFormat::Bf16, &[1]);
    assert!(cache.run(gpu, &[], &[], None, None).is_empty());
}
