//! From logits to tokens: sample.cu.

use super::cudarc::driver::result::memcpy_htod_async;
use super::cudarc::driver::{
    CudaEvent, CudaSlice, CudaView, CudaViewMut, DevicePtrMut, DriverError, PinnedHostSlice,
    PushKernelArg,
};
use super::{Cuda, CudaError, int, uint};
use crate::kernels::{Draw, elements};
use std::collections::VecDeque;
use std::sync::PoisonError;

/// Tokens that [`Cuda::sample`] gives where there is none to be drawn: a logit is not finite.
pub const NOT_FINITE: u32 = u32::MAX;

/// The mask leaves nothing.
pub const NOTHING_LEFT: u32 = u32::MAX - 1;

/// Tokens of a vocabulary at most.
pub const MAX_VOCAB: usize = 1 << 21;

/// Of sample.cu: threads of a block, tokens it looks at together, such pieces of a part; bins, and tokens
/// that are collected at most.
const BLOCK: usize = 512;
const PIECE: usize = 2048;
const PART: usize = 4 * PIECE;
const BINS: usize = 2048;
const MEMBERS: usize = 1 << 14;

/// 64-bit words of a `Part`.
const PART_WORDS: usize = 3;

/// Blocks of a multiprocessor that are at work together.
const BLOCKS: usize = 2;

/// Rows that are worked on together: each takes 160 KB of scratch memory.
const ROWS: usize = 64;

/// 32-bit words of a [`Draw`] as the kernels take it, a `Row` of sample.cuh.
const ROW_WORDS: usize = 20;

/// Words on their way to the device, in pinned memory. They are not written or freed before they are there.
pub(super) struct Sent {
    words: PinnedHostSlice<u32>,
    there: CudaEvent,
}

impl Drop for Sent {
    fn drop(&mut self) {
        // Whoever waits for the device next is told of an error again.
        let _ = self.there.synchronize();
    }
}

/// What was sent, in this order, kept to be used again.
pub(super) type AllSent = VecDeque<Sent>;

/// Most that is kept: steps that the host may be ahead of the device without waiting for it.
const MOST_SENT: usize = 8;

/// Words that have room in pinned memory at least.
const LEAST_SENT: usize = 1 << 14;

/// What the kernels are told of `draws`: a row for each, then their lists.
fn words(draws: &[Draw<'_>], vocab: usize) -> Vec<u32> {
    let mut words = vec![0; draws.len() * ROW_WORDS];
    for (number, draw) in draws.iter().enumerate() {
        let seen = push_list(&mut words, draw.seen, |count| count, vocab);
        let bias = push_list(&mut words, draw.bias, f32::to_bits, vocab);
        let mask = draw.allowed.unwrap_or_default();
        let mask_first = uint(words.len());
        words.extend(mask);
        let doubles = [draw.temperature, draw.top_p, draw.min_p, draw.uniform];
        let halves = doubles.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]);
        let top_k = u32::try_from(draw.top_k).unwrap_or(u32::MAX);
        let penalties = [draw.repetition_penalty, draw.presence_penalty, draw.frequency_penalty];
        let numbers = std::iter::once(top_k).chain(penalties.map(f32::to_bits));
        let is_masked = u32::from(draw.allowed.is_some());
        let mask = [mask_first, uint(mask.len()), is_masked, 0];
        let row = halves.chain(numbers).chain(seen).chain(bias).chain(mask);
        let place = &mut words[number * ROW_WORDS..][..ROW_WORDS];
        place.iter_mut().zip(row).for_each(|(word, value)| *word = value);
    }
    words
}

/// A `List` of sample.cuh, of those of `list` that are tokens: where in `words` it begins, and its length.
/// It goes behind them.
fn push_list<T: Copy>(
    words: &mut Vec<u32>,
    list: &[(u32, T)],
    bits: impl Fn(T) -> u32,
    vocab: usize,
) -> [u32; 2] {
    let first = uint(words.len());
    assert!(list.is_sorted_by(|a, b| a.0 < b.0), "ids are not ascending");
    let list = &list[..list.partition_point(|item| (item.0 as usize) < vocab)];
    if !list.is_empty() {
        let start = |piece: usize| list.partition_point(|item| (item.0 as usize) < piece * PIECE);
        words.extend((0..=vocab.div_ceil(PIECE)).map(|piece| uint(start(piece))));
        words.extend(list.iter().map(|item| item.0));
        words.extend(list.iter().map(|item| bits(item.1)));
    }
    [first, uint(list.len())]
}

