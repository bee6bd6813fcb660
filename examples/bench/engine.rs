//! The same steps through an engine: what is spent beside the model.

use crate::{Args, Test};
use gpt_oss_puzzle::cache::PAGE_TOKENS;
use gpt_oss_puzzle::chat::Model;
use gpt_oss_puzzle::generation::{GenerateOptions, SamplingParams};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::{Checkpoint, write_tiny_checkpoint};
use gpt_oss_puzzle::{Engine, EngineOptions, Stats};
use serde_json::{Value, json};
use std::error::Error;
use std::time::{Duration, Instant};

/// The model with a cache for what the largest of `tests` takes.
pub(crate) fn load(
    args: &Args,
    checkpoint: Checkpoint,
    tests: &[Test],
) -> Result<Model, Box<dyn Error>> {
    // Random weights have any tokenizer: nothing is written or read here.
    let any = tempfile::tempdir()?;
    if args.model.is_none() {
        write_tiny_checkpoint(any.path(), 0)?;
    }
    let dir = args.model.as_deref().unwrap_or(any.path());
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"))?;
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

/// An engine for one test: as many answers as it has sequences, with as many tokens, from prompts that are
/// cached as far as it is deep.
pub(crate) struct Through<'a> {
    args: &'a Args,
    test: Test,
    engine: Engine,
    prompts: Vec<Vec<u32>>,
    rates: Vec<f64>,
    steps: u64,
    inside: Duration,
    outside: Duration,
}

impl<'a> Through<'a> {
    pub(crate) fn new(model: &Model, args: &'a Args, test: Test) -> Result<Self, Box<dyn Error>> {
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
        let (steps, inside, outside) = (0, Duration::ZERO, Duration::ZERO);
        Ok(Through { args, test, engine, prompts, rates: Vec::new(), steps, inside, outside })
    }

    /// Answers once; what that took is taken in, if it `counts`.
    pub(crate) fn repeat(&mut self, counts: bool) -> Result<(), Box<dyn Error>> {
        let Test { tokens, batch, .. } = self.test;
        let before = at_rest(&self.engine);
        let started = Instant::now();
        answer(&self.engine, self.args, &self.prompts, tokens)?;
        let taken = started.elapsed().as_secs_f64();
        let after = at_rest(&self.engine);
        if counts {
            self.rates.push((tokens * batch) as f64 / taken);
            self.steps += after.steps - before.steps;
            self.inside += after.in_model - before.in_model;
            self.outside += after.outside_model - before.outside_model;
        }
        Ok(())
    }

    /// What the repetitions took, beside steps alone that make `bare` tokens per second.
    pub(crate) fn result(&self, bare: f64) -> Value {
        let (mean, deviation) = crate::mean_and_deviation(&self.rates);
        let each = |time: Duration| time.as_secs_f64() / self.steps.max(1) as f64;
        let (inside, outside) = (each(self.inside), each(self.outside));
        json!({
            "tokens_per_second": mean, "deviation": deviation, "of_bare_steps": mean / bare,
            "steps": self.steps / self.rates.len().max(1) as u64,
            "model_seconds_per_step": inside, "other_seconds_per_step": outside,
            "other_share": outside / (inside + outside),
        })
    }
}

impl Drop for Through<'_> {
    /// The pages are the next engine's.
    fn drop(&mut self) {
        let _ = self.engine.shutdown(Duration::ZERO);
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
