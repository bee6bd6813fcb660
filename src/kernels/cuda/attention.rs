//! Attention over the paged cache: attention_decode.cu for rows that are alone, attention_prefill.cu for
//! runs of rows of one sequence.
//!
//! A row's bits depend on which of the two takes it. In the first they are the same in any company: into
//! which parts its positions are split follows from the row alone.
//!
//! Keys and values a row does not see are not read, with one exception: within a run, values of later
//! rows are multiplied by 0, so that one that is infinite or NaN makes the run's earlier rows NaN.

use super::cache::format_arguments;
use super::cudarc::driver::{CudaView, CudaViewMut, PushKernelArg};
use super::{Cuda, CudaError, int, uint};
use crate::kernels::{HeadShape, KvFormat, PAGE_TOKENS, elements, page_count};

/// Dimensions of a head at most.
pub const MAX_HEAD_DIM: usize = 128;

/// Rows of a run at most.
const RUN: usize = 16;

/// Query heads that one read of a kv head serves in decode.
const GROUP: usize = 8;

/// Threads of a block in decode, prefill and the putting together of parts.
const DECODE_THREADS: usize = 128;
const PREFILL_THREADS: usize = 256;
const COMBINE_THREADS: usize = 256;

/// Where parts of a row's positions begin: at multiples of this.
const ALIGNMENT: usize = 32;

/// Positions of a part, and parts of a row from which on they become larger. 131,072 positions of one row
/// are 64 parts for each of 8 kv heads, 512 blocks; a multiprocessor runs four of four warps at a time,
/// and an H200 528. Of many rows shorter parts would do, but a row must not know of the others.
const SPAN: usize = 256;
const MOST_PARTS: usize = 64;

/// The rows of a batch in blocks for [`Cuda::attention`]: single rows, and runs of one sequence. Made once
/// for all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionBlocks {
    words: Vec<u32>,
    singles: usize,
    runs: usize,
    rows: usize,
}

impl AttentionBlocks {
    /// The rows of sequences `sequences[t]` in blocks.
    pub fn new(sequences: &[u32]) -> AttentionBlocks {
        let (mut words, mut runs) = (Vec::new(), Vec::new());
        let mut first = 0;
        for same in sequences.chunk_by(|a, b| a == b) {
            for block in same.chunks(RUN) {
                let list = if block.len() == 1 { &mut words } else { &mut runs };
                list.extend([uint(first), uint(block.len())]);
                first += block.len();
            }
        }
        let (singles, run_count) = (words.len() / 2, runs.len() / 2);
        words.extend(runs);
        AttentionBlocks { words, singles, runs: run_count, rows: first }
    }

    /// As many single rows.
    pub fn singles(rows: usize) -> AttentionBlocks {
        let words = (0..rows).flat_map(|row| [uint(row), 1]).collect();
        AttentionBlocks { words, singles: rows, runs: 0, rows }
    }

    /// First row and number of rows of each block, single rows before the runs.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// Which positions each row of a call sees, on the device: see
/// [`AttentionRows`](crate::kernels::AttentionRows).
pub struct RowsOnDevice<'a> {
    /// Position of each row in its sequence, T entries.
    pub positions: CudaView<'a, u32>,
    /// Index of each row's sequence, T entries.
    pub sequences: CudaView<'a, u32>,
    /// Page tables of the layer, one row of `table_stride` entries for each sequence; entries behind a
    /// sequence's last page are not read.
    pub page_tables: CudaView<'a, u32>,
    /// Entries of a page table.
    pub table_stride: usize,
    /// The rows in blocks.
    pub blocks: &'a AttentionBlocks,
    /// Their [`AttentionBlocks::words`].
    pub list: CudaView<'a, u32>,
    /// Positions seen, the row's own included; `None` for all.
    pub window: Option<usize>,
    /// At least the largest of `positions`, plus one. A row beyond it becomes NaN.
    pub longest: usize,
}

impl Cuda {
    /// Softmax over each row's visible positions and the head's sink, times V; `q, out: [T, Q, D]`. A row
    /// becomes NaN when a page it sees is not in the pool.
    ///
    /// A row that is alone in its block has the same bits in any company.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say, `head_dim` is above 128, the window is empty, or `pages`
    /// is not aligned to 16 bytes.
    #[allow(clippy::too_many_arguments)]
    pub fn attention(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        q: &CudaView<'_, f32>,
        pages: &CudaView<'_, u32>,
        sinks: &CudaView<'_, f32>,
        rows: &RowsOnDevice<'_>,
        heads: HeadShape,
        format: KvFormat,
        scale: f32,
    ) -> Result<(), CudaError> {
        self.attention_in_parts(out, q, pages, sinks, rows, heads, format, scale, SPAN, MOST_PARTS)
    }

