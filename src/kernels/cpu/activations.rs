//! What the products make of their activations.

use super::{Cpu, SMALL, Shares, scratch};
use crate::kernels::Activations;

impl Cpu {
    /// Calls `product` with `x` as it is to be multiplied. Every product takes its activations from here,
    /// so that all kernels behind it, of any tier and any number of rows, multiply the same numbers.
    pub(super) fn take(&self, x: &[f32], product: impl FnOnce(&[f32])) {
        match self.activations {
            Activations::Exact => product(x),
            Activations::Bf16 => scratch::activations(x.len(), |rounded| {
                let shares = Shares::new(&mut *rounded);
                self.split(x.len(), 1, 1024, SMALL, |range| {
                    // SAFETY: these elements are this task's alone.
                    let out = unsafe { shares.part(range.clone()) };
                    out.iter_mut().zip(&x[range]).for_each(|(out, x)| *out = round_to_bf16(*x));
                });
                product(rounded);
            }),
        }
    }
}

/// The nearest number that bf16 has, ties to even. What is finite stays so: beyond the largest, that one.
#[inline(always)]
fn round_to_bf16(x: f32) -> f32 {
    const INFINITE: u32 = 0x7f80_0000;
    let bits = x.to_bits();
    let even = bits >> 16 & 1;
    let rounded = bits.wrapping_add(0x7fff + even) & 0xffff_0000;
    let overflowed = u32::from(rounded & INFINITE == INFINITE) << 16;
    let finite = f32::from_bits(rounded.wrapping_sub(overflowed));
    // Infinity and NaN: the latter must not lose what makes it one.
    if x.is_finite() { finite } else { x }
}
