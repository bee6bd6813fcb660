//! The product of panels of two weight rows and one input.

use super::{LANES, mxfp4_decode, sum};
use crate::kernels::Q8_BLOCK;
use crate::kernels::cpu::panels::Tile;
use crate::kernels::cpu::q8::Q8Rows;
use half::bf16;

pub(in super::super) const TILE: Tile =
    Tile { rows: 2, inputs: 1, lanes: LANES, product, product_f32, pack_bf16, pack_mxfp4, pack_q8 };

fn product(sums: &mut [f32], w: &[u32], x: &[f32]) {
    let mut lanes = [[0.0; LANES]; 2];
    for (w, x) in w.as_chunks::<LANES>().0.iter().zip(x.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[0][i] += f32::from_bits(w[i] << 16) * x[i];
            lanes[1][i] += f32::from_bits(w[i] & 0xffff_0000) * x[i];
        }
    }
    sums.copy_from_slice(&lanes.map(sum));
}

fn product_f32(sums: &mut [f32], w: &[f32], x: &[f32]) {
    let (w, _) = w.as_chunks::<{ 2 * LANES }>();
    let mut lanes = [[0.0; LANES]; 2];
    for (w, x) in w.iter().zip(x.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[0][i] += w[i] * x[i];
            lanes[1][i] += w[LANES + i] * x[i];
        }
    }
    sums.copy_from_slice(&lanes.map(sum));
}

fn pack_bf16(panel: &mut [u32], _: usize, [even, odd]: [&[bf16]; 2]) {
    let (panel, rest) = panel.split_at_mut(even.len());
    for ((word, even), odd) in panel.iter_mut().zip(even).zip(odd) {
        *word = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
    }
    rest.fill(0);
}

fn pack_mxfp4(panel: &mut [u32], _: usize, rows: [(&[u8], &[u8]); 2]) {
    let mut block = [[0.0; 32]; 2];
    for (i, words) in panel.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (block, (blocks, scales)) in block.iter_mut().zip(rows) {
            mxfp4_decode(block, &blocks[16 * i..][..16], &scales[i..=i]);
        }
        for ((word, even), odd) in words.iter_mut().zip(block[0]).zip(block[1]) {
            *word = even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000;
        }
    }
}

fn pack_q8(panel: &mut [f32], at: usize, row: Q8Rows<'_>) {
    let blocks = row.quants.chunks_exact(Q8_BLOCK).zip(row.scales);
    let weights = blocks.flat_map(|(block, scale)| {
        block.iter().map(move |quant| f32::from(*quant) * scale.to_f32())
    });
    for (i, weight) in weights.enumerate() {
        panel[(i / LANES * 2 + at) * LANES + i % LANES] = weight;
    }
}
