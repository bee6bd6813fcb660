//! What the kernels of this tier share: tails, sums, the exponential.

use half::bf16;
use std::arch::x86_64::*;

/// The first `n` of 16 lanes; all of them from 16 on.
#[inline(always)]
pub(super) fn first(n: usize) -> __mmask16 {
    if n >= 16 { 0xffff } else { (1 << n) - 1 }
}

/// 16 bf16 as f32.
///
/// # Safety
///
/// `x` is readable for 16 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn load_bf16(x: *const bf16) -> __m512 {
    // SAFETY: the caller's.
    let bits = unsafe { _mm256_loadu_si256(x.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// The lanes `mask` of 16 bf16 as f32, zero elsewhere.
///
/// # Safety
///
/// `x` is readable where `mask` is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn load_bf16_part(x: *const bf16, mask: __mmask16) -> __m512 {
    // SAFETY: the caller's.
    let bits = unsafe { _mm256_maskz_loadu_epi16(mask, x.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// 16 signed bytes times their block's scale, which is exact: 7 bits times 8.
///
/// # Safety
///
/// `quants` is readable for 16 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn load_q8(quants: *const i8, scale: bf16) -> __m512 {
    // SAFETY: the caller's.
    let quants = unsafe { _mm_loadu_si128(quants.cast()) };
    let scale = f32::from_bits(u32::from(scale.to_bits()) << 16);
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(quants)), _mm512_set1_ps(scale))
}

/// The sum of the lanes, always in the same order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn sum(v: __m512) -> f32 {
    let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// Lane i of the result is the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn sums(v: &[__m512; 16]) -> __m512 {
    // Pairs, then fours: within each 128-bit lane, element j of `fours[i]` belongs to v[4i + j].
    let mut fours = [_mm512_setzero_ps(); 4];
    for (four, v) in fours.iter_mut().zip(v.chunks_exact(4)) {
        let pair = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (ab, cd) = (pair(v[0], v[1]), pair(v[2], v[3]));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        *four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let lanes = |a, b| {
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    lanes(lanes(fours[0], fours[1]), lanes(fours[2], fours[3]))
}

/// e^x within 2 ulp for x in −87.3..=88; 0 below, NaN for NaN. Above 88 the result is e^88.
///
/// `x = n·ln 2 + r` with |r| ≤ ln 2 / 2, `e^r` by its Taylor polynomial of degree 7 (remainder below
/// 6e-9), scaled by 2^n.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn exp(x: __m512) -> __m512 {
    // min and max return their second operand for NaN.
    let nonzero = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-87.3));
    let x = _mm512_min_ps(_mm512_set1_ps(88.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
    );
    // ln 2 in two parts, the first with so few bits that n times it is exact.
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_maskz_scalef_ps(nonzero, p, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Isa;
    use std::io::Write;

    #[test]
    fn exp_is_within_two_ulp() {
        if !Isa::Avx512.is_supported() {
            // Not eprintln!, which the test harness keeps to itself while a test passes.
            let line = "NOT TESTED: this machine lacks Avx512\n";
            return std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        let exp = |x: f32| {
            // SAFETY: the tier is supported.
            let lanes: [f32; 16] = unsafe { std::mem::transmute(exp(_mm512_set1_ps(x))) };
            lanes[0]
        };
        for i in -873_000..=880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "exp({x}): {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
