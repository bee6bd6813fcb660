//! Attention over pages, and writing them.

use crate::data::{Rng, part};
use crate::timing::{Bench, Work};
use crate::{Result, Sizes};
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::CudaSlice;
use gpt_oss_puzzle::kernels::cuda::{AttentionBlocks, RowsOnDevice};
use gpt_oss_puzzle::kernels::{HeadShape, KvFormat, NO_PAGE, PAGE_TOKENS};
use half::bf16;

const FORMATS: [(&str, KvFormat); 2] =
    [("fp8", KvFormat::Fp8 { k_scale: 0.5, v_scale: 0.5 }), ("bf16", KvFormat::Bf16)];

pub(crate) fn run(bench: &Bench, sizes: &Sizes) -> Result<()> {
    let config = &sizes.config;
    let heads = HeadShape {
        q_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    };
    for (name, format) in FORMATS {
        if !bench.wants("rope_kv_write") && !bench.wants("attention") {
            continue;
        }
        let cache = Cache::new(bench, sizes, heads, format)?;
        for &rows in sizes.rows {
            cache.write(&format!("rope_kv_write {name}"), rows)?;
        }
        for &batch in sizes.batches {
            for &depth in sizes.depths {
                // A window that reaches the beginning is none.
                let windows = sizes.windows.iter().filter(|w| **w < depth).map(|w| Some(*w));
                for window in [None].into_iter().chain(windows) {
                    let rows: Vec<_> = (0..batch).map(|sequence| (sequence, depth - 1)).collect();
                    cache.attend(&format!("attention decode {name} {depth}"), &rows, window)?;
                }
            }
        }
        for &(rows, before) in sizes.prompts {
            let windows = sizes.windows.iter().filter(|w| **w < before + rows).map(|w| Some(*w));
            for window in [None].into_iter().chain(windows) {
                let rows: Vec<_> = (before..before + rows).map(|position| (0, position)).collect();
                cache.attend(&format!("attention prefill {name} {before}+"), &rows, window)?;
            }
        }
    }
    Ok(())
}

/// Memory full of keys and values.
struct Cache<'a> {
    bench: &'a Bench,
    heads: HeadShape,
    format: KvFormat,
    memory: CudaSlice<u32>,
    sinks: CudaSlice<f32>,
}

