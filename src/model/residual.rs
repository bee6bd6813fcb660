//! [`Residual`]: the stream that every block reads, normalised, and adds its output to.

use crate::Result;
use crate::ops::{self, Engine, Slice};
use candle_core::Tensor;

/// `x: [T, H]`. What a block adds waits for the next norm, which adds and normalises in one pass.
pub(super) struct Residual {
    x: Tensor,
    pending: Option<Tensor>,
}

impl Residual {
    pub(super) fn new(x: Tensor) -> Residual {
        Residual { x, pending: None }
    }

    /// `x += delta`; a norm comes between two of these.
    pub(super) fn add(&mut self, delta: Tensor) {
        debug_assert!(self.pending.is_none(), "an addition waits already");
        self.pending = Some(delta);
    }

    /// `norm(x)`, see [`RmsNorm`](super::norm::RmsNorm).
    pub(super) fn norm(
        &mut self,
        engine: &Engine,
        weight: Slice<'_, f32>,
        eps: f32,
    ) -> Result<Tensor> {
        Ok(match self.pending.take() {
            None => ops::rms_norm(engine, &self.x, weight, eps)?,
            Some(delta) => ops::add_rms_norm(engine, &self.x, &delta, weight, eps)?,
        })
    }

    /// The rows `rows: [R]` alone.
    pub(super) fn rows(&self, rows: &Tensor, engine: &Engine) -> Result<Residual> {
        let gather = |x: &Tensor| ops::gather_rows(engine, x, rows);
        Ok(Residual {
            x: gather(&self.x)?,
            pending: self.pending.as_ref().map(gather).transpose()?,
        })
    }
}
