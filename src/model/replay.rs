//! [`Replay`]: steps of decode, recorded once and started as one.
//!
//! A step of a model makes about a dozen launches a layer. Of a few rows each takes a few microseconds,
//! and so does starting it; recorded, the device goes from one to the next by itself. What changes from
//! step to step (tokens, positions, angles, slots, page tables) is one tensor that the recorded launches
//! read, [`DeviceRows`]; what they depend on beside it are the [`Extents`], which stay the same for at
//! least a thousand tokens of a text.

use super::{Activations, GptOss, Tensor};
use crate::cache::{CacheIdentity, KvCache};
use crate::kernels::cuda::{self, Recording};
use crate::ops::{self, DeviceRows, Engine, Extents, HostRows, Rows};
use crate::{Error, ErrorKind, Result};
use candle_core::{CudaDevice, DType};
use std::sync::{Mutex, PoisonError};

/// Steps that are kept recorded.
const MOST: usize = 8;

/// Steps whose extents are remembered, to be recorded when they come again: the first of its kind is not,
/// because most prompts are followed by more than one token, and whoever asks for one need not wait.
const REMEMBERED: usize = 16;

/// The recorded steps of one model.
pub(super) struct Replay {
    /// Kernels on a stream of its own: what other threads do meanwhile must not be recorded with it.
    recorder: Engine,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// Met once, in the order of their meeting.
    met: Vec<Key>,
    /// In the order of their last use.
    recorded: Vec<Step>,
    /// Recording failed: it is not tried again.
    unavailable: bool,
    replayed: u64,
}

#[derive(Clone, PartialEq)]
struct Key {
    extents: Extents,
    cache: CacheIdentity,
}

struct Step {
    key: Key,
    recording: Recording,
    rows: DeviceRows,
    logits: Tensor, // [T, V]
}

impl Replay {
    /// For a model on `device`.
    pub(super) fn new(device: &CudaDevice, activations: Activations) -> Result<Replay> {
        let stream = CudaDevice::new_with_stream(device.cuda_stream().context().ordinal())?;
        cuda::prepare(&stream.cuda_stream())?;
        Ok(Replay { recorder: Engine::on(&stream, activations)?, steps: Mutex::default() })
    }

    /// How many steps were started from a recording.
    pub(super) fn replayed(&self) -> u64 {
        self.lock().replayed
    }

    /// The logits `[T, V]` of a step of decode that was recorded, or is now; `None` for any other, which is
    /// to be computed launch by launch.
    pub(super) fn step(
        &self,
        model: &GptOss,
        cache: &KvCache,
        rows: &HostRows<'_>,
    ) -> Result<Option<Tensor>> {
        if rows.tokens.len() > cuda::FEW_ROWS || !rows.are_decode() {
            return Ok(None);
        }
        let key = Key { extents: Extents::new(rows), cache: cache.identity() };
        let mut steps = self.lock();
        if steps.unavailable {
            return Ok(None);
        }
        let mut step = match steps.recorded.iter().position(|step| step.key == key) {
            Some(at) => {
                let step = steps.recorded.remove(at);
                step.rows.write(rows)?;
                step
            }
            None if !steps.met.contains(&key) => {
                steps.met.push(key);
                if steps.met.len() > REMEMBERED {
                    steps.met.remove(0);
                }
                return Ok(None);
            }
            None => {
                steps.met.retain(|met| *met != key);
                steps.recorded.retain(|step| step.key.cache.exists());
                match self.record(model, cache, rows, key) {
                    Ok(step) => step,
                    Err(error) => {
                        tracing::warn!("steps are not recorded, and slower for it: {error}");
                        steps.unavailable = true;
                        return Ok(None);
                    }
                }
            }
        };
        let stream = model.engine.cuda()?.stream();
        // SAFETY: the step reads weights of `model` and pages of `cache`, which are borrowed, and tensors of
        // its own. Like all that uses these, it runs on the model's one stream.
        let started = unsafe { step.recording.start(stream) };
        let logits = started.map_err(Error::from).and_then(|()| Ok(step.logits.copy()?));
        steps.recorded.push(step);
        steps.replayed += 1;
        if steps.recorded.len() > MOST {
            steps.recorded.remove(0);
        }
        logits.map(Some)
    }

    fn record(
        &self,
        model: &GptOss,
        cache: &KvCache,
        rows: &HostRows<'_>,
        key: Key,
    ) -> Result<Step> {
        let shape = (rows.tokens.len(), model.config.vocab_size);
        let logits = Tensor::zeros(shape, DType::F32, &model.device)?;
        let rows = Rows::new(&model.engine, rows.clone())?;
        let recording = self.recorder.cuda()?.record(|| {
            let computed = model.compute(&self.recorder, cache, &rows)?;
            Ok::<_, Error>(ops::copy(&self.recorder, &computed, &logits)?)
        })?;
        let rows = rows.into_device_rows().ok_or_else(|| {
            Error::new(ErrorKind::Device, "a step was recorded on a device that it is not on")
        })?;
        Ok(Step { key, recording, rows, logits })
    }

    /// A panic elsewhere while they were held leaves them consistent: a step is there or not.
    fn lock(&self) -> std::sync::MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
