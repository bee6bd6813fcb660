//! Trains the small gpt-oss-puzzle model that ships with the crate, from nothing but seeds.
//!
//! ```text
//! cargo run --release --example train_tiny
//! ```

mod common;
#[path = "train_tiny/attention.rs"]
mod attention;
#[path = "train_tiny/batches.rs"]
mod batches;
#[path = "train_tiny/checkpoint.rs"]
mod checkpoint;
#[path = "train_tiny/induction.rs"]
mod induction;
#[path = "train_tiny/loss_curve.rs"]
mod loss_curve;
#[path = "train_tiny/model.rs"]
mod model;
#[path = "train_tiny/mxfp4.rs"]
mod mxfp4;
#[path = "train_tiny/ops.rs"]
mod ops;
#[path = "train_tiny/vocabulary.rs"]
mod vocabulary;
#[path = "world/mod.rs"]
mod world;

use batches::{Mixture, TrainingBatch};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::{BlockConfig, ModelConfig};
use indicatif::{ProgressBar, ProgressStyle};
use model::{Mode, TinyModel};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use world::Rng;

/// Train the tiny model. The same steps and seed give the same files on the same kind of machine.
/// Started again, a run that was stopped goes on from its last checkpoint.
#[derive(Parser)]
struct Args {
    /// Where the model goes
    #[arg(long, default_value = "examples/models/puzzle-tiny")]
    out: PathBuf,
    /// Where checkpoints and the log of the loss are kept on the way
    #[arg(long, default_value = "target/train_tiny")]
    work: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop before this step, as if interrupted
    #[arg(long)]
    stop_at: Option<usize>,
    /// Write the model even if it is not trained to the end
    #[arg(long)]
    unfinished: bool,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A part of the training, with an optimizer of its own: how many steps, and the highest learning rate,
/// which falls to zero along a line.
struct Stage {
    steps: usize,
    rate: f64,
}

const STAGES: [Stage; 2] =
    [Stage { steps: 6000, rate: 2.5e-3 }, Stage { steps: STEPS - 6000, rate: 1.2e-3 }];
const STEPS: usize = 7000;

/// First short texts, then all lengths, then most of what is hardest: differences, names of any letters,
/// answers in JSON.
fn mixture(step: usize) -> Mixture {
    Mixture {
        shares: match step {
            0..1500 => [150, 170, 200, 80, 60, 10, 0, 210, 70, 30, 0],
            1500..6000 => [155, 170, 215, 30, 45, 35, 15, 215, 65, 35, 0],
            _ => [110, 120, 300, 20, 30, 25, 15, 120, 40, 120, 80],
        },
    }
}

/// Threads that share a step's batch. Part of what determines the result, so not the core count.
const SHARDS: usize = 2;
/// Tokens per step and shard.
const TOKENS: usize = 3072;
/// Steps in which the learning rate rises, and from which step on experts are MXFP4.
const WARM_UP: usize = 100;
const MXFP4_FROM: usize = 4000;
/// Weight of the balance between experts in the loss.
const BALANCE: f64 = 0.01;
const STEPS_PER_CHECKPOINT: usize = 250;

fn main() -> ExitCode {
    // Each shard is a thread already; candle's matrix products would otherwise start more.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    common::exit(run(&Args::parse()).map(|()| ExitCode::SUCCESS))
}

/// The architecture: Puzzle's alternation of windows and its two counts of experts, in small.
fn config(vocab_size: usize) -> ModelConfig {
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = vocab_size;
    config.hidden_size = 128;
    config.intermediate_size = 64;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.max_position_embeddings = 4096;
    config.rope.rope_theta = 10_000.0;
    config.rope.original_max_position_embeddings = 512;
    config.rope.factor = 8.0;
    config.rope.attention_factor = 0.1 * 8f64.ln() + 1.0;
    let blocks =
        [(16, Some(64)), (16, None), (16, Some(64)), (16, Some(512)), (8, Some(64)), (8, None)];
    config.block_configs = blocks
        .map(|(num_local_experts, sliding_window)| BlockConfig {
            num_local_experts,
            sliding_window,
        })
        .to_vec();
    config
}

const VOCABULARY: usize = 2000;

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&args.work)?;
    let texts: Vec<String> = world::corpus(Rng::new(args.seed), 20_000).collect();
    let tokenizer_json =
        vocabulary::train(texts.into_iter(), VOCABULARY).map_err(|e| e.to_string())?;
    let tokenizer = Tokenizer::from_bytes(tokenizer_json.to_string().as_bytes())?;

    let model = TinyModel::new(&config(VOCABULARY), &mut Rng::new(args.seed))?;
    induction::put_in_place(&model, &[1, 5])?;
    let mut losses = resume(&model, &args.work)?;
    let (first, weights) = (losses.len(), model.parameters.values().map(|v| v.elem_count()));
    eprintln!("{} parameters, from step {first}", weights.sum::<usize>());

    let variables: Vec<Var> = model.parameters.values().cloned().collect();
    let bar = ProgressBar::new(STEPS as u64).with_style(ProgressStyle::with_template(
        "{wide_bar} {pos}/{len} {elapsed} + {eta}, loss {msg}",
    )?);
    bar.set_position(first as u64);
    bar.reset_eta();
    std::thread::scope(|scope| {
        let shards: Vec<_> = (0..SHARDS).map(|_| Shard::start(scope, &model)).collect();
        let mut end = 0;
        for stage in STAGES {
            let begin = end;
            end += stage.steps;
            let (from, stop) = (begin.max(first), end.min(args.stop_at.unwrap_or(end)));
            let settings = ParamsAdamW { beta2: 0.99, weight_decay: 0.01, ..Default::default() };
            let mut optimizer = AdamW::new(variables.clone(), settings)?;
            for step in from..stop {
                // Also after an interruption, because the optimizer starts anew.
                let warm = ((step - from + 1) as f64 / WARM_UP as f64).min(1.0);
                let done = (step - begin) as f64 / stage.steps as f64;
                optimizer.set_learning_rate(stage.rate * warm * (1.0 - done).max(0.01));
                let mut rng = Rng::new(args.seed << 40 | (step + 1) as u64);
                let batches = mixture(step).batches(SHARDS, TOKENS, &mut rng, &tokenizer)?;
                let mut mode = Mode::default();
                if step >= MXFP4_FROM {
                    mode.mxfp4 = model.mxfp4_errors()?;
                }
                let (loss, mut gradients) = gradients(&shards, batches, &mode, &variables)?;
                clip(&mut gradients, &variables, 1.0)?;
                optimizer.step(&gradients)?;
                losses.push(loss);
                bar.set_message(format!("{loss:.4}"));
                bar.inc(1);
                if (step + 1) % STEPS_PER_CHECKPOINT == 0 {
                    save(&model, &losses, &args.work)?;
                    let recent = &losses[losses.len().saturating_sub(100)..];
                    let mean = recent.iter().sum::<f64>() / recent.len() as f64;
                    bar.suspend(|| eprintln!("step {}: loss {mean:.4} over 100 steps", step + 1));
                }
            }
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    bar.finish_and_clear();
    save(&model, &losses, &args.work)?;
    loss_curve::draw(&losses, MXFP4_FROM, &args.work.join("loss.png"))?;
    if losses.len() < STEPS && !args.unfinished {
        return Ok(());
    }
    checkpoint::write(&model, &tokenizer_json, &tokenizer, args.seed, &args.out)?;
    std::fs::copy(args.work.join("loss.png"), args.out.join("loss.png"))?;
    writeln!(std::io::stdout(), "{}", args.out.display())?;
    Ok(())
}

/// A batch, its share in the loss, and how to run it.
struct Job {
    batch: TrainingBatch,
    share: f64,
    mode: Mode,
}

/// The share's loss and gradients.
type Done = candle_core::Result<(f64, GradStore)>;

/// A thread that takes gradients. It lives as long as the training, because the memory that a thread
/// has at hand goes with it.
struct Shard {
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

impl Shard {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, model: &'scope TinyModel) -> Shard {
        let (jobs, to_do) = channel::<Job>();
        let (results, done) = channel();
        scope.spawn(move || {
            for job in to_do {
                if results.send(Shard::run(model, &job)).is_err() {
                    return;
                }
            }
        });
        Shard { jobs, done }
    }

    fn run(model: &TinyModel, Job { batch, share, mode }: &Job) -> Done {
        let forward = model.forward(&batch.inputs, mode)?;
        let targets = Tensor::new(batch.targets.as_slice(), &Device::Cpu)?;
        let loss = (candle_nn::loss::cross_entropy(&forward.logits, &targets)? * *share)?;
        let balance = (forward.imbalance * (BALANCE / SHARDS as f64))?;
        let gradients = (&loss + balance)?.backward()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    }
}

/// The mean loss over all tokens to predict, and its gradients, added in the order of the shards.
fn gradients(
    shards: &[Shard],
    batches: Vec<TrainingBatch>,
    mode: &Mode,
    variables: &[Var],
) -> Result<(f64, GradStore), Box<dyn Error>> {
    let predicted: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    for (shard, batch) in shards.iter().zip(batches) {
        let share = batch.targets.len() as f64 / predicted as f64;
        shard
            .jobs
            .send(Job { batch, share, mode: mode.clone() })
            .map_err(|_| "a shard has ended")?;
    }
    let mut loss = 0.0;
    let mut sum: Option<GradStore> = None;
    for shard in shards {
        let (part, gradients) = shard.done.recv().map_err(|_| "a shard has ended")??;
        loss += part;
        let Some(sum) = &mut sum else {
            sum = Some(gradients);
            continue;
        };
        for variable in variables {
            let both = match (sum.get(variable), gradients.get(variable)) {
                (Some(some), Some(more)) => (some + more)?,
                (None, Some(more)) => more.clone(),
                (_, None) => continue,
            };
            sum.insert(variable, both);
        }
    }
    Ok((loss, sum.ok_or("no shards")?))
}

/// Scales the gradients down to a norm of `most`.
fn clip(gradients: &mut GradStore, variables: &[Var], most: f64) -> candle_core::Result<()> {
    let mut square = 0.0;
    for gradient in variables.iter().filter_map(|variable| gradients.get(variable)) {
        square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = square.sqrt();
    if norm > most {
        for variable in variables {
            if let Some(gradient) = gradients.remove(variable) {
                gradients.insert(variable, (gradient * (most / norm))?);
            }
        }
    }
    Ok(())
}

/// Writes the parameters and the losses so far, each beside its name first.
fn save(model: &TinyModel, losses: &[f64], dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut parameters = std::collections::HashMap::new();
    for (name, var) in &model.parameters {
        parameters.insert(name.clone(), var.as_tensor().clone());
    }
    parameters.insert("losses".into(), Tensor::new(losses, &Device::Cpu)?);
    candle_core::safetensors::save(&parameters, dir.join("parameters.tmp"))?;
    std::fs::rename(dir.join("parameters.tmp"), dir.join("parameters.safetensors"))?;
    Ok(())
}

/// Goes on from what [`save`] wrote, if it did: the losses so far.
fn resume(model: &TinyModel, dir: &Path) -> Result<Vec<f64>, Box<dyn Error>> {
    let path = dir.join("parameters.safetensors");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let saved: BTreeMap<_, _> =
        candle_core::safetensors::load(&path, &Device::Cpu)?.into_iter().collect();
    for (name, var) in &model.parameters {
        let tensor = saved.get(name).ok_or_else(|| format!("{} lacks {name}", path.display()))?;
        var.set(tensor)?;
    }
    let losses = saved.get("losses").ok_or_else(|| format!("{} lacks losses", path.display()))?;
    Ok(losses.to_dtype(DType::F64)?.to_vec1()?)
}
