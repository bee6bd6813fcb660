//! Attention over the paged cache.
//!
//! A row's visible positions are taken page by page with an online softmax, in partitions of
//! [`PARTITION`] pages that begin at absolute positions; the partitions are merged in order onto a
//! state that begins as the sink's. Whether one task does all partitions of a row or each has its own,
//! and how many rows go through the pages together, the arithmetic of a row is the same, so a decode
//! step equals the same row of a prefill bit for bit.

use super::shares::Shares;
use super::{Cpu, prefetch, scratch, words};
use crate::kernels::{
    AttentionRows, HeadShape, KvFormat, NO_PAGE, PAGE_TOKENS, elements, page_count,
};
use std::ops::Range;

/// Pages per partition.
const PARTITION: usize = 8;

/// Rows of a sequence that go through its pages together, so that a page is decoded once for all.
const ROWS: usize = 16;

/// Softmax state of the query heads of one kv head over some positions.
pub(super) struct Partial<'a> {
    /// Largest score, per head.
    pub(super) max: &'a mut [f32],
    /// `Σ e^(s − max)`, per head.
    pub(super) sum: &'a mut [f32],
    /// `Σ e^(s − max)·v`, `[heads, D]`.
    pub(super) acc: &'a mut [f32],
}

impl<'a> Partial<'a> {
    /// Floats behind one state.
    fn len(group: usize, head_dim: usize) -> usize {
        group * (head_dim + 2)
    }

    fn new(floats: &'a mut [f32], group: usize) -> Partial<'a> {
        let (max, floats) = floats.split_at_mut(group);
        let (sum, acc) = floats.split_at_mut(group);
        Partial { max, sum, acc }
    }

    /// No positions yet.
    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }

    /// The state that has seen the sinks, which weigh but have no value.
    fn start(&mut self, sinks: &[f32]) {
        self.max.copy_from_slice(sinks);
        self.sum.fill(1.0);
        self.acc.fill(0.0);
    }

    /// Adds the positions of `other`.
    fn merge(&mut self, other: &Partial<'_>) {
        let head_dim = self.acc.len() / self.max.len();
        for head in 0..self.max.len() {
            let max = self.max[head].max(other.max[head]);
            let (ours, theirs) = ((self.max[head] - max).exp(), (other.max[head] - max).exp());
            self.max[head] = max;
            self.sum[head] = self.sum[head] * ours + other.sum[head] * theirs;
            let range = head * head_dim..(head + 1) * head_dim;
            for (acc, other) in self.acc[range.clone()].iter_mut().zip(&other.acc[range]) {
                *acc = *acc * ours + other * theirs;
            }
        }
    }

    fn finish(&self, out: &mut [f32]) {
        let head_dim = self.acc.len() / self.max.len();
        let rows = out.chunks_exact_mut(head_dim).zip(self.acc.chunks_exact(head_dim));
        for ((out, acc), sum) in rows.zip(&*self.sum) {
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = acc / sum;
            }
        }
    }
}

struct Call<'a> {
    cpu: &'a Cpu,
    q: &'a [f32],
    pages: &'a [u32],
    rows: AttentionRows<'a>,
    heads: HeadShape,
    format: KvFormat,
    scale: f32,
}

