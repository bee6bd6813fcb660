//! Raw prompt in, text out.
//!
//! ```text
//! echo "Once upon a time" | cargo run --release --example generate -- --model DIR --max-tokens 50
//! ```

mod common;
#[path = "common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::generation::{GenerateOptions, SamplingParams};
use gpt_oss_puzzle::tokenizer::TextStream;
use std::error::Error;
use std::io::{Read, Write, stdin, stdout};
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// Continue a raw prompt. Control tokens in it, such as <|start|>, are control tokens; those of the
/// answer are printed too.
#[derive(Parser)]
struct Args {
    /// The prompt; without it, all of stdin
    prompt: Option<String>,
    #[command(flatten)]
    load: load::LoadArgs,
    /// Most tokens to generate; by default until the model stops or the context is full
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<NonZeroUsize>,
    /// 0 for the most likely text; by default what the checkpoint says, else 1
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw from the most probable tokens that reach this probability
    #[arg(long)]
    top_p: Option<f64>,
    /// The same seed gives the same text
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut prompt = String::new();
    match &args.prompt {
        Some(text) => prompt += text,
        None => drop(stdin().read_to_string(&mut prompt)?),
    }
    if prompt.is_empty() {
        return Err("the prompt is empty".into());
    }
    let model = args.load.load()?;
    let mut options = GenerateOptions::default().sampling(SamplingParams::default());
    options.max_tokens = args.max_tokens.map(NonZeroUsize::get);
    options.sampling.temperature = args.temperature;
    options.sampling.top_p = args.top_p;
    options.sampling.seed = args.seed;
    let (mut out, mut text) = (stdout().lock(), TextStream::default());
    for token in model.generate(&prompt, &options)? {
        let bytes = model.tokenizer().token_bytes(token?.id).unwrap_or_default();
        write!(out, "{}", text.push(bytes))?;
        out.flush()?;
    }
    writeln!(out, "{}", text.finish())?;
    Ok(ExitCode::SUCCESS)
}
