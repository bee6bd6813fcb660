//! Dense products: of up to 8 rows of x, of more, and in bf16 those of cuBLAS from 257 on.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::{Gpu, Input, device};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaDense, INVARIANT_ROWS, Projection};
use gpt_oss_puzzle::kernels::{Activations, Dense, Q8_BLOCK, reference};
use half::bf16;

/// What is lost of x in two bf16 parts, 2^-17, in units of f32's epsilon.
const PARTS: usize = 64;

/// A matrix on the device.
enum Weight {
    Bf16(Input<bf16>),
    Q8 { quants: Input<i8>, scales: Input<bf16> },
}

impl Weight {
    /// Quants must be aligned, scales need not be.
    fn new(gpu: &Gpu, w: Dense<'_>, offset: usize) -> Weight {
        match w {
            Dense::Bf16(w) => Weight::Bf16(gpu.input(w, offset)),
            Dense::Q8 { quants, scales } => Weight::Q8 {
                quants: gpu.input(quants, 16 * offset),
                scales: gpu.input(scales, offset),
            },
        }
    }

    fn view(&self) -> CudaDense<'_> {
        match self {
            Weight::Bf16(w) => CudaDense::Bf16(w.view()),
            Weight::Q8 { quants, scales } => {
                CudaDense::Q8 { quants: quants.view(), scales: scales.view() }
            }
        }
    }
}

fn matmul(
    gpu: &Gpu,
    cuda: &Cuda,
    w: Dense<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    [rows, cols]: [usize; 2],
    offset: usize,
) -> Vec<f32> {
    let aligned = if matches!(w, Dense::Q8 { .. }) { 4 } else { 1 };
    let (w, x) = (Weight::new(gpu, w, offset), gpu.input(x, aligned * offset));
    let bias = bias.map(|bias| gpu.input(bias, offset));
    gpu.guarded(x.len() / cols * rows, offset, |out| {
        let bias = bias.as_ref().map(|bias| bias.view());
        cuda.matmul(out, &w.view(), &x.view(), bias.as_ref(), rows, cols)
    })
}

/// Both ways to take activations.
fn modes(gpu: &Gpu) -> [(&Cuda, Activations); 2] {
    [(&gpu.cuda, Activations::Exact), (&gpu.rounded, Activations::Bf16)]
}

fn check(gpu: &Gpu, rng: &mut Rng, w: Dense<'_>, t: usize, shape: [usize; 2], offset: usize) {
    let [rows, cols] = shape;
    let (x, bias) = (rng.floats(t * cols), rng.floats(rows));
    for (cuda, mode) in modes(gpu) {
        let taken = reference::activations(&x, mode);
        let parts = if mode == Activations::Exact { PARTS } else { 0 };
        for bias in [None, Some(&*bias)] {
            let want = reference::matmul(w, &taken, bias, rows, cols);
            let got = matmul(gpu, cuda, w, &x, bias, shape, offset);
            let what =
                format!("{mode:?}, T {t}, {shape:?}, offset {offset}, bias {}", bias.is_some());
            assert_bounded(&got, &want, 1.0, cols + 1 + parts, &what);
            let again = matmul(gpu, cuda, w, &x, bias, shape, offset);
            assert_same_bits(&again, &got, &format!("{what}, again"));
        }
    }
}

#[test]
fn matmul_is_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    let mut check_bf16 = |t, rows, cols, offset| {
        let w = rng.bf16s(rows * cols);
        check(gpu, &mut rng, Dense::Bf16(&w), t, [rows, cols], offset);
    };
    // Around what a lane loads, a block of columns, a stage, a batch of blocks and a slice.
    for cols in [1, 7, 8, 9, 31, 32, 33, 64, 120, 128, 191, 192, 200, 384, 391] {
        for (t, rows) in [(0, 3), (1, 1), (1, 13), (2, 4), (3, 5), (4, 3), (5, 2), (8, 9), (9, 5)] {
            check_bf16(t, rows, cols, (t + cols / 8) % 3);
        }
    }
    // The router, widths of the model, and the wide slices of a matrix with more rows.
    check_bf16(1, 128, 2880, 0);
    check_bf16(7, 9, 2880, 0);
    check_bf16(17, 9, 4096, 1);
    check_bf16(2, 257, 1160, 0);
    check_bf16(9, 257, 1160, 0);
    // Around the rows of x and of the matrix in a tile; from 257 on it is cuBLAS.
    for (t, rows) in [(63, 127), (64, 128), (65, 129), (130, 67), (256, 3), (257, 3)] {
        check_bf16(t, rows, 72, 0);
    }
}

