//! Working memory of the kernels, kept by each thread between calls.

use std::cell::Cell;
use std::thread::LocalKey;

thread_local! {
    static CALL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static TASK: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static ACTIVATIONS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Floats of a cache line.
const LINE: usize = 16;

fn with<R>(
    kept: &'static LocalKey<Cell<Vec<f32>>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = kept.take();
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    // Vectors that straddle cache lines take twice the loads.
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    let result = f(&mut buffer[start..start + len]);
    kept.set(buffer);
    result
}

/// `len` floats of any value, from the start of a cache line on, for the length of one kernel call.
pub(super) fn call<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with(&CALL, len, f)
}

/// The same for the length of one task; separate from [`call`] because the calling
/// thread runs tasks too.
pub(super) fn task<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with(&TASK, len, f)
}

/// The same for the activations of one kernel call, which has a [`call`] inside.
pub(super) fn activations<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    with(&ACTIVATIONS, len, f)
}
