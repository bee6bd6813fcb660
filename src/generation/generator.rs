//! [`Generator`]: one sequence through the model, token by token.

use super::options::{CancelHandle, FinishReason, GenerateOptions, Timings, Usage};
use super::sampling::{DrawRow, draw_rows};
use super::{Sampler, StopTokens, TokenLogprobs, TokenSet};
use crate::cache::Sequence;
use crate::model::{Batch, GptOss, LogitRows, Tensor};
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::time::Instant;

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

/// Says where weights may have gone wrong when logits do.
type Diagnosis<'m> = Box<dyn Fn() -> Option<String> + Send + Sync + 'm>;

/// Generates the continuation of a prompt: an iterator of tokens.
///
/// Nothing runs before the first call of `next`, which feeds the prompt in chunks; every later call
/// is one decode step. The token that ends the answer is yielded too, as the last. Between two steps,
/// and between two chunks of the prompt, the generator looks at its [`CancelHandle`].
pub struct Generator<'m> {
    model: &'m GptOss,
    sequence: Sequence,
    /// Fed before the next token can be drawn: the rest of the prompt, then each token.
    pending: Vec<u32>,
    /// Yielded before the next token is drawn.
    forced: VecDeque<u32>,
    /// To be drawn from next, if there is a choice of what.
    allowed: Option<TokenSet>,
    /// Not to be drawn next.
    forbidden: Vec<u32>,
    sampler: Sampler,
    stop: StopTokens,
    logprobs: Option<usize>,
    prefill_chunk: usize,
    max_tokens: usize,
    cancel: CancelHandle,
    keep_prompt: bool,
    prompt_sequence: Option<Sequence>,
    diagnosis: Option<Diagnosis<'m>>,
    finish_reason: Option<FinishReason>,
    failed: bool,
    usage: Usage,
    timings: Timings,
    started: Option<Instant>,
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
        let vocab_size = model.config().vocab_size;
        let cached = sequence.len();
        if prompt.len() <= cached {
            return Err(Error::invalid_request(format!(
                "the prompt has {} tokens and {cached} of them are cached, expected at least one to feed",
                prompt.len()
            )));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::invalid_request(format!(
                "the prompt has token {id}, outside the vocabulary of {vocab_size}"
            )));
        }
        for (name, value) in
            [("max_tokens", options.max_tokens), ("prefill_chunk", options.prefill_chunk)]
        {
            if value == Some(0) {
                return Err(Error::invalid_request(format!("{name} is 0, expected at least 1")));
            }
        }
        if let Some(top) = options.logprobs.filter(|top| *top > vocab_size) {
            return Err(Error::invalid_request(format!(
                "logprobs is {top}, more than the vocabulary of {vocab_size}"
            )));
        }
        let limit = model.config().max_position_embeddings;
        let limit = options.context.map_or(limit, |context| context.min(limit));
        let room = limit.saturating_sub(prompt.len());
        if room < options.max_tokens.unwrap_or(1) {
            let requested = match options.max_tokens {
                Some(n) => format!("{n} requested tokens"),
                None => "any answer".into(),
            };
            return Err(Error::new(
                ErrorKind::ContextOverflow,
                format!(
                    "a prompt of {} tokens and {requested} do not fit the context of {limit}",
                    prompt.len()
                ),
            ));
        }
        Ok(Generator {
            model,
            pending: prompt[cached..].to_vec(),
            forced: VecDeque::new(),
            allowed: None,
            forbidden: Vec::new(),
            sampler: Sampler::new(options.sampling.clone(), prompt, vocab_size)?,
            stop: StopTokens::new(stop.ids(), &options.stop_tokens, &[]),
            logprobs: options.logprobs,
            prefill_chunk: options.prefill_chunk.unwrap_or(GenerateOptions::PREFILL_CHUNK),
            max_tokens: options.max_tokens.unwrap_or(room),
            cancel: CancelHandle::default(),
            keep_prompt: false,
            prompt_sequence: None,
            diagnosis: None,
            finish_reason: None,
            failed: false,
            usage: Usage { prompt_tokens: prompt.len(), cached_tokens: cached, ..Usage::default() },
            timings: Timings::default(),
            started: None,
            sequence,
        })
    }

    /// Keeps a fork of the sequence as it is after the prompt: a later prompt that goes on differently
    /// from there can start from it, where windowed layers could not rewind to it.
    pub(crate) fn keep_prompt(self) -> Self {
        Self { keep_prompt: true, ..self }
    }

    /// Asked for the reason when logits are not finite.
    pub(crate) fn diagnosis(self, diagnosis: Diagnosis<'m>) -> Self {
        Self { diagnosis: Some(diagnosis), ..self }
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
        self.check(ids)?;
        self.forced.extend(ids);
        Ok(())
    }

    /// Whether the next token is one that was forced.
    pub fn is_forcing(&self) -> bool {
        !self.forced.is_empty()
    }

    /// Keeps `ids` from being drawn as the next token that is drawn, whatever their bias; any after it
    /// may be any again. They are to leave some token that can be drawn.
    ///
    /// # Errors
    /// `InvalidRequest` for an id outside the vocabulary; nothing is then forbidden.
    pub fn forbid(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        self.forbidden.extend(ids);
        Ok(())
    }

    /// Has the next token that is drawn be one of `ids`, whatever their bias, and none that is
    /// forbidden; any after it may be any again. Called anew it replaces what it allowed before. When
    /// nothing is left that can be drawn, the next step is an error, `InvalidRequest`.
    pub fn allow(&mut self, ids: TokenSet) {
        self.allowed = Some(ids);
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(Error::invalid_request(format!(
                "token {id} is outside the vocabulary of {vocab_size}"
            ))),
            None => Ok(()),
        }
    }

    /// Most tokens that will be generated: those asked for, or what fits the context.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Why the generation ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason.clone()
    }

    /// Token counts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Times so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The seed of the draws, which gives the same tokens again.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
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

    /// The fork that [`Generator::keep_prompt`] asked for, once the prompt has been fed.
    pub(crate) fn take_prompt_sequence(&mut self) -> Option<Sequence> {
        self.prompt_sequence.take()
    }

    /// Feeds what is pending and returns the logits `[1, V]` after it, or `None` when cancelled.
    fn feed(&mut self) -> Result<Option<Tensor>> {
        let mut rest = &self.pending[..];
        loop {
            if self.cancel.is_cancelled() {
                return Ok(None);
            }
            // No chunk goes across the end of the prompt, where the sequence may be forked.
            let prompt_left = self.usage.prompt_tokens.saturating_sub(self.sequence.len());
            let most = if prompt_left > 0 { prompt_left } else { rest.len() };
            let (chunk, later) = rest.split_at(rest.len().min(most).min(self.prefill_chunk));
            let rows = if later.is_empty() { LogitRows::Last } else { LogitRows::None };
            let batch = Batch::single(&self.sequence, chunk, rows);
            let logits = self.model.forward(&batch, &mut [&mut self.sequence])?;
            if self.keep_prompt && self.sequence.len() == self.usage.prompt_tokens {
                self.prompt_sequence = Some(self.sequence.fork());
            }
            if later.is_empty() {
                return Ok(Some(logits));
            }
            rest = later;
        }
    }

    fn step(&mut self) -> Result<Option<GeneratedToken>> {
        if self.cancel.is_cancelled() {
            self.finish_reason = Some(FinishReason::Cancelled);
            return Ok(None);
        }
        if let Some(id) = self.forced.pop_front() {
            self.pending.push(id);
            self.sampler.note(id);
            self.count(id);
            return Ok(Some(GeneratedToken { id, logprobs: None, forced: true }));
        }
        let first = self.started.is_none();
        let started = *self.started.get_or_insert_with(Instant::now);
        let logits = self.feed();
        if first {
            self.timings.prefill = started.elapsed();
        }
        let Some(logits) = logits? else {
            self.finish_reason = Some(FinishReason::Cancelled);
            return Ok(None);
        };
        let (id, logprobs) = self.draw(&logits)?;
        self.allowed = None;
        self.forbidden.clear();
        self.pending.clear();
        self.pending.push(id);
        self.count(id);
        if first {
            self.timings.first_token = started.elapsed();
        } else {
            self.timings.decode = started.elapsed() - self.timings.first_token;
        }
        Ok(Some(GeneratedToken { id, logprobs, forced: false }))
    }

    /// The next token, drawn where the logits are unless they have to come to the host anyway.
    fn draw(&mut self, logits: &Tensor) -> Result<(u32, Option<TokenLogprobs>)> {
        let (allowed, forbidden) = (self.allowed.as_ref(), &self.forbidden[..]);
        if self.logprobs.is_none() && logits.device().is_cuda() {
            let mut row = DrawRow { sampler: &mut self.sampler, allowed, forbidden };
            if let [Some(id)] = draw_rows(self.model, logits, std::slice::from_mut(&mut row))?[..] {
                return Ok((id, None));
            }
        }
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let id = self.sampler.sample_from(&logits, allowed, forbidden);
        let id = id.map_err(|e| self.explain(e))?;
        Ok((id, self.logprobs.map(|top| TokenLogprobs::new(&logits, id, top))))
    }

    /// Counts a token of the answer, which may end it.
    fn count(&mut self, id: u32) {
        self.usage.completion_tokens += 1;
        if self.stop.contains(id) {
            self.finish_reason = Some(FinishReason::Stop);
        } else if self.usage.completion_tokens == self.max_tokens {
            self.finish_reason = Some(FinishReason::Length);
        }
    }

    /// Adds the reason to an error about logits.
    fn explain(&self, error: Error) -> Error {
        let position = self.sequence.len();
        match self.diagnosis.as_ref().and_then(|diagnosis| diagnosis()) {
            Some(reason) => {
                Error::new(error.kind(), format!("after {position} tokens, {error}: {reason}"))
            }
            None => Error::new(error.kind(), format!("after {position} tokens, {error}")),
        }
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<GeneratedToken>;

    /// The next token; `None` once the generation has ended, for [`Generator::finish_reason`], or
    /// after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.finish_reason.is_some() || self.failed {
            return None;
        }
        let token = self.step().transpose();
        self.failed = matches!(token, Some(Err(_)));
        token
    }
}

impl FusedIterator for Generator<'_> {}
