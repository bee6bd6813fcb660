//! Embedding, norm, dense layers, rotary positions.

use crate::common::*;
use gpt_oss_puzzle::kernels::{Dense, Q8_BLOCK, reference};
use half::bf16;

#[test]
fn embedding_copies_rows() {
    let mut rng = Rng(1);
    for (hidden, tokens) in [(1, 0), (7, 1), (33, 5), (2880, 40)] {
        let vocab = 11;
        let table = Input::new(rng.bf16s(vocab * hidden), 1);
        let tokens: Vec<u32> = (0..tokens).map(|_| rng.below(vocab) as u32).collect();
        let want = reference::embedding(&table, &tokens, hidden);
        for cpu in tiers() {
            let got = guarded(want.len(), 1, |out| cpu.embedding(out, &table, &tokens, hidden));
            assert_same_bits(&got, &want, &format!("{cpu:?} hidden {hidden}"));
        }
    }
}

#[test]
#[should_panic(expected = "token not below 3")]
fn embedding_refuses_a_token_outside_the_vocabulary() {
    tiers()[0].embedding(&mut [0.0; 2], &[bf16::ZERO; 6], &[3], 2);
}

#[test]
fn rms_norm_is_bounded() {
    let mut rng = Rng(2);
    for hidden in [1, 7, 8, 9, 15, 16, 17, 31, 127, 2880] {
        for (rows, offset) in [(0, 0), (1, 1), (3, 2), (40, 3)] {
            let x = Input::new(rng.floats(rows * hidden), offset);
            let weight = Input::new(rng.floats(hidden), offset);
            let want = reference::rms_norm(&x, &weight, 1e-5);
            for cpu in tiers() {
                let got = guarded(x.len(), offset, |out| cpu.rms_norm(out, &x, &weight, 1e-5));
                let what = format!("{cpu:?} hidden {hidden} rows {rows}");
                assert_bounded(&got, &want, 1.0, hidden + 4, &what);
            }
        }
    }
}

#[test]
fn rms_norm_of_zeros_is_zero_and_of_nan_is_nan() {
    for cpu in tiers() {
        let zeros = guarded(32, 0, |out| cpu.rms_norm(out, &[0.0; 32], &[1.0; 32], 1e-5));
        assert_eq!(zeros, [0.0; 32]);
        let mut x = [1.0; 32];
        x[17] = f32::NAN;
        let got = guarded(32, 0, |out| cpu.rms_norm(out, &x, &[1.0; 32], 1e-5));
        assert!(got.iter().all(|x| x.is_nan()), "{cpu:?}: {got:?}");
    }
}

fn check_matmul(rng: &mut Rng, t: usize, rows: usize, cols: usize, offset: usize) {
    let w = Input::new(rng.bf16s(rows * cols), offset);
    let x = Input::new(rng.floats(t * cols), offset);
    let bias = Input::new(rng.floats(rows), offset);
    let (quants, scales) = reference::q8_encode(&w);
    let (quants, scales) = (Input::new(quants, offset), Input::new(scales, offset));
    let mut forms = vec![Dense::Bf16(&w)];
    if cols.is_multiple_of(Q8_BLOCK) {
        forms.push(Dense::Q8 { quants: &quants, scales: &scales });
    }
    for (w, bias) in forms.iter().flat_map(|w| [(*w, None), (*w, Some(&*bias))]) {
        let want = reference::matmul(w, &x, bias, rows, cols);
        for cpu in tiers() {
            let got = guarded(t * rows, offset, |out| cpu.matmul(out, w, &x, bias, rows, cols));
            let q8 = matches!(w, Dense::Q8 { .. });
            let what = format!("{cpu:?} T {t}, [{rows}, {cols}], bias {}, q8 {q8}", bias.is_some());
            assert_bounded(&got, &want, 1.0, cols + 1, &what);
        }
    }
}

