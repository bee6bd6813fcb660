//! Experts.

use super::matmul::{TILE, WeightRows, product};
use super::vector::{exp, first, load_bf16, load_bf16_part};
use crate::kernels::cpu::mxfp4::{Mxfp4Rows, SCALES};
use crate::kernels::cpu::shares::Columns;
use crate::kernels::cpu::{prefetch, scalar};
use crate::kernels::{FP4, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// MXFP4 rows, decoded as they are read: vector 0 of a block holds its low nibbles (the even
/// features), vector 1 the high ones.
#[derive(Clone, Copy)]
struct Packed {
    blocks: *const u8,
    scales: *const u8,
    /// Blocks of one row.
    row_blocks: usize,
    four: __m512i,
}

impl WeightRows for Packed {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load<const I: usize>(self, row: usize, block: usize) -> __m512 {
        let block = row * self.row_blocks + block;
        // SAFETY: the caller's: the block exists.
        let (bytes, scale) = unsafe {
            let bytes = _mm_loadu_si128(self.blocks.add(block * 16).cast());
            (_mm512_cvtepu8_epi32(bytes), *self.scales.add(block))
        };
        decode(
            if I == 1 { _mm512_srlv_epi32(bytes, self.four) } else { bytes },
            SCALES[usize::from(scale)],
        )
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

/// A count of four that the compiler cannot see through: a shift by a constant it replaces by three
/// instructions on bytes, in the innermost loop.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn four() -> __m512i {
    _mm512_set1_epi32(std::hint::black_box(4))
}

/// The code points named by the low four bits of each lane, times the scale: a permutation by these
/// bits is a look-up in the sixteen products.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn decode(index: __m512i, scale: f32) -> __m512 {
    // SAFETY: sixteen floats.
    let codes = unsafe { _mm512_loadu_ps(FP4.as_ptr()) };
    _mm512_permutexvar_ps(index, _mm512_mul_ps(codes, _mm512_set1_ps(scale)))
}

/// The sixteen code points times the scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn products(scale: u8) -> __m512 {
    // SAFETY: sixteen floats.
    let codes = unsafe { _mm512_loadu_ps(FP4.as_ptr()) };
    _mm512_mul_ps(codes, _mm512_set1_ps(SCALES[usize::from(scale)]))
}

