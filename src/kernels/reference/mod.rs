//! The readable f64 specification of every kernel.
