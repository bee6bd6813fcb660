//! Experts.

use super::matmul::{TILE, WeightRows, product};
use super::vector::{exp, load_bf16};
use crate::kernels::cpu::mxfp4::{Mxfp4Rows, SCALES};
use crate::kernels::cpu::shares::Columns;
use crate::kernels::cpu::{prefetch, scalar};
use crate::kernels::{FP4, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// MXFP4 rows, decoded as they are read.
#[derive(Clone, Copy)]
struct Packed {
    blocks: *const u8,
    scales: *const u8,
    /// Blocks of one row.
    row_blocks: usize,
    four: __m256i,
}

impl WeightRows for Packed {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(self, row: usize, block: usize) -> [__m256; 4] {
        let block = row * self.row_blocks + block;
        // SAFETY: the caller's: the block exists.
        unsafe { decode(self.blocks.add(block * 16), *self.scales.add(block), self.four) }
    }

    const AHEAD: usize = 2 * TILE;

    #[inline(always)]
    fn prefetch(self, row: usize, block: usize) {
        prefetch::part::<{ TILE * 16 }>(
            self.blocks.wrapping_add(row * self.row_blocks * 16),
            block,
        );
        prefetch::part::<TILE>(self.scales.wrapping_add(row * self.row_blocks), block);
    }
}

/// A count of four that the compiler cannot see through: a shift by a constant it replaces by four
/// instructions on bytes, in the innermost loop.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four() -> __m256i {
    _mm256_set1_epi32(std::hint::black_box(4))
}

/// The code points of a block times its scale: vectors 0 and 1 are its low nibbles (the even features),
/// 2 and 3 the high ones.
///
/// A permutation by the low three bits of each lane is a look-up in the eight magnitudes times the scale.
/// A nibble's fourth bit is the sign; shifted to its place it has the other three below it, so the table
/// holds what makes these come out right.
///
/// # Safety
///
/// 16 bytes are readable at `block`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode(block: *const u8, scale: u8, four: __m256i) -> [__m256; 4] {
    // SAFETY: the first eight floats of sixteen, and the two halves of the caller's bytes.
    let (magnitudes, bytes) = unsafe {
        let bytes = [0, 8].map(|at| _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(at).cast())));
        (_mm256_loadu_ps(FP4.as_ptr()), bytes)
    };
    let products = _mm256_mul_ps(magnitudes, _mm256_set1_ps(SCALES[usize::from(scale)]));
    let places = _mm256_slli_epi32::<28>(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    let table = _mm256_xor_si256(_mm256_castps_si256(products), places);
    let look_up = |nibbles| {
        let product = _mm256_permutevar8x32_epi32(table, nibbles);
        _mm256_castsi256_ps(_mm256_xor_si256(product, _mm256_slli_epi32::<28>(nibbles)))
    };
    let high = bytes.map(|bytes| _mm256_srlv_epi32(bytes, four));
    [look_up(bytes[0]), look_up(bytes[1]), look_up(high[0]), look_up(high[1])]
}

