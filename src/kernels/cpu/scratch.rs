//! Working memory of the kernels, kept by each thread between calls.

use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    static CALL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static TASK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn with<R>(
    kept: &'static LocalKey<Cell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = kept.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    kept.set(buffer);
    result
}

/// `len` floats of any value for the length of one kernel call.
pub(super) fn call<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with(&CALL, len, f)
}

/// `len` floats of any value for the length of one task; separate from [`call`] because the calling
/// thread runs tasks too.
pub(super) fn task<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with(&TASK, len, f)
}
