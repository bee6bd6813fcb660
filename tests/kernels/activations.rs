//! What the products make of their activations.

use crate::common::*;
use gpt_oss_puzzle::kernels::cpu::Cpu;
use gpt_oss_puzzle::kernels::{Activations, Dense, ExpertShape, SwigluParams, reference};
use half::bf16;
use std::sync::LazyLock;

/// Every tier, with activations rounded to bf16.
fn rounding() -> &'static [Cpu] {
    static TIERS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
        let rounding = |cpu: Cpu| cpu.with_activations(Activations::Bf16);
        on_threads(3).into_iter().map(rounding).collect()
    });
    &TIERS
}

/// Runs `product(cpu, x, out)` of `n` results on every tier with activations rounded, and asserts the bits
/// of the exact product of activations that were rounded before, which are others than those of `x`.
fn assert_rounds(x: &[f32], n: usize, what: &str, product: impl Fn(&Cpu, &[f32], &mut [f32])) {
    let (x, rounded) = (Input::new(x.to_vec(), 1), reference::activations(x, Activations::Bf16));
    for (exact, rounding) in tiers().iter().zip(rounding()) {
        assert_eq!(exact.isa(), rounding.isa());
        let what = format!("{what} on {:?}", exact.isa());
        let run = |cpu: &Cpu, x: &[f32]| guarded(n, 1, |out| product(cpu, x, out));
        let (got, want) = (run(rounding, &x), run(exact, &rounded));
        assert_same_bits(&got, &want, &what);
        assert!(run(exact, &x) != want, "{what}: rounding changes nothing");
        let again = Input::new(rounded.clone(), 1);
        assert_same_bits(&run(rounding, &again), &want, &format!("{what}, rounded before"));
    }
}

/// On, below and above the middle between two numbers of bf16, and the special values.
fn hard_values() -> Vec<f32> {
    let mut values = vec![0.0, f32::MIN_POSITIVE, 1e-40, 1e-45, f32::MAX, f32::INFINITY, f32::NAN];
    values.extend([0x7f7f_0000, 0x7f7f_7fff, 0x7f7f_8000, 0x7f80_0001].map(f32::from_bits));
    for high in (0..0x7f80).step_by(61).chain(0x3f80..0x3f90) {
        let middle = f32::from_bits(high << 16 | 0x8000);
        values.extend([middle.next_down(), middle, middle.next_up()]);
    }
    values.iter().flat_map(|x| [*x, -x]).collect()
}

#[test]
fn the_reference_rounds_to_nearest_even_and_never_to_infinity() {
    for x in hard_values() {
        let got = reference::activations(&[x], Activations::Bf16)[0];
        let want = match bf16::from_f32(x).to_f32() {
            rounded if rounded.is_infinite() && x.is_finite() => bf16::MAX.to_f32().copysign(x),
            rounded => rounded,
        };
        assert!(got == want || got.is_nan() && want.is_nan(), "{x:e} is {got:e}, want {want:e}");
        let exact = reference::activations(&[x], Activations::Exact)[0];
        assert_eq!(exact.to_bits(), x.to_bits());
    }
}

#[test]
fn every_number_is_rounded_as_the_reference_does() {
    // One weight, of 1: the product is the activation.
    let x = Input::new(hard_values(), 1);
    let want = reference::activations(&x, Activations::Bf16);
    let one = Dense::Bf16(&[bf16::ONE]);
    for cpu in rounding() {
        let all = guarded(x.len(), 1, |out| cpu.matmul(out, one, &x, None, 1, 1));
        let alone = x.iter().flat_map(|x| {
            guarded(1, 0, |out| cpu.matmul(out, one, std::slice::from_ref(x), None, 1, 1))
        });
        for got in [all, alone.collect()] {
            for ((x, got), want) in x.iter().zip(got).zip(&want) {
                let same = got == *want || got.is_nan() && want.is_nan();
                assert!(same, "{cpu:?}: {x:e} is {got:e}, want {want:e}");
            }
        }
    }
}

#[test]
fn dense_products_round() {
    let mut rng = Rng(21);
    // A row, the most that few rows are, panels, more panels than one pass takes, more than one task rounds.
    for (t, rows, cols) in
        [(1, 40, 96), (3, 9, 64), (6, 8, 32), (7, 20, 96), (60, 9, 64), (50, 8, 2880)]
    {
        let (w, x) = (rng.bf16s(rows * cols), rng.floats(t * cols));
        let (quants, scales) = reference::q8_encode(&w);
        let bias = rng.floats(rows);
        let q8 = Dense::Q8 { quants: &quants, scales: &scales };
        for (name, w) in [("bf16", Dense::Bf16(&w)), ("q8", q8)] {
            let what = format!("{name}, T {t}, [{rows}, {cols}]");
            assert_rounds(&x, t * rows, &what, |cpu, x, out| {
                cpu.matmul(out, w, x, Some(&bias), rows, cols);
            });
        }
    }
}

#[test]
fn products_of_experts_round() {
    let mut rng = Rng(22);
    let swiglu = SwigluParams { alpha: 1.702, limit: 7.0 };
    // Experts with one pair, with few, and with so many that they are laid out in panels.
    for (tokens, experts, k) in [(1, 4, 2), (5, 3, 2), (40, 3, 2), (70, 1, 1)] {
        for mxfp4 in [true, false] {
            let shape = ExpertShape { experts, rows: 36, cols: 96 };
            let w = Weights::random(&mut rng, shape, mxfp4, 1);
            let bias = rng.bf16s(experts * shape.rows);
            let pairs = tokens * k;
            let indices: Vec<u32> = (0..pairs).map(|_| rng.below(experts) as u32).collect();
            let what = format!("T {tokens}, E {experts}, mxfp4 {mxfp4}");
            let x = rng.floats(tokens * shape.cols);
            let n = pairs * shape.rows / 2;
            assert_rounds(&x, n, &format!("gate_up, {what}"), |cpu, x, out| {
                cpu.moe_gate_up(out, w.view(), &bias, shape, x, &indices, k, swiglu);
            });
            let (a, weights) = (rng.floats(pairs * shape.cols), rng.floats(pairs));
            let n = tokens * shape.rows;
            assert_rounds(&a, n, &format!("down, {what}"), |cpu, a, out| {
                cpu.moe_down(out, w.view(), &bias, shape, a, &indices, &weights, k);
            });
        }
    }
}

#[test]
fn nothing_else_rounds() {
    let mut rng = Rng(23);
    let (x, weight, angles) = (rng.floats(4 * 64), rng.floats(64), rng.floats(4 * 16));
    for (exact, rounding) in tiers().iter().zip(rounding()) {
        let norm = |cpu: &Cpu| guarded(x.len(), 1, |out| cpu.rms_norm(out, &x, &weight, 1e-5));
        assert_same_bits(&norm(rounding), &norm(exact), "rms_norm");
        let rope = |cpu: &Cpu| {
            guarded(x.len(), 1, |out| {
                out.copy_from_slice(&x);
                cpu.rope(out, &angles, &angles, 2, 32);
            })
        };
        assert_same_bits(&rope(rounding), &rope(exact), "rope");
        let topk = |cpu: &Cpu| {
            let mut indices = [0; 16];
            guarded(16, 1, |weights| cpu.topk_softmax(&mut indices, weights, &x, 64, 4))
        };
        assert_same_bits(&topk(rounding), &topk(exact), "topk_softmax");
    }
}
