//! More tokens than a step of decode has: classes of chunks on the tensor cores of a warpgroup.

use super::moe::{Host, Kind, Tokens};
use crate::common::{Rng, assert_same_bits};
use crate::device::{Gpu, device};

const PACKED: [Kind; 2] = [Kind::Packed; 2];

/// `counts[e]` pairs of expert e, in a random order.
fn ragged(rng: &mut Rng, counts: &[usize]) -> Vec<u32> {
    let mut indices = Vec::new();
    for (expert, count) in counts.iter().enumerate() {
        indices.extend(std::iter::repeat_n(expert as u32, *count));
    }
    for i in (1..indices.len()).rev() {
        indices.swap(i, rng.below(i + 1));
    }
    indices
}

/// Both modes against the reference, twice with the same bits.
fn check(gpu: &Gpu, seed: u64, counts: &[usize], k: usize, hidden: usize, inner: usize) {
    let mut rng = Rng(seed);
    let host = Host::random(&mut rng, counts.len(), hidden, inner, PACKED);
    let layer = host.on(gpu, PACKED);
    let indices = ragged(&mut rng, counts);
    let tokens = Tokens::new(&mut rng, indices, k, hidden);
    // What is lost of activations: 2^-17 in two parts, 2^-9 in one.
    for (cuda, lost) in [(&gpu.cuda, 64), (&gpu.rounded, 1 << 14)] {
        let what = format!("hidden {hidden} inner {inner} {counts:?} lost {lost}");
        let got = layer.run(cuda, &tokens);
        layer.assert_right(&got, &tokens, lost, &what);
        assert_same_bits(&layer.run(cuda, &tokens), &got, &what);
    }
}

#[test]
fn ragged_routings_are_bounded() {
    let Some(gpu) = device() else { return };
    // Around the limits of classes, the 8 pairs that a chunk is padded to, and what several chunks share.
    let counts = [0, 1, 7, 8, 9, 32, 33, 64, 65, 96, 97, 128, 129, 160, 161, 300];
    // Pieces of 12, 16 and 24 tiles that are and that are not whole; slabs that are not whole.
    check(gpu, 50, &counts, 2, 64, 224);
    // A slab that is, and one tile.
    check(gpu, 51, &[257], 1, 192, 32);
}

/// 15 slabs: both rings go round more than once.
#[test]
fn the_width_of_a_model_is_bounded() {
    let Some(gpu) = device() else { return };
    check(gpu, 52, &[0, 17, 100, 140], 1, 2880, 32);
}

/// From the first number of tokens that is too large for a step of decode on.
#[test]
fn some_more_tokens_than_a_step_has_are_bounded() {
    let Some(gpu) = device() else { return };
    for pairs in [256, 257, 261, 264, 265, 288] {
        check(gpu, 53, &[pairs - 40, 40], 1, 32, 64);
    }
}

/// A row keeps its bits as long as its expert has as many pairs: wherever it stands, whatever the
/// others are, and beside tokens of no expert, whose own rows are NaN.
#[test]
fn rows_keep_their_bits_among_as_many_pairs() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(54);
    let (hidden, k, experts) = (32, 1, 6);
    let host = Host::random(&mut rng, experts, hidden, 64, PACKED);
    let layer = host.on(gpu, PACKED);
    let indices = ragged(&mut rng, &[5, 40, 70, 100, 130, 170]);
    let t = indices.len();
    let mut tokens = Tokens::new(&mut rng, indices, k, hidden);
    for cuda in [&gpu.cuda, &gpu.rounded] {
        let rows = |out: &[f32], picked: &[usize]| -> Vec<f32> {
            picked.iter().flat_map(|t| &out[t * hidden..(t + 1) * hidden]).copied().collect()
        };
        let got = layer.run(cuda, &tokens);
        let other_order: Vec<usize> = (0..t).map(|i| (i * 7 + 3) % t).collect();
        let moved = layer.run(cuda, &tokens.pick(&other_order));
        assert_same_bits(&moved, &rows(&got, &other_order), "in another order");

        let some: Vec<usize> = (0..t).step_by(3).collect();
        let mut others = tokens.pick(&(0..t).collect::<Vec<_>>());
        for i in (0..t).filter(|i| i % 3 != 0) {
            others.x[i * hidden..(i + 1) * hidden].fill([f32::NAN, 1e30, 0.0][i % 7 % 3]);
        }
        let beside = layer.run(cuda, &others);
        assert_same_bits(&rows(&beside, &some), &rows(&got, &some), "beside others");

        // Tokens of no expert, in between.
        let more: Vec<usize> = (0..t).flat_map(|i| [i, i]).collect();
        let mut none = tokens.pick(&more);
        for (i, index) in none.indices.iter_mut().enumerate().filter(|(i, _)| i % 2 == 1) {
            *index = [experts as u32, u32::MAX][i / 2 % 2];
        }
        let out = layer.run(cuda, &none);
        let (known, unknown): (Vec<usize>, Vec<usize>) = (0..2 * t).partition(|i| i % 2 == 0);
        assert_same_bits(&rows(&out, &known), &got, "beside tokens of no expert");
        assert!(rows(&out, &unknown).iter().all(|y| y.is_nan()), "a token of no expert");
        tokens.x.reverse();
    }
}
