//! Mixture of experts: groups the (token, slot) pairs of a call by expert, so that every weight row is
//! read and decoded once for all its tokens, and splits the work by (expert, piece of rows).

use super::mxfp4::Mxfp4Rows;
use super::panels::{LayOut, TOKENS, blocks};
use super::shares::{Columns, Shares};
use super::{Cpu, scratch};
use crate::kernels::{ExpertShape, Experts, MXFP4_BLOCK, SwigluParams, elements};
use half::bf16;
use std::ops::Range;

/// Weight rows of one task, at most.
const ROWS: usize = 64;

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

/// The pairs of one expert.
struct Group {
    expert: usize,
    /// Its part of [`Groups::pairs`].
    pairs: Range<usize>,
    /// Whether its inputs are laid out in panels. Otherwise they follow one another.
    packed: bool,
    /// Its part of the gathered inputs.
    inputs: Range<usize>,
}

/// The pairs of one call, sorted by expert.
struct Groups {
    /// Pairs `t·k + j`, those of one expert together, in ascending order within.
    pairs: Vec<u32>,
    /// The experts in use.
    experts: Vec<Group>,
}

impl Groups {
    fn new(cpu: &Cpu, w: Experts, shape: ExpertShape, indices: &[u32]) -> Groups {
        let few = cpu.kernels.few.map_or(0, |few| few.most);
        let mut ends = vec![0; shape.experts];
        for &expert in indices {
            ends[expert as usize] += 1;
        }
        let (mut start, mut input) = (0, 0);
        let mut used = Vec::new();
        for (expert, end) in ends.iter_mut().enumerate() {
            let n = std::mem::replace(end, start);
            if n == 0 {
                continue;
            }
            let packed = matches!(w, Experts::Mxfp4 { .. }) && n > few;
            let len = if packed { cpu.kernels.tile.packed(n, shape.cols) } else { n * shape.cols };
            used.push(Group {
                expert,
                pairs: start..start + n,
                packed,
                inputs: input..input + len,
            });
            (start, input) = (start + n, input + len);
        }
        let mut pairs = vec![0; indices.len()];
        for (pair, &expert) in indices.iter().enumerate() {
            pairs[ends[expert as usize]] = pair as u32;
            ends[expert as usize] += 1;
        }
        Groups { pairs, experts: used }
    }

    /// Floats of all gathered inputs.
    fn inputs(&self) -> usize {
        self.experts.last().map_or(0, |group| group.inputs.end)
    }
}

/// One call's matrices and its inputs, gathered by [`gather`].
struct Call<'a> {
    cpu: &'a Cpu,
    w: Experts<'a>,
    shape: ExpertShape,
    groups: &'a Groups,
    x: &'a [f32],
}

impl Call<'_> {
    /// Runs `task(group, rows, panel, scratch)` for every piece of rows of every expert; `panel` is for
    /// [`matmul`](Self::matmul), `scratch` has a float for each of the rows and of [`TOKENS`].
    fn run(&self, task: impl Fn(&Group, Range<usize>, &mut [f32], &mut [f32]) + Sync) {
        let ExpertShape { rows, cols, .. } = self.shape;
        let groups = &self.groups.experts;
        let fair = (rows * groups.len()).div_ceil(4 * self.cpu.threads()).next_multiple_of(16);
        let size = fair.clamp(16, ROWS);
        let pieces = rows.div_ceil(size);
        let panel = self.cpu.kernels.tile.weights(cols);
        self.cpu.pool.run(groups.len() * pieces, &|i| {
            let start = i % pieces * size;
            scratch::task(panel + TOKENS * size, |scratch| {
                let (panel, scratch) = scratch.split_at_mut(panel);
                task(&groups[i / pieces], start..rows.min(start + size), panel, scratch);
            });
        });
    }

    /// `out[i,o] = Σ W[expert][rows.start + o]·x[inputs.start + i]`, where the group's first input is 0
    /// and `inputs` begins at a multiple of [`TOKENS`].
    fn matmul(
        &self,
        out: &mut Columns<'_, f32>,
        group: &Group,
        rows: Range<usize>,
        inputs: Range<usize>,
        panel: &mut [f32],
    ) {
        let (ExpertShape { rows: all, cols, .. }, kernels) = (self.shape, &self.cpu.kernels);
        let (tile, x) = (&kernels.tile, &self.x[group.inputs.clone()]);
        let x = match group.packed {
            true => &x[tile.packed(inputs.start, cols)..tile.packed(inputs.end, cols)],
            false => &x[inputs.start * cols..inputs.end * cols],
        };
        match self.w {
            Experts::Mxfp4 { blocks, scales } => {
                let w = Mxfp4Rows { blocks, scales, cols };
                let w = w.rows(group.expert * all + rows.start..group.expert * all + rows.end);
                match kernels.few.filter(|_| !group.packed) {
                    // SAFETY: the table exists only where its tier runs; `check` saw the lengths.
                    Some(few) => unsafe { (few.mxfp4)(out, w, x) },
                    None => {
                        let pair = |panel: &mut [u32], pair, rows: [usize; 2]| {
                            let rows = rows.map(|row| w.row(row));
                            // SAFETY: as above; rows of the panel are `cols` long.
                            unsafe { (tile.pack_mxfp4)(panel, pair, rows) }
                        };
                        tile.matmul(out, x, None, cols, panel, &LayOut::Pairs(&pair));
                    }
                }
            }
            Experts::Bf16(w) => {
                let w = &w[group.expert * all * cols..][..all * cols];
                // SAFETY: as above.
                unsafe { (kernels.bf16_matmul)(out, w, rows, all, x, cols) }
            }
        }
    }
}

