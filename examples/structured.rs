//! An answer as a value of a Rust type.
//!
//! ```text
//! cargo run --release --features structured,schemars --example structured
//! ```

mod common;
#[path = "common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::chat::ChatRequest;
use schemars::JsonSchema;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// Ask for a number, and get one to compute with.
#[derive(Parser)]
struct Args {
    /// What to ask. The model is not told the type: say what the answer's fields are
    #[arg(default_value = "What is 17 + 25? Answer in JSON.")]
    question: String,
    #[command(flatten)]
    load: load::LoadArgs,
    /// Most tokens of the answer, thinking included
    #[arg(long, default_value_t = 1000)]
    max_tokens: usize,
}

#[derive(JsonSchema, serde::Deserialize)]
struct Number {
    answer: i32,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let request = ChatRequest::user(&args.question).max_tokens(args.max_tokens);
    let Number { answer } = args.load.load()?.chat_as(&request)?;
    writeln!(std::io::stdout(), "{answer}, and its half is {}", f64::from(answer) / 2.0)?;
    Ok(ExitCode::SUCCESS)
}
