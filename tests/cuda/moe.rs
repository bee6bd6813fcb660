//! Routed experts: packed, as stored, in bf16; both halves by themselves and in one. That rows keep
//! their bits in any company is in moe_rows.rs.

use crate::common::{Rng, Weights, assert_bounded, assert_same_bits};
use crate::device::{Gpu, Input, device};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaExperts, CudaMoe, CudaProjection};
use gpt_oss_puzzle::kernels::{ExpertShape, Experts, SwigluParams, reference};
use half::bf16;

pub(super) const SWIGLU: SwigluParams = SwigluParams { alpha: 1.702, limit: 7.0 };

/// What is lost of activations in two bf16 parts, 2^-17, and in one, 2^-9: in units of f32's epsilon.
const PARTS: usize = 64;
const ONE_PART: usize = 1 << 14;

/// How experts are on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Packed,
    Stored,
    Bf16,
}

/// One projection on the host and on the device.
pub(super) struct Projection<'a> {
    gpu: &'a Gpu,
    host: Experts<'a>,
    shape: ExpertShape,
    pub(super) bytes: Vec<Input<u8>>,
    weight: Option<Input<bf16>>,
    bias: Input<bf16>,
}

impl<'a> Projection<'a> {
    /// `packed`: when `host` is in MXFP4.
    pub(super) fn new(
        gpu: &'a Gpu,
        host: Experts<'a>,
        bias: &[bf16],
        shape: ExpertShape,
        packed: bool,
    ) -> Projection<'a> {
        let (bytes, weight) = match host {
            Experts::Mxfp4 { blocks, scales } if packed => {
                let (blocks, scales) = (gpu.input(blocks, 0), gpu.input(scales, 3));
                let packed = gpu.cuda.pack_experts(&blocks.view(), &scales.view(), shape).unwrap();
                let packed = packed.expect("these can be packed");
                (vec![gpu.input(&gpu.cuda.stream().clone_dtoh(&packed).unwrap(), 16)], None)
            }
            // Blocks must be aligned, scales need not be.
            Experts::Mxfp4 { blocks, scales } => {
                (vec![gpu.input(blocks, 16), gpu.input(scales, 3)], None)
            }
            Experts::Bf16(weight) => (vec![], Some(gpu.input(weight, 1))),
        };
        Projection { gpu, host, shape, bytes, weight, bias: gpu.input(bias, 1) }
    }

    fn view(&self) -> CudaProjection<'_> {
        let weight = match (&self.weight, &self.bytes[..]) {
            (Some(weight), _) => CudaExperts::Bf16(weight.view()),
            (None, [packed]) => CudaExperts::Packed(packed.view()),
            (None, bytes) => {
                CudaExperts::Mxfp4 { blocks: bytes[0].view(), scales: bytes[1].view() }
            }
        };
        CudaProjection { weight, bias: self.bias.view(), shape: self.shape }
    }

    fn gate_up(&self, x: &[f32], indices: &[u32], k: usize) -> Vec<f32> {
        let n = indices.len() * self.shape.rows / 2;
        let (x, indices) = (self.gpu.input(x, 4), self.gpu.input(indices, 1));
        self.gpu.guarded(n, 1, |out| {
            let (x, indices) = (x.view(), indices.view());
            self.gpu.cuda.moe_gate_up(out, &self.view(), &x, &indices, k, SWIGLU)
        })
    }

    pub(super) fn down(&self, a: &[f32], indices: &[u32], weights: &[f32], k: usize) -> Vec<f32> {
        let n = indices.len() / k * self.shape.rows;
        let (a, indices) = (self.gpu.input(a, 4), self.gpu.input(indices, 3));
        let weights = self.gpu.input(weights, 1);
        self.gpu.guarded(n, 3, |out| {
            let (a, indices, weights) = (a.view(), indices.view(), weights.view());
            self.gpu.cuda.moe_down(out, &self.view(), &a, &indices, &weights, k)
        })
    }

    /// Both halves against the reference, twice with the same bits.
    fn check(&self, rng: &mut Rng, indices: &[u32], k: usize) {
        let ExpertShape { rows, cols, .. } = self.shape;
        let t = indices.len() / k;
        let what = format!("T {t} k {k} {:?}", self.shape);
        let parts = if self.bytes.len() == 1 { PARTS } else { 0 };
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

/// A layer's experts on the host: gate and up, down.
pub(super) struct Host {
    pub(super) weights: [Weights; 2],
    pub(super) bias: [Vec<bf16>; 2],
    pub(super) shapes: [ExpertShape; 2],
}

impl Host {
    pub(super) fn random(
        rng: &mut Rng,
        experts: usize,
        hidden: usize,
        inner: usize,
        kinds: [Kind; 2],
    ) -> Host {
        let shapes = [[experts, 2 * inner, hidden], [experts, hidden, inner]].map(shape);
        let weights = [0, 1].map(|i| Weights::random(rng, shapes[i], kinds[i] != Kind::Bf16, 0));
        let bias = shapes.map(|shape| rng.bf16s(shape.experts * shape.rows));
        Host { weights, bias, shapes }
    }

    pub(super) fn on<'a>(&'a self, gpu: &'a Gpu, kinds: [Kind; 2]) -> Layer<'a> {
        let [gate_up, down] = [0, 1].map(|i| {
            let (host, packed) = (self.weights[i].view(), kinds[i] == Kind::Packed);
            Projection::new(gpu, host, &self.bias[i], self.shapes[i], packed)
        });
        Layer { gate_up, down }
    }
}

pub(super) fn shape([experts, rows, cols]: [usize; 3]) -> ExpertShape {
    ExpertShape { experts, rows, cols }
}

/// A layer's experts on the device.
pub(super) struct Layer<'a> {
    gate_up: Projection<'a>,
    pub(super) down: Projection<'a>,
}

