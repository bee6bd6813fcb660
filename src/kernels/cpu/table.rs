//! The tiers as data: one function pointer per serial kernel, lower tiers inherited by struct update.

use super::attention::Partial;
use super::mxfp4::Mxfp4Rows;
use super::panels::Tile;
use super::q8::Q8Rows;
use super::shares::Columns;
use super::{Isa, scalar};
#[cfg(all(target_arch = "x86_64", not(portable)))]
use super::{avx2, avx512};
use crate::kernels::SwigluParams;
use half::bf16;
use std::ops::Range;

/// Serial kernels of one tier; each is documented where the scalar tier defines it.
///
/// Every field is unsafe to call for the same two reasons: the CPU must have the tier's instructions,
/// which holds for a table that [`Kernels::of`] returned, and slices must have the lengths that the
/// entry points of [`Cpu`](super::Cpu) check.
#[derive(Clone, Copy)]
#[allow(clippy::type_complexity)] // a name for each signature would not make it simpler
pub(super) struct Kernels {
    pub(super) isa: Isa,
    pub(super) widen: unsafe fn(&mut [f32], &[bf16]),
    pub(super) encode_bf16: unsafe fn(&mut [bf16], &[f32]),
    pub(super) encode_fp8: unsafe fn(&mut [u8], &[f32], f32),
    pub(super) decode_fp8: unsafe fn(&mut [f32], &[u8], f32),
    pub(super) rms_norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    pub(super) rope: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(super) few: Option<Few>,
    pub(super) tile: Tile,
    pub(super) topk_softmax: unsafe fn(&mut [u32], &mut [f32], &[f32]),
    pub(super) mxfp4_decode: unsafe fn(&mut [f32], &[u8], &[u8]),
    pub(super) bf16_matmul:
        unsafe fn(&mut Columns<'_, f32>, &[bf16], Range<usize>, usize, &[f32], usize),
    pub(super) swiglu: unsafe fn(&mut [f32], &[f32], &[bf16], SwigluParams),
    pub(super) combine: unsafe fn(&mut [f32], &[f32], &[bf16], f32),
    pub(super) attention_page:
        unsafe fn(&mut Partial<'_>, &[f32], &[f32], &[f32], Range<usize>, f32, &mut [f32]),
}

/// Products with so few inputs that each weight is decoded in registers, as it is read.
#[derive(Clone, Copy)]
#[allow(clippy::type_complexity)] // as above
pub(super) struct Few {
    /// Inputs up to which these are used.
    pub(super) most: usize,
    /// `out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i]` for all columns of `out`.
    pub(super) bf16: unsafe fn(&mut Columns<'_, f32>, &[bf16], &[f32], Option<&[f32]>, usize),
    /// The same for weights in 8 bits.
    pub(super) q8: unsafe fn(&mut Columns<'_, f32>, Q8Rows<'_>, &[f32], Option<&[f32]>),
    /// `out[t,o] = Σ_i w[o,i]·x[t,i]`, with `x` in the order of `mxfp4_decode`.
    pub(super) mxfp4: unsafe fn(&mut Columns<'_, f32>, Mxfp4Rows<'_>, &[f32]),
}

const SCALAR: Kernels = Kernels {
    isa: Isa::Scalar,
    widen: scalar::widen,
    encode_bf16: scalar::encode_bf16,
    encode_fp8: scalar::encode_fp8,
    decode_fp8: scalar::decode_fp8,
    rms_norm: scalar::rms_norm,
    rope: scalar::rope,
    few: None,
    tile: scalar::TILE,
    topk_softmax: scalar::topk_softmax,
    mxfp4_decode: scalar::mxfp4_decode,
    bf16_matmul: scalar::bf16_matmul,
    swiglu: scalar::swiglu,
    combine: scalar::combine,
    attention_page: scalar::attention_page,
};

#[cfg(all(target_arch = "x86_64", not(portable)))]
const AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    widen: avx2::widen,
    encode_bf16: avx2::encode_bf16,
    encode_fp8: avx2::encode_fp8,
    decode_fp8: avx2::decode_fp8,
    rms_norm: avx2::rms_norm,
    rope: avx2::rope,
    few: Some(avx2::FEW),
    tile: avx2::TILE,
    mxfp4_decode: avx2::mxfp4_decode,
    bf16_matmul: avx2::bf16_matmul,
    swiglu: avx2::swiglu,
    combine: avx2::combine,
    attention_page: avx2::attention_page,
    ..SCALAR
};

#[cfg(all(target_arch = "x86_64", not(portable)))]
const AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    widen: avx512::widen,
    encode_bf16: avx512::encode_bf16,
    encode_fp8: avx512::encode_fp8,
    decode_fp8: avx512::decode_fp8,
    rms_norm: avx512::rms_norm,
    rope: avx512::rope,
    few: Some(avx512::FEW),
    tile: avx512::TILE,
    mxfp4_decode: avx512::mxfp4_decode,
    bf16_matmul: avx512::bf16_matmul,
    swiglu: avx512::swiglu,
    combine: avx512::combine,
    attention_page: avx512::attention_page,
    ..AVX2
};

impl Kernels {
    /// The table of `isa`; `None` when this machine lacks the tier.
    pub(super) fn of(isa: Isa) -> Option<Kernels> {
        if !isa.is_supported() {
            return None;
        }
        match isa {
            Isa::Scalar => Some(SCALAR),
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Isa::Avx2 => Some(AVX2),
            #[cfg(all(target_arch = "x86_64", not(portable)))]
            Isa::Avx512 => Some(AVX512),
            #[cfg(any(not(target_arch = "x86_64"), portable))]
            _ => None,
        }
    }
}

#[cfg(all(test, target_arch = "x86_64", not(portable)))]
mod tests {
    use super::*;
    use std::ptr::fn_addr_eq;

    /// Inheriting a kernel from a lower tier must be a decision written here, not an accident.
    macro_rules! assert_tiers {
        (native: $($native:ident)*; inherited: $($inherited:ident)*) => {
            $(
                assert!(!fn_addr_eq(AVX2.$native, SCALAR.$native), stringify!($native));
                assert!(!fn_addr_eq(AVX512.$native, SCALAR.$native), stringify!($native));
                assert!(!fn_addr_eq(AVX512.$native, AVX2.$native), stringify!($native));
            )*
            $(
                assert!(fn_addr_eq(AVX2.$inherited, SCALAR.$inherited), stringify!($inherited));
                assert!(fn_addr_eq(AVX512.$inherited, SCALAR.$inherited), stringify!($inherited));
            )*
            // Names every field, so that a new kernel does not compile before it is listed.
            let Kernels { isa: _, few: _, tile: _, $($native: _,)* $($inherited: _),* } = SCALAR;
        };
    }

    #[test]
    fn tiers_are_native_where_expected() {
        assert_tiers! {
            native: widen encode_bf16 encode_fp8 decode_fp8 rms_norm rope mxfp4_decode
                bf16_matmul swiglu combine attention_page;
            // A handful of comparisons per token.
            inherited: topk_softmax
        }
        assert!(!fn_addr_eq(AVX2.tile.product, SCALAR.tile.product));
        assert!(!fn_addr_eq(AVX512.tile.product, AVX2.tile.product));
        let [avx2, avx512] = [AVX2, AVX512].map(|tier| tier.few.expect("a tier of vectors"));
        assert!(!fn_addr_eq(avx2.bf16, avx512.bf16) && !fn_addr_eq(avx2.mxfp4, avx512.mxfp4));
    }
}
