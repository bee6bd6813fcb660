//! A chat in the terminal: one answer when a prompt is given, a conversation otherwise.
//!
//! ```text
//! cargo run --release --example chat -- --model openai/gpt-oss-20b --effort low "Why is the sky blue?"
//! ```

mod common;
#[path = "common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::generation::{CancelHandle, FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{Effort, Message};
use gpt_oss_puzzle::{ChatEvent, ChatRequest, ChatSession};
use std::error::Error;
use std::io::{BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Chat with a model. The answer goes to stdout, everything else to stderr. Ctrl-c stops the answer;
/// between answers, it ends the chat, as does the end of the input.
#[derive(Parser)]
struct Args {
    /// What to ask; without it, lines are read from stdin, each answered in turn
    prompt: Vec<String>,
    #[command(flatten)]
    load: load::LoadArgs,
    /// How much to think: low, medium or high
    #[arg(long, default_value = "medium")]
    effort: Effort,
    /// Instructions to the model
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer, chain of thought included
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,
    /// 0 for the most likely answer; by default what the checkpoint says, else 1
    #[arg(long)]
    temperature: Option<f64>,
    /// The same seed gives the same answer on the same date
    #[arg(long)]
    seed: Option<u64>,
}

/// The answer that ctrl-c stops.
type Running = Arc<Mutex<Option<CancelHandle>>>;

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let running = Running::default();
    let stop = running.clone();
    ctrlc::set_handler(move || match stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(answer) => answer.cancel(),
        None => std::process::exit(130),
    })?;
    let model = args.load.load()?;
    let mut sampling = SamplingParams::default();
    (sampling.temperature, sampling.seed) = (args.temperature, args.seed);
    let mut request = ChatRequest::new(args.system.iter().map(Message::system))
        .effort(args.effort)
        .sampling(sampling);
    request.max_tokens = args.max_tokens;
    let mut session = model.session(request);
    if !args.prompt.is_empty() {
        let reason = answer(&mut session, &args.prompt.join(" "), &running)?;
        return Ok(ExitCode::from(if reason == FinishReason::Cancelled { 130 } else { 0 }));
    }
    eprint!("> ");
    for line in stdin().lock().lines() {
        let line = line?;
        if !line.trim().is_empty() {
            // A turn that fails does not end the conversation.
            if let Err(error) = answer(&mut session, &line, &running) {
                eprintln!("error: {error}");
            }
        }
        eprint!("> ");
    }
    eprintln!();
    Ok(ExitCode::SUCCESS)
}

/// Streams the answer to `text`.
fn answer(
    session: &mut ChatSession,
    text: &str,
    running: &Running,
) -> Result<FinishReason, Box<dyn Error>> {
    let (dim, plain) = if stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let mut stream = session.send(text)?;
    let set = |handle| *running.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    set(Some(stream.cancel_handle()));
    let mut thinking = false;
    for event in stream.by_ref() {
        let event = event?;
        let reasoning = matches!(event, ChatEvent::Reasoning(_));
        if std::mem::replace(&mut thinking, reasoning) && !reasoning {
            eprintln!();
        }
        match event {
            ChatEvent::Reasoning(text) => eprint!("{dim}{text}{plain}"),
            ChatEvent::Preamble(text) | ChatEvent::Text(text) => print!("{text}"),
            ChatEvent::ToolCallStart { name, .. } => eprint!("{dim}[calls {name}: "),
            ChatEvent::ToolCallDelta { arguments, .. } => eprint!("{arguments}"),
            ChatEvent::ToolCallDone { .. } => eprintln!("]{plain}"),
            ChatEvent::Repaired(repair) => eprint!("{dim}[{:?}]{plain}", repair.kind),
            _ => {}
        }
        stdout().flush()?;
    }
    set(None);
    println!();
    let response = stream.finish()?;
    let (usage, timings) = (response.usage, response.timings);
    eprintln!(
        "{dim}[{:?}: read {} tokens and {} from the cache in {:.2} s, wrote {} at {:.1} tokens/s]{plain}",
        response.finish_reason,
        usage.prompt_tokens - usage.cached_tokens,
        usage.cached_tokens,
        timings.prefill.as_secs_f64(),
        usage.completion_tokens,
        timings.decode_rate(&usage),
    );
    Ok(response.finish_reason)
}
