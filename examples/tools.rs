//! A model with tools: it calls them, reads their results, and answers.
//!
//! ```text
//! cargo run --release --features schemars --example tools
//! cargo run --release --features schemars --example tools -- --model openai/gpt-oss-20b "How many degrees warmer is it in Rome than in Oslo?"
//! ```

mod common;
#[path = "common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::chat::ToolLoop;
use gpt_oss_puzzle::harmony::{Message, Tool, ToolCall};
use gpt_oss_puzzle::{ChatEvent, ChatRequest};
use schemars::JsonSchema;
use serde_json::{Value, json};
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// Ask a model that can look up the (invented) weather and add numbers. The answer goes to stdout,
/// what happens on the way to stderr.
#[derive(Parser)]
struct Args {
    /// What to ask
    #[arg(default_value = "What is the weather in Rome?")]
    question: String,
    #[command(flatten)]
    load: load::LoadArgs,
    /// Most answers to ask for before giving up
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// Most tokens of each answer
    #[arg(long, default_value_t = 1000)]
    max_tokens: usize,
}

#[derive(JsonSchema, serde::Deserialize)]
struct GetWeather {
    city: String,
}

#[derive(JsonSchema, serde::Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

fn run_tool(call: &ToolCall) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let result = match call.name.as_str() {
        "add" => call.parse::<Add>().map(|Add { a, b }| json!({"sum": a + b}))?,
        "get_weather" => {
            let GetWeather { city } = call.parse()?;
            json!({"temperature": 4 * (city.len() % 9), "sky": "clear"})
        }
        name => return Err(format!("{name} is not implemented").into()),
    };
    eprintln!("{}({}) = {result}", call.name, call.arguments);
    Ok(result)
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let request = ChatRequest::default().max_tokens(args.max_tokens).tools([
        Tool::typed::<GetWeather>("get_weather", "The weather in a city."),
        Tool::typed::<Add>("add", "The sum of two numbers."),
    ]);
    let mut session = args.load.load()?.session(request);
    session.push(Message::user(&args.question));
    let options = ToolLoop::default().max_rounds(args.rounds).on_event(|event| match event {
        ChatEvent::Reasoning(text) | ChatEvent::Preamble(text) => eprint!("{text}"),
        ChatEvent::Finish { reason, .. } => eprintln!("\n[{reason:?}]"),
        _ => {}
    });
    let answer = session.run_tools(options, run_tool)?;
    writeln!(std::io::stdout(), "{}", answer.text())?;
    Ok(ExitCode::SUCCESS)
}
