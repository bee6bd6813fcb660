//! What the kernels of this tier share: tails, sums, the exponential.

use half::bf16;
use std::arch::x86_64::*;

/// The first elements of a vector, zero behind the end of `x`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_part(x: &[f32]) -> __m256 {
    let mut lanes = [0.0; 8];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: 8 floats.
    unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
}

/// 8 bf16 as f32.
///
/// # Safety
///
/// `x` is readable for 8 elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn load_bf16(x: *const bf16) -> __m256 {
    // SAFETY: the caller's.
    let bits = unsafe { _mm_loadu_si128(x.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

/// 8 signed bytes times their block's scale, which is exact: 7 bits times 8.
///
/// # Safety
///
/// `quants` is readable for 8 elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn load_q8(quants: *const i8, scale: bf16) -> __m256 {
    // SAFETY: the caller's.
    let quants = unsafe { _mm_loadl_epi64(quants.cast()) };
    let scale = f32::from_bits(u32::from(scale.to_bits()) << 16);
    _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quants)), _mm256_set1_ps(scale))
}

/// The sum of the lanes, always in the same order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// Lane i of the result is the sum of the lanes of `v[i]`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sums(v: &[__m256; 8]) -> __m256 {
    let low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    let high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    let first = _mm256_permute2f128_ps::<0x20>(low, high);
    _mm256_add_ps(first, _mm256_permute2f128_ps::<0x31>(low, high))
}

/// e^x within 2 ulp for x in −87.3..=88; 0 below, NaN for NaN. Above 88 the result is e^88.
///
/// `x = n·ln 2 + r` with |r| ≤ ln 2 / 2, `e^r` by its Taylor polynomial of degree 7 (remainder below
/// 6e-9), times 2^n, whose exponent is in range because x is.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp(x: __m256) -> __m256 {
    // min and max return their second operand for NaN.
    let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(-87.3));
    let x = _mm256_min_ps(_mm256_set1_ps(88.0), _mm256_max_ps(_mm256_set1_ps(-87.3), x));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    // ln 2 in two parts, the first with so few bits that n times it is exact.
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm256_set1_ps(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
    _mm256_andnot_ps(zero, _mm256_mul_ps(p, power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Isa;
    use std::io::Write;

    #[test]
    fn exp_is_within_two_ulp() {
        if !Isa::Avx2.is_supported() {
            // Not eprintln!, which the test harness keeps to itself while a test passes.
            let line = "NOT TESTED: this machine lacks Avx2\n";
            return std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        let exp = |x: f32| {
            // SAFETY: the tier is supported.
            let lanes: [f32; 8] = unsafe { std::mem::transmute(exp(_mm256_set1_ps(x))) };
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
