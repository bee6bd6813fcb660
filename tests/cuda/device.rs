//! The device under test, inputs on it that must not change, outputs on it between canaries.

use candle_core::Device;
use gpt_oss_puzzle::kernels::Activations;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits,
};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaError};
use std::io::Write;
use std::sync::OnceLock;

/// What tests run on: one stream, with activations as they are and rounded to bf16.
pub struct Gpu {
    pub cuda: Cuda,
    pub rounded: Cuda,
}

/// Device 0, or `None` when this machine has none, which `REQUIRE_CUDA` makes a failure.
pub fn device() -> Option<&'static Gpu> {
    static DEVICE: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || {
        let device = match Device::new_cuda_with_stream(0) {
            Ok(device) => device,
            Err(e) => {
                assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "no CUDA device: {e}");
                // Not eprintln!, which the test harness keeps to itself while a test passes.
                let line = format!("NOT TESTED: this machine has no CUDA device: {e}\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                return None;
            }
        };
        let device = device.as_cuda_device().unwrap();
        let cuda = || Cuda::new(device.cuda_stream(), device.cublas_handle()).unwrap();
        Some(Gpu { cuda: cuda(), rounded: cuda().with_activations(Activations::Bf16) })
    };
    DEVICE.get_or_init(open).as_ref()
}

/// Elements around every input and output.
const MARGIN: usize = 32;

/// What fills memory that nobody may read: NaN in every float format.
const POISON: u8 = 0xff;

/// What surrounds an output.
const CANARY: u8 = 0x5a;

/// An input on the device that begins `offset` elements behind an aligned address and must come out of
/// the test unchanged.
pub struct Input<T: Plain> {
    data: CudaSlice<T>,
    values: Vec<T>,
    before: Vec<u8>,
    offset: usize,
}

/// Values without padding, any bytes of which are a value.
pub trait Plain: DeviceRepr + ValidAsZeroBits + Copy + Default + 'static {}
impl Plain for f32 {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for half::bf16 {}

fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn filled<T: Plain>(n: usize, byte: u8) -> Vec<T> {
    let mut values = vec![T::default(); n];
    // SAFETY: any bytes are a plain value.
    unsafe { values.as_mut_ptr().write_bytes(byte, n) };
    values
}

impl Gpu {
    /// Uploads `values`.
    pub fn input<T: Plain>(&self, values: &[T], offset: usize) -> Input<T> {
        let mut all = filled(offset, POISON);
        all.extend(values);
        all.extend(filled::<T>(MARGIN, POISON));
        let data = self.cuda.stream().clone_htod(&all).unwrap();
        let before = bytes(&all).to_vec();
        Input { data, values: values.to_vec(), before, offset }
    }

    /// Runs `f` on `n` values of NaN between canaries, `offset` elements behind an aligned address, and
    /// gives what they have become.
    pub fn guarded<T: Plain>(
        &self,
        n: usize,
        offset: usize,
        f: impl FnOnce(&mut CudaViewMut<'_, T>) -> Result<(), CudaError>,
    ) -> Vec<T> {
        self.guarded_from(&filled(n, POISON), offset, f)
    }

    /// As [`Gpu::guarded`], with `values` to begin with: for what is changed in place.
    pub fn guarded_from<T: Plain>(
        &self,
        values: &[T],
        offset: usize,
        f: impl FnOnce(&mut CudaViewMut<'_, T>) -> Result<(), CudaError>,
    ) -> Vec<T> {
        let (start, n) = (MARGIN + offset, values.len());
        let mut all = filled(start, CANARY);
        all.extend(values);
        all.extend(filled::<T>(MARGIN, CANARY));
        let stream = self.cuda.stream();
        let mut data = stream.clone_htod(&all).unwrap();
        f(&mut data.slice_mut(start..start + n)).unwrap();
        let all = stream.clone_dtoh(&data).unwrap();
        let intact = |part: &[T]| bytes(part).iter().all(|b| *b == CANARY);
        assert!(intact(&all[..start]), "wrote before its output");
        assert!(intact(&all[start + n..]), "wrote behind its output");
        all[start..start + n].to_vec()
    }
}

impl<T: Plain> Input<T> {
    /// The values on the device.
    pub fn view(&self) -> CudaView<'_, T> {
        self.data.slice(self.offset..self.offset + self.values.len())
    }
}

/// The values on the host.
impl<T: Plain> std::ops::Deref for Input<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T: Plain> Drop for Input<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let after = self.data.stream().clone_dtoh(&self.data).unwrap();
            assert!(bytes(&after) == self.before, "a kernel wrote to its input");
        }
    }
}
