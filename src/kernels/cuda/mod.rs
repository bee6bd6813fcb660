//! CUDA kernels: the twin of [`Cpu`](super::cpu::Cpu) on an NVIDIA GPU, with safe entry points of the
//! same names over device memory. Lengths are checked here, once; everything is asynchronous on one
//! stream, and nothing returns to the host.
//!
//! Indices live on the device, so no entry point can look at them: a kernel that is given one outside
//! its range writes NaN for that row and reads nothing. Every sum has a fixed order, so that equal
//! calls give equal bits; where a row's bits depend on the number of rows, its entry point says so.
//!
//! **To add a family of kernels**: `name.cu` here, which includes `args.cuh` or a header that does, with
//! `extern "C" __global__ void` kernels of the names in [THE TABLE](super); `name.rs` beside it, an
//! `impl Cuda` of safe entry points, and `mod name;` below; tests in `tests/cuda/name.rs` and a `mod`
//! line in `tests/cuda.rs`. Nothing else: `build.rs` compiles every .cu of this folder, and the emulator
//! of `tests/cuda/emulator` finds every kernel in them.

mod attention;
mod cache;
mod embedding;
#[cfg(test)]
mod lookup;
mod matmul;
mod matmul_many;
mod memory;
mod moe;
mod moe_few;
mod moe_many;
mod moe_pack;
mod moe_route;
mod recording;
mod rms_norm;
mod sample;
mod step_rows;
mod topk;

pub use attention::{AttentionBlocks, MAX_HEAD_DIM, RowsOnDevice};
pub use matmul::{CudaDense, INVARIANT_ROWS, Projection};
pub use memory::{Upload, free_memory, prepare};
pub use moe::{CudaExperts, CudaMoe, CudaProjection};
pub use moe_pack::Packing;
pub use moe_route::{RouteRoom, Routed};
pub use recording::{MOST_RECORDED_ROWS, Recording, between_recordings, padded_rows};
pub use sample::{MAX_VOCAB, NOT_FINITE, NOTHING_LEFT};

use crate::kernels::Activations;
// The one place that reaches for cudarc: by way of candle, so that there is one version of it.
pub use candle_core::cuda_backend::cudarc;
use cudarc::cublas::CudaBlas;
use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUfunction_attribute};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError,
    LaunchArgs, LaunchConfig,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The fat binary of each .cu, by its name.
static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Threads of a block where a kernel does not say otherwise: `THREADS` in args.cuh.
const THREADS: usize = 256;

/// What the driver or cuBLAS refused, and in which kernel.
#[derive(Debug)]
pub struct CudaError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl CudaError {
    /// `source`, which happened while `what` was done.
    pub fn new(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> CudaError {
        CudaError { what: what.into(), source: Box::new(source) }
    }

    fn missing(kernel: &str) -> CudaError {
        CudaError { what: format!("kernel {kernel}"), source: "is in no fat binary".into() }
    }
}

impl std::fmt::Display for CudaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// The modules of the fat binaries in one context, by the name of their .cu.
struct Modules(HashMap<&'static str, Arc<CudaModule>>);

impl Modules {
    /// Those of `context`, loaded by whoever asks first and kept while somebody holds them.
    fn of(context: &Arc<CudaContext>) -> Result<Arc<Modules>, CudaError> {
        static LOADED: Mutex<Vec<(usize, Weak<Modules>)>> = Mutex::new(Vec::new());
        let key = context.cu_ctx() as usize;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(_, modules)| modules.strong_count() > 0);
        let known = loaded.iter().find(|(of, _)| *of == key).and_then(|(_, m)| m.upgrade());
        if let Some(modules) = known {
            return Ok(modules);
        }
        let load = |(name, image): &(&'static str, &[u8])| {
            let module = context.load_module(Ptx::from_binary(image.to_vec()));
            let module = module.map_err(|e| CudaError::new(format!("kernels of {name}.cu"), e))?;
            Ok((*name, module))
        };
        // The driver may wait for the device to put code into its memory.
        let loading = between_recordings(|| FATBINS.iter().map(load).collect::<Result<_, _>>());
        let modules = Arc::new(Modules(loading?));
        loaded.push((key, Arc::downgrade(&modules)));
        Ok(modules)
    }
}

/// A size as a kernel takes it.
///
/// # Panics
///
/// When it does not fit: shapes of that size are no shapes of a model.
fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or_else(|_| panic!("{size} is too large for a kernel"))
}

/// An index or a number of blocks as a kernel takes it, see [`int`].
fn uint(size: usize) -> u32 {
    u32::try_from(size).unwrap_or_else(|_| panic!("{size} is too large for a kernel"))
}

