//! The device, the time of a call on it, and the table.

use crate::{Result, Sizes};
use candle_core::CudaDevice;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::{CudaSlice, CudaViewMut};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaError};
use std::cell::{Cell, RefCell};
use std::time::Instant;

/// Calls between two events at most: a call is up to nine launches and allocations, and a stream takes
/// about a thousand before the host has to wait.
const MOST_CALLS: usize = 100;

/// Copies before the first event at most.
const MOST_COPIES: usize = 8;

/// Seconds that are aimed at between two events, and for a case in all.
const SAMPLE: f64 = 2e-3;
const CASE: f64 = 0.2;

pub(crate) struct Bench {
    pub(crate) cuda: Cuda,
    filter: String,
    small: bool,
    /// What is copied, and to where.
    copied: CudaSlice<u8>,
    copy: RefCell<CudaSlice<u8>>,
    copy_seconds: f64,
    cases: Cell<usize>,
    /// Cases whose results were not finite.
    wrong: Cell<usize>,
}

/// What a call of a case does.
pub(crate) struct Work {
    /// Tokens.
    pub(crate) rows: usize,
    /// Bytes it must read and write, each once.
    pub(crate) bytes: usize,
    /// Operations of a product, 0 of anything else.
    pub(crate) flops: usize,
}

impl Bench {
    /// Prints what the device is and how fast it copies.
    pub(crate) fn new(
        device: &CudaDevice,
        filter: String,
        sizes: &Sizes,
        small: bool,
    ) -> Result<Bench> {
        let cuda = Cuda::new(device.cuda_stream(), device.cublas_handle())?;
        let copied = cuda.stream().alloc_zeros(sizes.copied)?;
        let copy = RefCell::new(cuda.stream().alloc_zeros(sizes.copied)?);
        let (copy_seconds, cases, wrong) = (f64::INFINITY, Cell::new(0), Cell::new(0));
        let mut bench = Bench { cuda, filter, small, copied, copy, copy_seconds, cases, wrong };
        bench.copy_seconds = bench.time(|_| bench.copy())?;
        let context = bench.cuda.stream().context();
        let (major, minor) = context.compute_capability()?;
        println!(
            "{}, compute capability {major}.{minor}, copies {} MB at {:.0} GB/s (read and written)",
            context.name()?,
            sizes.copied / 1_000_000,
            bench.copy_rate() / 1e9,
        );
        let (table, token) = (bench.bf16s(8)?, bench.same(0u32, 1)?);
        let mut out = bench.floats(8)?;
        let seconds = bench.time(|_| {
            let (out, table) = (&mut out.as_view_mut(), &table.as_view());
            bench.cuda.embedding(out, table, &token.as_view(), 8)
        })?;
        println!("a kernel without work takes {:.2} us", seconds * 1e6);
        Ok(bench)
    }

    /// Whether any case whose name begins with `family` may be asked for.
    pub(crate) fn wants(&self, family: &str) -> bool {
        family.starts_with(&self.filter) || self.filter.starts_with(family)
    }

    /// Times `call(i, out)`, the i-th call, and prints its line of the table, when the filter is the
    /// beginning of its name and rows. Where `out` is not finite it says so, which [`Bench::finish`] makes
    /// an error.
    ///
    /// # Errors
    ///
    /// What the driver refuses.
    pub(crate) fn case(
        &self,
        name: &str,
        work: Work,
        out: &mut CudaSlice<f32>,
        mut call: impl FnMut(usize, &mut CudaViewMut<'_, f32>) -> std::result::Result<(), CudaError>,
    ) -> Result<()> {
        if !format!("{name} T={}", work.rows).starts_with(&self.filter) {
            return Ok(());
        }
        if self.cases.replace(self.cases.get() + 1) == 0 {
            let columns = ["rows", "MB", "us", "GB/s", "of copying", "TFLOP/s"];
            let columns = columns.map(|column| format!(" {column:>10} |")).concat();
            println!(
                "\n| {:<42} |{columns}\n|{}|{}",
                "kernel",
                "-".repeat(44),
                "-----------:|".repeat(6)
            );
        }
        let mut view = out.as_view_mut();
        let seconds = self.time(|i| call(i, &mut view)).map_err(|e| format!("{name}: {e}"))?;
        let Work { rows, bytes, flops } = work;
        let rate = bytes as f64 / seconds;
        let flops = match flops {
            0 => "-".into(),
            _ => format!("{:.2}", flops as f64 / seconds / 1e12),
        };
        println!(
            "| {name:<42} | {rows:>10} | {:>10.3} | {:>10.2} | {:>10.1} | {:>8.1} % | {flops:>10} |",
            bytes as f64 / 1e6,
            seconds * 1e6,
            rate / 1e9,
            100.0 * rate / self.copy_rate(),
        );
        let values = self.cuda.stream().clone_dtoh(out)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            println!(
                "NO TIME OF {name} WITH {rows} ROWS: value {at} of the result is {}",
                values[at]
            );
            self.wrong.set(self.wrong.get() + 1);
        }
        Ok(())
    }

    /// # Errors
    ///
    /// When there was no case, or one whose result was not finite.
    pub(crate) fn finish(&self) -> Result<()> {
        match (self.cases.get(), self.wrong.get()) {
            (0, _) => Err(format!("no case begins with {:?}", self.filter).into()),
            (cases, wrong) if wrong > 0 => {
                Err(format!("the results of {wrong} of {cases} cases are not finite").into())
            }
            _ => Ok(()),
        }
    }

    /// Median seconds of a call.
    fn time(
        &self,
        mut call: impl FnMut(usize) -> std::result::Result<(), CudaError>,
    ) -> Result<f64> {
        let stream = self.cuda.stream();
        let (mut next, mut queueing) = (0, 0.0);
        let mut sample = |calls: usize| -> Result<f64> {
            // So that the calls below are queued before the first of them begins.
            let copies = 2 + (queueing / self.copy_seconds) as usize;
            for _ in 0..copies.min(MOST_COPIES) {
                self.copy()?;
            }
            let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            let queued = Instant::now();
            for _ in 0..calls {
                call(next)?;
                next += 1;
            }
            queueing = queued.elapsed().as_secs_f64();
            let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
            Ok(f64::from(start.elapsed_ms(&end)?) / 1e3 / calls as f64)
        };
        // The first call loads its kernels and fills the memory pool.
        sample(1)?;
        let once = sample(1)?;
        if self.small {
            return sample(2);
        }
        let calls = ((SAMPLE / once) as usize).clamp(1, MOST_CALLS);
        let (mut samples, mut total) = (Vec::new(), 0.0);
        while samples.len() < 5 || total < CASE && samples.len() < 100 {
            samples.push(sample(calls)?);
            total += samples[samples.len() - 1] * calls as f64;
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }

    /// Bytes per second, read and written.
    fn copy_rate(&self) -> f64 {
        (2 * self.copied.len()) as f64 / self.copy_seconds
    }

    fn copy(&self) -> std::result::Result<(), CudaError> {
        let copied = self.cuda.stream().memcpy_dtod(&self.copied, &mut *self.copy.borrow_mut());
        copied.map_err(|e| CudaError::new("a copy", e))
    }
}
