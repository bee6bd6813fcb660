//! An answer as a value of a Rust type.
//!
//! ```text
//! cargo run --release --features structured,schemars --example structured -- --model openai/gpt-oss-20b
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

/// Ask for a city and a temperature, and get numbers to compute with.
#[derive(Parser)]
struct Args {
    /// What to ask
    #[arg(
        default_value = "Where is it warmest in January: Rome, Oslo or Cairo? Answer in JSON, with \
                           the city and its mean temperature of that month in degrees Celsius."
    )]
    question: String,
    #[command(flatten)]
    load: load::LoadArgs,
    /// Most tokens of the answer, thinking included
    #[arg(long, default_value_t = 1000)]
    max_tokens: usize,
}

#[derive(JsonSchema, serde::Deserialize)]
struct Weather {
    city: String,
    celsius: i8,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let request = ChatRequest::user(&args.question).max_tokens(args.max_tokens);
    let Weather { city, celsius } = args.load.load()?.chat_as(&request)?;
    let fahrenheit = f64::from(celsius) * 1.8 + 32.0;
    writeln!(std::io::stdout(), "{city}: {celsius} °C, which is {fahrenheit:.1} °F")?;
    Ok(ExitCode::SUCCESS)
}
