//! The options and the progress of loading a model.

use gpt_oss_puzzle::Model;
use gpt_oss_puzzle::cache::KvDtype;
use gpt_oss_puzzle::model::{Activations, DenseDtype, DeviceName};
use indicatif::{DecimalBytes, ProgressBar};
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Options of every example that loads a model.
#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// Checkpoint directory, or owner/name on the hub; by default the small model that comes with the
    /// crate
    #[arg(long, value_name = "DIR|owner/name")]
    pub(crate) model: Option<String>,
    /// Where to run: cpu, cuda (the first GPU) or cuda:1
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// How dense weights are held: bf16, as stored, or q8
    #[arg(long, default_value = "bf16")]
    dense_dtype: DenseDtype,
    /// What products make of activations: exact, as computed, or bf16
    #[arg(long, default_value = "exact")]
    activations: Activations,
    /// How keys and values are stored: bf16, fp8 or f32
    #[arg(long, default_value = "bf16")]
    kv_dtype: KvDtype,
    /// Longest conversation in tokens, by default what the model and the memory allow
    #[arg(long, value_name = "TOKENS", visible_alias = "max-model-len")]
    ctx: Option<NonZeroUsize>,
    /// Read all weights before the first answer, not when they are first used
    #[arg(long)]
    warm: bool,
    /// Worker threads, 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// For an engine: answers at once, the share of a GPU's memory, and tokens of a step.
    #[arg(skip)]
    pub(crate) serving: Option<(usize, f64, usize)>,
}

impl LoadArgs {
    /// Loads the model, with progress on stderr.
    pub(crate) fn load(&self) -> Result<Model, Box<dyn Error>> {
        let source = match &self.model {
            Some(model) => model.into(),
            None => {
                eprintln!(
                    "no --model: puzzle-tiny, a model of teaching size that knows a few hundred words. \
                     The real one: --model nvidia/gpt-oss-puzzle-88B (50 GB)"
                );
                puzzle_tiny()
            }
        };
        let started = Instant::now();
        let bar = ProgressBar::new_spinner().with_message("loading");
        bar.enable_steady_tick(Duration::from_millis(100));
        let mut builder = Model::builder(source)
            .device(self.device)
            .dense_dtype(self.dense_dtype)
            .activations(self.activations)
            .kv_dtype(self.kv_dtype)
            .threads(self.threads);
        if let Some(tokens) = self.ctx {
            builder = builder.context(tokens.get());
        }
        if let Some((sequences, gpu_memory_utilization, step_tokens)) = self.serving {
            builder = builder.serving(sequences, gpu_memory_utilization).prefill_chunk(step_tokens);
        }
        // For a GPU all weights are read.
        if self.warm || self.device != DeviceName::Cpu {
            let bar = bar.clone();
            builder = builder.warm(move |done, total| {
                let (done, total) = (DecimalBytes(done), DecimalBytes(total));
                bar.set_message(format!("reading weights, {done} of {total}"));
            });
        }
        #[cfg(feature = "hub")]
        let builder = {
            let style = indicatif::ProgressStyle::with_template(
                "{msg} {binary_bytes} of {binary_total_bytes}, {eta} left {wide_bar}",
            )?;
            let bar = bar.clone();
            builder.progress(move |progress| {
                bar.set_style(style.clone());
                bar.set_message(format!("downloading {}", progress.file));
                bar.set_length(progress.bytes_total);
                bar.set_position(progress.bytes_done);
            })
        };
        let model = builder.load();
        bar.finish_and_clear();
        let model = model?;
        eprintln!(
            "loaded {} layers, {} of weights in {:.2} s, on {}; context {} tokens",
            model.config().num_hidden_layers(),
            DecimalBytes(model.checkpoint().total_bytes()),
            started.elapsed().as_secs_f64(),
            model.transformer().kernels(),
            model.context(),
        );
        Ok(model)
    }
}

/// Where the small model is: below the crate, of whose folder this package may have one further down.
fn puzzle_tiny() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dirs = package.ancestors().map(|dir| dir.join("examples/models/puzzle-tiny"));
    dirs.into_iter().find(|dir| dir.is_dir()).unwrap_or(package)
}
