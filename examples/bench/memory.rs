//! What a step has to read, how fast the device copies, and how much memory the process took.

use candle_core::{DType, Device, Tensor};
use gpt_oss_puzzle::cache::{KvCache, KvDtype};
use gpt_oss_puzzle::model::DenseDtype;
use gpt_oss_puzzle::weights::{Checkpoint, Layout};
use std::error::Error;
use std::time::Instant;

/// What decoding one token for each of `batch` sequences has to read: the weights of the experts that
/// are chosen, all other weights but the embedding, and the keys and values of `depth` positions that
/// each layer's window shows. How many different experts a batch chooses is what chance gives when all
/// are equally likely.
pub(crate) fn bytes_per_step(
    checkpoint: &Checkpoint,
    dense_dtype: DenseDtype,
    kv_dtype: KvDtype,
    depth: usize,
    batch: usize,
) -> u64 {
    let config = checkpoint.config();
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let queries = (config.num_attention_heads * config.head_dim) as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    // Bits of an expert's weight: FP4 and its share of a block's scale, or BF16.
    let bits = if checkpoint.layout() == Layout::HfBf16 { 16 } else { 4 * 32 + 8 };
    let per = if checkpoint.layout() == Layout::HfBf16 { 1 } else { 32 };
    let expert = 3 * hidden * inner * bits / per / 8 + 2 * (2 * inner + hidden);
    let page = KvCache::page_bytes(config, kv_dtype) as u64;
    let dense = |weights: u64| match dense_dtype {
        DenseDtype::Q8 => weights * 34 / 32,
        _ => 2 * weights,
    };
    let layer = |block: &gpt_oss_puzzle::BlockConfig| {
        let biases = 2 * (2 * queries + 2 * keys + hidden);
        let attention = dense(hidden * (2 * queries + 2 * keys)) + biases;
        let router = 2 * (hidden + 1) * block.num_local_experts as u64;
        let visible = block.sliding_window.map_or(depth, |w| w.min(depth)) as u64;
        let cache = batch as u64 * visible * page / gpt_oss_puzzle::cache::PAGE_TOKENS as u64;
        let experts = block.num_local_experts as f64;
        let missed = (1.0 - config.num_experts_per_tok as f64 / experts).powi(batch as i32);
        let chosen = experts * (1.0 - missed);
        attention + router + (chosen * expert as f64).round() as u64 + cache
    };
    config.block_configs.iter().map(layer).sum::<u64>() + dense(hidden * config.vocab_size as u64)
}

/// The most memory this process had at once, in bytes, where the system says so.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes per second that `device` reads and writes when it copies `bytes` within its memory: the ceiling
/// of what is bound by memory. The best of five.
pub(crate) fn copy_bandwidth(device: &Device, bytes: usize) -> Result<f64, Box<dyn Error>> {
    let source = Tensor::zeros(bytes / 4, DType::U32, device)?;
    let mut best = 0f64;
    for _ in 0..5 {
        device.synchronize()?;
        let started = Instant::now();
        let copy = source.copy()?;
        device.synchronize()?;
        best = best.max((2 * bytes) as f64 / started.elapsed().as_secs_f64());
        drop(copy);
    }
    Ok(best)
}
