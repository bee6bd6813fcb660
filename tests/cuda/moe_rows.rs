//! A token of packed experts has the same bits in any company from 1 to 256 tokens: whoever shares its
//! chunk, wherever it stands, and whether the kernel is the one of one token or of many.

use super::moe::{Host, Kind, Tokens, routes};
use crate::common::{Rng, assert_same_bits};
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::cuda::Cuda;

const PACKED: [Kind; 2] = [Kind::Packed; 2];

/// Of `many` tokens the rows they have alone, to compare others with: `rows[t]`.
fn alone(
    cuda: &Cuda,
    layer: &super::moe::Layer<'_>,
    tokens: &Tokens,
    many: usize,
) -> Vec<Vec<f32>> {
    (0..many).map(|t| layer.run(cuda, &tokens.pick(&[t]))).collect()
}

fn assert_as_alone(gpu: &Gpu, picks: &[Vec<usize>], host: &Host, tokens: &Tokens, many: usize) {
    let layer = host.on(gpu, PACKED);
    for cuda in [&gpu.cuda, &gpu.rounded] {
        let rows = alone(cuda, &layer, tokens, many);
        for picked in picks {
            let want: Vec<f32> = picked.iter().flat_map(|t| &rows[*t]).copied().collect();
            let got = layer.run(cuda, &tokens.pick(picked));
            assert_same_bits(&got, &want, &format!("{} tokens {picked:?}", picked.len()));
        }
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
        (1..=300).map(|t| (0..t).map(|i| (i * 7 + t) % many).collect()).collect();
    assert_as_alone(gpu, &picks, &host, &tokens, many);
}

#[test]
fn chosen_numbers_of_tokens_give_the_same_bits() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(32);
    // Several slabs, the last of them not whole, and experts in any order.
    let (many, k, hidden) = (30, 4, 416);
    let host = Host::random(&mut rng, 12, hidden, 224, PACKED);
    let indices = routes(&mut rng, many, 12, k);
    let tokens = Tokens::new(&mut rng, indices, k, hidden);
    let picks = [2, 3, 5, 8, 9, 17, 30].map(|t| (0..t).map(|i| (i * 11 + t) % many).collect());
    assert_as_alone(gpu, &picks, &host, &tokens, many);
}
