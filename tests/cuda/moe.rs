//! Routed experts: one product per (token, expert) pair up to 8 tokens, tiles of pairs sorted by expert
//! for more, and the plain kernels of bf16 experts.

use crate::common::{Rng, Weights, assert_bounded, assert_same_bits};
use crate::device::{Gpu, Input, device};
use gpt_oss_puzzle::kernels::cuda::CudaExperts;
use gpt_oss_puzzle::kernels::{ExpertShape, Experts, SwigluParams, reference};
use half::bf16;

const SWIGLU: SwigluParams = SwigluParams { alpha: 1.702, limit: 7.0 };

/// What is lost of x in two bf16 parts, 2^-17, in units of f32's epsilon.
const PARTS: usize = 64;

/// One projection on the host and on the device.
struct Projection<'a> {
    gpu: &'a Gpu,
    host: Experts<'a>,
    shape: ExpertShape,
    bytes: Vec<Input<u8>>,
    weight: Option<Input<bf16>>,
    bias: Input<bf16>,
}

impl<'a> Projection<'a> {
    fn new(gpu: &'a Gpu, host: Experts<'a>, bias: &[bf16], shape: ExpertShape) -> Projection<'a> {
        let (bytes, weight) = match host {
            // Blocks must be aligned, scales need not be.
            Experts::Mxfp4 { blocks, scales } => {
                (vec![gpu.input(blocks, 16), gpu.input(scales, 3)], None)
            }
            Experts::Bf16(weight) => (vec![], Some(gpu.input(weight, 1))),
        };
        Projection { gpu, host, shape, bytes, weight, bias: gpu.input(bias, 1) }
    }

    fn view(&self) -> CudaExperts<'_> {
        match &self.weight {
            None => {
                CudaExperts::Mxfp4 { blocks: self.bytes[0].view(), scales: self.bytes[1].view() }
            }
            Some(weight) => CudaExperts::Bf16(weight.view()),
        }
    }

    fn gate_up(&self, x: &[f32], indices: &[u32], k: usize) -> Vec<f32> {
        let n = indices.len() * self.shape.rows / 2;
        let (x, indices) = (self.gpu.input(x, 4), self.gpu.input(indices, 1));
        let (w, bias) = (self.view(), self.bias.view());
        self.gpu.guarded(n, 1, |out| {
            let (x, indices) = (x.view(), indices.view());
            self.gpu.cuda.moe_gate_up(out, &w, &bias, self.shape, &x, &indices, k, SWIGLU)
        })
    }

    fn down(&self, a: &[f32], indices: &[u32], weights: &[f32], k: usize) -> Vec<f32> {
        let n = indices.len() / k * self.shape.rows;
        let (a, indices) = (self.gpu.input(a, 4), self.gpu.input(indices, 3));
        let (weights, w, bias) = (self.gpu.input(weights, 1), self.view(), self.bias.view());
        self.gpu.guarded(n, 3, |out| {
            let (a, indices, weights) = (a.view(), indices.view(), weights.view());
            self.gpu.cuda.moe_down(out, &w, &bias, self.shape, &a, &indices, &weights, k)
        })
    }

    /// Both against the reference, twice with the same bits.
    fn check(&self, rng: &mut Rng, indices: &[u32], k: usize) {
        let ExpertShape { rows, cols, .. } = self.shape;
        let t = indices.len() / k;
        let what = format!("T {t} k {k} {:?} bf16 {}", self.shape, self.weight.is_some());
        let parts = if t > 8 && self.weight.is_none() { PARTS } else { 0 };
        // Large enough that both clamps bite.
        let x: Vec<f32> = rng.floats(t * cols).iter().map(|x| 8.0 * x).collect();
        if rows.is_multiple_of(2) {
            let want =
                reference::moe_gate_up(self.host, &self.bias, self.shape, &x, indices, k, SWIGLU);
            let got = self.gate_up(&x, indices, k);
            assert_bounded(&got, &want, 2.0, cols + 8 + parts, &format!("gate_up {what}"));
            assert_same_bits(&self.gate_up(&x, indices, k), &got, &format!("again {what}"));
        }
        let (a, weights) = (rng.floats(t * k * cols), rng.floats(t * k));
        let want = reference::moe_down(self.host, &self.bias, self.shape, &a, indices, &weights, k);
        let got = self.down(&a, indices, &weights, k);
        assert_bounded(&got, &want, 1.0, cols + k + 1 + parts, &format!("down {what}"));
        assert_same_bits(&self.down(&a, indices, &weights, k), &got, &format!("again {what}"));
    }
}

