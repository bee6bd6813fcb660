//! FP8 E4M3FN: sign, four exponent bits with bias 7, three mantissa bits; no infinities.

/// The nearest E4M3FN code, ties to even; magnitudes above 448, infinity included, become 448; NaN
/// stays NaN, of either sign; that of zero is kept.
#[inline(always)]
pub fn fp8_encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let bits = x.to_bits() & 0x7fff_ffff;
    let code = if bits > 0x7f80_0000 {
        0x7f
    } else if bits >= 0x43e0_0000 {
        0x7e // 448 and above
    } else if bits >= 0x3c80_0000 {
        // Normal, 2^-6 and above: round the mantissa to 3 bits in place (a carry moves on into the
        // exponent, as it should) and change the bias from 127 to 7.
        let even = (bits >> 20) & 1;
        (((bits + 0x7_ffff + even) >> 20) - ((127 - 7) << 3)) as u8
    } else {
        // Subnormal: a multiple of 2^-9. Adding 2^14 leaves exactly those multiples in the low
        // mantissa bits and lets the addition round.
        let shifted = f32::from_bits(bits) + 16384.0;
        shifted.to_bits() as u8
    };
    sign | code
}

/// The value of an E4M3FN code.
#[inline(always)]
pub fn fp8_decode(code: u8) -> f32 {
    DECODE[usize::from(code)]
}

const DECODE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode(code as u8);
        code += 1;
    }
    table
};

const fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}
