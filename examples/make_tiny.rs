//! Writes a small random checkpoint in the layout of nvidia/gpt-oss-puzzle-88B.
//!
//! ```text
//! cargo run --example make_tiny -- --out tiny --seed 7
//! ```

mod common;

use clap::Parser;
use gpt_oss_puzzle::weights::{Checkpoint, write_tiny_checkpoint};
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a small random checkpoint: config, sharded MXFP4 weights with their index, KV scales,
/// tokenizer, generation_config. About 1.6 MB; its model speaks nonsense.
#[derive(Parser)]
struct Args {
    /// Directory to write to, made if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The same seed gives the same files
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a checkpoint that is already in the directory
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    if !args.force && args.out.join("config.json").exists() {
        eprintln!("error: {} holds a checkpoint already, --force replaces it", args.out.display());
        return Ok(ExitCode::from(2));
    }
    write_tiny_checkpoint(&args.out, args.seed)?;
    let checkpoint = Checkpoint::open(&args.out)?;
    writeln!(
        std::io::stdout(),
        "{}: {} layers, {} bytes of weights in {} shards",
        args.out.display(),
        checkpoint.config().num_hidden_layers(),
        checkpoint.total_bytes(),
        checkpoint.files().len(),
    )?;
    Ok(ExitCode::SUCCESS)
}
