//! Random arrays on the device, made with little work of the host, and arrays that calls go round in.

use crate::Result;
use crate::timing::Bench;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits,
};
use half::bf16;

/// Elements that are made and uploaded; larger arrays repeat them.
const PIECE: usize = 1 << 22;

/// A small seeded generator (xorshift64*).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.bits() >> 33) % n as u64) as usize
    }

    /// Uniform in ±1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `k` different numbers below `n`.
    pub(crate) fn distinct(&mut self, k: usize, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in 0..k {
            let other = i + self.below(n - i);
            all.swap(i, other);
        }
        all.truncate(k);
        all
    }
}

impl Bench {
    pub(crate) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        Ok(self.cuda.stream().clone_htod(values)?)
    }

    /// `n` values of `value`.
    pub(crate) fn same<T: DeviceRepr + ValidAsZeroBits + Copy>(
        &self,
        value: T,
        n: usize,
    ) -> Result<CudaSlice<T>> {
        self.random(n, |_| value)
    }

    /// `n` values in ±1.
    pub(crate) fn floats(&self, n: usize) -> Result<CudaSlice<f32>> {
        self.random(n, Rng::float)
    }

    /// `n` values in ±1.
    pub(crate) fn bf16s(&self, n: usize) -> Result<CudaSlice<bf16>> {
        self.random(n, |rng| bf16::from_f32(rng.float()))
    }

    /// What kernels write to: `n` values of NaN.
    pub(crate) fn nans(&self, n: usize) -> Result<CudaSlice<f32>> {
        self.same(f32::NAN, n)
    }

    pub(crate) fn random<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        n: usize,
        mut value: impl FnMut(&mut Rng) -> T,
    ) -> Result<CudaSlice<T>> {
        let mut rng = Rng(0x5eed);
        let piece: Vec<T> = (0..n.min(PIECE)).map(|_| value(&mut rng)).collect();
        let (stream, piece) = (self.cuda.stream(), self.upload(&piece)?);
        let mut all = stream.alloc_zeros(n)?;
        for start in (0..n).step_by(PIECE) {
            let end = n.min(start + PIECE);
            stream.memcpy_dtod(&piece.slice(..end - start), &mut all.slice_mut(start..end))?;
        }
        Ok(all)
    }
}

/// The `i`-th part of `n` values of an array that begins again when it ends: when calls take one after
/// the other, none is in a cache that is smaller than the array.
pub(crate) fn part<T>(array: &CudaSlice<T>, i: usize, n: usize) -> CudaView<'_, T> {
    let start = i % (array.len() / n) * n;
    array.slice(start..start + n)
}
