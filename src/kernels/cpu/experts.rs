//! Mixture of experts: groups the (token, slot) pairs of a call by expert, so that every weight row is
//! read and decoded once for all its tokens, and splits the work by (expert, piece of rows).

use super::mxfp4::Mxfp4Rows;
use super::shares::{Columns, Shares};
use super::{Cpu, SCRATCH_ROWS, elements, scratch};
use crate::kernels::{ExpertShape, Experts, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::ops::Range;

/// Weight rows of one task, at most.
const ROWS: usize = 64;

/// Tokens that one pass over a task's rows serves: their inputs and the rows stay in the L2 cache.
const TOKENS: usize = 32;

/// Panics unless matrices, biases and indices agree with `shape` and `k`.
pub(super) fn check(w: Experts, bias: &[bf16], shape: ExpertShape, indices: &[u32], k: usize) {
    let ExpertShape { experts, rows, cols } = shape;
    let weights = elements([experts, rows, cols]);
    match w {
        Experts::Mxfp4 { blocks, scales } => {
            assert!(cols.is_multiple_of(MXFP4_BLOCK), "cols is {cols}, no multiple of 32");
            assert_eq!(blocks.len(), weights / 2, "blocks");
            assert_eq!(scales.len(), weights / MXFP4_BLOCK, "scales");
        }
        Experts::Bf16(w) => assert_eq!(w.len(), weights, "experts"),
    }
    assert!(cols > 0 && rows > 0, "an expert of no rows or columns");
    assert_eq!(bias.len(), elements([experts, rows]), "bias");
    assert!(k > 0 && indices.len().is_multiple_of(k), "indices");
    assert!(indices.iter().all(|&e| (e as usize) < experts), "expert not below {experts}");
}

/// The pairs of one call, sorted by expert.
struct Groups {
    /// Pairs `t·k + j`, those of one expert together, in ascending order within.
    pairs: Vec<u32>,
    /// Each expert in use with its part of `pairs`.
    experts: Vec<(usize, Range<usize>)>,
}

impl Groups {
    fn new(indices: &[u32], experts: usize) -> Groups {
        let mut ends = vec![0; experts];
        for &expert in indices {
            ends[expert as usize] += 1;
        }
        let mut start = 0;
        let mut used = Vec::new();
        for (expert, end) in ends.iter_mut().enumerate() {
            let range = start..start + *end;
            *end = start;
            start = range.end;
            if !range.is_empty() {
                used.push((expert, range));
            }
        }
        let mut pairs = vec![0; indices.len()];
        for (pair, &expert) in indices.iter().enumerate() {
            pairs[ends[expert as usize]] = pair as u32;
            ends[expert as usize] += 1;
        }
        Groups { pairs, experts: used }
    }
}

/// One call's matrices and its inputs, gathered in the order of the groups.
struct Call<'a> {
    cpu: &'a Cpu,
    w: Experts<'a>,
    shape: ExpertShape,
    groups: &'a Groups,
    /// `[pairs, cols]`; for MXFP4 each block's even features before its odd ones, the order in which
    /// the tiers decode.
    x: &'a [f32],
}

impl Call<'_> {
    /// Runs `task(expert, its range of pairs, rows, scratch)` for every piece of rows of every expert.
    fn run(&self, task: impl Fn(usize, Range<usize>, Range<usize>, &mut [f32]) + Sync) {
        let ExpertShape { rows, cols, .. } = self.shape;
        let groups = &self.groups.experts;
        let fair = (rows * groups.len()).div_ceil(4 * self.cpu.threads()).next_multiple_of(16);
        let size = fair.clamp(16, ROWS);
        let pieces = rows.div_ceil(size);
        self.cpu.pool.run(groups.len() * pieces, &|i| {
            let (expert, range) = &groups[i / pieces];
            let start = i % pieces * size;
            scratch::task(SCRATCH_ROWS * cols + TOKENS * size, |scratch| {
                task(*expert, range.clone(), start..rows.min(start + size), scratch);
            });
        });
    }

    /// `out[i,o] = Σ W[expert][rows.start + o]·x[inputs.start + i]`.
    fn matmul(
        &self,
        out: &mut Columns<'_, f32>,
        expert: usize,
        rows: Range<usize>,
        inputs: Range<usize>,
        scratch: &mut [f32],
    ) {
        let ExpertShape { rows: all, cols, .. } = self.shape;
        let x = &self.x[inputs.start * cols..inputs.end * cols];
        match self.w {
            Experts::Mxfp4 { blocks, scales } => {
                let w = Mxfp4Rows { blocks, scales, cols };
                let w = w.rows(expert * all + rows.start..expert * all + rows.end);
                // SAFETY: the table exists only where its tier runs; `check` saw the lengths, and
                // `scratch` has SCRATCH_ROWS rows.
                unsafe { (self.cpu.kernels.mxfp4_matmul)(out, w, x, scratch) }
            }
            Experts::Bf16(w) => {
                let w = &w[expert * all * cols..][..all * cols];
                // SAFETY: as above.
                unsafe { (self.cpu.kernels.bf16_matmul)(out, w, rows, all, x, cols) }
            }
        }
    }
}

