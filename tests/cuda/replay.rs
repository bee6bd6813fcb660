//! Steps of decode that were recorded are the steps they were recorded from.

use super::graph::gpu;
use crate::batches::{self, tokens};
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::model::{Batch, Device, GptOss, LogitRows, Tensor};
use gpt_oss_puzzle::weights::{Checkpoint, KvScales};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tracing::{Event, Level, Metadata, Subscriber, span};

pub(super) fn config_of(layers: &[(usize, Option<usize>)]) -> ModelConfig {
    let mut config = batches::config(layers);
    config.num_attention_heads = 2;
    config.num_key_value_heads = 1;
    config.max_position_embeddings = 4096;
    config
}

pub(super) fn config() -> ModelConfig {
    config_of(&[(8, Some(16)), (4, None)])
}

/// The same weights twice: replaying, and not.
pub(super) fn models(config: &ModelConfig, gpu: &Device, seed: u64) -> [GptOss; 2] {
    let checkpoint = Checkpoint::random(config, seed).unwrap();
    let model = || GptOss::new(&checkpoint, 1).unwrap().on_device(gpu, |_| {}).unwrap();
    [model(), model().without_replay()]
}

pub(super) fn cache(config: &ModelConfig, gpu: &Device, dtype: KvDtype, pages: usize) -> KvCache {
    let scales = Some(vec![KvScales { k: 0.011, v: 0.013 }; config.num_hidden_layers()]);
    KvCache::new(config, &KvCacheConfig { dtype, pages, scales }, gpu).unwrap()
}

pub(super) fn step(model: &GptOss, batch: &Batch, sequences: &mut [&mut Sequence]) -> Vec<u32> {
    let logits = model.forward(batch, sequences).unwrap().flatten_all().unwrap();
    let logits: Vec<f32> = logits.to_vec1().unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.into_iter().map(f32::to_bits).collect()
}

pub(super) fn feed(
    model: &GptOss,
    sequence: &mut Sequence,
    tokens: &[u32],
    chunk: usize,
) -> Vec<u32> {
    let chunks = tokens.chunks(chunk).flat_map(|chunk| {
        let batch = Batch::single(sequence, chunk, LogitRows::All);
        step(model, &batch, &mut [sequence])
    });
    chunks.collect()
}

/// Across the end of a page, with every type of page.
#[test]
fn replayed_steps_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 1);
    for (cases, dtype) in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8].into_iter().enumerate() {
        let run = |model: &GptOss| {
            let mut sequence = cache(&config(), gpu, dtype, 20).sequence();
            feed(model, &mut sequence, &tokens(60, 1), 60);
            feed(model, &mut sequence, &tokens(10, 2), 1)
        };
        assert!(run(&replaying) == run(&plain), "{dtype:?}");
        // The first step is not recorded.
        assert_eq!(replaying.replayed_steps(), 9 * (cases as u64 + 1), "{dtype:?}");
    }
    assert_eq!(plain.replayed_steps(), 0);
}

/// What a step gave stays when the next one is computed.
#[test]
fn logits_are_their_own() {
    let Some(gpu) = gpu() else { return };
    let [replaying, _] = models(&config(), gpu, 8);
    let mut sequence = cache(&config(), gpu, KvDtype::Bf16, 20).sequence();
    let mut kept = Vec::new();
    for token in tokens(5, 1) {
        let batch = Batch::single(&sequence, &[token], LogitRows::Last);
        let logits = replaying.forward(&batch, &mut [&mut sequence]).unwrap();
        let values = logits.to_vec2::<f32>().unwrap();
        kept.push((logits, values));
    }
    for (step, (logits, values)) in kept.into_iter().enumerate() {
        assert!(logits.to_vec2::<f32>().unwrap() == values, "step {step}");
    }
}

/// Attention is prepared for a number of positions, beyond which another recording takes over.
#[test]
fn a_text_outgrows_its_recording() {
    let Some(gpu) = gpu() else { return };
    // Small, because the emulator has to go through a thousand positions first.
    let mut small = config_of(&[(4, None)]);
    small.head_dim = 16;
    let [replaying, plain] = models(&small, gpu, 2);
    let run = |model: &GptOss| {
        let mut sequence = cache(&small, gpu, KvDtype::Bf16, 20).sequence();
        feed(model, &mut sequence, &tokens(1019, 1), 1019);
        feed(model, &mut sequence, &tokens(10, 2), 1)
    };
    assert!(run(&replaying) == run(&plain));
    // Five steps up to position 1,024 and five beyond it, of each but the first.
    assert_eq!(replaying.replayed_steps(), 8);
}