/// What tokens bring to a layer.
pub(super) struct Tokens {
    pub(super) k: usize,
    pub(super) x: Vec<f32>,
    pub(super) indices: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

impl Tokens {
    pub(super) fn new(rng: &mut Rng, indices: Vec<u32>, k: usize, hidden: usize) -> Tokens {
        let x = rng.floats(indices.len() / k * hidden).iter().map(|x| 4.0 * x).collect();
        Tokens { k, x, weights: rng.floats(indices.len()), indices }
    }

    /// Those of these numbers.
    pub(super) fn pick(&self, picked: &[usize]) -> Tokens {
        let (k, hidden) = (self.k, self.x.len() / (self.indices.len() / self.k));
        let indices = picked.iter().flat_map(|t| &self.indices[t * k..(t + 1) * k]);
        let weights = picked.iter().flat_map(|t| &self.weights[t * k..(t + 1) * k]);
        let x = picked.iter().flat_map(|t| &self.x[t * hidden..(t + 1) * hidden]);
        Tokens {
            k,
            x: x.copied().collect(),
            indices: indices.copied().collect(),
            weights: weights.copied().collect(),
        }
    }
}

impl Layer<'_> {
    pub(super) fn run(&self, cuda: &Cuda, tokens: &Tokens) -> Vec<f32> {
        let (gpu, k) = (self.down.gpu, tokens.k);
        let (x, indices) = (gpu.input(&tokens.x, 4), gpu.input(&tokens.indices, 1));
        let weights = gpu.input(&tokens.weights, 3);
        gpu.guarded(tokens.indices.len() / k * self.down.shape.rows, 1, |out| {
            let moe = CudaMoe {
                gate_up: self.gate_up.view(),
                down: self.down.view(),
                x: x.view(),
                indices: indices.view(),
                weights: weights.view(),
                k,
                swiglu: SWIGLU,
            };
            cuda.moe(out, &moe)
        })
    }

    /// `got` against the reference: what gate and up may be off by counts with what down makes of it.
    pub(super) fn assert_right(&self, got: &[f32], tokens: &Tokens, lost: usize, what: &str) {
        let (up, down) = (&self.gate_up, &self.down);
        let Tokens { k, x, indices, weights } = tokens;
        let act = reference::moe_gate_up(up.host, &up.bias, up.shape, x, indices, *k, SWIGLU);
        let unit = f64::from(f32::EPSILON);
        let of_up = 2.0 * (up.shape.cols + 8 + lost) as f64 * unit;
        let a: Vec<f32> = act.value.iter().map(|a| *a as f32).collect();
        let off: Vec<f32> = act.terms.iter().map(|terms| (of_up * terms) as f32).collect();
        let want = reference::moe_down(down.host, &down.bias, down.shape, &a, indices, weights, *k);
        let none = vec![bf16::ZERO; down.bias.len()];
        let off = reference::moe_down(down.host, &none, down.shape, &off, indices, weights, *k);
        let of_down = (down.shape.cols + k + 2 + lost) as f64 * unit;
        assert_eq!(got.len(), want.value.len(), "{what}: length");
        for (i, got) in got.iter().enumerate() {
            let tolerance = of_down * want.terms[i] + off.terms[i] + 1e-37;
            let (error, want) = ((f64::from(*got) - want.value[i]).abs(), want.value[i]);
            assert!(error <= tolerance, "{what}: [{i}] is {got}, want {want} ± {tolerance}");
        }
    }
}