impl Cuda {
    /// A token of each row of `logits: [R, V]` as `draws` say, and the logarithm of its probability under
    /// the logits as they came; [`NOT_FINITE`] or [`NOTHING_LEFT`], and NaN, where there is none. A row's
    /// result does not depend on the others.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say, the ids of a draw are not ascending, or V is above [`MAX_VOCAB`].
    pub fn sample(
        &self,
        tokens: &mut CudaViewMut<'_, u32>,
        logprobs: &mut CudaViewMut<'_, f32>,
        logits: &CudaView<'_, f32>,
        draws: &[Draw<'_>],
    ) -> Result<(), CudaError> {
        let count = draws.len();
        assert_eq!((tokens.len(), logprobs.len()), (count, count), "tokens, logprobs");
        if count == 0 {
            return Ok(());
        }
        assert!(!logits.is_empty() && logits.len().is_multiple_of(count), "logits");
        let vocab = logits.len() / count;
        assert!(vocab <= MAX_VOCAB, "a vocabulary of {vocab}");
        let words = self.send(&words(draws, vocab))?;
        let (pieces, parts) = (vocab.div_ceil(PIECE), vocab.div_ceil(PART));
        let together = count.min(ROWS);
        let of_row = parts * PART_WORDS + BINS + MEMBERS + BINS / 2 + 1;
        let mut scratch = self.scratch::<u64>(elements([together, of_row]))?;
        let v = int(vocab);
        for first in (0..count).step_by(ROWS) {
            let range = first..count.min(first + ROWS);
            let n = range.len();
            let logits = logits.slice(first * vocab..range.end * vocab);
            let rows = words.slice(first * ROW_WORDS..);
            let kernel = self.kernel("sample", "sample_score")?;
            let mut call = kernel.call();
            call.arg(&mut scratch).arg(&logits).arg(&rows).arg(&words).arg(&v);
            // SAFETY: block (p, r) reads logits and lists of row r, whose ranges lie in `words` and whose
            // ids are below V, and writes part p, bins and the number of members of row r, for which
            // `scratch` has `of_row` words.
            unsafe { kernel.launch(call, [parts, n, 1], BLOCK) }?;
            // Of a row that is not drawn from, the largest score is all that is wanted.
            if draws[range.clone()].iter().any(|draw| draw.temperature != 0.0) {
                let blocks = (self.multiprocessors * BLOCKS / n).clamp(1, pieces);
                for name in ["sample_weigh", "sample_collect"] {
                    let kernel = self.kernel("sample", name)?;
                    let mut call = kernel.call();
                    call.arg(&mut scratch).arg(&logits).arg(&rows).arg(&words).arg(&v);
                    // SAFETY: block (b, r) reads as above, and what was written of row r; it adds to its
                    // bins, outside of which no token has one, or to its members as there is room.
                    unsafe { kernel.launch(call, [blocks, n, 1], BLOCK) }?;
                }
            }
            let (mut tokens, mut logprobs) =
                (tokens.slice_mut(range.clone()), logprobs.slice_mut(range));
            let kernel = self.kernel("sample", "sample_pick")?;
            let mut call = kernel.call();
            call.arg(&mut tokens).arg(&mut logprobs);
            call.arg(&mut scratch).arg(&logits).arg(&rows).arg(&words).arg(&v);
            // SAFETY: block r reads as above and writes the token of row r, which is below V because no
            // other has a key.
            unsafe { kernel.launch(call, [n, 1, 1], BLOCK) }?;
        }
        Ok(())
    }

    /// `words` on the device. From pageable memory a transfer of more than 64 KB, which masks soon are,
    /// would have the host wait for the step before it.
    fn send(&self, words: &[u32]) -> Result<CudaSlice<u32>, CudaError> {
        let mut copy = self.scratch::<u32>(words.len())?;
        let mut all_sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut send = || {
            let context = self.stream.context();
            context.bind_to_thread()?;
            let is_free = all_sent.len() >= MOST_SENT
                || all_sent.front().is_some_and(|sent| sent.there.is_complete());
            let free = if is_free { all_sent.pop_front() } else { None };
            let mut sent = match free.filter(|sent| sent.words.len() >= words.len()) {
                Some(sent) => sent,
                None => {
                    let length = words.len().next_power_of_two().max(LEAST_SENT);
                    // SAFETY: words are written before they are transferred.
                    let words = unsafe { context.alloc_pinned(length) }?;
                    Sent { words, there: context.new_event(None)? }
                }
            };
            sent.there.synchronize()?;
            let source = &mut sent.words.as_mut_slice()?[..words.len()];
            source.copy_from_slice(words);
            let to = copy.device_ptr_mut(&self.stream).0;
            // SAFETY: `to` has room for as many words, and `sent` lives until they are there.
            unsafe { memcpy_htod_async(to, source, self.stream.cu_stream()) }?;
            let recorded = sent.there.record(&self.stream);
            recorded.or_else(|e| self.stream.synchronize().and(Err(e)))?;
            all_sent.push_back(sent);
            Ok(())
        };
        send().map_err(|e: DriverError| CudaError::new("parameters of draws", e))?;
        Ok(copy)
    }
}