/// Makes two rows of MXFP4 the given pair of a panel of P pairs, each block's even features before its odd
/// ones. Products of a code point and a scale are bf16: the upper half of their words is all of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn decode_pair<const P: usize>(
    panel: &mut [u32],
    pair: usize,
    (even_blocks, even_scales): (&[u8], &[u8]),
    (odd_blocks, odd_scales): (&[u8], &[u8]),
) {
    let four = four();
    let (panel, _) = panel.as_chunks_mut::<16>();
    assert!(pair < P && panel.len() >= even_scales.len() * 2 * P, "panel");
    let scales = even_scales.iter().zip(odd_scales);
    let blocks = even_blocks.as_chunks::<16>().0.iter().zip(odd_blocks.as_chunks::<16>().0);
    // The same pair of the next panel, which is needed after a whole product.
    let next = [even_blocks, odd_blocks].map(|row| row.as_ptr().wrapping_add(2 * P * row.len()));
    for (i, ((even, odd), (even_scale, odd_scale))) in blocks.zip(scales).enumerate() {
        next.iter().for_each(|&row| prefetch::part::<16>(row, i));
        // SAFETY: a block is 16 bytes.
        let [even, odd] = [even, odd]
            .map(|block| unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(block.as_ptr().cast())) });
        let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(products(*even_scale)));
        let high = _mm512_castps_si512(products(*odd_scale));
        let words = |even, odd| {
            _mm512_or_si512(
                _mm512_permutexvar_epi32(even, low),
                _mm512_permutexvar_epi32(odd, high),
            )
        };
        let features = words(even, odd);
        let odd_features = words(_mm512_srlv_epi32(even, four), _mm512_srlv_epi32(odd, four));
        // SAFETY: two vectors of 16 words, asserted to be in the panel.
        unsafe {
            let to = panel.as_mut_ptr().add(2 * i * P + pair);
            _mm512_storeu_si512(to.cast(), features);
            _mm512_storeu_si512(to.add(P).cast(), odd_features);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn mxfp4_decode(out: &mut [f32], blocks: &[u8], scales: &[u8]) {
    let four = four();
    let (outs, _) = out.as_chunks_mut::<MXFP4_BLOCK>();
    let (blocks, _) = blocks.as_chunks::<16>();
    for ((out, block), &scale) in outs.iter_mut().zip(blocks).zip(scales) {
        let scale = SCALES[usize::from(scale)];
        // SAFETY: a block is 16 bytes and 32 elements.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), decode(bytes, scale));
            let high = decode(_mm512_srlv_epi32(bytes, four), scale);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), high);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
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

/// N inputs times J vectors of outputs of a transposed expert: every output is one lane, which adds the
/// features in order. `mask` cuts the last vector off.
///
/// # Safety
///
/// `x` is readable for N inputs of `cols` elements, `w` for `cols` rows of `stride` elements at the
/// lanes in use.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn transposed_tile<const N: usize, const J: usize>(
    w: *const bf16,
    stride: usize,
    mask: __mmask16,
    x: *const f32,
    cols: usize,
) -> [[__m512; J]; N] {
    let mut acc = [[_mm512_setzero_ps(); J]; N];
    for i in 0..cols {
        for j in 0..J {
            // SAFETY: the caller's.
            let w = unsafe {
                let w = w.add(i * stride + 16 * j);
                if mask == 0xffff { load_bf16(w) } else { load_bf16_part(w, mask) }
            };
            for (n, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let x = _mm512_set1_ps(unsafe { *x.add(n * cols + i) });
                acc[j] = _mm512_fmadd_ps(w, x, acc[j]);
            }
        }
    }
    acc
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn bf16_matmul(
    out: &mut Columns<'_, f32>,
    w: &[bf16],
    range: Range<usize>,
    rows: usize,
    x: &[f32],
    cols: usize,
) {
    assert!(w.len() == rows * cols && range.end <= rows && range.len() == out.width(), "w");
    let inputs = x.len() / cols;
    let mut t = 0;
    while t < inputs {
        let n = if inputs - t >= 4 { 4 } else { 1 };
        let x = x[t * cols..(t + n) * cols].as_ptr();
        let mut o = 0;
        while o < range.len() {
            let left = range.len() - o;
            let (j, mask) = if left >= 64 { (4, 0xffff) } else { (1, first(left)) };
            let w = w[range.start + o..].as_ptr();
            // SAFETY: n inputs by the slicing above; the matrix has `cols` rows of `rows` elements, of
            // which `o` and the lanes of j vectors or of the mask stay within `range`.
            unsafe {
                match (n, j) {
                    (4, 4) => put(out, t, o, mask, transposed_tile::<4, 4>(w, rows, mask, x, cols)),
                    (4, _) => put(out, t, o, mask, transposed_tile::<4, 1>(w, rows, mask, x, cols)),
                    (_, 4) => put(out, t, o, mask, transposed_tile::<1, 4>(w, rows, mask, x, cols)),
                    _ => put(out, t, o, mask, transposed_tile::<1, 1>(w, rows, mask, x, cols)),
                }
            }
            o += 16 * j;
        }
        t += n;
    }
}

/// Stores a tile at rows `t` and columns `o`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn put<const N: usize, const J: usize>(
    out: &mut Columns<'_, f32>,
    t: usize,
    o: usize,
    mask: __mmask16,
    tile: [[__m512; J]; N],
) {
    for (n, vectors) in tile.into_iter().enumerate() {
        for (j, vector) in vectors.into_iter().enumerate() {
            let out = &mut out.row(t + n)[o + 16 * j..];
            assert!(out.len() >= mask.count_ones() as usize, "out");
            // SAFETY: as many floats as the mask has lanes, asserted above.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, vector) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn swiglu(out: &mut [f32], h: &[f32], bias: &[bf16], params: SwigluParams) {
    let limit = _mm512_set1_ps(params.limit);
    let one = _mm512_set1_ps(1.0);
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for ((out, h), bias) in out.chunks_mut(16).zip(h.chunks(32)).zip(bias.chunks(32)) {
        let n = out.len();
        assert!(h.len() == 2 * n && bias.len() == 2 * n, "h, bias");
        let (low, high) = (first(2 * n), first((2 * n).saturating_sub(16)));
        // SAFETY: 2n elements in `h` and `bias`, as the masks say; masked lanes are not read, and
        // wrapping_add does not dereference.
        let (h0, h1) = unsafe {
            let (h, bias) = (h.as_ptr(), bias.as_ptr());
            let (h1, bias1) = (h.wrapping_add(16), bias.wrapping_add(16));
            (
                _mm512_add_ps(_mm512_maskz_loadu_ps(low, h), load_bf16_part(bias, low)),
                _mm512_add_ps(_mm512_maskz_loadu_ps(high, h1), load_bf16_part(bias1, high)),
            )
        };
        // min and max return their second operand for NaN.
        let gate = _mm512_min_ps(limit, _mm512_permutex2var_ps(h0, even, h1));
        let up = _mm512_min_ps(limit, _mm512_permutex2var_ps(h0, odd, h1));
        let up = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), up);
        // σ(z) as e^z / (1 + e^z): accurate for negative z, where the gate is not clamped.
        let e = exp(_mm512_mul_ps(gate, _mm512_set1_ps(params.alpha)));
        let sigmoid = _mm512_div_ps(e, _mm512_add_ps(one, e));
        let y = _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), _mm512_add_ps(up, one));
        // SAFETY: n floats in `out`.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), first(n), y) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in super::super) fn combine(out: &mut [f32], y: &[f32], bias: &[bf16], weight: f32) {
    scalar::combine(out, y, bias, weight);
}
