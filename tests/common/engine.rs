//! The shipped model in an engine, and what its answers must be.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use gpt_oss_puzzle::generation::{GenerateOptions, SamplingParams};
use gpt_oss_puzzle::serving::{Event, Generated};
use gpt_oss_puzzle::{Answer, Engine, Model, Result, Stats};
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");

/// The shipped model's tokens that end a message or an answer.
pub const ENDS: [u32; 4] = [1980, 1983, 1988, 1993];

/// The shipped model, its pages all free.
pub fn model() -> Model {
    Model::builder(DIR).threads(1).sequences(8).load().expect("the shipped model loads")
}

/// One that has no engine: what it answers, it answers alone.
pub fn reference() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(model)
}

/// So many tokens of the shipped model, none of them special, the same for the same seed.
pub fn words(count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            300 + (state >> 33) as u32 % 1600
        })
        .collect()
}

/// Draws at temperature 1, and has no end of its own.
pub fn endless(seed: u64) -> GenerateOptions {
    without_end(SamplingParams::default().temperature(1.0).seed(seed))
}

/// The most likely tokens, without an end.
pub fn greedy() -> GenerateOptions {
    without_end(SamplingParams::greedy())
}

fn without_end(sampling: SamplingParams) -> GenerateOptions {
    let sampling = ENDS.iter().fold(sampling, |sampling, id| sampling.logit_bias(*id, -100.0));
    GenerateOptions::default().sampling(sampling)
}

/// The tokens that the shipped model generates when nobody else asks.
pub fn alone(prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let generator = reference().generate(prompt, options).expect("starts");
    generator.map(|token| token.expect("a token").id).collect()
}

/// The ids of an answer.
pub fn ids(answer: &Generated) -> Vec<u32> {
    answer.tokens.iter().map(|token| token.id).collect()
}

/// Reads an answer to its end, which must come: one that is stuck fails the test.
pub fn whole<E: Event>(mut answer: Answer<E>) -> Result<E::Whole> {
    loop {
        match answer.next_within(Duration::from_secs(20)) {
            Poll::Ready(Some(event)) => drop(event?),
            Poll::Ready(None) => return answer.finish(),
            Poll::Pending => panic!("nothing for 20 s"),
        }
    }
}

/// The statistics once nothing runs and nothing waits: every page is back, or in the prefix cache.
pub fn settled(engine: &Engine) -> Stats {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = engine.stats();
        if (stats.running, stats.waiting, stats.free_pages + stats.cached_pages)
            == (0, 0, stats.pages)
        {
            return stats;
        }
        assert!(Instant::now() < until, "{stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes one row of the embedding not a number, in the files of a small checkpoint.
pub fn poison_embedding(dir: &Path, token: u32) {
    for entry in std::fs::read_dir(dir).expect("the checkpoint") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a shard");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        let entry = &header["model.embed_tokens.weight"];
        let Some(begin) = entry["data_offsets"][0].as_u64() else { continue };
        let row = 2 * entry["shape"][1].as_u64().expect("two dimensions") as usize;
        let at = 8 + length + begin as usize + token as usize * row;
        for value in bytes[at..at + row].chunks_exact_mut(2) {
            value.copy_from_slice(&0x7fc0_u16.to_le_bytes());
        }
        std::fs::write(&path, bytes).expect("written");
        return;
    }
    panic!("no embedding in {}", dir.display());
}
