//! Routing.

use crate::common::{Rng, assert_bounded, assert_same_bits};
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::reference;

fn topk(gpu: &Gpu, logits: &[f32], experts: usize, k: usize) -> (Vec<u32>, Vec<f32>) {
    topk_of(gpu, logits, None, experts, k)
}

fn topk_of(
    gpu: &Gpu,
    logits: &[f32],
    live: Option<u32>,
    experts: usize,
    k: usize,
) -> (Vec<u32>, Vec<f32>) {
    let live = live.map(|live| gpu.input(&[live], 1));
    let live = live.as_ref().map(|live| live.view());
    let logits = gpu.input(logits, 1);
    let n = logits.len() / experts * k;
    let mut weights = Vec::new();
    let indices = gpu.guarded(n, 3, |indices| {
        weights = gpu.guarded(n, 1, |weights| {
            gpu.cuda.topk_softmax(indices, weights, &logits.view(), live.as_ref(), experts, k)
        });
        Ok(())
    });
    (indices, weights)
}

#[test]
fn topk_is_exact_for_every_expert_count() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    for experts in (1..=40).chain([63, 64, 65, 96, 127, 128, 129, 300]) {
        for k in [1, 2, 4, experts].into_iter().filter(|&k| k <= experts) {
            // Few distinct values, so that most rows have ties; one row of equals; signed zeros.
            let mut logits: Vec<f32> =
                (0..6 * experts).map(|_| rng.below(9) as f32 / 2.0 - 2.0).collect();
            logits[..experts].fill(1.5);
            for (i, logit) in logits[experts..2 * experts].iter_mut().enumerate() {
                *logit = if i % 2 == 0 { -0.0 } else { 0.0 };
            }
            logits.extend(rng.floats(experts));
            let (want_indices, want) = reference::topk_softmax(&logits, experts, k);
            let (indices, weights) = topk(gpu, &logits, experts, k);
            let what = format!("E {experts} k {k}");
            assert_eq!(indices, want_indices, "{what}");
            assert_bounded(&weights, &want, 2.0, k + 2, &what);
            // The rows have the bits they have alone.
            for (t, row) in logits.chunks(experts).enumerate() {
                let (alone, weight) = topk(gpu, row, experts, k);
                assert_eq!(alone, indices[t * k..(t + 1) * k], "{what} row {t}");
                assert_same_bits(&weight, &weights[t * k..(t + 1) * k], &what);
            }
        }
    }
    assert_eq!(topk(gpu, &[], 8, 4), (vec![], vec![]));
}

#[test]
fn rows_behind_the_live_ones_go_to_no_expert() {
    let Some(gpu) = device() else { return };
    let (experts, k) = (40, 4);
    let logits = Rng(2).floats(11 * experts);
    let (all_indices, all_weights) = topk(gpu, &logits, experts, k);
    for live in [0, 1, 4, 9, 11, 12] {
        let (indices, weights) = topk_of(gpu, &logits, Some(live), experts, k);
        let (of_live, n) = ((live as usize * k).min(indices.len()), indices.len());
        assert_eq!(indices[..of_live], all_indices[..of_live]);
        assert_same_bits(&weights[..of_live], &all_weights[..of_live], "live rows");
        assert_eq!(indices[of_live..], vec![experts as u32; n - of_live]);
        assert_eq!(weights[of_live..], vec![0.0; n - of_live]);
    }
}

#[test]
fn topk_ranks_nan_below_every_number() {
    let Some(gpu) = device() else { return };
    let negative_nan = f32::from_bits(0xffc0_0001);
    let logits = [f32::NAN, 1.0, negative_nan, f32::NEG_INFINITY, 3.0];
    let (indices, weights) = topk(gpu, &logits, 5, 3);
    assert_eq!(indices, [4, 1, 3]);
    assert_eq!(weights[2], 0.0);
    let (indices, weights) = topk(gpu, &logits, 5, 5);
    assert_eq!(indices, [4, 1, 3, 0, 2]);
    assert!(weights.iter().all(|w| w.is_nan()));
    // Nothing but NaN still names experts.
    let (indices, weights) = topk(gpu, &[f32::NAN; 40], 40, 4);
    assert_eq!(indices, [0, 1, 2, 3]);
    assert!(weights.iter().all(|w| w.is_nan()));
    // The smallest and largest numbers of either sign, in order.
    let logits = [-f32::MAX, 1e-45, f32::MAX, -1e-45, f32::NEG_INFINITY, 0.0, 1.0, -1.0];
    assert_eq!(topk(gpu, &logits, 8, 8).0, [2, 6, 1, 5, 3, 7, 0, 4]);
}
