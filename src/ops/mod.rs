//! candle custom ops, one file per op: the only place where candle tensors meet raw kernels.
//!
//! Each file holds the op and the function that applies it. An op carries its weights as the slices
//! they are stored in and the [`Cpu`](crate::kernels::cpu::Cpu) whose kernels run it; activations are
//! contiguous f32 tensors. No op is differentiable.

mod attention;
mod copy_page;
mod embedding;
mod kv_write;
mod matmul;
mod moe;
mod rms_norm;
mod rope;
mod topk;

pub(crate) use attention::{AttentionCall, attention};
pub(crate) use copy_page::copy_page;
pub(crate) use embedding::embedding;
pub(crate) use kv_write::kv_write;
pub(crate) use matmul::matmul;
pub(crate) use moe::{ExpertProjection, moe_down, moe_gate_up};
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope::rope;
pub(crate) use topk::topk_softmax;

use candle_core::{CpuStorage, Layout, Result, bail};

/// The elements of a contiguous f32 tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("expected a contiguous tensor, found {layout:?}"),
        (other, _) => bail!("expected f32, found {:?}", dtype(other)),
    }
}

/// The elements of a contiguous u32 tensor.
fn u32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [u32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::U32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::U32(_), None) => bail!("expected a contiguous tensor, found {layout:?}"),
        (other, _) => bail!("expected u32, found {:?}", dtype(other)),
    }
}

/// The elements of a contiguous u32 tensor, to be written.
fn u32_slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [u32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::U32(data), Some((start, end))) => Ok(&mut data[start..end]),
        (CpuStorage::U32(_), None) => bail!("expected a contiguous tensor, found {layout:?}"),
        (other, _) => bail!("expected u32, found {:?}", dtype(other)),
    }
}

fn dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}
