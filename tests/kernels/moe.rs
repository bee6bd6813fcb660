//! Routing and experts.

use crate::common::*;
use gpt_oss_puzzle::kernels::{ExpertShape, Experts, SwigluParams, reference};
use half::bf16;

const SWIGLU: SwigluParams = SwigluParams { alpha: 1.702, limit: 7.0 };

#[test]
fn topk_is_exact_for_every_expert_count() {
    let mut rng = Rng(5);
    for experts in 1..=128 {
        for k in [1, 2, 4, experts].into_iter().filter(|&k| k <= experts) {
            // Few distinct values, so that most rows have ties; one row of equals; signed zeros.
            let mut logits: Vec<f32> =
                (0..6 * experts).map(|_| rng.below(9) as f32 / 2.0 - 2.0).collect();
            logits[..experts].fill(1.5);
            for (i, logit) in logits[experts..2 * experts].iter_mut().enumerate() {
                *logit = if i % 2 == 0 { -0.0 } else { 0.0 };
            }
            logits.extend(rng.floats(2 * experts));
            let logits = Input::new(logits, 1);
            let (want_indices, want) = reference::topk_softmax(&logits, experts, k);
            for cpu in tiers() {
                let mut indices = vec![u32::MAX; 8 * k];
                let got = guarded(8 * k, 1, |weights| {
                    cpu.topk_softmax(&mut indices, weights, &logits, experts, k);
                });
                let what = format!("{cpu:?} E {experts} k {k}");
                assert_eq!(indices, want_indices, "{what}");
                assert_bounded(&got, &want, 2.0, k + 2, &what);
            }
        }
    }
}

#[test]
fn topk_ranks_nan_below_every_number() {
    let logits = [f32::NAN, 1.0, f32::NAN, f32::NEG_INFINITY, 3.0];
    for cpu in tiers() {
        let (mut indices, mut weights) = ([9; 3], [0.0; 3]);
        cpu.topk_softmax(&mut indices, &mut weights, &logits, 5, 3);
        assert_eq!(indices, [4, 1, 3]);
        assert_eq!(weights[2], 0.0);
        let (mut indices, mut weights) = ([9; 5], [0.0; 5]);
        cpu.topk_softmax(&mut indices, &mut weights, &logits, 5, 5);
        assert_eq!(indices, [4, 1, 3, 0, 2]);
        assert!(weights.iter().all(|w| w.is_nan()));
    }
}

/// `tokens` rows whose k experts are distinct; expert 0 is never chosen when there are enough others.
fn routes(rng: &mut Rng, tokens: usize, experts: usize, k: usize) -> Vec<u32> {
    let mut indices = Vec::new();
    for _ in 0..tokens {
        let mut row: Vec<u32> = (u32::from(experts > k)..experts as u32).collect();
        for i in 0..k {
            let other = i + rng.below(row.len() - i);
            row.swap(i, other);
        }
        indices.extend(&row[..k]);
    }
    indices
}

fn check_experts(rng: &mut Rng, tokens: usize, k: usize, shape: ExpertShape, mxfp4: bool) {
    let offset = 1 + tokens % 3;
    let w = Weights::random(rng, shape, mxfp4, offset);
    let bias = Input::new(rng.bf16s(shape.experts * shape.rows), offset);
    let indices = Input::new(routes(rng, tokens, shape.experts, k), offset);
    let what = |cpu: &dyn std::fmt::Debug| format!("{cpu:?} T {tokens} k {k} {shape:?} {mxfp4}");

    // Inputs large enough that both clamps bite.
    let x: Vec<f32> = rng.floats(tokens * shape.cols).iter().map(|x| 8.0 * x).collect();
    let x = Input::new(x, offset);
    if shape.rows.is_multiple_of(2) {
        let want = reference::moe_gate_up(w.view(), &bias, shape, &x, &indices, k, SWIGLU);
        for cpu in tiers() {
            let got = guarded(want.value.len(), offset, |out| {
                cpu.moe_gate_up(out, w.view(), &bias, shape, &x, &indices, k, SWIGLU);
            });
            assert_bounded(&got, &want, 2.0, shape.cols + 8, &format!("gate_up {}", what(cpu)));
        }
    }

    let a = Input::new(rng.floats(tokens * k * shape.cols), offset);
    let weights = Input::new(rng.floats(tokens * k), offset);
    let want = reference::moe_down(w.view(), &bias, shape, &a, &indices, &weights, k);
    for cpu in tiers() {
        let got = guarded(want.value.len(), offset, |out| {
            cpu.moe_down(out, w.view(), &bias, shape, &a, &indices, &weights, k);
        });
        assert_bounded(&got, &want, 1.0, shape.cols + k + 1, &format!("down {}", what(cpu)));
    }
}

