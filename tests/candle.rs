//! A second opinion: what candle's own layers compute on the same inputs as ours.
//!
//! candle-nn has the plain layers of this family (not its sinks, windows or experts), written by
//! others; where both exist they must agree.

#[allow(dead_code)] // The kernels' own tests use the rest.
#[path = "common/kernels.rs"]
mod kernels;

use candle_core::{D, Device, Tensor};
use candle_nn::{Module, rotary_emb};
use gpt_oss_puzzle::kernels::Dense;
use gpt_oss_puzzle::kernels::cpu::Cpu;
use half::bf16;

fn values(count: usize, seed: u32) -> Vec<f32> {
    let scramble = |i: u32| (i + 7919 * seed).wrapping_mul(2_654_435_761) >> 8;
    (0..count as u32).map(|i| scramble(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// Runs `ours` on every tier of this machine and compares it with `theirs`.
fn agree(name: &str, theirs: &Tensor, tolerance: f32, ours: impl Fn(&Cpu, &mut [f32])) {
    let want = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for cpu in kernels::on_threads(2) {
        let isa = cpu.isa();
        let mut got = vec![f32::NAN; want.len()];
        ours(&cpu, &mut got);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= tolerance, "{name} on {isa:?}: [{i}] {got}, {want}");
        }
    }
}

#[test]
fn norm_projection_rope_and_routing_are_those_of_candle() {
    let (t, h, o) = (5, 2880, 96);
    let (x, w) = (values(t * h, 1), values(h, 2));
    let (xs, ws) = (tensor(&x, &[t, h]), tensor(&w, &[h]));
    let theirs = candle_nn::RmsNorm::new(ws, 1e-5).forward(&xs).unwrap();
    agree("rms_norm", &theirs, 1e-5, |cpu, out| cpu.rms_norm(out, &x, &w, 1e-5));

    let weight: Vec<bf16> = values(o * h, 3).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = weight.iter().map(|w| w.to_f32()).collect();
    let bias = values(o, 4);
    let linear = candle_nn::Linear::new(tensor(&wide, &[o, h]), Some(tensor(&bias, &[o])));
    let theirs = linear.forward(&xs).unwrap();
    agree("matmul", &theirs, 2e-3, |cpu, out| {
        cpu.matmul(out, Dense::Bf16(&weight), &x, Some(&bias), o, h)
    });

    let (heads, head_dim) = (3, 64);
    let (q, angles) = (values(t * heads * head_dim, 5), values(t * head_dim / 2, 6));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let (cos_t, sin_t) = (tensor(&cos, &[t, head_dim / 2]), tensor(&sin, &[t, head_dim / 2]));
    // candle's layout is [1, heads, T, D].
    let by_head = tensor(&q, &[1, t, heads, head_dim]).transpose(1, 2).unwrap();
    let theirs = rotary_emb::rope(&by_head.contiguous().unwrap(), &cos_t, &sin_t).unwrap();
    let theirs = theirs.transpose(1, 2).unwrap();
    agree("rope", &theirs, 1e-6, |cpu, out| {
        out.copy_from_slice(&q);
        cpu.rope(out, &cos, &sin, heads, head_dim);
    });

    let (experts, k) = (32, 4);
    let logits = values(t * experts, 7);
    let (sorted, _) = tensor(&logits, &[t, experts]).sort_last_dim(false).unwrap();
    let top = sorted.narrow(D::Minus1, 0, k).unwrap().contiguous().unwrap();
    let theirs = candle_nn::ops::softmax(&top, D::Minus1).unwrap();
    agree("topk_softmax", &theirs, 1e-6, |cpu, out| {
        cpu.topk_softmax(&mut vec![0; t * k], out, &logits, experts, k);
    });
}
