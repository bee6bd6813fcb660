//! [`Lane`]: the tokens of one answer while it is made, without the model and without what it has cached.

use super::sampling::DrawRow;
use super::{
    FinishReason, GenerateOptions, GeneratedToken, Sampler, StopTokens, Timings, TokenLogprobs,
    TokenSet, Usage,
};
use crate::model::LogitRows;
use crate::{Error, ErrorKind, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One answer in the making: its prompt, what it has said, and how it goes on.
///
/// What a sequence does not hold of [`Lane::tokens`] is fed to the model next, whether it is the prompt, the
/// last token, forced ones, or all of them anew: a lane whose sequence was cleared goes on with the same answer.
pub(crate) struct Lane {
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Taken before the next token is drawn.
    forced: VecDeque<u32>,
    /// To be drawn from next, if there is a choice of what.
    allowed: Option<TokenSet>,
    /// Not to be drawn next.
    forbidden: Vec<u32>,
    sampler: Sampler,
    stop: StopTokens,
    logprobs: Option<usize>,
    max_tokens: usize,
    vocab_size: usize,
    finish_reason: Option<FinishReason>,
    usage: Usage,
    timings: Timings,
    /// What the first token is waited for from.
    started: Option<Instant>,
    prefill_started: Option<Instant>,
    /// How many tokens there were when the last one was drawn: what a sequence lacks up to there is read, not
    /// said.
    read: usize,
    /// What the step took that made the last token.
    step_time: Duration,
}

/// What a model takes.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) vocab_size: usize,
    /// Longest sequence in tokens.
    pub(crate) context: usize,
}

impl Lane {
    /// Continues `prompt`, the first `cached` tokens of which are in the cache already.
    ///
    /// # Errors
    /// As [`super::Generator::new`].
    pub(crate) fn new(
        limits: Limits,
        cached: usize,
        prompt: &[u32],
        stop: &StopTokens,
        options: &GenerateOptions,
    ) -> Result<Lane> {
        let vocab_size = limits.vocab_size;
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
        let limit = options.context.map_or(limits.context, |context| context.min(limits.context));
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
        Ok(Lane {
            tokens: prompt.to_vec(),
            forced: VecDeque::new(),
            allowed: None,
            forbidden: Vec::new(),
            sampler: Sampler::new(options.sampling.clone(), prompt, vocab_size)?,
            stop: match options.ignore_eos {
                true => StopTokens::new(&[], &options.stop_tokens, &[]),
                false => StopTokens::new(stop.ids(), &options.stop_tokens, &[]),
            },
            logprobs: options.logprobs,
            max_tokens: options.max_tokens.unwrap_or(room),
            vocab_size,
            finish_reason: None,
            usage: Usage { prompt_tokens: prompt.len(), cached_tokens: cached, ..Usage::default() },
            timings: Timings::default(),
            started: None,
            prefill_started: None,
            read: prompt.len(),
            step_time: Duration::ZERO,
        })
    }

    /// Goes on with `ids` instead of tokens that are drawn, see [`super::Generator::force`].
    pub(crate) fn force(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        self.forced.extend(ids);
        Ok(())
    }

    /// Whether the next token is one that was forced.
    pub(crate) fn is_forcing(&self) -> bool {
        !self.forced.is_empty()
    }

    /// Keeps `ids` from being drawn next, see [`super::Generator::forbid`].
    pub(crate) fn forbid(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        self.forbidden.extend(ids);
        Ok(())
    }