impl Call<'_> {
    /// Query heads per kv head.
    fn group(&self) -> usize {
        self.heads.q_heads / self.heads.kv_heads
    }

    /// Positions that row t sees.
    fn visible(&self, t: usize) -> Range<usize> {
        let end = self.rows.positions[t] as usize + 1;
        self.rows.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn partitions(&self, t: usize) -> Range<usize> {
        let visible = self.visible(t);
        let size = PARTITION * PAGE_TOKENS;
        visible.start / size..visible.end.div_ceil(size)
    }

    /// Floats of a row's state for one kv head.
    fn state_len(&self) -> usize {
        Partial::len(self.group(), self.heads.head_dim)
    }

    /// Floats of scratch that [`partition`](Self::partition) needs: keys and values of a page, and a
    /// weight per position and query head.
    fn page_scratch(&self) -> usize {
        PAGE_TOKENS * (2 * self.heads.head_dim + self.group())
    }

    /// Rows one after another that belong to one sequence, [`ROWS`] at most.
    fn blocks(&self) -> Vec<Range<usize>> {
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for (t, sequence) in self.rows.sequences.iter().enumerate() {
            match blocks.last_mut() {
                Some(block)
                    if block.len() < ROWS && self.rows.sequences[block.start] == *sequence =>
                {
                    block.end = t + 1;
                }
                _ => blocks.push(t..t + 1),
            }
        }
        blocks
    }

    /// Sets the state of each of `rows`, which belong to one sequence, to its visible positions of one
    /// partition, for one kv head.
    fn partition(
        &self,
        states: &mut [f32],
        rows: Range<usize>,
        kv_head: usize,
        partition: usize,
        scratch: &mut [f32],
    ) {
        let HeadShape { q_heads, kv_heads, head_dim } = self.heads;
        let (group, len) = (self.group(), self.state_len());
        let table = self.rows.page_tables[self.rows.sequences[rows.start] as usize];
        let bytes = self.format.element_bytes();
        let page_words = self.heads.page_elements() * bytes / 4;
        let head_words = PAGE_TOKENS * head_dim * bytes / 4;
        let keys_and_values = |page: usize| {
            let words = &self.pages[table[page] as usize * page_words..][..page_words];
            [kv_head, kv_heads + kv_head].map(|head| &words[head * head_words..][..head_words])
        };
        let (k_scale, v_scale) = match self.format {
            KvFormat::Fp8 { k_scale, v_scale } => (k_scale, v_scale),
            _ => (1.0, 1.0),
        };
        let (k_scratch, scratch) = scratch.split_at_mut(PAGE_TOKENS * head_dim);
        let (v_scratch, weights) = scratch.split_at_mut(PAGE_TOKENS * head_dim);
        for state in states.chunks_exact_mut(len) {
            Partial::new(state, group).clear();
        }
        let end = rows.clone().map(|t| self.visible(t).end).max().unwrap_or(0);
        for page in partition * PARTITION..(partition + 1) * PARTITION {
            // What a row sees of the page, if anything.
            let seen = |t: usize| {
                let (visible, first) = (self.visible(t), page * PAGE_TOKENS);
                let start = visible.start.max(first) - first;
                let end = visible.end.clamp(first, first + PAGE_TOKENS) - first;
                (start < end).then_some(start..end)
            };
            let all = rows.clone().filter_map(seen);
            let Some(all) = all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else {
                continue;
            };
            let [k_words, v_words] = keys_and_values(page);
            if (page + 1) * PAGE_TOKENS < end {
                keys_and_values(page + 1).into_iter().for_each(prefetch::all);
            }
            let k = self.floats(k_words, k_scratch, &all, k_scale);
            let v = self.floats(v_words, v_scratch, &all, v_scale);
            for (t, state) in rows.clone().zip(states.chunks_exact_mut(len)) {
                let Some(seen) = seen(t) else { continue };
                let q = &self.q[(t * q_heads + kv_head * group) * head_dim..][..group * head_dim];
                let mut state = Partial::new(state, group);
                // SAFETY: the table exists only where its tier runs; `k` and `v` are whole pages of one
                // head, `q` its query heads, `seen` within a page.
                unsafe {
                    let page = self.cpu.kernels.attention_page;
                    page(&mut state, q, k, v, seen, self.scale, weights);
                }
            }
        }
    }

    /// Keys or values of one page and head as f32: the words themselves, or `scratch` with the rows
    /// `seen` decoded; its other rows are left over from before and finite or not, nobody may use them.
    fn floats<'b>(
        &self,
        words: &'b [u32],
        scratch: &'b mut [f32],
        seen: &Range<usize>,
        scale: f32,
    ) -> &'b [f32] {
        let part = seen.start * self.heads.head_dim..seen.end * self.heads.head_dim;
        let kernels = &self.cpu.kernels;
        match self.format {
            KvFormat::F32 => return words::f32s(words),
            // SAFETY: the table exists only where its tier runs; both sides have the same length.
            KvFormat::Bf16 => unsafe {
                (kernels.widen)(&mut scratch[part.clone()], &words::bf16s(words)[part]);
            },
            // SAFETY: as above.
            KvFormat::Fp8 { .. } => unsafe {
                (kernels.decode_fp8)(&mut scratch[part.clone()], &words::bytes(words)[part], scale);
            },
        }
        scratch
    }

    /// One task per block of rows and kv head, which goes through the partitions in order.
    fn by_block(&self, out: &mut [f32], sinks: &[f32], blocks: &[Range<usize>]) {
        let HeadShape { kv_heads, head_dim, .. } = self.heads;
        let (group, len) = (self.group(), self.state_len());
        let width = group * head_dim;
        let out = Shares::new(out);
        self.cpu.pool.run(blocks.len() * kv_heads, &|i| {
            let (rows, kv_head) = (blocks[i / kv_heads].clone(), i % kv_heads);
            scratch::task(2 * rows.len() * len + self.page_scratch(), |floats| {
                let (states, floats) = floats.split_at_mut(rows.len() * len);
                let (parts, scratch) = floats.split_at_mut(rows.len() * len);
                for state in states.chunks_exact_mut(len) {
                    Partial::new(state, group).start(&sinks[kv_head * group..][..group]);
                }
                let all = rows.clone().map(|t| self.partitions(t));
                let all = all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
                for partition in all.into_iter().flatten() {
                    self.partition(parts, rows.clone(), kv_head, partition, scratch);
                    let both = states.chunks_exact_mut(len).zip(parts.chunks_exact_mut(len));
                    for (t, (state, part)) in rows.clone().zip(both) {
                        if self.partitions(t).contains(&partition) {
                            Partial::new(state, group).merge(&Partial::new(part, group));
                        }
                    }
                }
                for (t, state) in rows.zip(states.chunks_exact_mut(len)) {
                    let at = (t * kv_heads + kv_head) * width;
                    // SAFETY: the heads of this row and kv head are this task's alone.
                    Partial::new(state, group).finish(unsafe { out.part(at..at + width) });
                }
            });
        });
    }

    /// One task per row, kv head and partition, for few rows on many threads; then the merging.
    fn by_partition(&self, out: &mut [f32], sinks: &[f32]) {
        let HeadShape { kv_heads, head_dim, .. } = self.heads;
        let (group, state_len) = (self.group(), self.state_len());
        let tasks: Vec<(usize, usize, usize)> = (0..self.rows.positions.len() * kv_heads)
            .flat_map(|i| {
                self.partitions(i / kv_heads).map(move |p| (i / kv_heads, i % kv_heads, p))
            })
            .collect();
        scratch::call((tasks.len() + 1) * state_len, |floats| {
            let (merged, parts) = floats.split_at_mut(state_len);
            let shares = Shares::new(&mut *parts);
            self.cpu.pool.run(tasks.len(), &|i| {
                let (t, kv_head, partition) = tasks[i];
                // SAFETY: state i is this task's alone.
                let part = unsafe { shares.part(i * state_len..(i + 1) * state_len) };
                scratch::task(self.page_scratch(), |scratch| {
                    self.partition(part, t..t + 1, kv_head, partition, scratch);
                });
            });
            let mut parts = parts.chunks_exact_mut(state_len);
            for (i, out) in out.chunks_exact_mut(group * head_dim).enumerate() {
                let (t, kv_head) = (i / kv_heads, i % kv_heads);
                let mut state = Partial::new(merged, group);
                state.start(&sinks[kv_head * group..][..group]);
                for part in parts.by_ref().take(self.partitions(t).len()) {
                    state.merge(&Partial::new(part, group));
                }
                state.finish(out);
            }
        });
    }
}