/// `t` rows of k distinct experts; expert 0 is never chosen when there are enough others.
fn routes(rng: &mut Rng, t: usize, experts: usize, k: usize) -> Vec<u32> {
    let mut indices = Vec::new();
    for _ in 0..t {
        let mut row: Vec<u32> = (u32::from(experts > k)..experts as u32).collect();
        for i in 0..k {
            let other = i + rng.below(row.len() - i);
            row.swap(i, other);
        }
        indices.extend(&row[..k]);
    }
    indices
}

fn check(gpu: &Gpu, rng: &mut Rng, t: usize, k: usize, shape: [usize; 3], mxfp4: bool) {
    let [experts, rows, cols] = shape;
    let shape = ExpertShape { experts, rows, cols };
    let w = Weights::random(rng, shape, mxfp4, 0);
    let bias = rng.bf16s(experts * rows);
    let indices = routes(rng, t, experts, k);
    Projection::new(gpu, w.view(), &bias, shape).check(rng, &indices, k);
}

#[test]
fn few_tokens_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    // Around the 24 rows of a block and the 32 column blocks of a warp.
    for (t, k, shape) in [
        (0, 4, [4, 6, 32]),
        (1, 1, [1, 2, 32]),
        (1, 4, [4, 1, 64]),
        (2, 2, [7, 22, 96]),
        (3, 4, [4, 24, 160]),
        (8, 4, [128, 26, 64]),
        (1, 5, [64, 50, 992]),
        (2, 3, [3, 10, 1024]),
        (1, 2, [3, 6, 1056]),
        // More experts than a block has room for at a time.
        (1, 20, [20, 25, 32]),
        (1, 9, [10, 4, 2880]),
        // More columns than a block has threads: 544 column blocks.
        (1, 2, [2, 8, 17408]),
        (4, 4, [6, 34, 2880]),
    ] {
        check(gpu, &mut rng, t, k, shape, true);
    }
}

#[test]
fn many_tokens_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    // Around the 128 rows and 64 pairs of a tile and its two column blocks of a step.
    for (t, k, shape) in [
        (9, 1, [1, 2, 32]),
        (9, 4, [4, 1, 64]),
        (17, 2, [7, 18, 96]),
        (63, 1, [1, 126, 64]),
        (64, 1, [1, 128, 32]),
        (65, 1, [1, 130, 160]),
        (70, 2, [2, 258, 32]),
        (150, 3, [5, 34, 64]),
        // Experts in more than one chunk of the list of tiles, most without a pair.
        (10, 4, [128, 10, 64]),
        (30, 4, [64, 10, 64]),
        // More pairs than are sorted in one pass.
        (131, 4, [4, 4, 32]),
        (9, 2, [3, 34, 2880]),
    ] {
        check(gpu, &mut rng, t, k, shape, true);
    }
}

#[test]
fn bf16_experts_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for (t, k, shape) in [
        (0, 2, [2, 4, 5]),
        (1, 1, [1, 1, 1]),
        (2, 4, [4, 6, 33]),
        (9, 2, [7, 18, 7]),
        (3, 4, [64, 258, 64]),
        (40, 4, [128, 10, 64]),
        (2, 2, [3, 34, 2880]),
    ] {
        check(gpu, &mut rng, t, k, shape, false);
    }
}