    /// Has the next token that is drawn be one of `ids`, see [`super::Generator::allow`].
    pub(crate) fn allow(&mut self, ids: TokenSet) {
        self.allowed = Some(ids);
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => Err(Error::invalid_request(format!(
                "token {id} is outside the vocabulary of {}",
                self.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// Most tokens that will be generated: those asked for, or what fits the context.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Has it end after fewer tokens.
    pub(crate) fn limit(&mut self, max_tokens: usize) {
        self.max_tokens = self.max_tokens.min(max_tokens);
    }

    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason.clone()
    }

    /// Ends it, unless it has ended.
    pub(crate) fn finish(&mut self, reason: FinishReason) {
        self.finish_reason.get_or_insert(reason);
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// So many tokens of the prompt were in the cache.
    pub(crate) fn set_cached(&mut self, tokens: usize) {
        self.usage.cached_tokens = tokens;
    }

    pub(crate) fn timings(&self) -> Timings {
        self.timings
    }

    /// What the step took that made the last token; nothing when it was forced.
    pub(crate) fn step_time(&self) -> Duration {
        self.step_time
    }

    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The prompt and the answer so far.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether a sequence that holds `cached` of the tokens lacks no more of them than what was said since one
    /// was last drawn.
    pub(crate) fn is_decoding(&self, cached: usize) -> bool {
        cached >= self.read
    }

    /// The next tokens for a sequence that holds `cached` of them, at most `most`, and which rows of logits to
    /// ask for.
    pub(super) fn next_tokens(&mut self, cached: usize, most: usize) -> (&[u32], LogitRows) {
        let now = Instant::now();
        self.started.get_or_insert(now);
        self.prefill_started.get_or_insert(now);
        let rest = &self.tokens[cached..];
        match rest.len() <= most {
            true => (rest, LogitRows::Last),
            false => (&rest[..most], LogitRows::None),
        }
    }

    /// The first token is waited for from now on, whenever it is fed.
    pub(crate) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    /// The next of the forced tokens. It needs no step: it is fed with what follows it.
    pub(crate) fn take_forced(&mut self) -> Option<GeneratedToken> {
        let id = self.forced.pop_front()?;
        self.step_time = Duration::ZERO;
        self.sampler.note(id);
        self.count(id);
        Some(GeneratedToken { id, logprobs: None, forced: true })
    }

    /// The step that began at `began` has given logits.
    pub(super) fn fed(&mut self) {
        self.read = self.tokens.len();
        if let Some(started) = self.prefill_started.filter(|_| self.usage.completion_tokens == 0) {
            self.timings.prefill = started.elapsed();
        }
    }

    /// Whether logits have to come to the host for its next token.
    pub(super) fn draws_on_host(&self) -> bool {
        self.logprobs.is_some()
    }

    /// How the next token is drawn.
    pub(super) fn draw_row(&mut self) -> DrawRow<'_> {
        DrawRow {
            sampler: &mut self.sampler,
            allowed: self.allowed.as_ref(),
            forbidden: &self.forbidden,
        }
    }

    /// Draws the next token from its logits `[V]`.
    pub(super) fn draw_from(&mut self, logits: &[f32], began: Instant) -> Result<GeneratedToken> {
        let id = self.sampler.sample_from(logits, self.allowed.as_ref(), &self.forbidden);
        let id = id.map_err(|e| {
            Error::new(e.kind(), format!("after {} tokens, {e}", self.tokens.len()))
        })?;
        let logprobs = self.logprobs.map(|top| TokenLogprobs::new(logits, id, top));
        let token = self.take(id, began);
        Ok(GeneratedToken { logprobs, ..token })
    }

    /// Takes a token that was drawn for it in the step that began at `began`.
    pub(super) fn take(&mut self, id: u32, began: Instant) -> GeneratedToken {
        self.restrictions_end();
        self.step_time = began.elapsed();
        let since_start = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        if self.timings.first_token.is_zero() {
            self.timings.first_token = since_start;
        } else {
            self.timings.decode = since_start - self.timings.first_token;
        }
        self.count(id);
        GeneratedToken { id, logprobs: None, forced: false }
    }

    fn restrictions_end(&mut self) {
        self.allowed = None;
        self.forbidden.clear();
    }

    /// Counts a token of the answer, which may end it.
    fn count(&mut self, id: u32) {
        self.tokens.push(id);
        self.usage.completion_tokens += 1;
        if self.stop.contains(id) {
            self.finish(FinishReason::Stop);
        } else if self.usage.completion_tokens >= self.max_tokens {
            self.finish(FinishReason::Length);
        }
    }
}
