//! How fast a model runs here, in the shape of llama-bench.
//!
//! ```text
//! cargo run --release --example bench -- --synthetic gpt-oss-20b --layers 4 -p 512 -n 64 -r 3
//! ```
//!
//! The tables of a GPU:
//!
//! ```text
//! bench --device cuda --synthetic puzzle-88b --kv-dtype fp8 --chunk 4096 -p 512,4096,65536 -n 0
//! bench --device cuda --synthetic puzzle-88b --kv-dtype fp8 -p 0 -n 64 -b 1,8,64 -d 0,8192,65536,131008
//! ```
//!
//! With `--engine`, every batch again as that many requests to an engine, which also draws their tokens: beside
//! the rate of bare steps, and how much of a step is spent outside the model.

mod common;
#[path = "bench/engine.rs"]
mod engine;
#[path = "bench/memory.rs"]
mod memory;
#[path = "bench/table.rs"]
mod table;

use clap::{Parser, ValueEnum};
use engine::Through;
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::chat::Model;
use gpt_oss_puzzle::model::{Activations, Batch, DenseDtype, DeviceName, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, KvScales, tiny_config};
use memory::{bytes_per_step, copy_bandwidth, peak_memory};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Measure prefill and decode speed, load time and peak memory.
#[derive(Parser)]
struct Args {
    /// Checkpoint directory
    #[arg(long, value_name = "DIR", required_unless_present = "synthetic")]
    model: Option<PathBuf>,
    /// Random weights of this shape, made in memory
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    synthetic: Option<Shape>,
    /// Only the first layers of a synthetic model
    #[arg(long, value_name = "N", requires = "synthetic", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,
    /// Write the synthetic model to this directory and measure nothing
    #[arg(long, value_name = "DIR", requires = "synthetic")]
    save: Option<PathBuf>,
    /// Where to run: cpu, cuda (the first GPU) or cuda:1
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Prompt tokens, one or several numbers, 0 for no prefill test
    #[arg(short = 'p', default_value = "512", value_delimiter = ',')]
    prompt: Vec<u32>,
    /// Tokens to decode one by one, 0 for no decode test
    #[arg(short = 'n', default_value_t = 64)]
    decode: u32,
    /// Sequences that are decoded together, one or several numbers
    #[arg(short, long, default_value = "1", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Tokens in the cache before each test, one or several numbers
    #[arg(short = 'd', default_value = "0", value_delimiter = ',')]
    depth: Vec<u32>,
    /// Worker threads, 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Repetitions of each test, after one that is not counted
    #[arg(short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Most tokens that go through the model at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// On a GPU, start every launch by itself, also where a step is recorded
    #[arg(long)]
    no_replay: bool,
    /// Every batch again as requests to an engine
    #[arg(long, conflicts_with = "no_replay")]
    engine: bool,
    /// How the engine draws: 0 for the most likely tokens
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// How dense weights are held: bf16, as stored, or q8
    #[arg(long, default_value = "bf16")]
    dense_dtype: DenseDtype,
    /// What products make of activations: exact, as computed, or bf16
    #[arg(long, default_value = "exact")]
    activations: Activations,
    /// How keys and values are stored: bf16, fp8 or f32
    #[arg(long, default_value = "bf16")]
    kv_dtype: KvDtype,
    /// Format of the result
    #[arg(short, value_enum, default_value_t = Output::Md)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Md,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    #[value(name = "gpt-oss-20b")]
    GptOss20b,
    #[value(name = "gpt-oss-120b")]
    GptOss120b,
    #[value(name = "puzzle-88b")]
    Puzzle88b,
    #[value(name = "tiny")]
    Tiny,
}

impl Shape {
    fn config(self) -> ModelConfig {
        match self {
            Shape::GptOss20b => ModelConfig::gpt_oss_20b(),
            Shape::GptOss120b => ModelConfig::gpt_oss_120b(),
            Shape::Puzzle88b => ModelConfig::puzzle_88b(),
            Shape::Tiny => tiny_config(),
        }
    }
}

