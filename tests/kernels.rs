//! Every kernel on every tier of this machine against the f64 reference.
//!
//! A tier the machine lacks is named on stderr; `REQUIRE_ISA=scalar|avx2|avx512` makes it a failure.

#[path = "common/kernels.rs"]
mod common;

mod kernels {
    mod activations;
    mod attention;
    mod convert;
    mod dense;
    mod invariance;
    mod moe;
    mod pool;
}
