//! Routed experts in MXFP4.

use crate::data::{Rng, part};
use crate::timing::{Bench, Work};
use crate::{Result, Sizes};
use gpt_oss_puzzle::kernels::cuda::CudaExperts;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::CudaSlice;
use gpt_oss_puzzle::kernels::{ExpertShape, MXFP4_BLOCK, SwigluParams};
use half::bf16;
use std::collections::HashSet;

/// Layers that calls go round in: the experts of one token, 35 MB for gate and up, are gone from the
/// second cache by the time the same layer comes again.
const LAYERS: usize = 3;

/// Choices of experts that calls go round in; prime, so that each of them meets every layer.
const CHOICES: usize = 17;

pub(crate) fn run(bench: &Bench, sizes: &Sizes) -> Result<()> {
    let config = &sizes.config;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (alpha, limit) = (config.swiglu_alpha as f32, config.swiglu_limit as f32);
    let swiglu = SwigluParams { alpha, limit };
    for &experts in &sizes.experts() {
        for (name, rows, cols) in [("moe_gate_up", 2 * inner, hidden), ("moe_down", hidden, inner)]
        {
            if bench.wants(name) {
                let shape = ExpertShape { experts, rows, cols };
                let layers = Layers::new(bench, shape)?;
                layers.run(name, sizes, (name == "moe_gate_up").then_some(swiglu))?;
            }
        }
    }
    Ok(())
}

/// One projection of several layers.
struct Layers<'a> {
    bench: &'a Bench,
    shape: ExpertShape,
    blocks: CudaSlice<u8>,
    scales: CudaSlice<u8>,
    bias: CudaSlice<bf16>,
}

impl Layers<'_> {
    fn new(bench: &Bench, shape: ExpertShape) -> Result<Layers<'_>> {
        let n = shape.experts * shape.rows * shape.cols;
        let blocks = bench.random(LAYERS * n / 2, |rng| rng.bits() as u8)?;
        // 2^-9 to 2^-6: weights of the size that models have.
        let scales = bench.random(LAYERS * n / MXFP4_BLOCK, |rng| 118 + rng.below(4) as u8)?;
        let bias = bench.bf16s(shape.experts * shape.rows)?;
        Ok(Layers { bench, shape, blocks, scales, bias })
    }

    /// With `swiglu` gate and up, without it down.
    fn run(&self, name: &str, sizes: &Sizes, swiglu: Option<SwigluParams>) -> Result<()> {
        let Layers { bench, shape, .. } = *self;
        let ExpertShape { experts, rows, cols } = shape;
        let (k, weights) = (sizes.config.num_experts_per_tok, rows * cols);
        let of_expert = weights / 2 + weights / MXFP4_BLOCK + 2 * rows;
        for &t in sizes.rows {
            let pairs = t * k;
            let mut rng = Rng(0x5eed);
            let choices: Vec<Vec<u32>> =
                (0..CHOICES * t).map(|_| rng.distinct(k, experts)).collect();
            let different =
                |choice: &[Vec<u32>]| choice.concat().iter().collect::<HashSet<_>>().len();
            let chosen = choices.chunks(t).map(different).sum::<usize>() as f64 / CHOICES as f64;
            let (inputs, outputs) = match swiglu {
                Some(_) => (t * cols, pairs * rows / 2),
                None => (pairs * cols, t * rows),
            };
            let bytes = (chosen * of_expert as f64) as usize + 4 * (inputs + outputs + 2 * pairs);
            let (indices, x) = (bench.upload(&choices.concat())?, bench.floats(inputs)?);
            let shares = bench.same(1.0 / k as f32, pairs)?;
            let work = Work { rows: t, bytes, flops: 2 * pairs * weights };
            let name = format!("{name} of {experts}");
            bench.case(&name, work, &mut bench.nans(outputs)?, |i, out| {
                let n = experts * weights;
                let blocks = part(&self.blocks, i, n / 2);
                let scales = part(&self.scales, i, n / MXFP4_BLOCK);
                let w = CudaExperts::Mxfp4 { blocks, scales };
                let (bias, x) = (self.bias.as_view(), x.as_view());
                let indices = part(&indices, i, pairs);
                match swiglu {
                    Some(swiglu) => {
                        bench.cuda.moe_gate_up(out, &w, &bias, shape, &x, &indices, k, swiglu)
                    }
                    None => {
                        let shares = shares.as_view();
                        bench.cuda.moe_down(out, &w, &bias, shape, &x, &indices, &shares, k)
                    }
                }
            })?;
        }
        Ok(())
    }
}
