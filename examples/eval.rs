//! What the small model that ships with the crate can do, on questions it was not trained on.
//!
//! ```text
//! cargo run --release --example eval
//! ```

mod common;
#[path = "eval/exam.rs"]
mod exam;
#[path = "world/mod.rs"]
mod world;

use clap::Parser;
use gpt_oss_puzzle::Model;
use gpt_oss_puzzle::cache::KvDtype;
use gpt_oss_puzzle::model::{Activations, DenseDtype};
use indicatif::ProgressBar;
use serde_json::json;
use std::error::Error;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// Examine the tiny model. The exit code is 1 when a line is below what is wanted of it.
#[derive(Parser)]
struct Args {
    /// Checkpoint directory
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny"))]
    model: PathBuf,
    /// Exercises per line
    #[arg(long, default_value_t = 100)]
    count: usize,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// How dense weights are held: bf16, as stored, or q8
    #[arg(long, default_value = "bf16")]
    dense_dtype: DenseDtype,
    /// What products make of activations: exact, as computed, or bf16
    #[arg(long, default_value = "exact")]
    activations: Activations,
    /// How keys and values are stored: bf16, fp8 or f32
    #[arg(long, default_value = "bf16")]
    kv_dtype: KvDtype,
    /// Only lines whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Write everything, mistakes and all that was written included, to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    common::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let model = Model::builder(&args.model)
        .dense_dtype(args.dense_dtype)
        .activations(args.activations)
        .kv_dtype(args.kv_dtype)
        .load()?;
    let mut lines = exam::lines(args.count, args.seed);
    lines.retain(|line| args.only.as_ref().is_none_or(|only| line.name.contains(only)));
    let mut out = stdout().lock();
    let Args { dense_dtype: dense, activations, kv_dtype: kv, .. } = args;
    let kernels = model.transformer().kernels();
    writeln!(out, "{dense:?} dense weights, {activations:?} activations, {kv:?} cache, {kernels}")?;
    writeln!(
        out,
        "{:26} {:>9} {:>7} {:>7} {:>7} {:>9}",
        "", "right", "share", "wanted", "prompt", "reasoning"
    )?;
    let bar = ProgressBar::new(lines.len() as u64);
    let (mut marks, mut passed) = (Vec::new(), true);
    for line in &lines {
        let mark = exam::sit(&model, line)?;
        let share = mark.right as f64 / mark.of as f64;
        passed &= share >= mark.wanted;
        bar.inc(1);
        writeln!(
            out,
            "{:26} {:>5}/{:<3} {:>6.1}% {:>6.0}% {:>7.0} {:>9.1}{}",
            mark.name,
            mark.right,
            mark.of,
            100.0 * share,
            100.0 * mark.wanted,
            mark.prompt_tokens,
            mark.reasoning_tokens,
            if share >= mark.wanted { "" } else { "  below" },
        )?;
        marks.push(mark);
    }
    bar.finish_and_clear();
    if let Some(path) = &args.json {
        let all = json!({
            "dense_dtype": format!("{:?}", args.dense_dtype),
            "activations": format!("{:?}", args.activations),
            "kv_dtype": format!("{:?}", args.kv_dtype),
            "kernels": model.transformer().kernels(),
            "marks": marks,
        });
        std::fs::write(path, format!("{all:#}\n"))?;
    }
    Ok(ExitCode::from(if passed { 0 } else { 1 }))
}
