//! The small number formats, from their definitions.

/// 2^e by its bits, of a normal number: what `powi` gives after a loop, in which tests spent their time.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((1023 + e) as u64) << 52)
}

/// FP4 E2M1: one sign bit, two exponent bits with bias 1, one mantissa bit.
pub fn fp4(nibble: u8) -> f64 {
    assert!(nibble < 16, "a nibble is four bits");
    let sign = if nibble & 8 != 0 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(nibble >> 1 & 3), f64::from(nibble & 1));
    sign * match exponent {
        0 => 0.5 * mantissa,
        e => (1.0 + 0.5 * mantissa) * power_of_two(e - 1),
    }
}

/// E8M0: `2^(s − 127)`; 255 is NaN.
pub fn e8m0(s: u8) -> f64 {
    if s == 255 { f64::NAN } else { power_of_two(i32::from(s) - 127) }
}

/// FP8 E4M3FN: bias 7, three mantissa bits, no infinities, `S.1111.111` is NaN, the largest value 448.
pub fn fp8_decode(code: u8) -> f64 {
    let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    sign * match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * power_of_two(-6),
        (e, _) => (1.0 + mantissa / 8.0) * power_of_two(e - 7),
    }
}

/// The nearest E4M3FN code, ties to the even one, magnitudes above 448 (infinity too) to 448.
/// Zero keeps its sign. NaN becomes NaN, whose sign means nothing: 0x7f and 0xff are the same answer, and
/// a device, whose arithmetic gives NaN without a sign, writes the first.
pub fn fp8_encode(x: f64) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | 0x7f;
    }
    let x = x.abs().min(448.0);
    let distance = |code: u8| (fp8_decode(code) - x).abs();
    let mut best = 0;
    for code in 1..0x7f {
        let tie_to_even = distance(code) == distance(best) && code.is_multiple_of(2);
        if distance(code) < distance(best) || tie_to_even {
            best = code;
        }
    }
    sign | best
}

/// bf16 as the nearest to an f32, ties to even, by search between the two neighbours.
pub(super) fn bf16_encode(x: f32) -> u16 {
    let low = (x.to_bits() >> 16) as u16;
    if x.is_nan() {
        return low | 0x40; // quiet, so that a NaN whose payload is cut off stays NaN
    }
    let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    // Infinity stands for 2^128 here: the next value of the format if it went on.
    let high = low.wrapping_add(1);
    let high_value = if value(high).is_infinite() && x.is_finite() {
        2f64.powi(128).copysign(value(high))
    } else {
        value(high)
    };
    let (below, above) = ((f64::from(x) - value(low)).abs(), (high_value - f64::from(x)).abs());
    if x.is_infinite() || below < above || (below == above && low.is_multiple_of(2)) {
        low
    } else {
        high
    }
}
