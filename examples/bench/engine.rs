//! The same steps through an engine: what is spent beside the model.

use crate::{Args, Test};
use gpt_oss_puzzle::cache::PAGE_TOKENS;
use gpt_oss_puzzle::chat::Model;
use gpt_oss_puzzle::generation::{GenerateOptions, SamplingParams};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::Checkpoint;
use gpt_oss_puzzle::{Engine, EngineOptions, Stats};
use serde_json::{Value, json};
use std::error::Error;
use std::time::{Duration, Instant};

/// What random weights are given for a tokenizer: nothing is written or read here.
const TOKENIZER: &str = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;

/// The model with a cache for what the largest of `tests` takes.
pub(crate) fn load(
    args: &Args,
    checkpoint: Checkpoint,
    tests: &[Test],
) -> Result<Model, Box<dyn Error>> {
    let tokenizer = match &args.model {
        Some(dir) => Tokenizer::from_file(dir.join("tokenizer.json"))?,
        None => Tokenizer::from_bytes(TOKENIZER.as_bytes())?,
    };
    let most = |of: fn(&Test) -> usize| tests.iter().map(of).max().unwrap_or(1);
    let limit = checkpoint.config().max_position_embeddings;
    let model = Model::from_parts(checkpoint, tokenizer)
        .device(args.device)
        .threads(args.threads)
        .dense_dtype(args.dense_dtype)
        .activations(args.activations)
        .kv_dtype(args.kv_dtype)
        .context(limit.min(most(|test| test.depth + test.tokens + PAGE_TOKENS)))
        .sequences(most(|test| test.batch))
        .prefill_chunk(args.chunk as usize);
    Ok(model.load()?)
}

/// Makes as many answers as `test` has sequences, with as many tokens, from prompts that are cached as far as
/// it is deep.
pub(crate) fn measure(model: &Model, args: &Args, test: Test) -> Result<Value, Box<dyn Error>> {
    let Test { tokens, depth, batch, .. } = test;
    let options = EngineOptions::default()
        .max_sequences(batch)
        .max_step_tokens(batch.max(args.chunk as usize))
        .queue(batch)
        .prefix_cache(if depth < PAGE_TOKENS { 0.0 } else { 1.0 })
        // They are read one after another.
        .unread(tokens + 1);
    let engine = model.engine(options)?;
    let vocab = model.config().vocab_size;
    let prompt = |i: usize| (0..=depth).map(move |p| ((p + 31 * i) * 7919 % vocab) as u32);
    let prompts: Vec<Vec<u32>> = (0..batch).map(|i| prompt(i).collect()).collect();
    if depth >= PAGE_TOKENS {
        answer(&engine, args, &prompts, 1)?;
    }
    let (mut rates, mut total) = (Vec::new(), Steps::default());
    for repetition in 0..=args.repetitions {
        let before = at_rest(&engine);
        let started = Instant::now();
        answer(&engine, args, &prompts, tokens)?;
        let rate = (tokens * batch) as f64 / started.elapsed().as_secs_f64();
        if repetition > 0 {
            rates.push(rate);
            total.add(&before, &at_rest(&engine));
        }
    }
    engine.shutdown(Duration::ZERO)?;
    let (mean, deviation) = crate::mean_and_deviation(&rates);
    let each = |time: Duration| time.as_secs_f64() / total.steps.max(1) as f64;
    let (inside, outside) = (each(total.inside), each(total.outside));
    Ok(json!({
        "tokens_per_second": mean, "deviation": deviation, "steps": total.steps / u64::from(args.repetitions),
        "model_seconds_per_step": inside, "other_seconds_per_step": outside,
        "other_share": outside / (inside + outside),
    }))
}

/// What the steps of some repetitions took.
#[derive(Default)]
struct Steps {
    steps: u64,
    inside: Duration,
    outside: Duration,
}

impl Steps {
    fn add(&mut self, before: &Stats, after: &Stats) {
        self.steps += after.steps - before.steps;
        self.inside += after.in_model - before.in_model;
        self.outside += after.outside_model - before.outside_model;
    }
}

/// Has all prompts continued at once.
fn answer(
    engine: &Engine,
    args: &Args,
    prompts: &[Vec<u32>],
    tokens: usize,
) -> Result<(), Box<dyn Error>> {
    let mut answers = Vec::new();
    for (seed, prompt) in (0..).zip(prompts) {
        let sampling = SamplingParams::default().temperature(args.temperature).seed(seed);
        let options = GenerateOptions::default().max_tokens(tokens).ignore_eos();
        answers.push(engine.generate(prompt, options.sampling(sampling))?);
    }
    for answer in answers {
        answer.finish()?;
    }
    Ok(())
}

/// The statistics, which come with the end of a step, a little later than its tokens.
fn at_rest(engine: &Engine) -> Stats {
    loop {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 {
            return stats;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