impl Cache<'_> {
    /// Large enough for every case, and to go round in.
    fn new<'a>(
        bench: &'a Bench,
        sizes: &Sizes,
        heads: HeadShape,
        format: KvFormat,
    ) -> Result<Cache<'a>> {
        let most = |list: &[usize]| list.iter().max().copied().unwrap_or(0);
        let prompt = sizes.prompts.iter().map(|(rows, before)| rows + before).max().unwrap_or(0);
        let positions = (most(sizes.batches) * (most(sizes.depths) + PAGE_TOKENS)).max(prompt);
        let pages = positions.max(most(sizes.rows)).div_ceil(PAGE_TOKENS);
        let words = heads.page_elements() * format.element_bytes() / 4;
        let memory = bench.random((pages * words).max(sizes.rotation / 4), |rng| match format {
            // Without the highest bit of the exponent, below which there is no NaN.
            KvFormat::Fp8 { .. } => rng.bits() as u32 & 0xbfbf_bfbf,
            _ => {
                let half = |x| u32::from(bf16::from_f32(x).to_bits());
                half(rng.float()) | half(rng.float()) << 16
            }
        })?;
        let sinks = bench.floats(heads.q_heads)?;
        Ok(Cache { bench, heads, format, memory, sinks })
    }

    /// Bytes of a position.
    fn position_bytes(&self) -> usize {
        self.heads.page_elements() / PAGE_TOKENS * self.format.element_bytes()
    }

    /// Rows, as (sequence, position), that see all positions before them, or `window` of them.
    fn attend(&self, name: &str, rows: &[(usize, usize)], window: Option<usize>) -> Result<()> {
        let Cache { bench, heads, format, .. } = *self;
        let visible = |position: usize| window.unwrap_or(usize::MAX).min(position + 1);
        // Pages that some row sees, in any order; the others were given back.
        let (sequences, longest) = (rows[rows.len() - 1].0 + 1, rows[rows.len() - 1].1 + 1);
        let first = rows[0].1 + 1 - visible(rows[0].1);
        let stride = longest.div_ceil(PAGE_TOKENS);
        let given_back = first / PAGE_TOKENS;
        let pages = sequences * (stride - given_back);
        let mut places = Rng(0x5eed).distinct(pages, pages).into_iter();
        let mut page = |i| if i < given_back { NO_PAGE } else { places.next().unwrap_or(NO_PAGE) };
        let tables: Vec<u32> = (0..sequences * stride).map(|i| page(i % stride)).collect();

        let positions: Vec<u32> = rows.iter().map(|row| row.1 as u32).collect();
        let of_rows: Vec<u32> = rows.iter().map(|row| row.0 as u32).collect();
        let blocks = AttentionBlocks::new(&of_rows);
        let list = bench.upload(blocks.words())?;
        let (positions, of_rows) = (bench.upload(&positions)?, bench.upload(&of_rows)?);
        let tables = bench.upload(&tables)?;
        let on_device = RowsOnDevice {
            positions: positions.as_view(),
            sequences: of_rows.as_view(),
            page_tables: tables.as_view(),
            table_stride: stride,
            blocks: &blocks,
            list: list.as_view(),
            window,
            longest,
        };
        let width = heads.q_heads * heads.head_dim;
        let read = sequences * (longest - first) * self.position_bytes();
        let seen: usize = rows.iter().map(|row| visible(row.1)).sum();
        let work = Work {
            rows: rows.len(),
            bytes: read + 2 * 4 * rows.len() * width,
            flops: 4 * seen * width,
        };
        let name = match window {
            Some(window) => format!("{name} window {window}"),
            None => name.into(),
        };
        let q = bench.floats(rows.len() * width)?;
        let words = pages * PAGE_TOKENS * self.position_bytes() / 4;
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        bench.case(&name, work, &mut bench.nans(rows.len() * width)?, |i, out| {
            let (pages, sinks) = (part(&self.memory, i, words), self.sinks.as_view());
            let q = q.as_view();
            bench.cuda.attention(out, &q, &pages, &sinks, &on_device, heads, format, scale)
        })
    }

    /// Consecutive rows, from the beginning of a page.
    fn write(&self, name: &str, rows: usize) -> Result<()> {
        let Cache { bench, heads, format, .. } = *self;
        let HeadShape { q_heads, kv_heads, head_dim } = heads;
        let (queries, keys) = (rows * q_heads * head_dim, rows * kv_heads * head_dim);
        let (k, v) = (bench.floats(keys)?, bench.floats(keys)?);
        // Any angle: turning does not change a query's length, however often it is turned.
        let (cos, sin) =
            (bench.same(0.6, rows * head_dim / 2)?, bench.same(0.8, rows * head_dim / 2)?);
        let slots = bench.upload(&(0..rows as u64).collect::<Vec<_>>())?;
        let words = rows.div_ceil(PAGE_TOKENS) * PAGE_TOKENS * self.position_bytes() / 4;
        let mut memory = bench.same(0u32, words)?;
        let bytes = 4 * (2 * queries + 2 * keys + rows * head_dim) + rows * self.position_bytes();
        let work = Work { rows, bytes, flops: 0 };
        bench.case(name, work, &mut bench.floats(queries)?, |_, q| {
            let (k, v, cos, sin) = (k.as_view(), v.as_view(), cos.as_view(), sin.as_view());
            let (pages, slots) = (&mut memory.as_view_mut(), slots.as_view());
            bench.cuda.rope_kv_write(q, &k, &v, &cos, &sin, pages, &slots, heads, format)
        })
    }
}