    /// As [`Cuda::attention`], with the positions of a single row in `most` parts at most (and one more, since
    /// parts begin at multiples of 32), each a multiple of `span`, which is one of 32.
    ///
    /// # Panics
    ///
    /// As [`Cuda::attention`], and when `span` is no multiple of 32 or `most` is 0.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_in_parts(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        q: &CudaView<'_, f32>,
        pages: &CudaView<'_, u32>,
        sinks: &CudaView<'_, f32>,
        rows: &RowsOnDevice<'_>,
        heads: HeadShape,
        format: KvFormat,
        scale: f32,
        span: usize,
        most: usize,
    ) -> Result<(), CudaError> {
        let HeadShape { q_heads, kv_heads, head_dim } = heads;
        let page_count = page_count(pages.len(), heads, format);
        self.check_alignment(pages);
        assert!(head_dim <= MAX_HEAD_DIM, "{heads:?}: a head_dim above {MAX_HEAD_DIM}");
        let t = rows.blocks.rows;
        assert_eq!((rows.positions.len(), rows.sequences.len()), (t, t), "positions, sequences");
        assert_eq!(rows.list.len(), rows.blocks.words.len(), "blocks");
        assert_eq!(sinks.len(), q_heads, "sinks");
        assert_eq!(q.len(), elements([t, q_heads, head_dim]), "q");
        assert_eq!(out.len(), q.len(), "out");
        let stride = rows.table_stride;
        assert!(stride > 0 && rows.page_tables.len().is_multiple_of(stride), "page tables");
        assert!(stride < 1 << 24, "page tables of {stride} entries");
        assert!(rows.window != Some(0), "a window sees at least its own position");
        assert!(span > 0 && span <= 1 << 30 && span.is_multiple_of(ALIGNMENT), "span");
        assert!(most > 0, "no parts");

        let (_, k_scale, v_scale) = format_arguments(format);
        let (k_factor, span) = (scale * k_scale, uint(span));
        // The first part of a row whose window has moved on may begin before what it sees.
        let (longest, visible) = positions(rows);
        let early = if longest > visible { ALIGNMENT - 1 } else { 0 };
        let splits = (visible + early).div_ceil(span as usize).clamp(1, most.saturating_add(1));
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let sequences = int(rows.page_tables.len() / stride);
        let (stride, page_count) = (int(stride), uint(page_count));
        let window = rows.window.map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX));
        let (q_count, kv_count, dim) = (int(q_heads), int(kv_heads), int(head_dim));
        let group = q_heads / kv_heads;
        let (blocks, singles, runs) = (&rows.list, rows.blocks.singles, rows.blocks.runs);

        if runs > 0 {
            let list = blocks.slice(2 * singles..);
            let kernel = self.kernel("attention_prefill", name(format, head_dim, PREFILL))?;
            let mut call = kernel.call();
            call.arg(&mut *out).arg(q).arg(pages).arg(sinks).arg(&list);
            call.arg(&rows.positions).arg(&rows.sequences).arg(&rows.page_tables);
            call.arg(&sequences).arg(&stride).arg(&window).arg(&page_count);
            call.arg(&q_count).arg(&kv_count).arg(&dim).arg(&k_factor).arg(&v_scale);
            let vectors = if head_dim == 64 { 128 } else { 64 };
            let grid = [runs, kv_heads, (RUN * group).div_ceil(vectors)];
            // SAFETY: block (i, h, j) reads and writes rows of block i of the list, which are below T;
            // pages outside the pool and sequences without a table are not read.
            unsafe { kernel.launch(call, grid, PREFILL_THREADS) }?;
        }
        if singles > 0 {
            // One part is all of a row and goes to `out`.
            let scratch = match splits {
                1 => 0,
                _ => elements([singles, q_heads, splits, head_dim + 2]),
            };
            let mut parts = self.scratch::<f32>(scratch.max(1))?;
            let kernel = self.kernel("attention_decode", name(format, head_dim, DECODE))?;
            let mut call = kernel.call();
            if splits == 1 {
                call.arg(&mut *out)
            } else {
                call.arg(&mut parts)
            };
            call.arg(q).arg(pages).arg(sinks).arg(blocks);
            call.arg(&rows.positions).arg(&rows.sequences).arg(&rows.page_tables);
            call.arg(&sequences).arg(&stride).arg(&window).arg(&page_count);
            call.arg(&q_count)
                .arg(&kv_count)
                .arg(&dim)
                .arg(&k_factor)
                .arg(&v_scale)
                .arg(&span)
                .arg(&most);
            let grid = [splits, kv_heads * group.div_ceil(GROUP), singles];
            // SAFETY: block (s, h, i) reads row i of the list, which is below T, and writes it or part s
            // of it; pages outside the pool and sequences without a table are not read.
            unsafe { kernel.launch(call, grid, DECODE_THREADS) }?;
            if splits > 1 {
                let split_count = int(splits);
                let kernel = self.kernel("attention_decode", "attention_combine")?;
                let mut call = kernel.call();
                call.arg(&mut *out).arg(&parts).arg(sinks).arg(blocks).arg(&rows.positions);
                call.arg(&stride).arg(&window).arg(&span).arg(&most).arg(&split_count);
                call.arg(&q_count).arg(&dim);
                // SAFETY: block (h, i) reads at most `splits` parts of row i of the list and writes it.
                unsafe { kernel.launch(call, [q_heads, singles, 1], COMBINE_THREADS) }?;
            }
        }
        Ok(())
    }
}

/// Positions of the longest row, and those that it sees. A row cannot be longer than its page table,
/// but for the one position that the kernels put in the place of those that are.
fn positions(rows: &RowsOnDevice<'_>) -> (usize, usize) {
    let longest = rows.longest.min(rows.table_stride * PAGE_TOKENS + 1);
    (longest, longest.min(rows.window.unwrap_or(usize::MAX)))
}

type Names = [&'static str; 3];

/// Kernels for F32, BF16 and FP8: of the family's head_dim, and of any other.
const DECODE: [Names; 2] = [
    ["attention_decode_f32_64", "attention_decode_bf16_64", "attention_decode_fp8_64"],
    ["attention_decode_f32", "attention_decode_bf16", "attention_decode_fp8"],
];
const PREFILL: [Names; 2] = [
    ["attention_prefill_f32_64", "attention_prefill_bf16_64", "attention_prefill_fp8_64"],
    ["attention_prefill_f32", "attention_prefill_bf16", "attention_prefill_fp8"],
];

fn name(format: KvFormat, head_dim: usize, names: [Names; 2]) -> &'static str {
    names[usize::from(head_dim != 64)][format_arguments(format).0 as usize]
}
