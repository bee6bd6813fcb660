//! AVX-512 tier (F, BW, VL, DQ). Files and functions as in the scalar tier; what is missing here is
//! inherited. Every function is safe but for its target features, which the table guarantees.

use super::table::Few;

mod attention;
mod convert;
mod matmul;
mod moe;
mod norm;
mod panels;
mod vector;

pub(super) use attention::attention_page;
pub(super) use convert::{decode_fp8, encode_bf16, encode_fp8, widen};
pub(super) use moe::{bf16_matmul, combine, mxfp4_decode, swiglu};
pub(super) use norm::{rms_norm, rope};
pub(super) use panels::TILE;

pub(super) const FEW: Few = Few {
    most: matmul::FEW,
    bf16: matmul::matmul,
    q8: matmul::q8_matmul,
    mxfp4: moe::mxfp4_matmul,
};