/// Three results side by side, each with the bits it has alone: in either form, and in both.
#[test]
fn products_of_one_launch_are_those_of_three() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(9);
    let cols = 96;
    for rows in [[13, 4, 4], [1, 0, 9], [8, 5, 3]] {
        let made: Vec<_> = rows.iter().map(|n| rng.bf16s(n * cols)).collect();
        let q8: Vec<_> = made.iter().map(|w| reference::q8_encode(w)).collect();
        let bias = gpu.input(&rng.floats(4), 3);
        for forms in [[false; 3], [true; 3], [false, true, false]] {
            let dense = |i: usize| match (forms[i], &q8[i]) {
                (false, _) => Dense::Bf16(&made[i]),
                (true, (quants, scales)) => Dense::Q8 { quants, scales },
            };
            let weights = [0, 1, 2].map(|i| Weight::new(gpu, dense(i), i % 2));
            for t in [0, 1, 3, 8, 9, 70, 257] {
                let x = rng.floats(t * cols);
                let (input, bias) = (gpu.input(&x, 0), bias.view());
                let biases = [0, 1, 2].map(|i| (rows[i] == 4).then_some(&bias));
                let all = gpu.guarded(t * rows.iter().sum::<usize>(), 0, |out| {
                    let views = [0, 1, 2].map(|i| weights[i].view());
                    let projections = [0, 1, 2].map(|i| Projection {
                        weight: &views[i],
                        bias: biases[i],
                        rows: rows[i],
                    });
                    gpu.cuda.matmul_each(out, projections, &input.view(), cols)
                });
                let alone: Vec<f32> = (0..3)
                    .flat_map(|i| {
                        gpu.guarded(t * rows[i], 0, |out| {
                            let weight = weights[i].view();
                            gpu.cuda.matmul(out, &weight, &input.view(), biases[i], rows[i], cols)
                        })
                    })
                    .collect();
                assert_same_bits(&all, &alone, &format!("T {t}, rows {rows:?}, q8 {forms:?}"));
            }
        }
    }
}

/// In 8 bits, with the rounding of what they were made from: both sides are given the same quants.
fn check_q8(gpu: &Gpu, rng: &mut Rng, t: usize, shape: [usize; 2], offset: usize) {
    let (quants, scales) = reference::q8_encode(&rng.bf16s(shape[0] * shape[1]));
    check(gpu, rng, Dense::Q8 { quants: &quants, scales: &scales }, t, shape, offset);
}

#[test]
fn few_rows_in_8_bits_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(4);
    // Around a batch of 8 blocks, and a slice.
    for cols in [32, 64, 96, 160, 192, 224, 256, 288, 544] {
        for (t, rows) in [(0, 3), (1, 1), (1, 13), (2, 4), (3, 5), (5, 2), (8, 17)] {
            check_q8(gpu, &mut rng, t, [rows, cols], (t + cols / 32) % 3);
        }
    }
    check_q8(gpu, &mut rng, 8, [9, 2880], 1);
    check_q8(gpu, &mut rng, 1, [5, 4096], 0);
}

#[test]
fn many_rows_in_8_bits_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(5);
    // Around the 64 and 128 rows of a tile, the 8 of x that are multiplied at once, a stage and a slice.
    for (t, shape) in [
        (9, [1, 32]),
        (9, [127, 64]),
        (16, [128, 32]),
        (17, [129, 96]),
        (63, [9, 32]),
        (64, [130, 64]),
        (65, [7, 64]),
        (100, [130, 96]),
        (130, [259, 32]),
        (257, [5, 64]),
        (16, [130, 544]),
        (9, [9, 2880]),
        (20, [300, 1184]),
    ] {
        check_q8(gpu, &mut rng, t, shape, t % 3);
    }
}