/// Any sequences take the place of those that a step was recorded with, in any order, beside prefill.
#[test]
fn a_recording_is_of_no_sequence() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 3);
    let run = |model: &GptOss| {
        let cache = cache(&config(), gpu, KvDtype::Bf16, 60);
        let mut sequences = [(); 4].map(|()| cache.sequence());
        for (seed, sequence) in (0..).zip(&mut sequences) {
            feed(model, sequence, &tokens(30 + 20 * seed, seed as u32), 100);
        }
        let mut all = Vec::new();
        for round in 0..12 {
            let [a, b, c, d] = &mut sequences;
            let mut some = match round % 3 {
                0 => vec![a, b, c],
                1 => vec![d, b, a],
                _ => vec![c, a],
            };
            let mut batch = Batch::new();
            for (number, sequence) in some.iter().enumerate() {
                let token = tokens(1, 100 + round)[0];
                batch.push(number, sequence.len(), &[token], LogitRows::Last);
            }
            all.extend(step(model, &batch, &mut some));
            if round == 5 {
                // Not a step of decode.
                all.extend(feed(model, &mut sequences[3], &tokens(3, 50), 3));
            }
        }
        // A fork that has to copy the page it writes to, and a text that goes back.
        let mut fork = sequences[0].fork();
        all.extend(feed(model, &mut fork, &tokens(3, 60), 1));
        fork.truncate(20).unwrap();
        all.extend(feed(model, &mut fork, &tokens(3, 61), 1));
        all
    };
    assert!(run(&replaying) == run(&plain));
    // All but the first of three, of two, and of one.
    assert_eq!(replaying.replayed_steps(), 7 + 3 + 5);
}

/// Of a cache that is gone nothing is replayed, also where another has its place in memory.
#[test]
fn a_recording_belongs_to_one_cache() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 4);
    let caches =
        [cache(&config(), gpu, KvDtype::Bf16, 20), cache(&config(), gpu, KvDtype::Fp8, 20)];
    let run = |model: &GptOss| {
        let mut all = Vec::new();
        let mut sequences = [0, 1].map(|c| caches[c].sequence());
        for token in tokens(8, 1) {
            for sequence in &mut sequences {
                all.extend(feed(model, sequence, &[token], 1));
            }
        }
        for dtype in [KvDtype::Bf16, KvDtype::Fp8, KvDtype::Bf16] {
            all.extend(feed(
                model,
                &mut cache(&config(), gpu, dtype, 20).sequence(),
                &tokens(4, 2),
                1,
            ));
        }
        all
    };
    assert!(run(&replaying) == run(&plain));
    assert_eq!(replaying.replayed_steps(), 2 * 7 + 3 * 3);
}

#[test]
fn threads_replay_one_after_another() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 5);
    let run = |model: &GptOss, cache: &KvCache, seed: u32| {
        let mut sequence = cache.sequence();
        feed(model, &mut sequence, &tokens(20, seed), 20);
        feed(model, &mut sequence, &tokens(12, 10 + seed), 1)
    };
    let cache = cache(&config(), gpu, KvDtype::Bf16, 40);
    let alone: Vec<_> = (0..3).map(|seed| run(&plain, &cache, seed)).collect();
    std::thread::scope(|scope| {
        for (seed, want) in (0..).zip(&alone) {
            let (replaying, cache) = (&replaying, &cache);
            scope.spawn(move || {
                assert!(run(replaying, cache, seed) == *want, "thread {seed}");
            });
        }
    });
    assert_eq!(replaying.replayed_steps(), 3 * 12 - 1);
}

/// What other threads do while a step is recorded is not recorded with it.
#[test]
fn recording_is_not_disturbed() {
    let Some(gpu) = gpu() else { return };
    let [replaying, _] = models(&config(), gpu, 9);
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            for _ in 0..10 {
                let mut sequence = cache(&config(), gpu, KvDtype::Bf16, 10).sequence();
                feed(&replaying, &mut sequence, &tokens(3, 1), 1);
            }
        });
        while !feeding.is_finished() {
            Tensor::new(&[1u32, 2, 3], gpu).unwrap();
        }
    });
    assert_eq!(replaying.replayed_steps(), 10 * 2);
}

/// Counts what is said aloud.
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// A driver that cannot record is said aloud once, and seldom asked again. In a process of its own, because
/// the emulator is told by its environment.
#[test]
fn without_recording_steps_are_computed_one_by_one() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 6);
    if !plain.kernels().contains("CUDA emulator") {
        let line = b"NOT TESTED: this driver can record\n";
        return std::io::stderr().write_all(line).unwrap();
    }
    if std::env::var_os("EMULATOR_NO_CAPTURE").is_none() {
        let name = "cuda::replay::without_recording_steps_are_computed_one_by_one";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = again.args([name, "--exact"]).env("EMULATOR_NO_CAPTURE", "1").output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success(), "{said}");
        // Of 60 steps at the 2nd, the 11th and the 28th.
        return assert_eq!(said.matches("asked to capture").count(), 3, "{said}");
    }
    let warnings = Arc::<AtomicUsize>::default();
    tracing::subscriber::set_global_default(Warnings(warnings.clone())).unwrap();
    let run = |model: &GptOss| {
        feed(model, &mut cache(&config(), gpu, KvDtype::Bf16, 10).sequence(), &tokens(60, 1), 1)
    };
    assert!(run(&replaying) == run(&plain));
    assert_eq!((replaying.replayed_steps(), warnings.load(Ordering::Relaxed)), (0, 1));
}

/// A step that fails leaves sequences and recordings as they were.
#[test]
fn a_recording_outlives_a_full_cache() {
    let Some(gpu) = gpu() else { return };
    let [replaying, _] = models(&config(), gpu, 7);
    let cache = cache(&config(), gpu, KvDtype::Bf16, 2);
    let mut sequence = cache.sequence();
    let want = feed(&replaying, &mut sequence, &tokens(64, 1), 1);
    let batch = Batch::single(&sequence, &[1], LogitRows::All);
    assert!(replaying.forward(&batch, &mut [&mut sequence]).is_err());
    drop(sequence);
    let again = feed(&replaying, &mut cache.sequence(), &tokens(64, 1), 1);
    assert!(again == want);
}
