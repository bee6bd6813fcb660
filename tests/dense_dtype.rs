//! Dense weights in 8 bits: what they change in the logits, on the shipped model and on random weights of
//! the released shapes.

#[path = "../examples/world/mod.rs"]
mod world;

use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::harmony::{Dialect, Renderer};
use gpt_oss_puzzle::model::{Batch, DenseDtype, Device, GptOss, LogitRows};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::Checkpoint;
use gpt_oss_puzzle::{ChatRequest, ErrorKind, Model, ModelConfig};
use std::path::Path;
use world::{Rng, Split, draw_task, exercise};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");

/// Logits of every row of `tokens`.
fn logits(model: &GptOss, tokens: &[u32]) -> Vec<Vec<f32>> {
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

/// The mean over `rows` of the divergence, and the share of rows whose first choice is another.
fn compare(rows: &[(Vec<f32>, Vec<f32>)]) -> (f64, f64) {
    let n = rows.len() as f64;
    let divergence = rows.iter().map(|(p, q)| kl(p, q)).sum::<f64>() / n;
    let other = rows.iter().filter(|(p, q)| argmax(p) != argmax(q)).count() as f64 / n;
    (divergence, other)
}

#[test]
fn the_shipped_model_hardly_changes() {
    let checkpoint = Checkpoint::open(Path::new(DIR)).unwrap();
    let tokenizer = Tokenizer::from_file(Path::new(DIR).join("tokenizer.json")).unwrap();
    let exact = GptOss::new(&checkpoint, 0).unwrap();
    let q8 = GptOss::new(&checkpoint, 0).unwrap().with_dense_dtype(DenseDtype::Q8);
    let (mut rng, mut rows) = (Rng::new(8), Vec::new());
    for _ in 0..40 {
        let exercise = exercise(draw_task(&mut rng), Split::HeldOut, &mut rng);
        let prompt = Renderer::Native(Dialect::template())
            .render(&exercise.render_request(), &tokenizer)
            .unwrap();
        let turn = tokenizer.encode_with_special(&exercise.turn.text()).unwrap();
        let tokens = [prompt.tokens.clone(), turn].concat();
        // What the model writes, not what it reads.
        let both = logits(&exact, &tokens).into_iter().zip(logits(&q8, &tokens));
        rows.extend(both.skip(prompt.tokens.len() - 1));
    }
    let (divergence, other) = compare(&rows);
    println!("{} tokens: {divergence:.2e} nats, another first choice {other:.4}", rows.len());
    assert!(rows.len() > 1000 && divergence > 0.0, "{} rows, {divergence}", rows.len());
    assert!(divergence < 1e-2 && other < 0.01, "{divergence} nats, {other}");
}

#[test]
fn random_weights_of_the_released_shapes_hardly_change() {
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = 4096;
    config.block_configs.truncate(2);
    config.block_configs.iter_mut().for_each(|block| block.num_local_experts = 8);
    let checkpoint = Checkpoint::random(&config, 1).unwrap();
    let exact = GptOss::new(&checkpoint, 0).unwrap();
    let q8 = GptOss::new(&checkpoint, 0).unwrap().with_dense_dtype(DenseDtype::Q8);
    let tokens: Vec<u32> = (0..24).map(|i| i * 997 % 4096).collect();
    let rows: Vec<_> = logits(&exact, &tokens).into_iter().zip(logits(&q8, &tokens)).collect();
    let (divergence, _) = compare(&rows);
    println!("{divergence:.2e} nats");
    assert!(divergence > 0.0 && divergence < 3e-3, "{divergence} nats");
}

#[test]
fn a_chat_takes_the_option_and_a_wrong_name_is_an_error() {
    let model = Model::builder(DIR).dense_dtype(DenseDtype::Q8).load().unwrap();
    let request = ChatRequest::user("What is the capital of France?").date("2026-01-02");
    let answer =
        model.chat(&request.sampling(gpt_oss_puzzle::generation::SamplingParams::greedy()));
    assert_eq!(answer.unwrap().text(), "The capital of France is Paris.");
    let error = "int4".parse::<DenseDtype>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(error.to_string(), "dense dtype is \"int4\", expected \"bf16\" or \"q8\"");
}