/// Copies the input of every pair to its group; `row` says which input a pair has. For MXFP4 each block's
/// even features come before its odd ones, the order in which the tiers decode.
fn gather(
    cpu: &Cpu,
    out: &mut [f32],
    w: Experts,
    x: &[f32],
    cols: usize,
    groups: &Groups,
    row: impl Fn(usize) -> usize + Sync,
) {
    let out = Shares::new(out);
    let mean = groups.pairs.len().div_ceil(groups.experts.len().max(1));
    cpu.split(groups.experts.len(), mean * cols, 1, 4, |range| {
        for group in &groups.experts[range] {
            // SAFETY: a group's inputs are its task's alone.
            let out = unsafe { out.part(group.inputs.clone()) };
            for (n, &pair) in groups.pairs[group.pairs.clone()].iter().enumerate() {
                let x = &x[row(pair as usize) * cols..][..cols];
                match w {
                    Experts::Bf16(_) => out[n * cols..][..cols].copy_from_slice(x),
                    Experts::Mxfp4 { .. } if group.packed => scratch::task(cols, |ordered| {
                        even_before_odd(ordered, x);
                        cpu.kernels.tile.pack_input(out, n, ordered);
                    }),
                    Experts::Mxfp4 { .. } => even_before_odd(&mut out[n * cols..][..cols], x),
                }
            }
        }
    });
}

/// Block by block the even features, then the odd ones.
fn even_before_odd(out: &mut [f32], x: &[f32]) {
    let blocks = x.as_chunks::<MXFP4_BLOCK>().0;
    for (out, x) in out.as_chunks_mut::<MXFP4_BLOCK>().0.iter_mut().zip(blocks) {
        let (even, odd) = out.split_at_mut(MXFP4_BLOCK / 2);
        for ((even, odd), x) in even.iter_mut().zip(odd).zip(x.as_chunks::<2>().0) {
            (*even, *odd) = (x[0], x[1]);
        }
    }
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
    let groups = &Groups::new(cpu, w, shape, indices);
    let width = shape.rows / 2;
    scratch::call(groups.inputs(), |gathered| {
        gather(cpu, gathered, w, x, shape.cols, groups, |pair| pair / k);
        let out = Shares::new(out);
        let call = Call { cpu, w, shape, groups, x: gathered };
        call.run(|group, rows, panel, h| {
            let bias = &bias[group.expert * shape.rows..][rows.clone()];
            let pairs = &groups.pairs[group.pairs.clone()];
            for inputs in blocks(pairs.len()) {
                let h = &mut h[..inputs.len() * rows.len()];
                let mut columns = Columns::whole(h, rows.len());
                call.matmul(&mut columns, group, rows.clone(), inputs.clone(), panel);
                for (h, &pair) in h.chunks_exact(rows.len()).zip(&pairs[inputs]) {
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
    let groups = &Groups::new(cpu, w, shape, indices);
    let ExpertShape { rows: hidden, cols, .. } = shape;
    scratch::call(groups.inputs() + indices.len() * hidden, |buffer| {
        let (gathered, y) = buffer.split_at_mut(groups.inputs());
        gather(cpu, gathered, w, a, cols, groups, |pair| pair);
        let results = Shares::new(&mut *y);
        let call = Call { cpu, w, shape, groups, x: gathered };
        call.run(|group, rows, panel, _| {
            for inputs in blocks(group.pairs.len()) {
                let at = group.pairs.start + inputs.start..group.pairs.start + inputs.end;
                // SAFETY: these rows of the group's results are this task's alone.
                let mut y = unsafe { results.columns(hidden, at, rows.clone()) };
                call.matmul(&mut y, group, rows.clone(), inputs, panel);
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
