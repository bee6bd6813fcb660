//! [`Replay`]: steps of decode, recorded once and started as one.
//!
//! A step of a model makes about a dozen launches a layer. Each takes a few microseconds, and so does
//! starting it; recorded, the device goes from one to the next by itself. What changes from step to step
//! (tokens, positions, angles, changes of page tables) is one transfer that the recorded launches read,
//! [`DeviceRows`]; what they depend on beside it are the [`Extents`], which stay the same for at least a
//! thousand tokens of a text and for any number of sequences that a recording's rows hold.
//!
//! A batch that grows or shrinks meets few recordings, because they have rows of padding, a quarter at most
//! ([`cuda::padded_rows`]): 28 sizes up to 256 rows. A row of padding goes to no expert, stores nothing,
//! attends to nothing, and its logits are not copied; what it computes is NaN that nobody reads.
//!
//! At most [`MOST`] recordings are kept, the ones used last. Beside the driver's own of a graph, one has
//! memory for its rows, `1 + 2 · layers` and some `D` words each: 60 KB at 64 rows of Puzzle. Logits are
//! written to memory that all share and that has room for the largest, `[256, V]` at most, 206 MB; while a
//! batch grows, recordings of half as many rows may keep what they had before.

use super::page_tables::PageTables;
use super::{Activations, Batch, GptOss, Tensor};
use crate::cache::{CacheIdentity, KvCache, Sequence};
use crate::kernels::cuda::{self, MOST_RECORDED_ROWS, Recording};
use crate::ops::{self, DeviceRows, DeviceTables, Engine, Extents, HostRows, Rows, Tables};
use crate::{Error, ErrorKind, Result};
use candle_core::{CudaDevice, DType};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

/// Steps that are kept recorded.
const MOST: usize = 32;

/// Steps whose extents are remembered, to be recorded when they come again: the first of its kind is not,
/// because most prompts are followed by more than one token, and whoever asks for one need not wait.
const REMEMBERED: usize = 64;

/// See [`Pause`].
const SHORTEST_PAUSE: u64 = 8;

/// The recorded steps of one model.
pub(super) struct Replay {
    /// Kernels on a stream of its own: what other threads do meanwhile must not be recorded with it.
    recorder: ManuallyDrop<Engine>,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// Met once, in the order of their meeting.
    met: Vec<Key>,
    /// In the order of their last use.
    recorded: Vec<Step>,
    pause: Pause,
    replayed: u64,
    /// `[rows, V]`, as many as the largest step needs: those of the last step, whichever it was.
    logits: Option<Tensor>,
    /// For what is sent to the device.
    words: Vec<u32>,
}

/// When recording failed it is left alone for a number of steps that would be recorded, twice as many each
/// time: a driver that cannot record is not asked for long, and what spoilt one recording spoils no more.
#[derive(Default)]
struct Pause {
    failures: u32,
    left: u64,
}

impl Pause {
    /// Whether this step is one of those.
    fn covers_this_step(&mut self) -> bool {
        let covered = self.left > 0;
        self.left = self.left.saturating_sub(1);
        covered
    }

    fn begin(&mut self, why: &dyn std::fmt::Display) {
        if self.failures == 0 {
            tracing::warn!("steps are not recorded for now, and slower for it: {why}");
        }
        self.left = SHORTEST_PAUSE << self.failures.min(32);
        self.failures += 1;
    }
}

#[derive(Clone)]
struct Key {
    extents: Extents,
    cache: CacheIdentity,
    tables: DeviceTables,
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.extents == other.extents && self.cache == other.cache && self.tables.are(&other.tables)
    }
}

struct Step {
    key: Key,
    recording: Recording,
    rows: DeviceRows,
    logits: Tensor, // [rows with padding, V]
}