/// Copies the input of every pair into the order of the groups; `row` says which input a pair has.
fn gather(
    cpu: &Cpu,
    out: &mut [f32],
    w: Experts,
    x: &[f32],
    cols: usize,
    pairs: &[u32],
    row: impl Fn(usize) -> usize + Sync,
) {
    let out = Shares::new(out);
    cpu.split(pairs.len(), cols, 1, 64, |range| {
        for i in range {
            // SAFETY: row i is this task's alone.
            let out = unsafe { out.part(i * cols..(i + 1) * cols) };
            let x = &x[row(pairs[i] as usize) * cols..][..cols];
            match w {
                Experts::Bf16(_) => out.copy_from_slice(x),
                Experts::Mxfp4 { .. } => {
                    let blocks = x.chunks_exact(MXFP4_BLOCK);
                    for (out, x) in out.chunks_exact_mut(MXFP4_BLOCK).zip(blocks) {
                        let (even, odd) = out.split_at_mut(MXFP4_BLOCK / 2);
                        for ((even, odd), x) in even.iter_mut().zip(odd).zip(x.chunks_exact(2)) {
                            (*even, *odd) = (x[0], x[1]);
                        }
                    }
                }
            }
        }
    });
}

/// See [`Cpu::moe_gate_up`], which checked the arguments.
#[allow(clippy::too_many_arguments)]
pub(super) fn gate_up(
    cpu: &Cpu,
    out: &mut [f32],
    w: Experts,
    bias: &[bf16],
    shape: ExpertShape,
    x: &[f32],
    indices: &[u32],
    k: usize,
    swiglu: SwigluParams,
) {
    let groups = &Groups::new(indices, shape.experts);
    let width = shape.rows / 2;
    scratch::call(indices.len() * shape.cols, |gathered| {
        gather(cpu, gathered, w, x, shape.cols, &groups.pairs, |pair| pair / k);
        let out = Shares::new(out);
        let call = Call { cpu, w, shape, groups, x: gathered };
        call.run(|expert, inputs, rows, scratch| {
            let bias = &bias[expert * shape.rows..][rows.clone()];
            let (scratch, h) = scratch.split_at_mut(SCRATCH_ROWS * shape.cols);
            for start in inputs.clone().step_by(TOKENS) {
                let inputs = start..inputs.end.min(start + TOKENS);
                let h = &mut h[..inputs.len() * rows.len()];
                let mut columns = Columns::whole(h, rows.len());
                call.matmul(&mut columns, expert, rows.clone(), inputs.clone(), scratch);
                for (h, &pair) in h.chunks_exact(rows.len()).zip(&groups.pairs[inputs]) {
                    let at = pair as usize * width;
                    // SAFETY: a pair has one expert, and these rows of it are this task's alone. The
                    // table exists only where its tier runs.
                    unsafe {
                        let out = out.part(at + rows.start / 2..at + rows.end / 2);
                        (cpu.kernels.swiglu)(out, h, bias, swiglu);
                    }
                }
            }
        });
    });
}

/// See [`Cpu::moe_down`], which checked the arguments.
#[allow(clippy::too_many_arguments)]
pub(super) fn down(
    cpu: &Cpu,
    out: &mut [f32],
    w: Experts,
    bias: &[bf16],
    shape: ExpertShape,
    a: &[f32],
    indices: &[u32],
    weights: &[f32],
    k: usize,
) {
    let groups = &Groups::new(indices, shape.experts);
    let ExpertShape { rows: hidden, cols, .. } = shape;
    scratch::call(indices.len() * (cols + hidden), |buffer| {
        let (gathered, y) = buffer.split_at_mut(indices.len() * cols);
        gather(cpu, gathered, w, a, cols, &groups.pairs, |pair| pair);
        let results = Shares::new(&mut *y);
        let call = Call { cpu, w, shape, groups, x: gathered };
        call.run(|expert, inputs, rows, scratch| {
            for start in inputs.clone().step_by(TOKENS) {
                let inputs = start..inputs.end.min(start + TOKENS);
                // SAFETY: these rows of the group's results are this task's alone.
                let mut y = unsafe { results.columns(hidden, inputs.clone(), rows.clone()) };
                call.matmul(&mut y, expert, rows.clone(), inputs, scratch);
            }
        });
        let mut place = vec![0; indices.len()];
        for (i, &pair) in groups.pairs.iter().enumerate() {
            place[pair as usize] = i;
        }
        let (y, out) = (&*y, Shares::new(out));
        cpu.split(indices.len() / k, k * hidden, 1, 16, |tokens| {
            for t in tokens {
                // SAFETY: row t is this task's alone.
                let out = unsafe { out.part(t * hidden..(t + 1) * hidden) };
                out.fill(0.0);
                for pair in t * k..(t + 1) * k {
                    let y = &y[place[pair] * hidden..][..hidden];
                    let bias = &bias[indices[pair] as usize * hidden..][..hidden];
                    // SAFETY: the table exists only where its tier runs.
                    unsafe { (cpu.kernels.combine)(out, y, bias, weights[pair]) }
                }
            }
        });
    });
}
