//! Dense layers: which kernel takes a call, and how its rows are split.

use super::panels::{LayOut, blocks};
use super::q8::Q8Rows;
use super::shares::Shares;
use super::{Cpu, scratch};
use crate::kernels::Dense;

/// See [`Cpu::matmul`], which checked the arguments.
pub(super) fn matmul(
    cpu: &Cpu,
    out: &mut [f32],
    w: Dense,
    x: &[f32],
    bias: Option<&[f32]>,
    rows: usize,
    cols: usize,
) {
    let t = x.len() / cols;
    let Some(few) = cpu.kernels.few.filter(|few| t <= few.most) else {
        return many(cpu, out, w, x, bias, rows, cols);
    };
    let out = Shares::new(out);
    cpu.split(rows, t * cols, 8, 64, |range| {
        let bias = bias.map(|b| &b[range.clone()]);
        // SAFETY: these columns are this task's alone. The table exists only where its tier runs.
        unsafe {
            let mut out = out.columns(rows, 0..t, range.clone());
            match w {
                Dense::Bf16(w) => {
                    let w = &w[range.start * cols..range.end * cols];
                    (few.bf16)(&mut out, w, x, bias, cols);
                }
                Dense::Q8 { quants, scales } => {
                    let w = Q8Rows { quants, scales, cols }.rows(range);
                    (few.q8)(&mut out, w, x, bias);
                }
            }
        }
    });
}

/// Through panels: each weight is laid out once for [`TOKENS`](super::panels::TOKENS) inputs.
fn many(
    cpu: &Cpu,
    out: &mut [f32],
    w: Dense,
    x: &[f32],
    bias: Option<&[f32]>,
    rows: usize,
    cols: usize,
) {
    let (tile, inputs) = (cpu.kernels.tile, x.len() / cols);
    scratch::call(tile.packed(inputs, cols), |packed| {
        let panels = Shares::new(packed);
        cpu.split(inputs.div_ceil(tile.inputs), tile.inputs * cols, 1, 64, |range| {
            let inputs = range.start * tile.inputs..inputs.min(range.end * tile.inputs);
            // SAFETY: these panels are this task's alone.
            let panels = unsafe {
                let place = |panel| tile.packed(panel * tile.inputs, cols);
                panels.part(place(range.start)..place(range.end))
            };
            for (n, x) in x[inputs.start * cols..inputs.end * cols].chunks_exact(cols).enumerate() {
                tile.pack_input(panels, n, x);
            }
        });
        let (packed, out) = (&*packed, Shares::new(out));
        cpu.split(rows, inputs * cols, tile.rows, 64, |range| {
            let bias = bias.map(|bias| &bias[range.clone()]);
            scratch::task(tile.weights(cols), |panel| {
                for inputs in blocks(inputs) {
                    let packed =
                        &packed[tile.packed(inputs.start, cols)..tile.packed(inputs.end, cols)];
                    // SAFETY: these columns are this task's alone.
                    let mut out = unsafe { out.columns(rows, inputs, range.clone()) };
                    match w {
                        Dense::Bf16(w) => {
                            let pair = |panel: &mut [u32], pair, rows: [usize; 2]| {
                                let rows = rows.map(|row| &w[(range.start + row) * cols..][..cols]);
                                // SAFETY: the table exists only where its tier runs; rows of the panel are
                                // `cols` long.
                                unsafe { (tile.pack_bf16)(panel, pair, rows) }
                            };
                            let lay_out = LayOut::Pairs(&pair);
                            tile.matmul(&mut out, packed, bias, cols, panel, &lay_out);
                        }
                        Dense::Q8 { quants, scales } => {
                            let w = Q8Rows { quants, scales, cols }.rows(range.clone());
                            let row = |panel: &mut [f32], at, row| {
                                // SAFETY: as above.
                                unsafe { (tile.pack_q8)(panel, at, w.rows(row..row + 1)) }
                            };
                            let lay_out = LayOut::Rows(&row);
                            tile.matmul(&mut out, packed, bias, cols, panel, &lay_out);
                        }
                    }
                }
            });
        });
    });
}
