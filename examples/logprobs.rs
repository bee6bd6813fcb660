//! What the model thinks of given tokens, as JSON: for comparing implementations.
//!
//! ```text
//! cargo run --release --example logprobs -- --model DIR --tokens 1,2,3 --full
//! ```

mod common;

use clap::Parser;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::generation::logprobs::log_sum_exp;
use gpt_oss_puzzle::model::{Activations, Batch, DenseDtype, Device, GptOss, LogitRows};
use gpt_oss_puzzle::weights::Checkpoint;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print one JSON object {"logits":[[…]],"logprobs":[…]} for a sequence of tokens.
///
/// "logits" has one row of vocabulary size: that after the last token, or with --full one row for
/// every position. "logprobs" has the natural logarithm of the probability of every token after the
/// first, given the tokens before it: one number less than there are tokens.
#[derive(Parser)]
struct Args {
    /// Checkpoint directory; no tokenizer is needed
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Token ids
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The logits of every position, not of the last alone
    #[arg(long)]
    full: bool,
    /// How dense weights are held: bf16, as stored, or q8
    #[arg(long, default_value = "bf16")]
    dense_dtype: DenseDtype,
    /// What products make of activations: exact, as computed, or bf16
    #[arg(long, default_value = "exact")]
    activations: Activations,
    /// How keys and values are stored: bf16, fp8 or f32
    #[arg(long, default_value = "bf16")]
    kv_dtype: KvDtype,
    /// Most tokens that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Worker threads, 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let (config, chunk) = (checkpoint.config(), args.chunk as usize);
    if let Some(token) = args.tokens.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(
            format!("token {token} is outside the vocabulary of {}", config.vocab_size).into()
        );
    }
    let scales = (0..config.num_hidden_layers()).map(|layer| checkpoint.kv_scales(layer));
    let cache = KvCacheConfig {
        dtype: args.kv_dtype,
        pages: KvCache::pages_for(config, args.tokens.len(), chunk),
        scales: scales.collect::<Result<_, _>>()?,
    };
    let mut sequence = KvCache::new(config, &cache, &Device::Cpu)?.sequence();
    let model = GptOss::new(&checkpoint, args.threads)?
        .with_dense_dtype(args.dense_dtype)
        .with_activations(args.activations);
    let (mut logits, mut logprobs) = (Vec::new(), Vec::new());
    let mut next = args.tokens.iter().skip(1);
    for tokens in args.tokens.chunks(chunk) {
        let batch = Batch::single(&sequence, tokens, LogitRows::All);
        for row in model.forward(&batch, &mut [&mut sequence])?.to_vec2::<f32>()? {
            if row.iter().any(|logit| !logit.is_finite()) {
                return Err("logits are not finite".into());
            }
            if let Some(&token) = next.next() {
                logprobs.push(f64::from(row[token as usize]) - log_sum_exp(&row));
            }
            if !args.full {
                logits.clear();
            }
            logits.push(row);
        }
    }
    let answer = serde_json::json!({ "logits": logits, "logprobs": logprobs });
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(ExitCode::SUCCESS)
}
