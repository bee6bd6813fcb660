//! From logits to tokens: sample.cu.

use super::cudarc::driver::{CudaView, CudaViewMut, DeviceRepr, PushKernelArg};
use super::{Cuda, CudaError, int, uint};
use crate::kernels::{Draw, elements};

/// Tokens that [`Cuda::sample`] gives where there is none to be drawn: a logit is not finite.
pub const NOT_FINITE: u32 = u32::MAX;

/// The mask leaves nothing.
pub const NOTHING_LEFT: u32 = u32::MAX - 1;

/// Of sample.cu.
const CHUNK: usize = 2048;
const SORT_THREADS: usize = 256;
const PICK_THREADS: usize = 128;
const MOST_CHUNKS: usize = 8 * PICK_THREADS;

/// Tokens of a vocabulary at most, 2^21.
pub const MAX_VOCAB: usize = MOST_CHUNKS * CHUNK;

/// Rows that are worked on together: their keys and sums take 16 bytes a token, 3 MB a row.
const ROWS: usize = 16;

/// A [`Draw`] as the kernels take it: its lists are ranges of one array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    temperature: f64,
    top_p: f64,
    min_p: f64,
    uniform: f64,
    top_k: u32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    seen_first: u32,
    seen_count: u32,
    bias_first: u32,
    bias_count: u32,
    mask_first: u32,
    mask_words: u32,
    is_masked: u32,
    padding: u32,
}

// SAFETY: plain numbers in C's order, without padding between them.
unsafe impl DeviceRepr for Row {}

impl Row {
    /// `draw`, whose lists go behind `words`.
    fn new(draw: &Draw<'_>, words: &mut Vec<u32>) -> Row {
        let ascending = |ids: &mut dyn Iterator<Item = u32>| {
            let ids: Vec<u32> = ids.collect();
            assert!(ids.is_sorted_by(|a, b| a < b), "ids are not ascending");
            ids
        };
        let seen_first = uint(words.len());
        words.extend(ascending(&mut draw.seen.iter().map(|s| s.0)));
        words.extend(draw.seen.iter().map(|s| s.1));
        let bias_first = uint(words.len());
        words.extend(ascending(&mut draw.bias.iter().map(|b| b.0)));
        words.extend(draw.bias.iter().map(|b| b.1.to_bits()));
        let mask_first = uint(words.len());
        let mask = draw.allowed.unwrap_or_default();
        words.extend(mask);
        Row {
            temperature: draw.temperature,
            top_p: draw.top_p,
            min_p: draw.min_p,
            uniform: draw.uniform,
            top_k: u32::try_from(draw.top_k).unwrap_or(u32::MAX),
            repetition: draw.repetition_penalty,
            presence: draw.presence_penalty,
            frequency: draw.frequency_penalty,
            seen_first,
            seen_count: uint(draw.seen.len()),
            bias_first,
            bias_count: uint(draw.bias.len()),
            mask_first,
            mask_words: uint(mask.len()),
            is_masked: u32::from(draw.allowed.is_some()),
            padding: 0,
        }
    }
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
        let chunks = vocab.div_ceil(CHUNK);
        assert!(vocab <= MAX_VOCAB, "a vocabulary of {vocab}");
        let failed = |e| CudaError::new("sampling", e);
        // One word, so that there is something to upload.
        let mut words = vec![0];
        let rows: Vec<Row> = draws.iter().map(|draw| Row::new(draw, &mut words)).collect();
        let words = self.stream.clone_htod(&words).map_err(failed)?;
        let rows = self.stream.clone_htod(&rows).map_err(failed)?;
        let together = count.min(ROWS);
        let keys = elements([together, chunks, CHUNK]);
        let mut keys = self.scratch::<u64>(keys)?;
        let mut sums = self.scratch::<f64>(keys.len())?;
        let mut of_chunk = self.scratch::<f64>(2 * together * chunks)?;
        let (v, chunk_count) = (int(vocab), int(chunks));
        for first in (0..count).step_by(ROWS) {
            let range = first..count.min(first + ROWS);
            let n = range.len();
            let (logits, rows) =
                (logits.slice(first * vocab..range.end * vocab), rows.slice(range.clone()));
            let kernel = self.kernel("sample", "sample_sort")?;
            let mut call = kernel.call();
            call.arg(&mut keys).arg(&mut of_chunk).arg(&logits).arg(&rows).arg(&words).arg(&v);
            // SAFETY: block (c, r) reads logits and lists of row r, whose ranges lie in `words`, changes
            // only scores of its chunk and writes chunk c of row r.
            unsafe { kernel.launch(call, [chunks, n, 1], SORT_THREADS) }?;
            let kernel = self.kernel("sample", "sample_weigh")?;
            let mut call = kernel.call();
            call.arg(&mut sums).arg(&keys).arg(&rows).arg(&v);
            // SAFETY: block (c, r) reads the keys of row r and writes sums of its chunk c.
            unsafe { kernel.launch(call, [chunks, n, 1], SORT_THREADS) }?;
            let (mut tokens, mut logprobs) =
                (tokens.slice_mut(range.clone()), logprobs.slice_mut(range));
            let kernel = self.kernel("sample", "sample_pick")?;
            let mut call = kernel.call();
            call.arg(&mut tokens).arg(&mut logprobs).arg(&keys).arg(&sums).arg(&of_chunk);
            call.arg(&logits).arg(&rows).arg(&v).arg(&chunk_count);
            // SAFETY: block r reads keys, sums and logits of row r and writes its token, which is below V
            // because keys behind V are never left.
            unsafe { kernel.launch(call, [n, 1, 1], PICK_THREADS) }?;
        }
        Ok(())
    }
}