#[test]
fn q8_encode_is_the_reference_s() {
    let mut rng = Rng(5);
    let mut w = rng.bf16s(4 * 1031 * Q8_BLOCK);
    // Blocks of any magnitude; of zeros; with one value; of the smallest and the largest numbers.
    for (i, block) in w.chunks_exact_mut(Q8_BLOCK).enumerate() {
        let by = 2f32.powi(i as i32 % 60 - 30);
        block.iter_mut().for_each(|w| *w = bf16::from_f32(w.to_f32() * by));
    }
    w[..Q8_BLOCK].fill(bf16::NEG_ZERO);
    w[Q8_BLOCK..3 * Q8_BLOCK].fill(bf16::ZERO);
    w[2 * Q8_BLOCK + 5] = bf16::from_f32(-3.0);
    w[3 * Q8_BLOCK..4 * Q8_BLOCK].fill(bf16::MAX);
    w[4 * Q8_BLOCK..5 * Q8_BLOCK].fill(bf16::from_bits(1));
    let (quants, scales) = reference::q8_encode(&w);
    for cpu in tiers() {
        let (mut got, mut got_scales) = (vec![99; w.len()], vec![bf16::NAN; scales.len()]);
        cpu.q8_encode(&mut got, &mut got_scales, &w);
        assert!(got == quants && got_scales == scales, "{cpu:?}");
    }
    for ((block, quants), scale) in w.chunks(Q8_BLOCK).zip(quants.chunks(Q8_BLOCK)).zip(&scales) {
        for (w, quant) in block.iter().zip(quants) {
            let error = (w.to_f32() - f32::from(*quant) * scale.to_f32()).abs();
            assert!(error <= scale.to_f32() / 2.0, "{w} is {quant} times {scale}");
        }
    }
    let mut odd = w[..Q8_BLOCK].to_vec();
    odd[7] = bf16::NAN;
    let (mut quants, mut scales) = ([0; Q8_BLOCK], [bf16::ZERO]);
    tiers()[0].q8_encode(&mut quants, &mut scales, &odd);
    assert!(scales[0].is_nan(), "a number that is none stays one: {scales:?}");
}

#[test]
fn matmul_is_bounded() {
    let mut rng = Rng(3);
    // Around the vector widths, the row blocks (4, 8), the inputs in registers (up to 6), and panels.
    for cols in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 131] {
        for rows in [1, 2, 3, 4, 7, 8, 9, 13] {
            for t in [0, 1, 2, 3, 5, 6, 7, 13] {
                check_matmul(&mut rng, t, rows, cols, cols % 3);
            }
        }
    }
    for (t, rows) in [(1, 64), (3, 128), (8, 37), (48, 8), (49, 9), (100, 9)] {
        check_matmul(&mut rng, t, rows, 2880, 1);
    }
}

#[test]
fn rope_is_bounded() {
    let mut rng = Rng(4);
    for head_dim in [2, 14, 16, 18, 32, 34, 64, 128] {
        for (rows, heads, offset) in [(0, 1, 0), (1, 1, 1), (3, 5, 2), (17, 64, 3)] {
            let x = Input::new(rng.floats(rows * heads * head_dim), offset);
            let angles = rng.floats(rows * head_dim / 2);
            let cos = Input::new(angles.iter().map(|a| (9.0 * a).cos()).collect(), offset);
            let sin = Input::new(angles.iter().map(|a| (9.0 * a).sin()).collect(), offset);
            let want = reference::rope(&x, &cos, &sin, heads, head_dim);
            for cpu in tiers() {
                let got = guarded(x.len(), offset, |out| {
                    out.copy_from_slice(&x);
                    cpu.rope(out, &cos, &sin, heads, head_dim);
                });
                assert_bounded(&got, &want, 1.0, 2, &format!("{cpu:?} D {head_dim}"));
            }
        }
    }
}

/// Lengths that agree only because a product wraps around are refused: on a release build that is all
/// that stands between these shapes and a read behind the weights.
#[test]
#[should_panic(expected = "an array of shape [9223372036854775809, 2] overflows")]
fn a_shape_that_wraps_around_is_refused() {
    let (mut out, w, x) = ([0.0; 2], [bf16::ZERO; 2], [0.0; 4]);
    tiers()[0].matmul(&mut out, Dense::Bf16(&w), &x, None, (1 << 63) + 1, 2);
}