#[test]
fn experts_are_bounded() {
    let mut rng = Rng(6);
    for mxfp4 in [true, false] {
        for tokens in [0, 1, 2, 3, 7, 40] {
            for (experts, k) in [(1, 1), (4, 4), (7, 2)] {
                for (rows, cols) in [(1, 32), (2, 64), (6, 96), (8, 32), (18, 160), (70, 64)] {
                    let shape = ExpertShape { experts, rows, cols };
                    check_experts(&mut rng, tokens, k, shape, mxfp4);
                }
            }
        }
        for experts in [64, 128] {
            let shape = ExpertShape { experts, rows: 10, cols: 64 };
            check_experts(&mut rng, 50, 4, shape, mxfp4);
        }
        let shape = ExpertShape { experts: 3, rows: 34, cols: 2880 };
        check_experts(&mut rng, 9, 2, shape, mxfp4);
    }
    // The transposed layout has no blocks of 32.
    for cols in [1, 7, 33] {
        let shape = ExpertShape { experts: 3, rows: 20, cols };
        check_experts(&mut rng, 5, 2, shape, false);
    }
}

#[test]
fn one_hot_inputs_read_every_weight_through_the_product() {
    // Expert e has scale 2^(e − 127) and row r the byte r, 16 times: input lane i picks one nibble.
    // Above scale 252 the largest code overflows, and 0 · inf would spoil the sum.
    let shape = ExpertShape { experts: 253, rows: 256, cols: 32 };
    let blocks: Vec<u8> =
        (0..253 * 256).flat_map(|row| std::iter::repeat_n((row % 256) as u8, 16)).collect();
    let scales: Vec<u8> = (0..253 * 256).map(|row| (row / 256) as u8).collect();
    let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
    let bias = vec![bf16::ZERO; 253 * 256];
    let lanes = [0, 1, 14, 15, 16, 17, 30, 31];
    let indices: Vec<u32> = lanes.iter().flat_map(|_| 0..253).collect();
    let mut a = vec![0.0; indices.len() * 32];
    for (i, a) in a.chunks_exact_mut(32).enumerate() {
        a[lanes[i / 253]] = 1.0;
    }
    let weights = vec![1.0; indices.len()];
    for cpu in tiers() {
        let mut out = vec![f32::NAN; indices.len() * 256];
        cpu.moe_down(&mut out, w, &bias, shape, &a, &indices, &weights, 1);
        for (i, out) in out.chunks_exact(256).enumerate() {
            for (byte, &got) in out.iter().enumerate() {
                let nibble = if lanes[i / 253] % 2 == 0 { byte & 15 } else { byte >> 4 };
                let want = reference::fp4(nibble as u8) * reference::e8m0((i % 253) as u8);
                assert!(got == want as f32, "{cpu:?} byte {byte} pair {i}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn the_activation_handles_extremes() {
    // One expert whose gate and up are the bias alone.
    let shape = ExpertShape { experts: 1, rows: 2, cols: 32 };
    let w = Experts::Mxfp4 { blocks: &[0; 32], scales: &[127; 2] };
    let x = [0.0; 32];
    for (gate, up) in [(-1e30, 1.0), (-90.0, -7.5), (1e30, 1e30), (7.0, -7.0), (-0.0, 0.0)] {
        let bias = [bf16::from_f32(gate), bf16::from_f32(up)];
        let want = reference::moe_gate_up(w, &bias, shape, &x, &[0], 1, SWIGLU);
        for cpu in tiers() {
            let got = guarded(1, 0, |out| {
                cpu.moe_gate_up(out, w, &bias, shape, &x, &[0], 1, SWIGLU);
            });
            assert_bounded(&got, &want, 2.0, 4, &format!("{cpu:?} gate {gate} up {up}"));
            // A gate has no lower bound: far below zero it closes.
            assert!(gate > -90.0 || got[0].abs() <= 1e-30, "{cpu:?} gate {gate}: {}", got[0]);
        }
    }
    for bias in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
        for cpu in tiers() {
            let bias = bias.map(bf16::from_f32);
            let got = guarded(1, 0, |out| {
                cpu.moe_gate_up(out, w, &bias, shape, &x, &[0], 1, SWIGLU);
            });
            assert!(got[0].is_nan(), "{cpu:?} hides a NaN");
        }
    }
}

#[test]
#[should_panic(expected = "expert not below 1")]
fn an_expert_out_of_range_is_refused() {
    let shape = ExpertShape { experts: 1, rows: 2, cols: 32 };
    let w = Experts::Mxfp4 { blocks: &[0; 32], scales: &[127; 2] };
    let bias = [bf16::ZERO; 2];
    tiers()[0].moe_gate_up(&mut [0.0], w, &bias, shape, &[0.0; 32], &[1], 1, SWIGLU);
}

#[test]
#[should_panic(expected = "an array of shape [9223372036854775809, 2, 32] overflows")]
fn experts_whose_shape_wraps_around_are_refused() {
    let shape = ExpertShape { experts: (1 << 63) + 1, rows: 2, cols: 32 };
    let w = Experts::Mxfp4 { blocks: &[0; 32], scales: &[127; 2] };
    let bias = [bf16::ZERO; 2];
    tiers()[0].moe_gate_up(&mut [0.0], w, &bias, shape, &[0.0; 32], &[1 << 20], 1, SWIGLU);
}
