//! candle custom ops, one file per op: the only place where candle tensors meet raw kernels.
//!
//! Each file holds the op and the function that applies it. An op carries the [`Engine`] whose kernels
//! run it and its weights where the model keeps them; candle calls the half of it that belongs to where
//! the activations live, which are contiguous f32 tensors. No op is differentiable.

mod attention;
#[cfg(feature = "cuda")]
mod copy;
mod copy_page;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
#[cfg(feature = "cuda")]
mod device_rows;
#[cfg(feature = "cuda")]
mod device_tables;
mod embedding;
mod engine;
mod gather_rows;
mod matmul;
mod moe;
mod rms_norm;
mod rope_kv_write;
mod rows;
#[cfg(feature = "cuda")]
mod sample;
mod topk;

pub(crate) use attention::{AttentionCall, attention};
#[cfg(feature = "cuda")]
pub(crate) use copy::{copied, copy};
pub(crate) use copy_page::copy_page;
#[cfg(feature = "cuda")]
pub(crate) use device_rows::{DeviceRows, Extents};
#[cfg(feature = "cuda")]
pub(crate) use device_tables::DeviceTables;
pub(crate) use embedding::embedding;
pub(crate) use engine::{Engine, ExpertMatrices, Matrix, Slice};
pub(crate) use gather_rows::gather_rows;
pub(crate) use matmul::{Projection, matmul, matmul_each};
pub(crate) use moe::{ExpertProjection, Experts, moe};
pub(crate) use rms_norm::{add_rms_norm, rms_norm};
pub(crate) use rope_kv_write::{CacheWrite, rope_kv_write};
pub(crate) use rows::{HostRows, Rows, Tables};
#[cfg(feature = "cuda")]
pub(crate) use sample::sample;
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

/// The elements of a contiguous f32 tensor, to be written.
fn f32_slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::{Cpu, Isa};
    use candle_core::{Device, Tensor};

    #[test]
    fn a_view_of_whole_rows_is_read_in_place_and_any_other_is_refused() {
        let engine = Engine::Cpu(Cpu::with_isa(Isa::Scalar, 1).expect("every machine has it"));
        let x = Tensor::arange(0f32, 12f32, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let norm = |x: &Tensor, width| rms_norm(&engine, x, Slice::Host(&vec![1.0; width]), 1e-5);
        let whole = norm(&x, 3).unwrap().to_vec2::<f32>().unwrap();
        let rows = norm(&x.narrow(0, 1, 2).unwrap(), 3).unwrap();
        assert_eq!(rows.to_vec2::<f32>().unwrap(), whole[1..3]);
        for view in [x.t().unwrap(), x.narrow(1, 1, 2).unwrap()] {
            let error = norm(&view, view.dims()[1]).unwrap_err().to_string();
            assert!(error.contains("expected a contiguous tensor"), "{error}");
        }
        let words = Tensor::arange(0u32, 12, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let error = norm(&words, 3).unwrap_err().to_string();
        assert!(error.contains("expected f32, found U32"), "{error}");
        copy_page(&words.narrow(0, 1, 3).unwrap(), 2, 0).unwrap();
        let copied = words.to_vec2::<u32>().unwrap();
        assert_eq!(copied, [[0, 1, 2], [9, 10, 11], [6, 7, 8], [9, 10, 11]]);
    }
}
