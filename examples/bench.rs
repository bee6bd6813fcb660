//! How fast a model runs here, in the shape of llama-bench.
//!
//! ```text
//! cargo run --release --example bench -- --synthetic gpt-oss-20b --layers 4 -p 512 -n 64 -r 3
//! ```

mod common;

use clap::{Parser, ValueEnum};
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::model::{Batch, DenseDtype, Device, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, Layout};
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
    /// Prompt tokens, 0 for no prefill test
    #[arg(short = 'p', default_value_t = 512)]
    prompt: u32,
    /// Tokens to decode one by one, 0 for no decode test
    #[arg(short = 'n', default_value_t = 64)]
    decode: u32,
    /// Sequences that are decoded together
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Tokens in the cache before either test
    #[arg(short = 'd', default_value_t = 0)]
    depth: u32,
    /// Worker threads, 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Repetitions of each test, after one that is not counted
    #[arg(short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Most tokens that go through the model at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// How dense weights are held: bf16, as stored, or q8
    #[arg(long, default_value = "bf16")]
    dense_dtype: DenseDtype,
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
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let [prompt, decode, depth] = [args.prompt, args.decode, args.depth].map(|n| n as usize);
    let total = depth + prompt.max(decode);
    let fits = |config: &ModelConfig| match config.max_position_embeddings {
        limit if total > limit => {
            Err(format!("{total} tokens do not fit the model's context of {limit}"))
        }
        _ => Ok(()),
    };
    let started = Instant::now();
    let checkpoint = match (&args.model, args.synthetic) {
        (Some(dir), _) => Checkpoint::open(dir)?,
        (None, shape) => {
            let mut config = match shape {
                Some(Shape::GptOss120b) => ModelConfig::gpt_oss_120b(),
                Some(Shape::Puzzle88b) => ModelConfig::puzzle_88b(),
                _ => ModelConfig::gpt_oss_20b(),
            };
            config.block_configs.truncate(args.layers.unwrap_or(u32::MAX) as usize);
            fits(&config)?; // before gigabytes of weights are made
            Checkpoint::random(&config, 0)?
        }
    };
    fits(checkpoint.config())?;
    if let Some(dir) = &args.save {
        checkpoint.save(dir, 5_000_000_000)?;
        return Ok(ExitCode::SUCCESS);
    }
    let model = GptOss::new(&checkpoint, args.threads)?.with_dense_dtype(args.dense_dtype);
    let load_seconds = started.elapsed().as_secs_f64();
    let config = model.config();
    let scales = (0..config.num_hidden_layers()).map(|layer| checkpoint.kv_scales(layer));
    let cache = KvCacheConfig {
        dtype: args.kv_dtype,
        // The sequence at depth, and the forks of it that a test runs on.
        pages: (1 + args.batch as usize) * KvCache::pages_for(config, total, args.chunk as usize),
        scales: scales.collect::<Result<_, _>>()?,
    };
    let cache = KvCache::new(config, &cache, &Device::Cpu)?;
    let mut at_depth = cache.sequence();
    feed(&model, std::slice::from_mut(&mut at_depth), depth, args.chunk as usize)?;
    let mut tests = Vec::new();
    let batch = args.batch as usize;
    for (name, tokens, chunk, batch) in
        [("pp", prompt, args.chunk as usize, 1), ("tg", decode, 1, batch)]
    {
        if tokens == 0 {
            continue;
        }
        let mut seconds = Vec::new();
        for repetition in 0..=args.repetitions {
            let mut sequences: Vec<Sequence> = (0..batch).map(|_| at_depth.fork()).collect();
            let started = Instant::now();
            feed(&model, &mut sequences, tokens, chunk)?;
            if repetition > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        let rates: Vec<f64> = seconds.iter().map(|s| (tokens * batch) as f64 / s).collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>();
        let deviation = (variance / (rates.len().max(2) - 1) as f64).sqrt();
        let together = if batch > 1 { format!(" x {batch}") } else { String::new() };
        let mut test = json!({
            "test": format!("{name}{tokens} @ d{}{together}", args.depth),
            "tokens_per_second": mean, "deviation": deviation, "seconds": seconds,
        });
        if name == "tg" && batch == 1 {
            let bytes =
                bytes_per_token(&checkpoint, args.dense_dtype, args.kv_dtype, depth + tokens / 2);
            test["bytes_per_token"] = json!(bytes);
            test["gigabytes_per_second"] = json!(bytes as f64 * mean / 1e9);
        }
        tests.push(test);
    }
    let report = json!({
        "model_type": config.model_type, "layers": config.num_hidden_layers(),
        "weight_bytes": checkpoint.total_bytes(), "cache_bytes": cache.pages() * KvCache::page_bytes(config, args.kv_dtype),
        "kv_dtype": args.kv_dtype, "kernels": model.kernels(), "load_seconds": load_seconds,
        "peak_memory_bytes": peak_memory(), "tests": tests,
    });
    match args.output {
        Output::Json => writeln!(stdout(), "{report:#}")?,
        Output::Md => print_table(&report, &mut stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Appends `count` tokens to each of `sequences`, which are equally long, computing the logits a
/// generation would need.
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
    }
    Ok(())
}

/// What decoding one token has to read: the weights of its experts, all other weights but the
/// embedding, and the keys and values of `depth` positions that each layer's window shows.
fn bytes_per_token(
    checkpoint: &Checkpoint,
    dense_dtype: DenseDtype,
    kv_dtype: KvDtype,
    depth: usize,
) -> u64 {
    let config = checkpoint.config();
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let queries = (config.num_attention_heads * config.head_dim) as u64;
    let keys = (config.num_key_value_heads * config.head_dim) as u64;
    // Bits of an expert's weight: FP4 and its share of a block's scale, or BF16.
    let bits = if checkpoint.layout() == Layout::HfBf16 { 16 } else { 4 * 32 + 8 };
    let per = if checkpoint.layout() == Layout::HfBf16 { 1 } else { 32 };
    let expert = 3 * hidden * inner * bits / per / 8 + 2 * (2 * inner + hidden);
    let page = KvCache::page_bytes(config, kv_dtype) as u64;
    let dense = |weights: u64| match dense_dtype {
        DenseDtype::Q8 => weights * 34 / 32,
        _ => 2 * weights,
    };
    let layer = |block: &gpt_oss_puzzle::BlockConfig| {
        let biases = 2 * (2 * queries + 2 * keys + hidden);
        let attention = dense(hidden * (2 * queries + 2 * keys)) + biases;
        let router = 2 * (hidden + 1) * block.num_local_experts as u64;
        let visible = block.sliding_window.map_or(depth, |w| w.min(depth)) as u64;
        let cache = visible * page / gpt_oss_puzzle::cache::PAGE_TOKENS as u64;
        attention + router + config.num_experts_per_tok as u64 * expert + cache
    };
    config.block_configs.iter().map(layer).sum::<u64>() + dense(hidden * config.vocab_size as u64)
}

/// The most memory this process had at once, in bytes, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn print_table(report: &Value, out: &mut impl Write) -> std::io::Result<()> {
    let number = |value: &Value, divisor: f64, digits: usize| match value.as_f64() {
        Some(value) => format!("{:.digits$}", value / divisor),
        None => "-".into(),
    };
    writeln!(out, "| model | layers | weights GB | kernels | test | tokens/s | GB/s |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for test in report["tests"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} ± {} | {} |",
            report["model_type"].as_str().unwrap_or_default(),
            report["layers"],
            number(&report["weight_bytes"], 1e9, 2),
            report["kernels"].as_str().unwrap_or_default(),
            test["test"].as_str().unwrap_or_default(),
            number(&test["tokens_per_second"], 1.0, 2),
            number(&test["deviation"], 1.0, 2),
            number(&test["gigabytes_per_second"], 1.0, 2),
        )?;
    }
    writeln!(
        out,
        "\nload {} s, peak memory {} GB (weights and cache {} GB)",
        number(&report["load_seconds"], 1.0, 2),
        number(&report["peak_memory_bytes"], 1e9, 3),
        number(
            &json!(
                report["weight_bytes"].as_f64().unwrap_or_default()
                    + report["cache_bytes"].as_f64().unwrap_or_default()
            ),
            1e9,
            3
        ),
    )
}