/// Makes two rows of MXFP4 the given pair of a panel of P pairs, each block's even features before its odd
/// ones. Products of a code point and a scale are bf16: the upper half of their words is all of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode_pair<const P: usize>(
    panel: &mut [u32],
    pair: usize,
    (even_blocks, even_scales): (&[u8], &[u8]),
    (odd_blocks, odd_scales): (&[u8], &[u8]),
) {
    let four = four();
    let (panel, _) = panel.as_chunks_mut::<8>();
    assert!(pair < P && panel.len() >= even_scales.len() * 4 * P, "panel");
    let scales = even_scales.iter().zip(odd_scales);
    let blocks = even_blocks.as_chunks::<16>().0.iter().zip(odd_blocks.as_chunks::<16>().0);
    for (i, ((even, odd), (even_scale, odd_scale))) in blocks.zip(scales).enumerate() {
        // SAFETY: a block is 16 bytes.
        let (even, odd) = unsafe {
            (decode(even.as_ptr(), *even_scale, four), decode(odd.as_ptr(), *odd_scale, four))
        };
        for (vector, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            let [even, odd] = [even, odd].map(|vector| _mm256_castps_si256(vector));
            let words = _mm256_or_si256(_mm256_srli_epi32::<16>(even), odd);
            // SAFETY: one of four vectors of 8 words, asserted to be in the panel.
            unsafe {
                let to = panel.as_mut_ptr().add((4 * i + vector) * P + pair);
                _mm256_storeu_si256(to.cast(), words);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn mxfp4_decode(out: &mut [f32], blocks: &[u8], scales: &[u8]) {
    let four = four();
    let (outs, _) = out.as_chunks_mut::<MXFP4_BLOCK>();
    let (blocks, _) = blocks.as_chunks::<16>();
    for ((out, block), &scale) in outs.iter_mut().zip(blocks).zip(scales) {
        // SAFETY: a block is 16 bytes and 4 vectors of 8 elements.
        unsafe {
            for (i, vector) in decode(block.as_ptr(), scale, four).into_iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), vector);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn mxfp4_matmul(out: &mut Columns<'_, f32>, w: Mxfp4Rows<'_>, x: &[f32]) {
    let (rows, cols) = (out.width(), w.cols);
    assert_eq!(w.blocks.len(), rows * cols / 2, "blocks");
    assert_eq!(w.scales.len(), rows * cols / MXFP4_BLOCK, "scales");
    let w = Packed {
        blocks: w.blocks.as_ptr(),
        scales: w.scales.as_ptr(),
        row_blocks: cols / MXFP4_BLOCK,
        four: four(),
    };
    // SAFETY: a row for each column, asserted above.
    unsafe { product(out, w, x, None, cols) }
}

/// N inputs times J vectors of outputs of a transposed expert: every output is one
/// lane, which adds the features in order.
///
/// # Safety
///
/// `x` is readable for N inputs of `cols` elements, `w` for `cols` rows of `stride` elements at the
/// 8·J outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transposed_tile<const N: usize, const J: usize>(
    w: *const bf16,
    stride: usize,
    x: *const f32,
    cols: usize,
) -> [[__m256; J]; N] {
    let mut acc = [[_mm256_setzero_ps(); J]; N];
    for i in 0..cols {
        for j in 0..J {
            // SAFETY: the caller's.
            let w = unsafe { load_bf16(w.add(i * stride + 8 * j)) };
            for (n, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let x = _mm256_set1_ps(unsafe { *x.add(n * cols + i) });
                acc[j] = _mm256_fmadd_ps(w, x, acc[j]);
            }
        }
    }
    acc
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn bf16_matmul(
    out: &mut Columns<'_, f32>,
    w: &[bf16],
    range: Range<usize>,
    rows: usize,
    x: &[f32],
    cols: usize,
) {
    assert!(w.len() == rows * cols && range.end <= rows && range.len() == out.width(), "w");
    let (inputs, whole) = (x.len() / cols, range.len() / 8 * 8);
    let mut t = 0;
    while t < inputs {
        let n = if inputs - t >= 2 { 2 } else { 1 };
        let x = x[t * cols..(t + n) * cols].as_ptr();
        let mut o = 0;
        while o < whole {
            let j = if whole - o >= 32 { 4 } else { 1 };
            let w = w[range.start + o..].as_ptr();
            // SAFETY: n inputs by the slicing above; the matrix has `cols` rows of `rows` elements, of
            // which `o` and 8·j outputs stay within `range`.
            unsafe {
                match (n, j) {
                    (2, 4) => put(out, t, o, transposed_tile::<2, 4>(w, rows, x, cols)),
                    (2, _) => put(out, t, o, transposed_tile::<2, 1>(w, rows, x, cols)),
                    (_, 4) => put(out, t, o, transposed_tile::<1, 4>(w, rows, x, cols)),
                    _ => put(out, t, o, transposed_tile::<1, 1>(w, rows, x, cols)),
                }
            }
            o += 8 * j;
        }
        t += n;
    }
    // What is left are single lanes: the same multiply-adds in the same order.
    for (t, x) in x.chunks_exact(cols).enumerate() {
        for (out, o) in out.row(t)[whole..].iter_mut().zip(range.start + whole..) {
            *out = 0.0;
            for (x, w) in x.iter().zip(w[o..].iter().step_by(rows)) {
                *out = w.to_f32().mul_add(*x, *out);
            }
        }
    }
}

/// Stores a tile at rows `t` and columns `o`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn put<const N: usize, const J: usize>(
    out: &mut Columns<'_, f32>,
    t: usize,
    o: usize,
    tile: [[__m256; J]; N],
) {
    for (n, vectors) in tile.into_iter().enumerate() {
        let (outs, _) = out.row(t + n)[o..o + 8 * J].as_chunks_mut::<8>();
        for (out, vector) in outs.iter_mut().zip(vectors) {
            // SAFETY: 8 floats.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), vector) };
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn swiglu(out: &mut [f32], h: &[f32], bias: &[bf16], params: SwigluParams) {
    for ((out, h), bias) in out.chunks_mut(8).zip(h.chunks(16)).zip(bias.chunks(16)) {
        // A part goes through whole vectors too: a value must not depend on where a task ends.
        let mut biased = [0.0; 16];
        for ((biased, h), bias) in biased.iter_mut().zip(h).zip(bias) {
            *biased = h + f32::from_bits(u32::from(bias.to_bits()) << 16);
        }
        let mut y = [0.0; 8];
        // SAFETY: two vectors of 8 floats in, one out.
        unsafe {
            let h0 = _mm256_loadu_ps(biased.as_ptr());
            let h1 = _mm256_loadu_ps(biased.as_ptr().add(8));
            _mm256_storeu_ps(y.as_mut_ptr(), activate(h0, h1, params));
        }
        out.copy_from_slice(&y[..out.len()]);
    }
}

/// The activation of eight interleaved pairs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn activate(h0: __m256, h1: __m256, params: SwigluParams) -> __m256 {
    let (limit, one) = (_mm256_set1_ps(params.limit), _mm256_set1_ps(1.0));
    let order = |v| _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v)));
    let gate = order(_mm256_shuffle_ps::<0b10_00_10_00>(h0, h1));
    let up = order(_mm256_shuffle_ps::<0b11_01_11_01>(h0, h1));
    // min and max return their second operand for NaN.
    let gate = _mm256_min_ps(limit, gate);
    let up = _mm256_max_ps(_mm256_set1_ps(-params.limit), _mm256_min_ps(limit, up));
    // σ(z) as e^z / (1 + e^z): accurate for negative z, where the gate is not clamped.
    let e = exp(_mm256_mul_ps(gate, _mm256_set1_ps(params.alpha)));
    let sigmoid = _mm256_div_ps(e, _mm256_add_ps(one, e));
    _mm256_mul_ps(_mm256_mul_ps(gate, sigmoid), _mm256_add_ps(up, one))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn combine(out: &mut [f32], y: &[f32], bias: &[bf16], weight: f32) {
    scalar::combine(out, y, bias, weight);
}
