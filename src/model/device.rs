//! [`DeviceName`]: where a model runs, by name.

use super::Device;
use crate::{Error, ModelConfig, Result};

/// Where a model runs: `"cpu"`, `"cuda"` (the first GPU), or `"cuda:1"`.
///
/// ```
/// use gpt_oss_puzzle::model::DeviceName;
///
/// assert_eq!("cuda:1".parse::<DeviceName>().unwrap(), DeviceName::Cuda(1));
/// assert_eq!("cuda".parse::<DeviceName>().unwrap().to_string(), "cuda:0");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// The cores of this machine.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number among those the driver shows. Needs the feature `cuda`.
    Cuda(usize),
}

impl std::str::FromStr for DeviceName {
    type Err = Error;

    fn from_str(s: &str) -> Result<DeviceName> {
        let number = s.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match (s, number) {
            ("cpu", _) => Ok(DeviceName::Cpu),
            ("cuda", _) => Ok(DeviceName::Cuda(0)),
            (_, Some(number)) => Ok(DeviceName::Cuda(number)),
            _ => Err(Error::invalid_request(format!(
                "device is {s:?}, expected \"cpu\", \"cuda\" or \"cuda:1\""
            ))),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceName {
    /// The device. A GPU is opened with one stream of its own, which all threads share, so that what
    /// one of them started comes before what another starts later. Where another thread's model is just
    /// recording a step, see `GptOss::forward`, this waits for it: the driver would refuse.
    ///
    /// # Errors
    /// `InvalidRequest` for a GPU in a build without the feature `cuda`; `Device` when there is no
    /// driver or no such GPU.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceName::Cpu => Ok(Device::Cpu),
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => Err(Error::invalid_request(format!(
                "{self} was asked for, but this program was built without the feature `cuda` of gpt-oss-puzzle"
            ))),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(number) => cuda::open(number).map_err(|error| {
                let error = match error {
                    candle_core::Error::WithBacktrace { inner, .. } => *inner,
                    error => error,
                };
                let message = format!("{self} cannot be used: {error}");
                Error::new(crate::ErrorKind::Device, message).with_source(error)
            }),
        }
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceMemory {
    /// What can be allocated.
    pub(crate) free: u64,
    /// All that it has.
    pub(crate) total: u64,
}

/// The memory of `device`; `None` for the CPU, of which the system must be asked.
pub(crate) fn device_memory(device: &Device) -> Result<Option<DeviceMemory>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, total) = crate::kernels::cuda::free_memory(&device.cuda_stream())?;
            Ok(Some(DeviceMemory { free, total }))
        }
        _ => Ok(None),
    }
}

/// Bytes that a step of `tokens` rows takes on a device beside weights and cache, at most: activations
/// and what the kernels put beside them; and what steps of decode of `sequences` take, recorded or not.
/// With what packed experts take beyond what is stored of them.
pub(crate) fn workspace(config: &ModelConfig, tokens: usize, sequences: usize) -> u64 {
    let heads = config.num_attention_heads * config.head_dim;
    let chosen = config.num_experts_per_tok;
    // f32 values per row: residual stream, norm, block output and their bf16 parts; queries, keys,
    // values and the output of attention; the experts' inputs and outputs.
    let row = 6 * config.hidden_size
        + 5 * heads
        + chosen * (3 * config.intermediate_size + 2 * config.hidden_size);
    // Logits as they are computed, as recorded steps share them, in room for twice as many rows, and as
    // they are handed out.
    let logits = (16 * config.vocab_size as u64).saturating_mul(sequences.max(1) as u64);
    // cuBLAS' own memory, the parts of split attention, page tables.
    let fixed = (256 << 20) + logits;
    fixed + padding(config) + 4 * (row as u64).saturating_mul(tokens as u64)
}

/// Experts are packed in slabs of 192 columns, 17 bytes for 32: none is padded in models of 2,880.
fn padding(config: &ModelConfig) -> u64 {
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let columns = |cols: u64| cols.next_multiple_of(192) - cols;
    let expert = (2 * inner * columns(hidden) + hidden * columns(inner)) * 17 / 32;
    config.block_configs.iter().map(|block| block.num_local_experts as u64 * expert).sum()
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Device;
    use crate::kernels::cuda::{between_recordings, prepare};
    use candle_core::{CudaDevice, Result};

    pub(super) fn open(number: usize) -> Result<Device> {
        let device = between_recordings(|| CudaDevice::new_with_stream(number))?;
        prepare(&device.cuda_stream())?;
        Ok(Device::Cuda(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn names_are_read_and_written() {
        for (name, device) in [
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:7", DeviceName::Cuda(7)),
        ] {
            assert_eq!(name.parse::<DeviceName>().unwrap(), device);
            assert_eq!(device.to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
            let error = name.parse::<DeviceName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert_eq!(
                error.to_string(),
                format!("device is {name:?}, expected \"cpu\", \"cuda\" or \"cuda:1\"")
            );
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_needs_the_feature() {
        let error = DeviceName::Cuda(1).open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(
            error.to_string(),
            "cuda:1 was asked for, but this program was built without the feature `cuda` of gpt-oss-puzzle"
        );
    }

    #[test]
    fn the_workspace_follows_the_chunk() {
        let config = ModelConfig::puzzle_88b();
        let (small, large) = (workspace(&config, 1, 1), workspace(&config, 4096, 1));
        assert!((256 << 20..300 << 20).contains(&small), "{small}");
        assert!((1 << 30..4 << 30).contains(&large), "{large}");
        assert_eq!(padding(&config), 0);
        let logits = 4 * config.vocab_size as u64;
        assert!(workspace(&config, 1, 65) >= small + 4 * 64 * logits);
    }
}