/// See [`Cpu::attention`].
#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    cpu: &Cpu,
    out: &mut [f32],
    q: &[f32],
    pages: &[u32],
    sinks: &[f32],
    rows: AttentionRows,
    heads: HeadShape,
    format: KvFormat,
    scale: f32,
) {
    let count = page_count(pages.len(), heads, format);
    let t = rows.positions.len();
    assert_eq!(rows.sequences.len(), t, "sequences");
    assert_eq!(sinks.len(), heads.q_heads, "sinks");
    assert_eq!(q.len(), elements([t, heads.q_heads, heads.head_dim]), "q");
    assert_eq!(out.len(), q.len(), "out");
    assert!(rows.window != Some(0), "a window sees at least its own position");
    let call = Call { cpu, q, pages, rows, heads, format, scale };
    for (row, &sequence) in rows.sequences.iter().enumerate() {
        let table = rows.page_tables[sequence as usize];
        let visible = call.visible(row);
        let seen = visible.start / PAGE_TOKENS..visible.end.div_ceil(PAGE_TOKENS);
        for (&page, i) in table[seen.clone()].iter().zip(seen) {
            assert!(
                page != NO_PAGE,
                "row {row} sees page {i} of its sequence, which was given back"
            );
            assert!((page as usize) < count, "row {row} sees page {page}, the pool has {count}");
        }
    }
    // Enough rows keep every thread busy without splitting them.
    let blocks = call.blocks();
    if blocks.len() * heads.kv_heads >= 4 * cpu.threads() || cpu.threads() == 1 {
        call.by_block(out, sinks, &blocks);
    } else {
        call.by_partition(out, sinks);
    }
}
