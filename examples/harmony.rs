//! Harmony at the command line: conversations to prompts, and token streams to messages. JSON lines
//! in, JSON lines out.
//!
//! ```text
//! echo '{"messages":[{"role":"user","content":"hi"}]}' | cargo run --example harmony -- render
//! echo '{"tokens":[200005,17196,200008,12194,200002]}' | cargo run --example harmony -- parse --model DIR
//! ```

mod common;

use clap::{Parser, Subcommand};
use gpt_oss_puzzle::harmony::openai::{Request, StringArguments};
use gpt_oss_puzzle::harmony::{self, Collector, Mode, Primed, Renderer, Template};
use gpt_oss_puzzle::tokenizer::{Special, Tokenizer};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Conversations to prompts and token streams to messages, JSON lines in and out.
///
/// A line that cannot be answered gives {"error": "..."}, and the next one is read. The exit code is
/// 0 when all lines were read, 1 when a file cannot be used, 2 for wrong arguments.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Checkpoint directory: its tokenizer.json and its chat template
    #[arg(long, global = true, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Tokenizer, in place of the checkpoint's
    #[arg(long, global = true, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Requests in OpenAI's shape to {"text": "...", "tokens": [...]}
    ///
    /// Fields: messages, tools, builtin_tools, reasoning_effort, model_identity, date,
    /// add_generation_prompt; a template may read any other. Tokens need a tokenizer.
    Render {
        /// Chat template, in place of the checkpoint's or the built-in one
        #[arg(long, value_name = "FILE")]
        template: Option<PathBuf>,
        /// Take the arguments of tool calls given as strings for JSON text, not for JSON strings as
        /// transformers does
        #[arg(long)]
        parse_arguments: bool,
    },
    /// {"tokens": [...]} to {"events": [...], "messages": [...]}
    ///
    /// Tokens that begin with <|start|> are a transcript, others the model's turn after
    /// <|start|>assistant. A field "tools" may list the names of tools on offer.
    Parse {
        /// Make malformed streams an error
        #[arg(long)]
        strict: bool,
    },
}

fn main() -> ExitCode {
    common::exit(run(&Arguments::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let in_model = || arguments.model.as_ref().map(|dir| dir.join("tokenizer.json"));
    let tokenizer = match arguments.tokenizer.clone().or_else(in_model) {
        Some(path) => Some(Arc::new(Tokenizer::from_file(path)?)),
        None => None,
    };
    match &arguments.command {
        Command::Render { template, parse_arguments } => {
            let renderer = match (template, &arguments.model) {
                (Some(path), _) => {
                    let source = std::fs::read_to_string(path)
                        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
                    Template::new(source)?.into()
                }
                (None, Some(dir)) => Renderer::from_checkpoint(dir)?,
                (None, None) => Template::embedded()?.into(),
            };
            let strings =
                if *parse_arguments { StringArguments::Parse } else { StringArguments::Verbatim };
            answer_lines(|line| {
                let request = Request::from_json(line, strings)?;
                Ok(match &tokenizer {
                    Some(tokenizer) => {
                        let rendered = renderer.render(&request.as_render(), tokenizer)?;
                        json!({"text": rendered.text, "tokens": rendered.tokens})
                    }
                    None => json!({"text": renderer.render_text(&request.as_render())?}),
                })
            })
        }
        Command::Parse { strict } => {
            let tokenizer =
                tokenizer.ok_or("parse needs a tokenizer: --model DIR or --tokenizer FILE")?;
            let mode = if *strict { Mode::Strict } else { Mode::Tolerant };
            answer_lines(|line| parse(&tokenizer, mode, line))
        }
    }
}

fn parse(tokenizer: &Arc<Tokenizer>, mode: Mode, line: &Value) -> Result<Value, Box<dyn Error>> {
    let tokens: Vec<u32> =
        serde_json::from_value(line["tokens"].clone()).map_err(|e| format!("tokens: {e}"))?;
    let tools: Option<Vec<String>> =
        serde_json::from_value(line["tools"].clone()).map_err(|e| format!("tools: {e}"))?;
    let starts = tokens.first().and_then(|t| tokenizer.special(*t)) == Some(Special::Start);
    let primed = if starts { Primed::Nothing } else { Primed::Role };
    let mut parser =
        harmony::Parser::new(Arc::clone(tokenizer), primed, mode)?.tools(tools.unwrap_or_default());
    let mut events = Vec::new();
    for token in tokens {
        events.extend(parser.push(token)?);
    }
    events.extend(parser.finish()?);
    let mut collector = Collector::default();
    events.iter().cloned().for_each(|event| collector.push(event));
    Ok(json!({"events": events, "messages": collector.messages()}))
}

/// Answers each line of standard input with one of standard output.
fn answer_lines(
    answer: impl Fn(&Value) -> Result<Value, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    // Bytes, so that a line which is not UTF-8 is an error of that line alone.
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(&line).map_err(|e| format!("not JSON: {e}").into());
        let reply = value
            .and_then(|value| answer(&value))
            .unwrap_or_else(|e| json!({"error": e.to_string()}));
        writeln!(out, "{reply}")?;
    }
    Ok(out.flush()?)
}
