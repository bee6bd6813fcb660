//! Times each CUDA kernel at the shapes of puzzle-88B, beside the rate at which the device copies memory.
//!
//! `cargo bench --features cuda --bench cuda [-- [NAME] [--small]]`; with NAME only the cases that begin
//! so, like `matmul q`, or `"moe of 64 T=1"` for one row alone. `--small` shrinks every shape, so
//! that all of it runs on an emulator, and measures nothing.
//!
//! **Time** is the median of many, each taken by events on the stream around many calls. Before the first
//! of them the device copies memory for a while, so that they queue up and follow each other without
//! waiting for the host; the second line says what a kernel without work takes this way, and no kernel is
//! faster. Routed experts for many tokens, dense products for many rows and attention in parts are several
//! kernels, sampling uploads its parameters: all of it counts.
//!
//! **Weights, tables and pages come from memory**: call after call takes the next part of an array that
//! is several times as large as the second cache (50 MB on an H100 or H200), or is that large itself.
//! What the kernel before would have written in a model, rows and queries, is the same for every call
//! and comes from that cache when it is small enough; only of such can the share exceed 100 %.
//!
//! **MB** is all that a call must read and write, each once; of experts, those that the rows of a call
//! choose, which is drawn at random. A result that is not finite is an error: a
//! kernel that was given an index outside its range writes NaN and is fast.
//!
//! **TFLOP/s** counts the operations of the product. The tensor cores do twice as many, because a row
//! goes to them in two parts.

#[path = "cuda/attention.rs"]
mod attention;
#[path = "../examples/common/mod.rs"]
mod common;
#[path = "cuda/data.rs"]
mod data;
#[path = "cuda/dense.rs"]
mod dense;
#[path = "cuda/moe.rs"]
mod moe;
#[path = "cuda/timing.rs"]
mod timing;

use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::model::DeviceName;
use gpt_oss_puzzle::weights::tiny_config;
use std::error::Error;
use std::process::ExitCode;
use timing::Bench;

/// What went wrong: no device, or what the driver refused.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is measured, beside the shapes of the model.
struct Sizes {
    config: ModelConfig,
    /// Tokens of a call, where a row more costs little.
    rows: &'static [usize],
    /// Tokens of a call of routed experts: around where the kernels change.
    expert_rows: &'static [usize],
    /// Tokens of a call of dense products, 256 being the most that cuBLAS does not get.
    product_rows: &'static [usize],
    /// Positions before a decoded token, itself included.
    depths: &'static [usize],
    /// Sequences that are decoded together.
    batches: &'static [usize],
    windows: &'static [usize],
    /// Prompts: rows, and the positions before them.
    prompts: &'static [(usize, usize)],
    /// Rows of logits.
    draws: &'static [usize],
    /// Bytes that are copied to see how fast the device is: more than any cache holds.
    copied: usize,
    /// Bytes that weights and pages go round in, unless one of them is larger: far more than 50 MB.
    rotation: usize,
}

impl Sizes {
    fn puzzle_88b() -> Sizes {
        Sizes {
            config: ModelConfig::puzzle_88b(),
            rows: &[1, 8, 64, 512, 4096],
            expert_rows: &[1, 2, 8, 16, 64, 256, 1024, 4096],
            product_rows: &[1, 8, 16, 64, 256, 512],
            depths: &[1024, 8192, 65_536, 131_072],
            batches: &[1, 8],
            windows: &[128, 8192],
            prompts: &[(512, 0), (4096, 0), (4096, 61_440)],
            draws: &[1, 64],
            copied: 1 << 30,
            rotation: 1 << 30,
        }
    }

    fn small() -> Sizes {
        Sizes {
            config: tiny_config(),
            rows: &[1, 8, 12],
            expert_rows: &[1, 3, 12],
            product_rows: &[1, 12, 260],
            depths: &[70, 300],
            batches: &[1, 2],
            windows: &[20],
            prompts: &[(12, 0), (12, 70)],
            draws: &[1, 3],
            copied: 1 << 16,
            rotation: 1 << 16,
        }
    }

    /// Experts of a layer, each number once, the largest first.
    fn experts(&self) -> Vec<usize> {
        let mut experts: Vec<_> =
            self.config.block_configs.iter().map(|block| block.num_local_experts).collect();
        experts.sort_unstable_by(|a, b| b.cmp(a));
        experts.dedup();
        experts
    }
}

fn run() -> Result<ExitCode> {
    let (mut filter, mut small) = (None, false);
    for argument in std::env::args().skip(1) {
        match &*argument {
            "--small" => small = true,
            // An argument of cargo's own.
            "--bench" => {}
            name if !name.starts_with('-') && filter.is_none() => filter = Some(argument),
            _ => return Err(format!("{argument}: expected [NAME] [--small]").into()),
        }
    }
    let sizes = if small { Sizes::small() } else { Sizes::puzzle_88b() };
    let device = DeviceName::Cuda(0).open()?;
    let bench = Bench::new(device.as_cuda_device()?, filter.unwrap_or_default(), &sizes, small)?;
    if small {
        println!("--small: tiny shapes, each called a few times. THESE ARE NO MEASUREMENTS.");
    }
    dense::run(&bench, &sizes)?;
    moe::run(&bench, &sizes)?;
    attention::run(&bench, &sizes)?;
    bench.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::exit(run())
}