/// A row has the bits it has alone in any company of up to 256, in every place of it.
fn check_invariance(gpu: &Gpu, shape: [usize; 2], numbers: &[usize]) {
    let [rows, cols] = shape;
    let mut rng = Rng(2 + cols as u64);
    let (w, bias) = (rng.bf16s(rows * cols), rng.floats(rows));
    let (quants, scales) = reference::q8_encode(&w[..rows * cols / Q8_BLOCK * Q8_BLOCK]);
    let mut forms = vec![Dense::Bf16(&w)];
    if cols.is_multiple_of(Q8_BLOCK) {
        forms.push(Dense::Q8 { quants: &quants, scales: &scales });
    }
    let most = *numbers.iter().max().unwrap();
    assert!(most <= INVARIANT_ROWS);
    let x = rng.floats(most * cols);
    for (w, (cuda, mode)) in forms.iter().flat_map(|w| modes(gpu).map(|mode| (*w, mode))) {
        let run = |x: &[f32], offset| matmul(gpu, cuda, w, x, Some(&bias), shape, offset);
        let all = run(&x, 0);
        let what = format!("{mode:?}, {shape:?}, q8 {}", matches!(w, Dense::Q8 { .. }));
        for &t in numbers {
            for first in [0, (most - t) / 2, most - t] {
                // As stored and, from other addresses, in the other order.
                let here = first..first + t;
                let got = run(&x[here.start * cols..here.end * cols], 0);
                let want = &all[here.start * rows..here.end * rows];
                assert_same_bits(&got, want, &format!("{what}, rows {here:?} of {most}"));
                if first > 0 {
                    let turned: Vec<_> =
                        here.clone().rev().flat_map(|i| &x[i * cols..][..cols]).copied().collect();
                    let got = run(&turned, 1);
                    let want: Vec<_> = here
                        .clone()
                        .rev()
                        .flat_map(|i| &all[i * rows..][..rows])
                        .copied()
                        .collect();
                    assert_same_bits(&got, &want, &format!("{what}, rows {here:?} turned"));
                }
            }
        }
    }
}

#[test]
fn rows_have_their_bits_in_any_company() {
    let Some(gpu) = device() else { return };
    // Slices of 192, 192 and 64 columns; two tiles of the matrix, four of x.
    check_invariance(gpu, [131, 448], &[1, 2, 3, 8, 9, 16, 17, 64, 65, 255, 256]);
    // No wide loads.
    check_invariance(gpu, [5, 205], &[1, 8, 9, 70]);
    // Two slices of 320 and 264 columns.
    check_invariance(gpu, [258, 584], &[1, 8, 9, 17]);
}

#[test]
fn rows_of_a_models_width_have_their_bits_in_any_company() {
    let Some(gpu) = device() else { return };
    check_invariance(gpu, [20, 2880], &[1, 3, 8, 9]);
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
                let got = matmul(gpu, &gpu.cuda, Dense::Bf16(&w), &x, None, [7, cols], 0);
                for (i, got) in got.iter().enumerate() {
                    let want = 2.0 * w[i % 7 * cols + (column + i / 7) % cols].to_f32();
                    assert_eq!(*got, want, "T {t}, column {column}, [{i}]");
                }
            }
        }
    }
}

/// The same in 8 bits: all 256 quants in every column, exactly, with scales of any magnitude.
#[test]
fn one_hot_inputs_read_every_quant_exactly() {
    let Some(gpu) = device() else { return };
    let shape @ [rows, cols] = [256, 64];
    let quants: Vec<i8> = (0..rows * cols).map(|i| (i / cols + 7 * (i % cols)) as i8).collect();
    // Zero, the smallest, subnormal and normal, all bits of the mantissa, nearly the largest.
    let bits = [0x0000, 0x0001, 0x0055, 0x0080, 0x3bff, 0x3c01, 0x3f80, 0x77ff];
    let scales: Vec<_> =
        (0..rows * cols / Q8_BLOCK).map(|i| bf16::from_bits(bits[i / 3 % 8])).collect();
    let w = Dense::Q8 { quants: &quants, scales: &scales };
    for (t, first) in
        (0..64).step_by(8).map(|first| (8, first)).chain([(1, 5), (2, 31), (4, 60), (64, 0)])
    {
        let mut x = vec![0.0; t * cols];
        for t in 0..t {
            x[t * cols + first + t] = 2.0;
        }
        let got = matmul(gpu, &gpu.cuda, w, &x, None, shape, 0);
        for (i, got) in got.iter().enumerate() {
            let at = i % rows * cols + first + i / rows;
            let (quant, scale) = (quants[at], scales[at / Q8_BLOCK]);
            let want = 2.0 * f32::from(quant) * scale.to_f32();
            assert_eq!(*got, want, "T {t}, column {}: {quant} · {scale:e}", first + i / rows);
        }
    }
}

