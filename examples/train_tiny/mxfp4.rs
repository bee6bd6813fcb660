//! Numbers to MXFP4 (OCP Microscaling Formats 1.0, 2023): blocks of 32 FP4 (E2M1) numbers along the last
//! dimension that share a power of two.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Numbers per block.
pub const BLOCK: usize = 32;

/// Magnitudes of the eight codes.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The E8M0 scale of a block: of the two powers of two that bring its largest magnitude near FP4's
/// largest, the one that leaves the smaller squared error.
fn scale(block: &[f32]) -> u8 {
    let max = block.iter().fold(0f32, |max, x| max.max(x.abs()));
    if max == 0.0 {
        return 127;
    }
    // The specification's choice: the exponent of the maximum less that of 6, which is 2.
    let low = (max.log2().floor() as i32 - 2 + 127).clamp(1, 253) as u8;
    let error = |scale: u8| {
        let power = power(scale);
        block.iter().map(|x| x - nearest(x / power) * power).map(|e| e * e).sum::<f32>()
    };
    if error(low) <= error(low + 1) { low } else { low + 1 }
}

fn power(scale: u8) -> f32 {
    f32::from_bits(u32::from(scale.max(1)) << 23)
}

/// The nearest FP4 number, ties to the even code, beyond 6 the largest.
fn nearest(x: f32) -> f32 {
    let y = x.abs();
    let step = if y < 2.0 {
        0.5
    } else if y < 4.0 {
        1.0
    } else {
        2.0
    };
    // Adding and taking away 1.5 · 2^23 rounds to a whole number, ties to even.
    let whole = (y / step + 12_582_912.0) - 12_582_912.0;
    (whole * step).min(6.0).copysign(x)
}

/// The code of the nearest number.
fn code(x: f32, scale: u8) -> u8 {
    let nearest = nearest(x / power(scale));
    let code = MAGNITUDES.iter().position(|m| *m == nearest.abs()).unwrap_or(7) as u8;
    code | u8::from(nearest.is_sign_negative() && code != 0) << 3
}

/// Blocks `[.., W/32, 16]` (low nibble first) and scales `[.., W/32]` of `numbers [.., W]`.
pub fn encode(numbers: &[f32]) -> (Vec<u8>, Vec<u8>) {
    let (mut blocks, mut scales) = (Vec::new(), Vec::new());
    for block in numbers.chunks_exact(BLOCK) {
        let scale = scale(block);
        let pairs = block.as_chunks().0.iter();
        blocks.extend(pairs.map(|[low, high]| code(*low, scale) | code(*high, scale) << 4));
        scales.push(scale);
    }
    (blocks, scales)
}

/// `x` as MXFP4 keeps it. No gradient.
pub fn rounded(x: &Tensor) -> Result<Tensor> {
    x.detach().apply_op1_no_bwd(&Round)
}

struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "mxfp4-round"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some((start, end)), CpuStorage::F32(x)) = (layout.contiguous_offsets(), x) else {
            bail!("expected a contiguous f32 tensor, found {:?}", layout.shape());
        };
        let mut y = Vec::with_capacity(end - start);
        for block in x[start..end].chunks_exact(BLOCK) {
            let power = power(scale(block));
            y.extend(block.iter().map(|x| nearest(x / power) * power));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}