/// `t` rows of k distinct experts; expert 0 is never chosen when there are enough others.
pub(super) fn routes(rng: &mut Rng, t: usize, experts: usize, k: usize) -> Vec<u32> {
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

fn check(gpu: &Gpu, rng: &mut Rng, t: usize, k: usize, of: [usize; 3], kind: Kind) {
    let shape = shape(of);
    let w = Weights::random(rng, shape, kind != Kind::Bf16, 0);
    let bias = rng.bf16s(shape.experts * shape.rows);
    let indices = routes(rng, t, shape.experts, k);
    let packed = kind == Kind::Packed;
    Projection::new(gpu, w.view(), &bias, shape, packed).check(rng, &indices, k);
}

#[test]
fn halves_of_stored_experts_are_bounded() {
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
        (40, 2, [64, 50, 32]),
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
        check(gpu, &mut rng, t, k, shape, Kind::Stored);
    }
}

#[test]
fn halves_of_packed_experts_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    // Around the 192 columns of a slab, the two tiles of a block and the two experts it has at a time.
    for (t, k, shape) in [
        (0, 4, [4, 16, 32]),
        (1, 1, [1, 16, 32]),
        (1, 4, [4, 48, 192]),
        (3, 5, [7, 32, 224]),
        (9, 2, [128, 16, 384]),
        (2, 3, [3, 16, 2656]),
        (1, 4, [6, 32, 2880]),
    ] {
        check(gpu, &mut rng, t, k, shape, Kind::Packed);
    }
}

#[test]
fn halves_of_bf16_experts_are_bounded() {
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
        check(gpu, &mut rng, t, k, shape, Kind::Bf16);
    }
}

/// Both halves in one, of layers whose projections are on the device in any two ways.
#[test]
fn layers_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(4);
    use Kind::{Bf16, Packed, Stored};
    for (t, k, [experts, hidden, inner], kinds) in [
        (0, 4, [4, 32, 32], [Packed, Packed]),
        (1, 1, [1, 32, 32], [Packed, Packed]),
        (2, 4, [64, 64, 96], [Packed, Packed]),
        (3, 4, [128, 64, 32], [Packed, Packed]),
        (9, 2, [5, 224, 160], [Packed, Packed]),
        (40, 4, [16, 32, 224], [Packed, Packed]),
        (5, 2, [4, 64, 416], [Packed, Packed]),
        (2, 2, [4, 32, 64], [Packed, Stored]),
        (11, 2, [4, 32, 64], [Stored, Packed]),
        (11, 3, [4, 96, 32], [Packed, Bf16]),
        (5, 2, [4, 40, 24], [Bf16, Bf16]),
        (12, 2, [4, 32, 32], [Stored, Stored]),
    ] {
        let host = Host::random(&mut rng, experts, hidden, inner, kinds);
        let layer = host.on(gpu, kinds);
        let indices = routes(&mut rng, t, experts, k);
        let tokens = Tokens::new(&mut rng, indices, k, hidden);
        for (cuda, lost) in [(&gpu.cuda, PARTS), (&gpu.rounded, ONE_PART)] {
            let what = format!("T {t} k {k} {hidden} {inner} {kinds:?}");
            let got = layer.run(cuda, &tokens);
            layer.assert_right(&got, &tokens, lost, &what);
            assert_same_bits(&layer.run(cuda, &tokens), &got, &format!("again {what}"));
        }
    }
}

/// Experts of 0, 1, 7, 8, 9, 33, 64, 65 and 300 pairs, some among many that have none.
#[test]
fn ragged_routings_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(5);
    let counts = [0, 1, 7, 8, 9, 33, 64, 65, 300];
    for experts in [9, 64, 128] {
        let mut indices = Vec::new();
        for (i, count) in counts.iter().enumerate() {
            indices.extend(vec![((i + 1) * experts / 9 - 1) as u32; *count]);
        }
        for i in (1..indices.len()).rev() {
            indices.swap(i, rng.below(i + 1));
        }
        indices.truncate(indices.len() / 3 * 3);
        let kinds = [Kind::Packed; 2];
        let host = Host::random(&mut rng, experts, 32, 32, kinds);
        let (layer, tokens) = (host.on(gpu, kinds), Tokens::new(&mut rng, indices, 3, 32));
        let got = layer.run(&gpu.cuda, &tokens);
        layer.assert_right(&got, &tokens, PARTS, &format!("{experts} experts"));
    }
}
