//! Activations rounded to bf16, through the whole graph.

use super::graph::{OnGpu, gpu};
use crate::golden::{Golden, root};
use gpt_oss_puzzle::cache::KvDtype;
use gpt_oss_puzzle::model::{Activations, GptOss};
use gpt_oss_puzzle::weights::Checkpoint;

/// The option reaches the kernels, those of recorded steps too. Not compared with the CPU's logits: see
/// [`Golden::assert_near_with_activations_in_bf16`].
#[test]
fn logits_are_near_the_official_implementations() {
    let Some(gpu) = gpu() else { return };
    let case = root().join("puzzle-all-experts");
    let (golden, checkpoint) = (Golden::load(&case, "golden"), Checkpoint::open(&case).unwrap());
    let (prompt, few) = golden.input_ids.split_at(golden.input_ids.len() - 6);
    let run = |model: GptOss| {
        let model = model.with_activations(Activations::Bf16);
        let mut on_gpu = OnGpu::of(model, &checkpoint, KvDtype::F32, 200, gpu);
        let mut sequence = on_gpu.cache.sequence();
        let mut logits = on_gpu.feed(&mut sequence, prompt, prompt.len());
        let before = sequence.fork();
        logits.extend(on_gpu.feed(&mut sequence, few, 1));
        assert!(on_gpu.model.replayed_steps() > 0, "steps are recorded");
        on_gpu.model = on_gpu.model.without_replay();
        let plain = on_gpu.feed(&mut before.fork(), few, 1);
        assert!(logits.ends_with(&plain), "a recorded step is another");
        logits
    };
    let logits = run(GptOss::new(&checkpoint, 1).unwrap());
    golden.assert_near_with_activations_in_bf16(&case, &logits, "on a GPU");
}