/// A row has the bits it has alone, or in the case of many tokens in any other company: wherever it
/// stands and whoever shares its tile.
#[test]
fn rows_are_invariant_on_each_path() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(4);
    for (t, mxfp4) in [(8, true), (90, true), (11, false)] {
        let (k, shape) = (2, ExpertShape { experts: 3, rows: 10, cols: 96 });
        let w = Weights::random(&mut rng, shape, mxfp4, 0);
        let bias = rng.bf16s(shape.experts * shape.rows);
        let projection = Projection::new(gpu, w.view(), &bias, shape);
        let indices = routes(&mut rng, t, shape.experts, k);
        let (x, a) = (rng.floats(t * shape.cols), rng.floats(t * k * shape.cols));
        let weights = rng.floats(t * k);
        let up = projection.gate_up(&x, &indices, k);
        let down = projection.down(&a, &indices, &weights, k);
        let few = t == 8;
        let picks: [Vec<usize>; 3] = [
            if few { vec![5] } else { (0..t).rev().collect() },
            if few { vec![7, 0, 3] } else { (0..10).map(|i| i * 5 % 11).collect() },
            if few { (0..8).rev().collect() } else { vec![2; 70] },
        ];
        for picked in &picks {
            let pick = |all: &[f32], width: usize| -> Vec<f32> {
                picked.iter().flat_map(|&t| &all[t * width..(t + 1) * width]).copied().collect()
            };
            let indices: Vec<u32> =
                picked.iter().flat_map(|&t| &indices[t * k..(t + 1) * k]).copied().collect();
            let what = format!("T {t} mxfp4 {mxfp4} {picked:?}");
            let got = projection.gate_up(&pick(&x, shape.cols), &indices, k);
            assert_same_bits(&got, &pick(&up, k * shape.rows / 2), &what);
            let (a, weights) = (pick(&a, k * shape.cols), pick(&weights, k));
            let got = projection.down(&a, &indices, &weights, k);
            assert_same_bits(&got, &pick(&down, shape.rows), &what);
        }
    }
}

/// Scale `s` of expert s and byte r of row r, 16 times: an input that picks one column reads one nibble.
/// Above scale 252 the largest code overflows.
#[test]
fn one_hot_inputs_read_every_weight_exactly() {
    let Some(gpu) = device() else { return };
    let blocks: Vec<u8> =
        (0..253 * 256).flat_map(|row| std::iter::repeat_n((row % 256) as u8, 16)).collect();
    let scales: Vec<u8> = (0..253 * 256).map(|row| (row / 256) as u8).collect();
    let shape = ExpertShape { experts: 253, rows: 256, cols: 32 };
    let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
    let projection = Projection::new(gpu, w, &vec![bf16::ZERO; 253 * 256], shape);
    let run = |tokens: &[(u32, usize)]| {
        let (indices, lanes): (Vec<u32>, Vec<usize>) = tokens.iter().copied().unzip();
        let mut a = vec![0.0; lanes.len() * 32];
        for (a, lane) in a.chunks_exact_mut(32).zip(&lanes) {
            a[*lane] = 1.0;
        }
        let out = projection.down(&a, &indices, &vec![1.0; lanes.len()], 1);
        for (out, (expert, lane)) in out.chunks_exact(256).zip(tokens) {
            for (byte, &got) in out.iter().enumerate() {
                let nibble = if lane % 2 == 0 { byte & 15 } else { byte >> 4 };
                let want = reference::fp4(nibble as u8) * reference::e8m0(*expert as u8);
                assert!(
                    got == want as f32,
                    "{} tokens, scale {expert}, byte {byte}, column {lane}: {got}, want {want}",
                    tokens.len()
                );
            }
        }
    };
    // Every scale with many tokens, and every column at some; a handful of both with few.
    run(&(0..253).map(|e| (e, e as usize * 5 % 32)).collect::<Vec<_>>());
    for scales in [[0, 1, 2, 100, 126, 127, 128, 129], [130, 200, 240, 241, 242, 250, 251, 252]] {
        run(&scales.map(|e| (e, e as usize % 32)));
    }
    for first in [0, 8, 16, 24] {
        run(&(0..8).map(|i| (127, first + i)).collect::<Vec<_>>());
    }
}

