//! [`Batch`]: the tokens of several sequences in one flat list.

use super::GptOss;
use crate::cache::Sequence;
use crate::{Error, ErrorKind, Result};

/// Which rows of a run of tokens the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last: what the next token is sampled from.
    Last,
    /// Every one: scoring.
    All,
}

/// The input of one forward pass: a flat list of tokens, each with its position and its sequence.
///
/// ```
/// use gpt_oss_puzzle::model::{Batch, LogitRows};
///
/// let mut batch = Batch::new();
/// batch.push(0, 0, &[11, 12, 13], LogitRows::None); // a prefill chunk of sequence 0
/// batch.push(1, 40, &[7], LogitRows::Last);         // a decode step of sequence 1
/// assert_eq!(batch.positions(), [0, 1, 2, 40]);
/// assert_eq!(batch.logit_rows(), [3]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequence_ids: Vec<u32>,
    logit_rows: Vec<u32>,
}

impl Batch {
    /// A batch of no tokens.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// A batch that continues `sequence` alone with `tokens`.
    pub fn single(sequence: &Sequence, tokens: &[u32], logits: LogitRows) -> Batch {
        let mut batch = Batch::new();
        batch.push(0, sequence.len(), tokens, logits);
        batch
    }

    /// Adds `tokens` at positions `start..` of sequence number `sequence`.
    pub fn push(&mut self, sequence: usize, start: usize, tokens: &[u32], logits: LogitRows) {
        let first = self.tokens.len() as u32;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start as u32..).take(tokens.len()));
        self.sequence_ids.extend(std::iter::repeat_n(sequence as u32, tokens.len()));
        let end = self.tokens.len() as u32;
        match logits {
            LogitRows::None => {}
            LogitRows::Last => self.logit_rows.extend((first..end).last()),
            LogitRows::All => self.logit_rows.extend(first..end),
        }
    }

    /// Number of rows, T.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True for a batch of no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Token ids, T.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of each row in its sequence, T.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Which sequence each row belongs to, T.
    pub fn sequence_ids(&self) -> &[u32] {
        &self.sequence_ids
    }

    /// Rows whose logits are wanted, ascending.
    pub fn logit_rows(&self) -> &[u32] {
        &self.logit_rows
    }

    pub(crate) fn tokens_per_sequence(&self, sequences: usize) -> Vec<usize> {
        let mut counts = vec![0; sequences];
        for &id in &self.sequence_ids {
            counts[id as usize] += 1;
        }
        counts
    }
}

impl GptOss {
    /// Whether `batch` is one that [`GptOss::forward`] takes, on `sequences`.
    pub(super) fn check(&self, batch: &Batch, sequences: &[&mut Sequence]) -> Result<()> {
        if batch.is_empty() {
            return Err(Error::invalid_request("the batch is empty"));
        }
        let mut next: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        for sequence in sequences {
            if !sequence.cache().same_pool(sequences[0].cache()) {
                return Err(Error::invalid_request(
                    "the sequences of a batch come from different caches",
                ));
            }
            if !sequence.cache().words().device().same_device(&self.device) {
                return Err(Error::invalid_request(
                    "the key-value cache is on another device than the model",
                ));
            }
            if !sequence.cache().fits(&self.config) {
                return Err(Error::invalid_request(
                    "the key-value cache was made for a model of another shape",
                ));
            }
        }
        let rows = batch.tokens().iter().zip(batch.positions()).zip(batch.sequence_ids());
        for (row, ((&token, &position), &id)) in rows.enumerate() {
            if token as usize >= self.config.vocab_size {
                return Err(Error::invalid_request(format!(
                    "row {row}: token {token} is outside the vocabulary of {}",
                    self.config.vocab_size
                )));
            }
            let Some(next) = next.get_mut(id as usize) else {
                return Err(Error::invalid_request(format!(
                    "row {row}: sequence {id} of {}",
                    sequences.len()
                )));
            };
            if position as usize != *next {
                return Err(Error::invalid_request(format!(
                    "row {row}: position {position}, but sequence {id} continues at {next}"
                )));
            }
            if *next >= self.config.max_position_embeddings {
                return Err(Error::new(
                    ErrorKind::ContextOverflow,
                    format!(
                        "row {row}: position {position} of a context of {}",
                        self.config.max_position_embeddings
                    ),
                ));
            }
            *next += 1;
        }
        Ok(())
    }
}
