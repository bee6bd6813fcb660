//! Dense products: the own kernels up to 8 rows of x, cuBLAS for more.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::{Dense, reference};
use half::bf16;

/// What is lost of x in two bf16 parts, 2^-17, in units of f32's epsilon.
const PARTS: usize = 64;

fn matmul(
    gpu: &Gpu,
    w: &[bf16],
    x: &[f32],
    bias: Option<&[f32]>,
    cols: usize,
    offset: usize,
) -> Vec<f32> {
    let rows = w.len() / cols;
    let (w, x) = (gpu.input(w, offset), gpu.input(x, offset));
    let bias = bias.map(|bias| gpu.input(bias, offset));
    gpu.guarded(x.len() / cols * rows, offset, |out| {
        let bias = bias.as_ref().map(|bias| bias.view());
        gpu.cuda.matmul(out, &w.view(), &x.view(), bias.as_ref(), rows, cols)
    })
}

fn check(gpu: &Gpu, rng: &mut Rng, t: usize, rows: usize, cols: usize, offset: usize) {
    let (w, x, bias) = (rng.bf16s(rows * cols), rng.floats(t * cols), rng.floats(rows));
    for bias in [None, Some(&*bias)] {
        let want = reference::matmul(Dense::Bf16(&w), &x, bias, rows, cols);
        let got = matmul(gpu, &w, &x, bias, cols, offset);
        let n = cols + 1 + if t > 8 { PARTS } else { 0 };
        let what = format!("T {t}, [{rows}, {cols}], offset {offset}, bias {}", bias.is_some());
        assert_bounded(&got, &want, 1.0, n, &what);
        let again = matmul(gpu, &w, &x, bias, cols, offset);
        assert_same_bits(&again, &got, &format!("{what}, again"));
    }
}

#[test]
fn matmul_is_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    // Around the load of 8 columns, a warp of them (256) and a pass of the block (1024).
    for cols in [1, 7, 8, 9, 31, 64, 255, 256, 264, 1016, 1024, 1031, 1032] {
        for (t, rows) in [(0, 3), (1, 1), (1, 13), (2, 4), (3, 5), (4, 3), (5, 2), (8, 9), (9, 5)] {
            check(gpu, &mut rng, t, rows, cols, (t + cols / 8) % 3);
        }
    }
    // The router, and a width of the model at every number of rows that has a kernel of its own.
    check(gpu, &mut rng, 1, 128, 2880, 0);
    for t in [2, 4, 7, 8, 17] {
        check(gpu, &mut rng, t, 9, 2880, 0);
        check(gpu, &mut rng, t, 9, 4096, 1);
    }
    check(gpu, &mut rng, 130, 67, 64, 0);
}

/// Of up to 8 rows each has the bits it has alone: in every place, beside any others, aligned or not.
#[test]
fn few_rows_are_row_invariant() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    for (rows, cols) in [(6, 40), (5, 77), (9, 2880)] {
        let (w, bias) = (rng.bf16s(rows * cols), rng.floats(rows));
        let x = rng.floats(8 * cols);
        let alone: Vec<_> =
            x.chunks(cols).flat_map(|x| matmul(gpu, &w, x, Some(&bias), cols, 0)).collect();
        for t in 2..=8 {
            for first in [0, 8 - t] {
                let x = &x[first * cols..(first + t) * cols];
                let got = matmul(gpu, &w, x, Some(&bias), cols, t % 2);
                let want = &alone[first * rows..(first + t) * rows];
                assert_same_bits(&got, want, &format!("[{rows}, {cols}], rows {first} and {t}"));
            }
        }
    }
}

/// Every pair of a weight's bits and a position reads that weight: x picks one column.
#[test]
fn one_hot_inputs_read_every_weight() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for cols in [17, 24] {
        let w = rng.bf16s(7 * cols);
        for t in [1, 2, 4, 8, 11] {
            for column in 0..cols {
                let mut x = vec![0.0; t * cols];
                for t in 0..t {
                    x[t * cols + (column + t) % cols] = 2.0;
                }
                let got = matmul(gpu, &w, &x, None, cols, 0);
                for (i, got) in got.iter().enumerate() {
                    let want = 2.0 * w[i % 7 * cols + (column + i / 7) % cols].to_f32();
                    assert_eq!(*got, want, "T {t}, column {column}, [{i}]");
                }
            }
        }
    }
}

/// Values that two bf16 hold only with care: the largest f32, infinity, NaN, and what rounds up.
#[test]
fn extremes_pass_through_both_ways() {
    let Some(gpu) = device() else { return };
    let w = vec![bf16::from_f32(2f32.powi(-30)); 32];
    for t in [1, 9] {
        for value in [f32::MAX, -f32::MAX, 3.394e38, 1.0 + f32::EPSILON, f32::MIN_POSITIVE] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32 + 5] = value;
            let want = reference::matmul(Dense::Bf16(&w), &x, None, 1, 32);
            let got = matmul(gpu, &w, &x, None, 32, 0);
            assert_bounded(&got, &want, 1.0, 33 + PARTS, &format!("T {t}, {value}"));
        }
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32 + 5] = value;
            let got = matmul(gpu, &w, &x, None, 32, 0);
            assert!(got[..t - 1].iter().all(|y| *y == 0.0), "T {t}: other rows: {got:?}");
            let same = got[t - 1] == value || (got[t - 1].is_nan() && value.is_nan());
            assert!(same, "T {t}, {value}: {}", got[t - 1]);
        }
    }
}

#[test]
#[should_panic(expected = "an array of shape [9223372036854775809, 2] overflows")]
fn a_shape_that_wraps_around_is_refused() {
    let Some(gpu) = device() else {
        panic!("an array of shape [9223372036854775809, 2] overflows")
    };
    let (w, x) = (gpu.input(&[bf16::ZERO; 2], 0), gpu.input(&[0.0; 4], 0));
    gpu.guarded(2, 0, |out| gpu.cuda.matmul(out, &w.view(), &x.view(), None, (1 << 63) + 1, 2));
}
