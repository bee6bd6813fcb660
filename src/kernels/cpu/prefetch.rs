//! Asking for memory before it is read. Rows and pages are short to the processor, which follows streams
//! of its own accord but is late at the beginning of each.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the line at `at`, which may be any address.
#[inline(always)]
fn line(at: *const i8) {
    #[cfg(all(target_arch = "x86_64", not(portable)))]
    // SAFETY: a prefetch of any address is allowed; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at);
    }
    #[cfg(any(not(target_arch = "x86_64"), portable))]
    let _ = at;
}

/// Asks for the bytes `BYTES · i ..BYTES · (i + 1)` of what begins at `start`, with BYTES a part or a
/// multiple of a line: called for every i, it asks for each line once.
#[inline(always)]
#[allow(dead_code)] // The scalar tier, elsewhere than on x86 the only one, does not ask.
pub(super) fn part<const BYTES: usize>(start: *const impl Sized, i: usize) {
    if BYTES >= LINE || i.is_multiple_of(LINE / BYTES) {
        for n in 0..BYTES.div_ceil(LINE) {
            line(start.cast::<i8>().wrapping_add(i * BYTES + n * LINE));
        }
    }
}

/// Asks for all of `words`.
pub(super) fn all(words: &[u32]) {
    words.chunks(LINE / size_of::<u32>()).for_each(|words| line(words.as_ptr().cast()));
}
