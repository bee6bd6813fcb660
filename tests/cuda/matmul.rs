//! Dense products: our own kernels up to 256 rows of x and for weights in 8 bits, cuBLAS for more in bf16.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::{Gpu, Input, device};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaDense, INVARIANT_ROWS, Projection};
use gpt_oss_puzzle::kernels::{Dense, Q8_BLOCK, reference};
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
    w: Dense<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    shape: [usize; 2],
    offset: usize,
) -> Vec<f32> {
    matmul_by(&gpu.cuda, gpu, w, x, bias, shape, offset)
}

fn matmul_by(
    cuda: &Cuda,
    gpu: &Gpu,
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

fn check(gpu: &Gpu, rng: &mut Rng, w: Dense<'_>, t: usize, shape: [usize; 2], offset: usize) {
    let [rows, cols] = shape;
    let (x, bias) = (rng.floats(t * cols), rng.floats(rows));
    for bias in [None, Some(&*bias)] {
        let want = reference::matmul(w, &x, bias, rows, cols);
        let got = matmul(gpu, w, &x, bias, shape, offset);
        let n = cols + 1 + PARTS;
        let q8 = matches!(w, Dense::Q8 { .. });
        let what = format!("T {t}, {shape:?}, offset {offset}, bias {}, q8 {q8}", bias.is_some());
        assert_bounded(&got, &want, 1.0, n, &what);
        let again = matmul(gpu, w, &x, bias, shape, offset);
        assert_same_bits(&again, &got, &format!("{what}, again"));
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
    // Around the load of 8 columns, a block of 32, a step of 64 and a slice of 320.
    for cols in [1, 7, 8, 9, 31, 32, 33, 64, 72, 319, 320, 328, 640, 1031] {
        for (t, rows) in [(0, 3), (1, 1), (1, 13), (2, 4), (3, 5), (4, 3), (5, 2), (8, 9), (9, 5)] {
            check_bf16(t, rows, cols, (t + cols / 8) % 3);
        }
    }
    // The router, and widths of the model at every number of rows that has a kernel of its own. More slices
    // than a block has warps.
    check_bf16(1, 128, 2880, 0);
    for t in [2, 8, 16, 17, 33] {
        check_bf16(t, 9, 2880, 0);
        check_bf16(t, 9, 4096, 1);
    }
    check_bf16(3, 5, 17 * 320 + 40, 0);
    // Around tiles of 64 tokens and 128 rows, with enough of them for the device and without; a library's.
    for (t, rows) in [(65, 127), (64, 128), (63, 129), (10, 600), (256, 2), (257, 67), (300, 3)] {
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
            for t in [0, 1, 2, 3, 8, 9, 70] {
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
    // Around a step of two blocks and a slice of ten.
    for cols in [32, 64, 96, 288, 320, 352, 640, 672] {
        for (t, rows) in [(0, 3), (1, 1), (1, 13), (2, 4), (3, 5), (4, 3), (5, 2), (6, 4), (8, 9)] {
            check_q8(gpu, &mut rng, t, [rows, cols], (t + cols / 32) % 3);
        }
    }
    for t in 1..=8 {
        check_q8(gpu, &mut rng, t, [9, 2880], 1);
    }
    check_q8(gpu, &mut rng, 1, [5, 4096], 0);
}

#[test]
fn many_rows_in_8_bits_are_bounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(5);
    // Around the 64 tokens and 128 rows of a tile, the 16 that are multiplied at once, and the two blocks
    // that are fetched at a time.
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
        // Around the ten blocks of a slice.
        (9, [5, 288]),
        (9, [5, 320]),
        (70, [5, 352]),
        (16, [130, 544]),
        // A width of the model: in as many splits as there are, in some, and in one.
        (9, [9, 2880]),
        (16, [300, 2880]),
        (100, [9, 4096]),
        (130, [259, 544]),
    ] {
        check_q8(gpu, &mut rng, t, shape, t % 3);
    }
}

/// A row has the bits it has alone at any number of rows up to 256, in every place, beside any others,
/// aligned or not: of few slices and of many, where tiles are enough for the device and where slices are
/// shared out, in either form, with x in two parts and in one.
#[test]
fn rows_are_invariant() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    let counts = [2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 255, INVARIANT_ROWS];
    for (shape @ [rows, cols], counts) in [
        ([6, 40], &counts[..]),
        ([3, 77], &[8, 9]),
        ([520, 64], &[9, 65]),
        ([4, 672], &[2, 8, 9, 33, 65, 256]),
        ([2, 2880], &[8, 16, 65]),
    ] {
        let (w, bias) = (rng.bf16s(rows * cols), rng.floats(rows));
        let (quants, scales) = reference::q8_encode(&w);
        let mut forms = vec![Dense::Bf16(&w)];
        if cols.is_multiple_of(Q8_BLOCK) {
            forms.push(Dense::Q8 { quants: &quants, scales: &scales });
        }
        for (w, cuda) in forms.into_iter().flat_map(|w| [(w, &gpu.cuda), (w, &gpu.rounded)]) {
            let run = |x: &[f32], offset| matmul_by(cuda, gpu, w, x, Some(&bias), shape, offset);
            for &t in counts {
                // One row among different ones, in three places; the others are in none of the results.
                let (x, row) = (rng.floats(t * cols), rng.floats(cols));
                let alone = run(&row, 0);
                for place in [0, t / 2, t - 1] {
                    let mut x = x.clone();
                    x[place * cols..][..cols].copy_from_slice(&row);
                    let got = run(&x, t % 2);
                    let what = format!(
                        "{shape:?}, row {place} of {t}, q8 {}",
                        matches!(w, Dense::Q8 { .. })
                    );
                    assert_same_bits(&got[place * rows..][..rows], &alone, &what);
                }
            }
        }
    }
}

/// Rounded to one part, the result is that of a rounded x, bounded as any.
#[test]
fn activations_can_be_rounded() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(8);
    for (t, shape @ [rows, cols]) in [(1, [9, 96]), (8, [5, 64]), (17, [130, 64]), (70, [5, 352])] {
        let w = rng.bf16s(rows * cols);
        let (quants, scales) = reference::q8_encode(&w);
        let x = rng.floats(t * cols);
        let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        for w in [Dense::Bf16(&w), Dense::Q8 { quants: &quants, scales: &scales }] {
            let got = matmul_by(&gpu.rounded, gpu, w, &x, None, shape, 0);
            let want = reference::matmul(w, &rounded, None, rows, cols);
            assert_bounded(&got, &want, 1.0, cols + 1, &format!("T {t}, {shape:?}"));
            assert_same_bits(
                &matmul_by(&gpu.rounded, gpu, w, &rounded, None, shape, 0),
                &got,
                "rounded before",
            );
        }
    }
    // With bf16 weights and many rows, a library's product.
    let (w, x) = (rng.bf16s(3 * 32), rng.floats(257 * 32));
    let rounded: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let got = matmul_by(&gpu.rounded, gpu, Dense::Bf16(&w), &x, None, [3, 32], 0);
    let want = reference::matmul(Dense::Bf16(&w), &rounded, None, 3, 32);
    assert_bounded(&got, &want, 1.0, 33, "T 257");
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
                let got = matmul(gpu, Dense::Bf16(&w), &x, None, [7, cols], 0);
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
    // Zero, the smallest, subnormal and normal, all bits of the mantissa, the largest that few rows take.
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
        let got = matmul(gpu, w, &x, None, shape, 0);
        for (i, got) in got.iter().enumerate() {
            let at = i % rows * cols + first + i / rows;
            let (quant, scale) = (quants[at], scales[at / Q8_BLOCK]);
            let want = 2.0 * f32::from(quant) * scale.to_f32();
            assert_eq!(*got, want, "T {t}, column {}: {quant} · {scale:e}", first + i / rows);
        }
    }
}

