//! A token of packed experts has the same bits in any company from 1 to 256 tokens: whoever shares its
//! chunk, wherever it stands, and whether the kernel is the one of one token or of many.

use super::moe::{Host, Kind, Tokens, routes};
use crate::common::{Rng, assert_same_bits};
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::cuda::Cuda;

const PACKED: [Kind; 2] = [Kind::Packed; 2];

/// Calls of `picks` give every token the bits that it has alone.
fn assert_as_alone(gpu: &Gpu, cuda: &Cuda, host: &Host, tokens: &Tokens, picks: &[Vec<usize>]) {
    let layer = host.on(gpu, PACKED);
    let many = tokens.indices.len() / tokens.k;
    let rows: Vec<_> = (0..many).map(|t| layer.run(cuda, &tokens.pick(&[t]))).collect();
    for picked in picks {
        let want: Vec<f32> = picked.iter().flat_map(|t| &rows[*t]).copied().collect();
        let got = layer.run(cuda, &tokens.pick(picked));
        assert_same_bits(&got, &want, &format!("{} tokens {picked:?}", picked.len()));
    }
}

#[test]
fn every_number_of_tokens_gives_the_same_bits() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(31);
    let (many, k, hidden) = (20, 1, 32);
    let host = Host::random(&mut rng, 3, hidden, 32, PACKED);
    let indices = (0..many).map(|_| rng.below(3) as u32).collect();
    let tokens = Tokens::new(&mut rng, indices, k, hidden);
    let picks: Vec<Vec<usize>> =
        (1..=256).map(|t| (0..t).map(|i| (i * 7 + t) % many).collect()).collect();
    assert_as_alone(gpu, &gpu.cuda, &host, &tokens, &picks);
    let some: Vec<_> = picks.into_iter().skip(1).step_by(23).collect();
    assert_as_alone(gpu, &gpu.rounded, &host, &tokens, &some);
}

#[test]
fn tokens_of_several_slabs_have_the_same_bits() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(32);
    // The last slab is not whole, and experts come in any order.
    let (many, k, hidden) = (12, 4, 416);
    let host = Host::random(&mut rng, 7, hidden, 224, PACKED);
    let indices = routes(&mut rng, many, 7, k);
    let tokens = Tokens::new(&mut rng, indices, k, hidden);
    let picks: Vec<Vec<usize>> =
        [2, 3, 9, 20].map(|t| (0..t).map(|i| (i * 5 + t) % many).collect()).to_vec();
    assert_as_alone(gpu, &gpu.cuda, &host, &tokens, &picks);
    assert_as_alone(gpu, &gpu.rounded, &host, &tokens, &picks[1..3]);
}

/// At 2,880 columns, 15 slabs.
#[test]
fn tokens_of_the_width_of_a_model_have_the_same_bits() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(33);
    let (k, hidden) = (2, 2880);
    let host = Host::random(&mut rng, 2, hidden, 32, PACKED);
    let tokens = Tokens::new(&mut rng, vec![0, 1, 1, 0], k, hidden);
    let picks = [vec![1, 0, 1], vec![0, 1, 1, 0, 0, 1, 0, 1, 1]];
    assert_as_alone(gpu, &gpu.cuda, &host, &tokens, &picks);
}
