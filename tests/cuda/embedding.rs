//! Rows picked by index.

use crate::common::{Rng, assert_same_bits};
use crate::device::device;
use gpt_oss_puzzle::kernels::reference;

const SHAPES: [(usize, usize); 9] =
    [(1, 0), (1, 1), (3, 5), (8, 2), (33, 5), (256, 3), (1031, 2), (2880, 1), (2880, 17)];

#[test]
fn embedding_copies_rows() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    for (hidden, rows) in SHAPES {
        for offset in [0, 1] {
            let vocab = 11;
            let table = gpu.input(&rng.bf16s(vocab * hidden), offset);
            let tokens: Vec<u32> = (0..rows).map(|_| rng.below(vocab) as u32).collect();
            let tokens = gpu.input(&tokens, offset);
            let want = reference::embedding(&table, &tokens, hidden);
            let got = gpu.guarded(want.len(), offset, |out| {
                gpu.cuda.embedding(out, &table.view(), &tokens.view(), hidden)
            });
            assert_same_bits(&got, &want, &format!("hidden {hidden}, rows {rows}"));
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_gives_nan() {
    let Some(gpu) = device() else { return };
    // Of a table of 5 rows the kernel is given 3: the fourth is no poison that would look like a refusal.
    let table = gpu.input(&Rng(2).bf16s(5 * 8), 0);
    let tokens = gpu.input(&[2, 3, u32::MAX, 0], 0);
    let got = gpu.guarded_from(&[1f32; 4 * 8], 0, |out| {
        gpu.cuda.embedding(out, &table.view().slice(..3 * 8), &tokens.view(), 8)
    });
    let nan: Vec<bool> = got.chunks(8).map(|row| row.iter().all(|x| x.is_nan())).collect();
    assert_eq!(nan, [false, true, true, false]);
    assert!(got[..8].iter().chain(&got[24..]).all(|x| x.is_finite()));
}

#[test]
fn gather_rows_copies_rows_and_gives_nan_for_none() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for (hidden, rows) in SHAPES {
        for offset in [0, 3] {
            // One row more than the kernel is told of.
            let count = 5;
            let x = gpu.input(&rng.floats((count + 1) * hidden), offset);
            // One index in six is outside.
            let picked: Vec<u32> = (0..rows).map(|_| rng.below(count + 1) as u32).collect();
            let want: Vec<f32> = (picked.iter())
                .flat_map(|&row| match x[..count * hidden].chunks(hidden).nth(row as usize) {
                    Some(row) => row.to_vec(),
                    None => vec![f32::from_bits(0x7fc0_0000); hidden],
                })
                .collect();
            let picked = gpu.input(&picked, offset);
            let got = gpu.guarded(want.len(), offset, |out| {
                gpu.cuda.gather_rows(out, &x.view().slice(..count * hidden), &picked.view(), hidden)
            });
            assert_same_bits(&got, &want, &format!("hidden {hidden}, rows {rows}"));
        }
    }
}
