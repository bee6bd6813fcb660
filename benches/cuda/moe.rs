//! Routed experts in MXFP4, packed as a model on a device has them.

use crate::data::{Rng, part};
use crate::timing::{Bench, Work};
use crate::{Result, Sizes};
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::CudaSlice;
use gpt_oss_puzzle::kernels::cuda::{CudaExperts, CudaMoe, CudaProjection, Packing};
use gpt_oss_puzzle::kernels::{ExpertShape, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::collections::HashSet;

/// Layers that calls go round in: the experts of one token, 53 MB, are gone from the second cache by the
/// time the same layer comes again.
const LAYERS: usize = 3;

/// Choices of experts that calls go round in; prime, so that each of them meets every layer.
const CHOICES: usize = 17;

pub(crate) fn run(bench: &Bench, sizes: &Sizes) -> Result<()> {
    if !bench.wants("moe") {
        return Ok(());
    }
    let (hidden, inner) = (sizes.config.hidden_size, sizes.config.intermediate_size);
    for &experts in &sizes.experts() {
        let layers = Layers {
            gate_up: Projections::new(
                bench,
                ExpertShape { experts, rows: 2 * inner, cols: hidden },
            )?,
            down: Projections::new(bench, ExpertShape { experts, rows: hidden, cols: inner })?,
        };
        layers.run(bench, sizes)?;
    }
    Ok(())
}

/// One projection of several layers.
struct Projections {
    shape: ExpertShape,
    packed: CudaSlice<u8>,
    bias: CudaSlice<bf16>,
}

impl Projections {
    fn new(bench: &Bench, shape: ExpertShape) -> Result<Projections> {
        let all = ExpertShape { experts: LAYERS * shape.experts, ..shape };
        let n = all.experts * all.rows * all.cols;
        let blocks = bench.random(n / 2, |rng| rng.bits() as u8)?;
        // 2^-9 to 2^-6: weights of the size that models have.
        let scales = bench.random(n / MXFP4_BLOCK, |rng| 118 + rng.below(4) as u8)?;
        let packed = bench.cuda.pack_experts(&blocks.as_view(), &scales.as_view(), all)?;
        let packed = packed.ok_or_else(|| format!("{all:?} cannot be packed"))?;
        Ok(Projections { shape, packed, bias: bench.bf16s(shape.experts * shape.rows)? })
    }

    /// That of the `i`-th call.
    fn of(&self, i: usize) -> CudaProjection<'_> {
        let bytes = Packing::of(self.shape).expect("what was packed").bytes();
        let weight = CudaExperts::Packed(part(&self.packed, i, bytes));
        CudaProjection { weight, bias: self.bias.as_view(), shape: self.shape }
    }

    /// Bytes of an expert.
    fn bytes(&self) -> usize {
        let ExpertShape { rows, cols, .. } = self.shape;
        rows * cols / 2 + rows * cols / MXFP4_BLOCK + 2 * rows
    }
}

struct Layers {
    gate_up: Projections,
    down: Projections,
}

impl Layers {
    fn run(&self, bench: &Bench, sizes: &Sizes) -> Result<()> {
        let ExpertShape { experts, rows: hidden, cols: inner } = self.down.shape;
        let (alpha, limit) = (sizes.config.swiglu_alpha as f32, sizes.config.swiglu_limit as f32);
        let (k, swiglu) = (sizes.config.num_experts_per_tok, SwigluParams { alpha, limit });
        for &t in sizes.expert_rows {
            let pairs = t * k;
            let mut rng = Rng(0x5eed);
            let choices: Vec<Vec<u32>> =
                (0..CHOICES * t).map(|_| rng.distinct(k, experts)).collect();
            let different =
                |choice: &[Vec<u32>]| choice.concat().iter().collect::<HashSet<_>>().len();
            let chosen = choices.chunks(t).map(different).sum::<usize>() as f64 / CHOICES as f64;
            let of_expert = self.gate_up.bytes() + self.down.bytes();
            let bytes = (chosen * of_expert as f64) as usize + 4 * (2 * t * hidden + 2 * pairs);
            let (indices, x) = (bench.upload(&choices.concat())?, bench.floats(t * hidden)?);
            let shares = bench.same(1.0 / k as f32, pairs)?;
            let work = Work { rows: t, bytes, flops: 2 * pairs * 3 * hidden * inner };
            let name = format!("moe of {experts}");
            bench.case(&name, work, &mut bench.nans(t * hidden)?, |i, out| {
                let moe = CudaMoe {
                    gate_up: self.gate_up.of(i),
                    down: self.down.of(i),
                    x: x.as_view(),
                    indices: part(&indices, i, pairs),
                    weights: shares.as_view(),
                    k,
                    swiglu,
                };
                bench.cuda.moe(out, &moe)
            })?;
        }
        Ok(())
    }
}