/// Values that two bf16 hold only with care: the largest f32, infinity, NaN, and what rounds up.
#[test]
fn extremes_pass_through_both_ways() {
    let Some(gpu) = device() else { return };
    let small = bf16::from_f32(2f32.powi(-30));
    let forms = [Dense::Bf16(&[small; 32]), Dense::Q8 { quants: &[127; 32], scales: &[small] }];
    for (w, t) in forms.into_iter().flat_map(|w| [(w, 1), (w, 9)]) {
        // A block is summed before its scale is applied, and 32 · 127 times this is a number.
        let most = match w {
            Dense::Q8 { .. } => 1.99 * 2f32.powi(115),
            _ => f32::MAX,
        };
        for value in [most, -most, most / 1.003, 1.0 + f32::EPSILON, f32::MIN_POSITIVE] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32..].fill(value);
            let want = reference::matmul(w, &x, None, 1, 32);
            let got = matmul(gpu, w, &x, None, [1, 32], 0);
            assert_bounded(&got, &want, 1.0, 33 + PARTS, &format!("T {t}, {value}"));
        }
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut x = vec![0.0; t * 32];
            x[(t - 1) * 32 + 5] = value;
            let got = matmul(gpu, w, &x, None, [1, 32], 0);
            assert!(got[..t - 1].iter().all(|y| *y == 0.0), "T {t}: other rows: {got:?}");
            let same = got[t - 1] == value || (got[t - 1].is_nan() && value.is_nan());
            assert!(same, "T {t}, {value}: {}", got[t - 1]);
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
        let got = matmul(gpu, w, &rng.floats(t * 64), None, [3, 64], 0);
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