#[test]
fn the_activation_handles_extremes() {
    let Some(gpu) = device() else { return };
    // One expert whose gate and up are the bias alone.
    let shape = ExpertShape { experts: 1, rows: 2, cols: 32 };
    let w = Experts::Mxfp4 { blocks: &[0; 32], scales: &[127; 2] };
    for t in [1, 9] {
        let (x, indices) = (vec![0.0; t * 32], vec![0; t]);
        for (gate, up) in [(-1e30, 1.0), (-90.0, -7.5), (1e30, 1e30), (7.0, -7.0), (-0.0, 0.0)] {
            let bias = [gate, up].map(bf16::from_f32);
            let want = reference::moe_gate_up(w, &bias, shape, &x, &indices, 1, SWIGLU);
            let got = Projection::new(gpu, w, &bias, shape).gate_up(&x, &indices, 1);
            assert_bounded(&got, &want, 2.0, 4, &format!("T {t} gate {gate} up {up}"));
        }
        for bias in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            let bias = bias.map(bf16::from_f32);
            let got = Projection::new(gpu, w, &bias, shape).gate_up(&x, &indices, 1);
            assert!(got.iter().all(|y| y.is_nan()), "T {t} hides a NaN: {got:?}");
        }
    }
}

/// Indices are not looked at on the host. One that names no expert reads nothing and gives NaN where it
/// was used, and nowhere else; so does a scale that is NaN.
#[test]
fn what_is_no_expert_and_what_is_no_number_is_nan() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(5);
    let (k, shape) = (2, ExpertShape { experts: 3, rows: 4, cols: 64 });
    // The first number behind the experts, and none but larger ones.
    for (t, mxfp4, none) in [(3, true, 3), (12, true, 3), (12, true, 4), (3, false, 3)] {
        let w = Weights::random(&mut rng, shape, mxfp4, 0);
        let bias = rng.bf16s(shape.experts * shape.rows);
        let mut indices = vec![0; t * k];
        (indices[0], indices[2 * k + 1]) = (none, u32::MAX);
        let broken = |t: usize| t == 0 || t == 2;
        let projection = Projection::new(gpu, w.view(), &bias, shape);
        let up = projection.gate_up(&rng.floats(t * 64), &indices, k);
        for (pair, up) in up.chunks(2).enumerate() {
            let broken = pair == 0 || pair == 2 * k + 1;
            assert!(up.iter().all(|y| y.is_nan() == broken), "T {t} pair {pair}: {up:?}");
        }
        let down = projection.down(&rng.floats(t * k * 64), &indices, &vec![1.0; t * k], k);
        for (t, out) in down.chunks(4).enumerate() {
            assert!(out.iter().all(|y| y.is_nan() == broken(t)), "token {t}: {out:?}");
        }
    }
    for t in [1, 9] {
        let (blocks, mut scales) = (rng.bytes(3 * 4 * 32), vec![120; 3 * 4 * 2]);
        // Of expert 1, row 2, the second half of the columns.
        scales[4 * 2 + 2 * 2 + 1] = 255;
        let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
        let projection = Projection::new(gpu, w, &[bf16::ZERO; 12], shape);
        let down =
            projection.down(&rng.floats(t * 2 * 64), &[1, 2].repeat(t), &vec![1.0; t * 2], 2);
        for (i, y) in down.iter().enumerate() {
            assert_eq!(y.is_nan(), i % 4 == 2, "T {t} [{i}]: {y}");
        }
    }
}

#[test]
#[should_panic(expected = "blocks or x not aligned")]
fn blocks_that_cannot_be_loaded_whole_are_refused() {
    let Some(gpu) = device() else { panic!("blocks or x not aligned") };
    let (blocks, scales) = (gpu.input(&[0; 32], 8), gpu.input(&[127; 2], 0));
    let w = CudaExperts::Mxfp4 { blocks: blocks.view(), scales: scales.view() };
    let (bias, x, indices) = (gpu.input(&[bf16::ZERO; 2], 0), gpu.input(&[0.0; 32], 0), [0]);
    let (indices, shape) = (gpu.input(&indices, 0), ExpertShape { experts: 1, rows: 2, cols: 32 });
    gpu.guarded(1, 0, |out| {
        let (bias, x, indices) = (bias.view(), x.view(), indices.view());
        gpu.cuda.moe_gate_up(out, &w, &bias, shape, &x, &indices, 1, SWIGLU)
    });
}
