//! By how much one way to run a model differs from another: its logits, on what the shipped model writes
//! and on random weights of the released shapes.
//!
//! The test binary has `examples/world` as its `world`.

#![allow(dead_code)] // each test binary uses its own part

use crate::world::{Rng, Split, draw_task, exercise};
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::harmony::{Dialect, Renderer};
use gpt_oss_puzzle::model::{Batch, Device, GptOss, LogitRows};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::Checkpoint;
use std::path::Path;

/// The shipped model.
pub const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");

/// What two ways to run a model make of the same rows.
pub struct Difference {
    pub rows: usize,
    /// The mean over the rows, in nats.
    pub divergence: f64,
    /// Rows whose first choice is another.
    pub other: usize,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { rows, divergence, other } = self;
        write!(f, "{rows} tokens: {divergence:.2e} nats, another first choice for {other}")
    }
}

/// Logits of every row of `tokens`.
pub fn logits(model: &GptOss, tokens: &[u32]) -> Vec<Vec<f32>> {
    let pages = KvCache::pages_for(model.config(), tokens.len(), tokens.len());
    let cache = KvCacheConfig { dtype: KvDtype::F32, pages, scales: None };
    let mut sequence = KvCache::new(model.config(), &cache, &Device::Cpu).unwrap().sequence();
    let batch = Batch::single(&sequence, tokens, LogitRows::All);
    model.forward(&batch, &mut [&mut sequence]).unwrap().to_vec2().unwrap()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    row.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

/// Σ p·ln(p / q) of two rows of logits, in nats (Kullback and Leibler 1951).
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a row has logits")
}

fn compare(rows: &[(Vec<f32>, Vec<f32>)]) -> Difference {
    let divergence = rows.iter().map(|(p, q)| kl(p, q)).sum::<f64>() / rows.len() as f64;
    let other = rows.iter().filter(|(p, q)| argmax(p) != argmax(q)).count();
    Difference { rows: rows.len(), divergence, other }
}

/// The difference that `change` makes to what the shipped model writes, not to what it reads.
pub fn on_the_shipped_model(change: impl Fn(GptOss) -> GptOss) -> Difference {
    let checkpoint = Checkpoint::open(Path::new(DIR)).unwrap();
    let tokenizer = Tokenizer::from_file(Path::new(DIR).join("tokenizer.json")).unwrap();
    let model = || GptOss::new(&checkpoint, 0).unwrap();
    let (exact, changed) = (model(), change(model()));
    let (mut rng, mut rows) = (Rng::new(8), Vec::new());
    for _ in 0..40 {
        let exercise = exercise(draw_task(&mut rng), Split::HeldOut, &mut rng);
        let prompt = Renderer::Native(Dialect::template())
            .render(&exercise.render_request(), &tokenizer)
            .unwrap();
        let turn = tokenizer.encode_with_special(&exercise.turn.text()).unwrap();
        let tokens = [prompt.tokens.clone(), turn].concat();
        let both = logits(&exact, &tokens).into_iter().zip(logits(&changed, &tokens));
        rows.extend(both.skip(prompt.tokens.len() - 1));
    }
    compare(&rows)
}

/// The difference that `change` makes with random weights: two layers of Puzzle's width.
pub fn on_random_weights(change: impl Fn(GptOss) -> GptOss) -> Difference {
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = 4096;
    config.block_configs.truncate(2);
    config.block_configs.iter_mut().for_each(|block| block.num_local_experts = 8);
    let checkpoint = Checkpoint::random(&config, 1).unwrap();
    let model = || GptOss::new(&checkpoint, 0).unwrap();
    let (exact, changed) = (model(), change(model()));
    let tokens: Vec<u32> = (0..24).map(|i| i * 997 % 4096).collect();
    let both = logits(&exact, &tokens).into_iter().zip(logits(&changed, &tokens));
    compare(&both.collect::<Vec<_>>())
}