/// The kernels on one stream of one device.
///
/// Every method panics when a length contradicts the shapes it documents; the callers own those numbers,
/// not the user's files. A result is there when the stream has come that far.
pub struct Cuda {
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    modules: Arc<Modules>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    sent: Mutex<sample::AllSent>,
    /// Of the device.
    multiprocessors: usize,
    /// Bytes of shared memory that a block of threads may ask for.
    shared_memory: usize,
    /// Compute capability, major and minor.
    capability: (i32, i32),
    activations: Activations,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("ordinal", &self.stream.context().ordinal()).finish()
    }
}

impl Cuda {
    /// The kernels on `stream`, with a cuBLAS handle that works on the same one: of a candle device,
    /// `device.cuda_stream()` and `device.cublas_handle()`.
    ///
    /// # Errors
    ///
    /// When the driver cannot load the kernels, for example because none were compiled for the device.
    pub fn new(stream: Arc<CudaStream>, blas: Arc<CudaBlas>) -> Result<Cuda, CudaError> {
        let modules = Modules::of(stream.context())?;
        let attribute = |which| {
            let value = stream.context().attribute(which);
            value.map_err(|e| CudaError::new(format!("{which:?}"), e))
        };
        let multiprocessors =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as usize;
        let shared_memory =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0)
                as usize;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let (functions, activations) = (Mutex::default(), Activations::Exact);
        Ok(Cuda {
            stream,
            blas,
            modules,
            functions,
            sent: Mutex::default(),
            multiprocessors,
            shared_memory,
            capability,
            activations,
        })
    }

    /// The same kernels, whose products take their activations as said.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Cuda {
        Cuda { activations, ..self }
    }

    /// What these kernels' activations ask for, of what there is for each kind.
    fn of_activations<T>(&self, exact: T, bf16: T) -> T {
        match self.activations {
            Activations::Exact => exact,
            Activations::Bf16 => bf16,
        }
    }

    /// Parts that a value of activations has on tensor cores.
    fn parts_per_value(&self) -> usize {
        self.of_activations(2, 1)
    }

    /// The stream every kernel runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Memory for `n` values that a call needs while it runs. It is given back in the order of the stream,
    /// so nobody waits; what it holds is undefined.
    fn scratch<T: DeviceRepr>(&self, n: usize) -> Result<CudaSlice<T>, CudaError> {
        // SAFETY: the kernels that are given it write what they read.
        let memory = unsafe { self.stream.alloc(n) };
        memory.map_err(|e| CudaError::new(format!("{n} values of scratch memory"), e))
    }

    /// The kernel `name` of `source`.cu.
    fn kernel(&self, source: &'static str, name: &'static str) -> Result<Kernel<'_>, CudaError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match functions.get(name) {
            Some(function) => function.clone(),
            None => {
                let module = self.modules.0.get(source).ok_or_else(|| CudaError::missing(name))?;
                let failed = |e| CudaError::new(format!("kernel {name} of {source}.cu"), e);
                let function = module.load_function(name).map_err(failed)?;
                // All that a launch may ask for, once: a function is shared by threads, and a smaller
                // number for one launch would refuse another.
                let of_its_own = function.shared_size_bytes().map_err(failed)?;
                let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let left = int(self.shared_memory) - of_its_own;
                function.set_attribute(most, left).map_err(failed)?;
                functions.insert(name, function.clone());
                function
            }
        };
        Ok(Kernel { name, function, stream: &self.stream })
    }
}

/// A kernel, to be called with [`Kernel::call`], its arguments, and [`Kernel::launch`].
struct Kernel<'a> {
    name: &'static str,
    function: CudaFunction,
    stream: &'a CudaStream,
}

impl Kernel<'_> {
    /// Takes the arguments in the order of the kernel's parameters.
    fn call(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }

    /// Starts `call` on `grid` blocks of `threads`. A grid without blocks does nothing.
    ///
    /// # Safety
    ///
    /// The arguments are those the kernel takes, by type and order, and for them and this grid it stays
    /// within the memory they point to.
    unsafe fn launch(
        &self,
        call: LaunchArgs<'_>,
        grid: [usize; 3],
        threads: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: passed on to the caller.
        unsafe { self.launch_with(call, grid, threads, 0) }
    }

    /// [`Kernel::launch`] with `shared` bytes of dynamic shared memory for each block, at most
    /// `Cuda::shared_memory` less what the kernel has of its own.
    ///
    /// # Safety
    ///
    /// As [`Kernel::launch`], and the kernel stays within its shared memory.
    unsafe fn launch_with(
        &self,
        mut call: LaunchArgs<'_>,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let failed = |e: DriverError| CudaError::new(format!("kernel {}", self.name), e);
        let config = LaunchConfig {
            grid_dim: (uint(grid[0]), uint(grid[1]), uint(grid[2])),
            block_dim: (uint(threads), 1, 1),
            shared_mem_bytes: uint(shared),
        };
        // SAFETY: passed on to the caller.
        unsafe { call.launch(config) }.map(drop).map_err(failed)
    }
}
