//! Normalisation and the residual stream.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::device;
use gpt_oss_puzzle::kernels::reference;

/// Around the vector width, a warp, what a block takes in one pass (1,024), and the model's width.
const HIDDEN: [usize; 13] = [1, 3, 4, 5, 31, 32, 33, 127, 1023, 1024, 1025, 1031, 2880];
const ROWS: [(usize, usize); 4] = [(0, 0), (1, 1), (3, 0), (8, 2)];
const EPS: f32 = 1e-5;

#[test]
fn rms_norm_is_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    for hidden in HIDDEN {
        for (rows, offset) in ROWS {
            let x = gpu.input(&rng.floats(rows * hidden), offset);
            let weight = gpu.input(&rng.floats(hidden), offset);
            let want = reference::rms_norm(&x, &weight, EPS);
            let got = gpu.guarded(x.len(), offset, |out| {
                gpu.cuda.rms_norm(out, &x.view(), &weight.view(), EPS)
            });
            let what = format!("hidden {hidden}, rows {rows}, offset {offset}");
            assert_bounded(&got, &want, 1.0, hidden + 4, &what);
        }
    }
}

#[test]
fn add_and_rms_norm_are_add_then_rms_norm() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    for hidden in HIDDEN {
        for (rows, offset) in ROWS {
            let x = rng.floats(rows * hidden);
            let delta = gpu.input(&rng.floats(rows * hidden), offset);
            let weight = gpu.input(&rng.floats(hidden), offset);
            let sum: Vec<f32> = x.iter().zip(&*delta).map(|(x, d)| x + d).collect();
            let want = reference::rms_norm(&sum, &weight, EPS);
            let what = format!("hidden {hidden}, rows {rows}, offset {offset}");
            let mut normed = Vec::new();
            let added = gpu.guarded_from(&x, offset, |x| {
                normed = gpu.guarded(sum.len(), offset, |out| {
                    gpu.cuda.add_rms_norm(x, &delta.view(), out, &weight.view(), EPS)
                });
                Ok(())
            });
            assert_same_bits(&added, &sum, &what);
            assert_bounded(&normed, &want, 1.0, hidden + 4, &what);
        }
    }
}

/// A row's bits do not depend on the rows beside it, nor on where it begins.
#[test]
fn rms_norm_is_row_invariant() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for hidden in [7, 64, 2880] {
        let weight = gpu.input(&rng.floats(hidden), 0);
        let all = rng.floats(9 * hidden);
        let norm = |x: &[f32], offset| {
            let x = gpu.input(x, offset);
            gpu.guarded(x.len(), offset, |out| {
                gpu.cuda.rms_norm(out, &x.view(), &weight.view(), EPS)
            })
        };
        let together = norm(&all, 0);
        for (row, want) in all.chunks(hidden).zip(together.chunks(hidden)) {
            assert_same_bits(&norm(row, 1), want, &format!("hidden {hidden}"));
        }
    }
}

#[test]
fn rms_norm_of_zeros_is_zero_and_of_nan_is_nan() {
    let Some(gpu) = device() else { return };
    let weight = gpu.input(&[1.0; 32], 0);
    let norm = |x: &[f32]| {
        let x = gpu.input(x, 0);
        gpu.guarded(x.len(), 0, |out| gpu.cuda.rms_norm(out, &x.view(), &weight.view(), EPS))
    };
    assert_eq!(norm(&[0.0; 32]), [0.0; 32]);
    let mut x = [1.0; 64];
    x[7] = f32::NAN;
    let got = norm(&x);
    assert!(got[..32].iter().all(|x| x.is_nan()) && got[32..].iter().all(|x| x.is_finite()));
}