impl Replay {
    /// For a model on `device`.
    pub(super) fn new(device: &CudaDevice, activations: Activations) -> Result<Replay> {
        let ordinal = device.cuda_stream().context().ordinal();
        let stream = cuda::between_recordings(|| CudaDevice::new_with_stream(ordinal))?;
        cuda::prepare(&stream.cuda_stream())?;
        let recorder = ManuallyDrop::new(Engine::on(&stream, activations)?);
        Ok(Replay { recorder, steps: Mutex::default() })
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
        let Tables::Device { tables, changes } = rows.tables else { return Ok(None) };
        if rows.tokens.len() > MOST_RECORDED_ROWS || !rows.are_decode() {
            return Ok(None);
        }
        let extents = Extents::of_recording(rows);
        let key = Key { extents, cache: cache.identity(), tables: tables.clone() };
        let mut steps = self.lock();
        let steps = &mut *steps;
        let known = steps.recorded.iter().position(|step| step.key == key);
        if known.is_none() && !steps.is_to_be_recorded(&key) {
            return Ok(None);
        }
        // Those of a sequence that is new are more than come with a step.
        let without_changes;
        let rows = match changes.len() > 2 * key.extents.changes() {
            false => rows,
            true => {
                tables.make(&model.engine, changes)?;
                let tables = Tables::Device { tables, changes: &[] };
                without_changes = HostRows { tables, ..rows.clone() };
                &without_changes
            }
        };
        let mut step = match known {
            Some(at) => {
                let step = steps.recorded.remove(at);
                step.rows.write(rows, &mut steps.words)?;
                step
            }
            None => match self.record(model, cache, rows, &key, &mut steps.logits) {
                Ok(Some(step)) => {
                    steps.met.retain(|met| *met != key);
                    steps.pause = Pause::default();
                    step
                }
                Ok(None) => {
                    steps.pause.begin(&"spoilt, as by code that waits for the whole device");
                    return Ok(None);
                }
                Err(error) => {
                    steps.pause.begin(&error);
                    return Ok(None);
                }
            },
        };
        let stream = model.engine.cuda()?.stream();
        // SAFETY: the step reads weights of `model` and pages of `cache`, which are borrowed, and tensors of
        // its own. Like all that uses these, it runs on the model's one stream.
        let started = unsafe { step.recording.start(stream) };
        let logits = started.map_err(Error::from).and_then(|()| {
            Ok(ops::copied(&model.engine, &step.logits.narrow(0, 0, rows.tokens.len())?)?)
        });
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
        key: &Key,
        shared_logits: &mut Option<Tensor>,
    ) -> Result<Option<Step>> {
        let padded = key.extents.rows();
        let logits = match shared_logits {
            Some(logits) if logits.dims()[0] >= padded => logits.clone(),
            _ => {
                let shape = (padded.next_power_of_two(), model.config.vocab_size);
                let logits = Tensor::zeros(shape, DType::F32, &model.device)?;
                shared_logits.insert(logits).clone()
            }
        };
        let logits = logits.narrow(0, 0, padded)?;
        let rows = Rows::to_record(&model.engine, rows.clone(), key.extents.clone())?;
        let recording = self.recorder.cuda()?.record(|| {
            rows.prepare(&self.recorder)?;
            let computed = model.compute(&self.recorder, cache, &rows)?;
            Ok::<_, Error>(ops::copy(&self.recorder, &computed, &logits)?)
        })?;
        let rows = rows.into_device_rows().ok_or_else(|| {
            Error::new(ErrorKind::Device, "a step was recorded on a device that it is not on")
        })?;
        Ok(recording.map(|recording| Step { key: key.clone(), recording, rows, logits }))
    }

    /// A panic elsewhere while they were held leaves them consistent: a step is there or not.
    fn lock(&self) -> std::sync::MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GptOss {
    /// As `run`, on a device that has `tables`.
    pub(super) fn run_on_device(
        &self,
        batch: &Batch,
        sequences: &[&Sequence],
        tables: &mut PageTables,
    ) -> Result<Tensor> {
        let cache = sequences[0].cache();
        let update = tables.update(sequences)?;
        let numbers: Vec<u32> =
            batch.sequence_ids().iter().map(|id| update.numbers[*id as usize]).collect();
        let tables = Tables::Device { tables: update.tables, changes: update.changes };
        let rows = self.rows(batch, &numbers, tables);
        if let Some(replay) = &self.replay
            && let Some(logits) = replay.step(self, cache, &rows)?
        {
            return Ok(logits);
        }
        self.compute(&self.engine, cache, &Rows::new(&self.engine, rows)?)
    }
}

impl Steps {
    /// Whether a step that is not recorded was met before, and may be recorded. Else it is remembered.
    fn is_to_be_recorded(&mut self, key: &Key) -> bool {
        if self.met.contains(key) {
            return !self.pause.covers_this_step();
        }
        // What is gone is not used again, and takes memory.
        let is_there = |key_of: &Key| key_of.cache.exists() && key_of.tables.are(&key.tables);
        self.met.retain(is_there);
        self.recorded.retain(|step| is_there(&step.key));
        self.met.push(key.clone());
        if self.met.len() > REMEMBERED {
            self.met.remove(0);
        }
        false
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        cuda::between_recordings(|| unsafe { ManuallyDrop::drop(&mut self.recorder) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_and_the_next_is_longer() {
        let mut pause = Pause::default();
        for length in [8, 16, 32] {
            assert!(!pause.covers_this_step());
            pause.begin(&"a test");
            assert!((0..length).all(|_| pause.covers_this_step()), "{length}");
        }
        assert!(!pause.covers_this_step());
    }
}
