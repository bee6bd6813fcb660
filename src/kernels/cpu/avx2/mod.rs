//! AVX2 tier (with FMA and F16C). Files and functions as in the scalar tier; what is missing here is
//! inherited. Every function is safe but for its target features, which the table guarantees.

mod attention;
mod convert;
mod matmul;
mod moe;
mod norm;
mod vector;

pub(super) use attention::attention_page;
pub(super) use convert::{decode_fp8, encode_bf16, encode_fp8, widen};
pub(super) use matmul::matmul;
pub(super) use moe::{bf16_matmul, combine, mxfp4_decode, mxfp4_matmul, swiglu};
pub(super) use norm::{rms_norm, rope};
