//! Every CUDA kernel against the f64 reference: on a GPU, or on the emulator of `cuda/emulator`.
//!
//! Without a device the tests say so and pass; `REQUIRE_CUDA=1` makes that a failure. With the emulator:
//!
//! ```sh
//! eval "$(tests/cuda/emulator/build.sh)"
//! REQUIRE_CUDA=1 cargo test --features cuda --test cuda
//! EMULATOR_ORDER=descending cargo test --features cuda --test cuda
//! ```
//!
//! **To add tests of a family of kernels**: `cuda/name.rs` and a `mod` line below. A test begins with
//! `let Some(gpu) = device() else { return };`, uploads with `gpu.input(..)`, runs an entry point of
//! `gpu.cuda` inside `gpu.guarded(..)`, and compares with `assert_bounded` or `assert_same_bits`.
//! `gpu.input` has the memory around its values filled with NaN, begins where it is told to, and is
//! compared with itself when it is dropped; `gpu.guarded` hands out NaNs between canaries.

#[path = "common/kernels.rs"]
#[allow(dead_code)]
mod common;

#[path = "common/batches.rs"]
mod batches;

#[path = "common/bigram.rs"]
#[allow(unreachable_pub)]
mod bigram;

#[path = "common/checkpoint.rs"]
#[allow(unreachable_pub)]
mod checkpoint;

#[path = "common/golden.rs"]
mod golden;

#[path = "common/speaking.rs"]
#[allow(unreachable_pub)]
mod models;

#[path = "cuda/device.rs"]
mod device;

mod cuda {
    mod activations;
    mod attention;
    mod cache;
    mod embedding;
    mod engine;
    mod graph;
    mod load;
    mod matmul;
    mod moe;
    mod moe_many;
    mod moe_limits;
    mod moe_route;
    mod moe_rows;
    mod padding;
    mod replay;
    mod rms_norm;
    mod sample;
    mod step_rows;
    mod threads;
    mod topk;
}
