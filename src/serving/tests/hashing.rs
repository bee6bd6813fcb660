//! A model whose logits say which tokens its cache holds, and where.

use crate::cache::{KvCache, Sequence};
use crate::generation::Forward;
use crate::model::{Batch, Device, Draw, Tensor};
use crate::{Error, ErrorKind, Result};
use std::collections::HashSet;
use std::sync::Mutex;

/// Tokens there are; 0 ends an answer.
pub(super) const VOCAB: usize = 24;

/// Keeps tokens where a model keeps keys and values. Its logits are made of a hash over all that a layer's window
/// sees through the page tables, so that a page which is another's, or was given back, changes the answer.
pub(super) struct Hashing {
    /// What each position of each page holds.
    memory: Mutex<Vec<u32>>,
    pub(super) faults: Mutex<Faults>,
}

/// What goes wrong, when the time has come.
#[derive(Default)]
pub(super) struct Faults {
    /// Steps to come until one fails; how many fail then.
    pub(super) fail_in: Option<(usize, usize)>,
    /// Rows of logits to come until one is not finite.
    pub(super) nan_in: Option<usize>,
    /// The next row of the sequence that begins with this token is not finite.
    pub(super) nan_of: Option<u32>,
    /// Steps to come until one panics.
    pub(super) panic_in: Option<usize>,
}

impl Hashing {
    pub(super) fn new(cache: &KvCache) -> Hashing {
        // Pages of a carved pool keep the numbers that they have in the other.
        let memory = Mutex::new(vec![u32::MAX; 64 * 4096]);
        assert!(cache.pages() <= 4096);
        Hashing { memory, faults: Mutex::default() }
    }

    fn check(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap();
        if let Some(left) = &mut faults.panic_in {
            *left -= 1;
            if *left == 0 {
                faults.panic_in = None;
                drop(faults);
                panic!("planned");
            }
        }
        if let Some((0, count)) = &mut faults.fail_in {
            *count -= 1;
            if *count == 0 {
                faults.fail_in = None;
            }
            return Err(Error::new(ErrorKind::Device, "planned"));
        }
        if let Some((left, _)) = &mut faults.fail_in {
            *left -= 1;
        }
        Ok(())
    }

    /// Everything that the token at `position` sees, as one number.
    fn seen(memory: &[u32], sequence: &Sequence, position: usize) -> u64 {
        let cache = sequence.cache();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for layer in 0..cache.layers() {
            let first = cache.window(layer).map_or(0, |w| (position + 1).saturating_sub(w));
            for at in first..=position {
                let token = memory[sequence.slot(layer, at) as usize];
                assert_ne!(token, u32::MAX, "position {at} of layer {layer} was never written");
                hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    }
}

impl Forward for Hashing {
    fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor> {
        let counts = batch.tokens_per_sequence(sequences.len());
        let cache = sequences[0].cache().clone();
        let needed = sequences.iter().zip(&counts).map(|(s, n)| s.pages_to_append(*n)).sum();
        let mut pages = cache.allocate(needed)?;
        for (sequence, count) in sequences.iter_mut().zip(&counts) {
            sequence.append(*count, &mut pages)?;
        }
        if let Err(error) = self.check() {
            sequences.iter_mut().for_each(|sequence| sequence.drop_pages_beyond_len());
            return Err(error);
        }
        let mut memory = self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut logits = Vec::new();
        let mut written = HashSet::new();
        for row in 0..batch.len() {
            let (token, position) = (batch.tokens()[row], batch.positions()[row] as usize);
            let sequence = &*sequences[batch.sequence_ids()[row] as usize];
            for layer in 0..cache.layers() {
                let slot = sequence.slot(layer, position);
                assert!(written.insert(slot), "two rows write to slot {slot}");
                memory[slot as usize] = token;
            }
            if batch.logit_rows().contains(&(row as u32)) {
                let hash = Hashing::seen(&memory, sequence, position);
                let logit = |id: u64| (hash.wrapping_mul(2 * id + 1) >> 48) as f32 / 16384.0;
                logits.extend((0..VOCAB as u64).map(logit));
                let mut faults = self.faults.lock().unwrap_or_else(|e| e.into_inner());
                // The first layer has no window.
                if faults.nan_of == Some(memory[sequence.slot(0, 0) as usize]) {
                    faults.nan_of = None;
                    let last = logits.len() - 1;
                    logits[last] = f32::NAN;
                }
            }
        }
        let mut faults = self.faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(left) = &mut faults.nan_in {
            let rows = batch.logit_rows().len();
            match *left < rows {
                true => {
                    logits[*left * VOCAB] = f32::NAN;
                    faults.nan_in = None;
                }
                false => *left -= rows,
            }
        }
        sequences.iter_mut().zip(counts).for_each(|(sequence, count)| sequence.commit(count));
        Ok(Tensor::from_vec(logits, (batch.logit_rows().len(), VOCAB), &Device::Cpu)?)
    }

    fn draw(&self, _: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
        Ok(vec![None; draws.len()])
    }
}