/// Values that one or two bf16 hold only with care: the largest f32, infinity, NaN, and what rounds up.
#[test]
fn extremes_pass_through_every_way() {
    let Some(gpu) = device() else { return };
    let small = bf16::from_f32(2f32.powi(-30));
    let forms = [Dense::Bf16(&[small; 32]), Dense::Q8 { quants: &[127; 32], scales: &[small] }];
    let ways = forms.into_iter().flat_map(|w| [1, 9, 257].map(|t| (w, t)));
    for (w, t, (cuda, mode)) in ways.flat_map(|(w, t)| modes(gpu).map(|mode| (w, t, mode))) {
        // A block is summed before its scale is applied, and 32 · 127 times this is a number.
        let most = match w {
            Dense::Q8 { .. } => 1.99 * 2f32.powi(115),
            _ => f32::MAX,
        };
        for value in [most, -most, most / 1.003, 1.0 + f32::EPSILON, f32::MIN_POSITIVE] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32..].fill(value);
            let want = reference::matmul(w, &reference::activations(&x, mode), None, 1, 32);
            let got = matmul(gpu, cuda, w, &x, None, [1, 32], 0);
            assert_bounded(&got, &want, 1.0, 33 + PARTS, &format!("{mode:?}, T {t}, {value}"));
        }
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32 + 5] = value;
            let got = matmul(gpu, cuda, w, &x, None, [1, 32], 0);
            assert!(got[..t - 1].iter().all(|y| *y == 0.0), "T {t}: other rows: {got:?}");
            let same = got[t - 1] == value || (got[t - 1].is_nan() && value.is_nan());
            assert!(same, "{mode:?}, T {t}, {value}: {}", got[t - 1]);
        }
    }
}

/// A scale that is no number makes the outputs of its row NaN, and no others.
#[test]
fn what_is_no_number_is_not_hidden() {
    let Some(gpu) = device() else { return };
    let (mut rng, mut scales) = (Rng(6), [bf16::ONE; 6]);
    scales[3] = bf16::NAN;
    for t in [1, 9] {
        let w = Dense::Q8 { quants: &[3; 192], scales: &scales };
        let got = matmul(gpu, &gpu.cuda, w, &rng.floats(t * 64), None, [3, 64], 0);
        for (i, y) in got.iter().enumerate() {
            assert_eq!(y.is_nan(), i % 3 == 1, "T {t} [{i}]: {y}");
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
    let w = CudaDense::Bf16(w.view());
    gpu.guarded(2, 0, |out| gpu.cuda.matmul(out, &w, &x.view(), None, (1 << 63) + 1, 2));
}

#[test]
#[should_panic(expected = "quants or x not aligned")]
fn quants_that_cannot_be_loaded_whole_are_refused() {
    let Some(gpu) = device() else { panic!("quants or x not aligned") };
    let (quants, scales) = (gpu.input(&[1; 32], 8), gpu.input(&[bf16::ONE], 0));
    let w = CudaDense::Q8 { quants: quants.view(), scales: scales.view() };
    let x = gpu.input(&[0.0; 32], 0);
    gpu.guarded(1, 0, |out| gpu.cuda.matmul(out, &w, &x.view(), None, 1, 32));
}

#[test]
#[should_panic(expected = "cols is 48, no multiple of 32")]
fn rows_that_are_no_whole_blocks_are_refused() {
    let Some(gpu) = device() else { panic!("cols is 48, no multiple of 32") };
    let (quants, scales) = (gpu.input(&[1; 96], 0), gpu.input(&[bf16::ONE; 3], 0));
    let w = CudaDense::Q8 { quants: quants.view(), scales: scales.view() };
    let x = gpu.input(&[0.0; 48], 0);
    gpu.guarded(2, 0, |out| gpu.cuda.matmul(out, &w, &x.view(), None, 2, 48));
}
