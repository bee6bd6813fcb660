//! The specification of every kernel: f64, plain loops, safe code, written to be read.
//!
//! Nothing is shared with what it judges: not the decoding of FP4 or FP8, not the reading of a page,
//! not the order of a sum. Where a kernel is *bounded*, the reference returns beside each value the sum
//! of the magnitudes of the terms it was added from, so that a test's tolerance follows its data.

mod attention;
mod dense;
mod moe;
mod numbers;
mod sampling;

pub use attention::{attention, kv_write};
pub use dense::{activations, embedding, matmul, q8_encode, rms_norm, rope};
pub use moe::{expert_weight, moe_down, moe_gate_up, mxfp4_decode, topk_softmax};
pub use numbers::{e8m0, fp4, fp8_decode, fp8_encode};
pub use sampling::{Sample, sample};

/// Values of a bounded kernel, each with `Σ|terms|` of the sum behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounded {
    /// The kernel's output in f64.
    pub value: Vec<f64>,
    /// The error of an f32 evaluation is at most a small multiple of `n · eps · terms`.
    pub terms: Vec<f64>,
}

impl Bounded {
    fn with_capacity(n: usize) -> Bounded {
        Bounded { value: Vec::with_capacity(n), terms: Vec::with_capacity(n) }
    }

    fn push(&mut self, value: f64, terms: f64) {
        self.value.push(value);
        self.terms.push(terms);
    }
}
