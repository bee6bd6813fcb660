//! Pages are 32-bit words, so that one untouched allocation serves every storage type, aligned. These
//! casts look at words as the type that is stored, in memory order: on a little-endian machine, which
//! every tier beyond the scalar one is, element 0 lies in the low bits of its word.

use half::bf16;

pub(super) fn f32s(words: &[u32]) -> &[f32] {
    // SAFETY: f32 has the size and alignment of u32, and every pattern is a value.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

pub(super) fn f32s_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: as in `f32s`; the borrow stays unique.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

pub(super) fn u32s(floats: &[f32]) -> &[u32] {
    // SAFETY: u32 has the size and alignment of f32, and every pattern is a value.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

pub(super) fn u32s_mut(floats: &mut [f32]) -> &mut [u32] {
    // SAFETY: as in `u32s`; the borrow stays unique.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}

pub(super) fn bf16s(words: &[u32]) -> &[bf16] {
    // SAFETY: bf16 is a transparent u16: half the size, a weaker alignment, every pattern a value.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 2) }
}

pub(super) fn bf16s_mut(words: &mut [u32]) -> &mut [bf16] {
    // SAFETY: as in `bf16s`; the borrow stays unique.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 2) }
}

pub(super) fn bytes(words: &[u32]) -> &[u8] {
    // SAFETY: a word is four bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) }
}

pub(super) fn bytes_mut(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: as in `bytes`; the borrow stays unique.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}
