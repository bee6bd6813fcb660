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
use gpt_oss_puzzle::{ChatEvent, ChatRequest, ChatSession, ChatStream};
use std::error::Error;
use std::io::{BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Chat with a model. The answer goes to stdout, everything else to stderr. Ctrl-c stops the answer;
/// between answers, it ends the chat, as does the end of the input. The exit code is 1 when an answer
/// failed, 2 for wrong arguments, and 130 after ctrl-c.
#[derive(Parser)]
struct Args {
    /// What to ask; without it, lines are read from stdin, each answered in turn
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
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
    max_tokens: Option<NonZeroUsize>,
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
    request.max_tokens = args.max_tokens.map(NonZeroUsize::get);
    let mut session = model.session(request);
    if !args.prompt.is_empty() {
        let reason = answer(&mut session, &args.prompt.join(" "), &running)?;
        return Ok(ExitCode::from(if reason == FinishReason::Cancelled { 130 } else { 0 }));
    }
    let mut code = ExitCode::SUCCESS;
    eprint!("> ");
    for line in stdin().lock().lines() {
        let line = line?;
        if !line.trim().is_empty() {
            match answer(&mut session, &line, &running) {
                // Nobody is left to read the answers.
                Err(error) if error.is::<std::io::Error>() => return Err(error),
                // A turn that fails does not end the conversation.
                Err(error) => {
                    eprintln!("error: {error}");
                    code = ExitCode::FAILURE;
                }
                Ok(_) => {}
            }
        }
        eprint!("> ");
    }
    eprintln!();
    Ok(code)
}

/// Answers `text`, while ctrl-c stops the answer.
fn answer(
    session: &mut ChatSession,
    text: &str,
    running: &Running,
) -> Result<FinishReason, Box<dyn Error>> {
    let stream = session.send(text)?;
    let set = |handle| *running.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    set(Some(stream.cancel_handle()));
    let reason = show(stream);
    set(None);
    reason
}

/// Prints an answer while it is made.
fn show(mut stream: ChatStream<'_>) -> Result<FinishReason, Box<dyn Error>> {
    let (dim, plain) = if stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let mut out = stdout().lock();
    let mut thinking = false;
    for event in stream.by_ref() {
        let event = event?;
        let reasoning = matches!(event, ChatEvent::Reasoning(_));
        if std::mem::replace(&mut thinking, reasoning) && !reasoning {
            eprintln!();
        }
        match event {
            ChatEvent::Reasoning(text) => eprint!("{dim}{text}{plain}"),
            ChatEvent::Preamble(text) | ChatEvent::Text(text) => write!(out, "{text}")?,
            // A call may be cut off, so each part ends plain.
            ChatEvent::ToolCallStart { name, .. } => eprint!("{dim}[calls {name}: {plain}"),
            ChatEvent::ToolCallDelta { arguments, .. } => eprint!("{dim}{arguments}{plain}"),
            ChatEvent::ToolCallDone { .. } => eprintln!("{dim}]{plain}"),
            ChatEvent::Repaired(repair) => eprint!("{dim}[{:?}]{plain}", repair.kind),
            _ => {}
        }
        out.flush()?;
    }
    writeln!(out)?;
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
