//! [`Timed`]: how long the model takes.

use crate::Result;
use crate::cache::Sequence;
use crate::generation::Forward;
use crate::model::{Batch, Draw, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A model, and the time it takes.
pub(super) struct Timed<'a> {
    model: &'a dyn Forward,
    nanoseconds: AtomicU64,
}

impl<'a> Timed<'a> {
    pub(super) fn new(model: &'a dyn Forward) -> Timed<'a> {
        Timed { model, nanoseconds: AtomicU64::default() }
    }

    /// All of it so far.
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    fn time<T>(&self, code: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = code();
        // Read after the step, by the thread that made it.
        self.nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }
}

impl Forward for Timed<'_> {
    fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor> {
        self.time(|| self.model.forward(batch, sequences))
    }

    fn is_on_device(&self) -> bool {
        self.model.is_on_device()
    }

    /// Waits for what the device computes.
    fn draw(&self, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
        self.time(|| self.model.draw(logits, draws))
    }

    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        self.model.each(count, task);
    }

    fn diagnose(&self) -> Option<String> {
        self.model.diagnose()
    }
}