/// `tokens` are added to each of `batch` sequences that hold `depth`, at most `chunk` of each at once.
#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    tokens: usize,
    depth: usize,
    batch: usize,
    chunk: usize,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let tests = tests(args);
    let total = tests.iter().map(|test| test.depth + test.tokens).max().unwrap_or(0);
    let fits = |config: &ModelConfig| match config.max_position_embeddings {
        limit if total > limit => {
            Err(format!("{total} tokens do not fit the model's context of {limit}"))
        }
        _ => Ok(()),
    };
    let device = args.device.open()?;
    let started = Instant::now();
    let checkpoint = match (&args.model, args.synthetic) {
        (Some(dir), _) => Checkpoint::open(dir)?,
        (None, shape) => {
            let mut config = shape.unwrap_or(Shape::GptOss20b).config();
            config.block_configs.truncate(args.layers.unwrap_or(u32::MAX) as usize);
            fits(&config)?; // before gigabytes of weights are made
            match device.is_cpu() {
                true => Checkpoint::random(&config, 0)?,
                // Copied to the device many times over: the whole model need not exist here.
                false => Checkpoint::random_repeating(&config, 0)?,
            }
        }
    };
    fits(checkpoint.config())?;
    if let Some(dir) = &args.save {
        checkpoint.save(dir, 5_000_000_000)?;
        return Ok(ExitCode::SUCCESS);
    }
    let copy_rate = match device.is_cpu() {
        true => None,
        false => Some(copy_bandwidth(&device, args.synthetic.map_or(1 << 30, copy_bytes))?),
    };
    let (with_engine, alone);
    let (model, engine, checkpoint) = if args.engine {
        with_engine = engine::load(args, checkpoint, &tests)?;
        (with_engine.transformer(), Some(&with_engine), with_engine.checkpoint())
    } else {
        let model = GptOss::new(&checkpoint, args.threads)?
            .with_dense_dtype(args.dense_dtype)
            .with_activations(args.activations)
            .on_device(&device, |_| {})?;
        alone = if args.no_replay { model.without_replay() } else { model };
        (&alone, None, &checkpoint)
    };
    let load_seconds = started.elapsed().as_secs_f64();
    let mut bench = Bench { args, model, engine, checkpoint, cache_bytes: 0, at_depth: None };
    let mut results = Vec::new();
    for test in tests {
        results.push(bench.measure(test)?);
    }
    let config = bench.model.config();
    let report = json!({
        "model_type": config.model_type, "layers": config.num_hidden_layers(),
        "weight_bytes": args.dense_dtype.weight_bytes(config, bench.checkpoint.total_bytes()), "cache_bytes": bench.cache_bytes,
        "activations": format!("{:?}", args.activations), "kv_dtype": args.kv_dtype, "kernels": bench.model.kernels(), "load_seconds": load_seconds,
        "peak_memory_bytes": peak_memory(), "copy_bytes_per_second": copy_rate, "tests": results,
    });
    match args.output {
        Output::Json => writeln!(stdout(), "{report:#}")?,
        Output::Md => table::print(&report, &mut stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes whose copy is timed: more than any cache holds, but little for the small shape.
fn copy_bytes(shape: Shape) -> usize {
    if matches!(shape, Shape::Tiny) { 1 << 20 } else { 1 << 30 }
}

/// Every prompt and every batch at every depth.
fn tests(args: &Args) -> Vec<Test> {
    let (chunk, decode) = (args.chunk as usize, args.decode as usize);
    let at = |depth: usize| {
        let prefill = move |&tokens: &u32| {
            let tokens = tokens as usize;
            Test { name: "pp", tokens, depth, batch: 1, chunk }
        };
        let decode = move |&batch: &u32| {
            let batch = batch as usize;
            Test { name: "tg", tokens: decode, depth, batch, chunk: 1 }
        };
        args.prompt.iter().map(prefill).chain(args.batch.iter().map(decode))
    };
    let depths = args.depth.iter().map(|depth| *depth as usize);
    depths.flat_map(at).filter(|test| test.tokens > 0).collect()
}

struct Bench<'a> {
    args: &'a Args,
    model: &'a GptOss,
    /// The same model where it has an engine.
    engine: Option<&'a Model>,
    checkpoint: &'a Checkpoint,
    cache_bytes: usize,
    /// On the CPU: the sequence that the tests of a depth fork from.
    at_depth: Option<Sequence>,
}

impl Bench<'_> {
    fn measure(&mut self, test: Test) -> Result<Value, Box<dyn Error>> {
        let Test { name, tokens, depth, batch, .. } = test;
        let mut seconds = Vec::new();
        // In turns with the bare steps: what else a machine does, it does to both.
        let model = self.engine.filter(|_| name == "tg");
        let mut through = model.map(|model| Through::new(model, self.args, test)).transpose()?;
        for repetition in 0..=self.args.repetitions {
            let taken = match self.repeat(test) {
                Ok(taken) => taken,
                // A device may have no room for one test and for the next.
                Err(error) if lacks_memory(&*error) && !self.model.device().is_cpu() => {
                    eprintln!("{}: skipped: {error}", label(test));
                    let reason = "not enough memory on the device";
                    return Ok(json!({"test": label(test), "skipped": reason}));
                }
                Err(error) => return Err(error),
            };
            if repetition > 0 {
                seconds.push(taken);
            }
            if let Some(through) = &mut through {
                through.repeat(repetition > 0)?;
            }
        }
        let rates: Vec<f64> = seconds.iter().map(|s| (tokens * batch) as f64 / s).collect();
        let (mean, deviation) = mean_and_deviation(&rates);
        // The table comes at the end, which a failure may prevent.
        eprintln!("{}: {mean:.2} tokens/s", label(test));
        let mut result = json!({
            "test": label(test), "tokens_per_second": mean, "deviation": deviation,
            "seconds": seconds,
        });
        if name == "tg" {
            let (dense, kv) = (self.args.dense_dtype, self.args.kv_dtype);
            let bytes = bytes_per_step(self.checkpoint, dense, kv, depth + tokens / 2, batch);
            result["bytes_per_step"] = json!(bytes);
            result["gigabytes_per_second"] = json!(bytes as f64 * mean / batch as f64 / 1e9);
            if let Some(through) = &through {
                result["engine"] = through.result(mean);
            }
        }
        Ok(result)
    }

    /// Seconds that a test takes once.
    fn repeat(&mut self, test: Test) -> Result<f64, Box<dyn Error>> {
        let mut sequences = self.sequences(test)?;
        self.model.device().synchronize()?;
        let started = Instant::now();
        feed(self.model, &mut sequences, test.tokens, test.chunk)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// What a test starts from: sequences of `depth` tokens.
    fn sequences(&mut self, test: Test) -> Result<Vec<Sequence>, Box<dyn Error>> {
        let Test { tokens, depth, batch, .. } = test;
        let chunk = self.args.chunk as usize;
        if !self.model.device().is_cpu() {
            // Each of its own pages, unwritten: what they hold does not change the time to read them.
            self.at_depth = None;
            let pages = KvCache::pages_for(self.model.config(), depth + tokens, chunk);
            let cache = self.cache(batch * pages)?;
            let mut sequences: Vec<Sequence> = (0..batch).map(|_| cache.sequence()).collect();
            sequences.iter_mut().try_for_each(|sequence| sequence.extend_unwritten(depth))?;
            return Ok(sequences);
        }
        // Forks: pages that were never written would take no memory, and no time to read.
        if self.at_depth.as_ref().is_none_or(|sequence| sequence.len() != depth) {
            let most = |list: &[u32]| list.iter().max().map_or(0, |most| *most as usize);
            let total = depth + most(&self.args.prompt).max(self.args.decode as usize);
            let pages = KvCache::pages_for(self.model.config(), total, chunk);
            let mut sequence = self.cache((1 + most(&self.args.batch)) * pages)?.sequence();
            feed(self.model, std::slice::from_mut(&mut sequence), depth, chunk)?;
            self.at_depth = Some(sequence);
        }
        Ok((0..batch).filter_map(|_| self.at_depth.as_ref()).map(Sequence::fork).collect())
    }

    fn cache(&mut self, pages: usize) -> Result<KvCache, Box<dyn Error>> {
        let (config, dtype) = (self.model.config(), self.args.kv_dtype);
        let scales = (0..config.num_hidden_layers()).map(|layer| self.checkpoint.kv_scales(layer));
        let scales: Option<Vec<KvScales>> = scales.collect::<Result<_, _>>()?;
        let cache = KvCacheConfig { dtype, pages, scales };
        let cache = KvCache::new(config, &cache, self.model.device())?;
        self.cache_bytes = self.cache_bytes.max(pages * KvCache::page_bytes(config, dtype));
        Ok(cache)
    }
}

fn mean_and_deviation(rates: &[f64]) -> (f64, f64) {
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>();
    (mean, (variance / (rates.len().max(2) - 1) as f64).sqrt())
}

/// Whether the driver had no memory left.
fn lacks_memory(error: &(dyn Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.any(|error| error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY"))
}

fn label(test: Test) -> String {
    let together = if test.batch > 1 { format!(" x {}", test.batch) } else { String::new() };
    format!("{}{} @ d{}{together}", test.name, test.tokens, test.depth)
}

/// Appends `count` tokens to each of `sequences`, which are equally long, computing the logits a
/// generation would need, and waits for each step as a generation would.
fn feed(
    model: &GptOss,
    sequences: &mut [Sequence],
    count: usize,
    chunk: usize,
) -> Result<(), Box<dyn Error>> {
    let (vocab, start) = (model.config().vocab_size, sequences[0].len());
    for from in (0..count).step_by(chunk) {
        let mut batch = Batch::new();
        for (i, sequence) in sequences.iter().enumerate() {
            let positions = start + from..start + count.min(from + chunk);
            let tokens = positions.map(|p| ((p + 31 * i) * 7919 % vocab) as u32);
            batch.push(i, sequence.len(), &tokens.collect::<Vec<_>>(), LogitRows::Last);
        }
        model.forward(&batch, &mut sequences.iter_mut().collect::<Vec<_>>())?;
        model.device().synchronize()?;
    }
    Ok(())
}
