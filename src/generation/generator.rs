//! [`Generator`]: one sequence through the model, token by token.

use super::drive::{Drive, Plain};
use super::lane::{Lane, Limits};
use super::options::{CancelHandle, FinishReason, GenerateOptions, Timings, Usage};
use super::step::{Feed, Forward, advance};
use super::{StopTokens, TokenLogprobs, TokenSet};
use crate::Result;
use crate::cache::Sequence;
use crate::model::GptOss;
use serde::{Deserialize, Serialize};
use std::iter::FusedIterator;

/// A generated token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GeneratedToken {
    /// Its id.
    pub id: u32,
    /// How likely it was, when [`GenerateOptions::logprobs`] asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<TokenLogprobs>,
    /// Whether it was not drawn but put there by [`Generator::force`]. Such a token has no
    /// log-probability: the model did not choose it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// Generates the continuation of a prompt: an iterator of tokens.
///
/// Nothing runs before the first call of `next`, which feeds the prompt in chunks; every later call
/// is one decode step. The token that ends the answer is yielded too, as the last. Between two steps,
/// and between two chunks of the prompt, the generator looks at its [`CancelHandle`].
pub struct Generator<'m> {
    model: &'m dyn Forward,
    sequence: Sequence,
    plain: Plain,
    prefill_chunk: usize,
    cancel: CancelHandle,
    failed: bool,
}

impl<'m> Generator<'m> {
    /// Continues `prompt` on `sequence`, which holds the first `sequence.len()` tokens of it already:
    /// none for a fresh one.
    ///
    /// # Errors
    /// `InvalidRequest` for a prompt that is empty, wholly cached or outside the vocabulary, for
    /// options out of range; `ContextOverflow` when prompt and requested tokens do not fit.
    pub fn new(
        model: &'m GptOss,
        sequence: Sequence,
        prompt: &[u32],
        stop: StopTokens,
        options: &GenerateOptions,
    ) -> Result<Generator<'m>> {
        let limits = Limits {
            vocab_size: model.config().vocab_size,
            context: model.config().max_position_embeddings,
        };
        let lane = Lane::new(limits, sequence.len(), prompt, &stop, options)?;
        let chunk = options.prefill_chunk.unwrap_or(GenerateOptions::PREFILL_CHUNK);
        Ok(Generator::of(model, sequence, lane, chunk))
    }

    /// Goes on with a lane.
    pub(crate) fn of(
        model: &'m dyn Forward,
        sequence: Sequence,
        lane: Lane,
        prefill_chunk: usize,
    ) -> Generator<'m> {
        Generator {
            model,
            sequence,
            plain: Plain::new(lane),
            prefill_chunk,
            cancel: CancelHandle::default(),
            failed: false,
        }
    }

    /// A handle that ends this generation from any thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Goes on with `ids` instead of tokens that are drawn. They are yielded one by one, flagged, and
    /// go through the model together when the next token is drawn after them. They count as generated:
    /// what exceeds the requested number of tokens is left out, and one that ends the answer ends it.
    ///
    /// # Errors
    /// `InvalidRequest` for an id outside the vocabulary; nothing is then forced.
    pub fn force(&mut self, ids: &[u32]) -> Result<()> {
        self.plain.lane_mut().force(ids)
    }

    /// Whether the next token is one that was forced.
    pub fn is_forcing(&self) -> bool {
        self.plain.lane().is_forcing()
    }

    /// Keeps `ids` from being drawn as the next token that is drawn, whatever their bias; any after it
    /// may be any again. They are to leave some token that can be drawn.
    ///
    /// # Errors
    /// `InvalidRequest` for an id outside the vocabulary; nothing is then forbidden.
    pub fn forbid(&mut self, ids: &[u32]) -> Result<()> {
        self.plain.lane_mut().forbid(ids)
    }

    /// Has the next token that is drawn be one of `ids`, whatever their bias, and none that is
    /// forbidden; any after it may be any again. Called anew it replaces what it allowed before. When
    /// nothing is left that can be drawn, the next step is an error, `InvalidRequest`.
    pub fn allow(&mut self, ids: TokenSet) {
        self.plain.lane_mut().allow(ids);
    }

    /// Most tokens that will be generated: those asked for, or what fits the context.
    pub fn max_tokens(&self) -> usize {
        self.plain.lane().max_tokens()
    }

    /// Why the generation ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.plain.lane().finish_reason().filter(|_| !self.failed)
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.plain.lane().usage()
    }

    /// Times so far.
    pub fn timings(&self) -> Timings {
        self.plain.lane().timings()
    }

    /// The seed of the draws, which gives the same tokens again.
    pub fn seed(&self) -> u64 {
        self.plain.lane().seed()
    }

    /// The sequence: the prompt and the generated tokens but for the last, and forced ones before it,
    /// which are not fed before the next is drawn.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Gives the sequence back, to be gone on with.
    pub fn into_sequence(self) -> Sequence {
        self.sequence
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<GeneratedToken>;

    /// The next token; `None` once the generation has ended, for [`Generator::finish_reason`], or
    /// after an error.
    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed && !self.plain.is_done() {
            let feed = Feed {
                drive: &mut self.plain,
                sequence: &mut self.sequence,
                most: self.prefill_chunk,
            };
            if let Err(error) = advance(self.model, feed, &self.cancel) {
                self.failed = true;
                return Some(Err(error));
            }
            if let Some(token) = self.plain.pop() {
                return Some(Ok(token));
            }
        }
        None
    }
}

impl FusedIterator for Generator<'_> {}
