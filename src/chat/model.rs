//! [`Model`]: everything that is needed to talk, loaded once and shared.

use super::guide::Guidance;
use super::turn::Turn;
use super::{ChatRequest, ChatResponse, ChatSession, ChatStream, ModelBuilder};
use crate::cache::{KvCache, PrefixCache, Sequence};
use crate::generation::{
    Forward, GenerateOptions, GenerationConfig, Generator, Lane, Limits, StopTokens,
};
use crate::harmony::{Rendered, Renderer};
use crate::model::{Batch, Draw, GptOss, Tensor};
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::{ErrorKind, ModelConfig, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A loaded checkpoint: transformer, tokenizer, prompt renderer and key-value cache.
///
/// Cheap to clone, and clones share everything. All methods take `&self` and any number of threads
/// may chat at the same time, each on a sequence of its own; they share the cache's pages, and the
/// one for which there is no page left gets a `CacheFull` error.
///
/// ```no_run
/// use gpt_oss_puzzle::chat::{ChatRequest, Model};
///
/// let model = Model::load("gpt-oss-puzzle-88B")?;
/// println!("{}", model.chat(&ChatRequest::user("Why is the sky blue?"))?.text());
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
#[derive(Clone)]
pub struct Model(Arc<Parts>);

/// What a [`Model`] is made of.
pub(super) struct Parts {
    pub(super) checkpoint: Checkpoint,
    pub(super) transformer: GptOss,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) renderer: Renderer,
    pub(super) cache: KvCache,
    /// What sessions have in the cache.
    pub(super) prefix_cache: Mutex<PrefixCache>,
    pub(super) stop: StopTokens,
    pub(super) generation_config: GenerationConfig,
    pub(super) context: usize,
    pub(super) prefill_chunk: usize,
    pub(super) guidance: Guidance,
}

/// A raw prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt<'a> {
    /// Text in which control tokens such as `<|start|>` are control tokens: not for text of others.
    Text(&'a str),
    /// Token ids.
    Tokens(&'a [u32]),
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Prompt<'a> {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(text: &'a String) -> Prompt<'a> {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(tokens: &'a [u32]) -> Prompt<'a> {
        Prompt::Tokens(tokens)
    }
}

impl<'a> From<&'a Vec<u32>> for Prompt<'a> {
    fn from(tokens: &'a Vec<u32>) -> Prompt<'a> {
        Prompt::Tokens(tokens)
    }
}

impl Model {
    /// Loads a checkpoint directory with the default options.
    ///
    /// # Errors
    /// As [`ModelBuilder::load`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Model> {
        Model::builder(dir.as_ref()).load()
    }

    /// Options for loading a checkpoint directory or, with the feature `hub`, a model of the hub by its
    /// name `owner/name` where no such directory exists.
    pub fn builder(source: impl Into<PathBuf>) -> ModelBuilder {
        ModelBuilder::named(source.into())
    }

    /// Options for a model made of parts that are in memory already. Its generation defaults are those
    /// of a checkpoint without generation_config.json.
    pub fn from_parts(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ModelBuilder {
        ModelBuilder::from_parts(checkpoint, tokenizer)
    }

    pub(super) fn new(parts: Parts) -> Model {
        Model(Arc::new(parts))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// As [`Model::chat_stream`], and what the stream yields.
    pub fn chat(&self, request: &ChatRequest) -> Result<ChatResponse> {
        self.chat_stream(request)?.finish()
    }

    /// Answers a request piece by piece. Nothing runs before the first event is asked for.
    ///
    /// # Errors
    /// `InvalidMessage` or `Template` for a conversation that cannot be rendered, `InvalidRequest` for
    /// parameters out of range and for a format that cannot be followed, `ContextOverflow` when prompt
    /// and requested tokens do not fit.
    pub fn chat_stream(&self, request: &ChatRequest) -> Result<ChatStream<'_>> {
        let prompt = self.render(request)?.tokens;
        let turn = Turn::new(self, self.lane(0, &prompt, request)?, request)?;
        Ok(ChatStream::new(self, self.0.cache.sequence(), turn))
    }

    /// A conversation that keeps its past in the cache, starting with the messages and settings of
    /// `request`.
    pub fn session(&self, request: ChatRequest) -> ChatSession {
        ChatSession::new(self.clone(), request)
    }

    /// What guides turns.
    pub(super) fn guidance(&self) -> &Guidance {
        &self.0.guidance
    }

    /// The prompt of a request.
    ///
    /// # Errors
    /// As [`Renderer::render`]; `InvalidRequest` when it skips thinking and must not, see
    /// [`super::Reasoning`].
    pub fn render(&self, request: &ChatRequest) -> Result<Rendered> {
        let tokenizer = &self.0.tokenizer;
        let mut prompt = self.0.renderer.render(&request.render_request(), tokenizer)?;
        request.reasoning.prefill(request, tokenizer, &mut prompt)?;
        Ok(prompt)
    }

    /// Continues a raw prompt, token by token. The checkpoint's defaults, its stop tokens and this
    /// model's context and prefill chunk complete `options`.
    ///
    /// ```no_run
    /// use gpt_oss_puzzle::{chat::Model, generation::GenerateOptions, tokenizer::TextStream};
    ///
    /// # let model = Model::load("gpt-oss-20b")?;
    /// let mut text = TextStream::default();
    /// for token in model.generate("Once upon a time", &GenerateOptions::default().max_tokens(50))? {
    ///     let bytes = model.tokenizer().token_bytes(token?.id).unwrap_or_default();
    ///     print!("{}", text.push(bytes));
    /// }
    /// # Ok::<(), gpt_oss_puzzle::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Tokenizer` for a text that cannot be encoded; otherwise as [`Generator::new`].
    pub fn generate<'a>(
        &self,
        prompt: impl Into<Prompt<'a>>,
        options: &GenerateOptions,
    ) -> Result<Generator<'_>> {
        let lane = match prompt.into() {
            Prompt::Tokens(tokens) => self.plain_lane(0, tokens, options)?,
            Prompt::Text(text) => {
                self.plain_lane(0, &self.0.tokenizer.encode_with_special(text)?, options)?
            }
        };
        let chunk = options.prefill_chunk.unwrap_or(self.0.prefill_chunk);
        Ok(Generator::of(self, self.0.cache.sequence(), lane, chunk))
    }

    /// The lane that answers `request`, the first `cached` tokens of whose prompt are in the cache.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub(crate) fn lane(
        &self,
        cached: usize,
        prompt: &[u32],
        request: &ChatRequest,
    ) -> Result<Lane> {
        let options = GenerateOptions {
            sampling: request.sampling.clone(),
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            ..GenerateOptions::default()
        };
        self.plain_lane(cached, prompt, &options)
    }

    /// The lane that continues `prompt`, with the checkpoint's defaults and this model's context.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub(crate) fn plain_lane(
        &self,
        cached: usize,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Lane> {
        let parts = &*self.0;
        let options = GenerateOptions {
            sampling: options.sampling.clone().or(&parts.generation_config.sampling),
            ..options.clone()
        };
        let limits = Limits { vocab_size: self.config().vocab_size, context: parts.context };
        Lane::new(limits, cached, prompt, &parts.stop, &options)
    }

    /// What sessions have in the cache, for as long as nobody else looks.
    pub(super) fn prefix_cache(&self) -> MutexGuard<'_, PrefixCache> {
        self.0.prefix_cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What config.json says.
    pub fn config(&self) -> &ModelConfig {
        self.0.checkpoint.config()
    }

    /// The weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.0.checkpoint
    }

    /// The transformer, for use without a conversation.
    pub fn transformer(&self) -> &GptOss {
        &self.0.transformer
    }

    /// The cache that every conversation draws its pages from.
    pub fn cache(&self) -> &KvCache {
        &self.0.cache
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.0.tokenizer
    }

    /// What writes the prompts.
    pub fn renderer(&self) -> &Renderer {
        &self.0.renderer
    }

    /// The checkpoint's own defaults.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.0.generation_config
    }

    /// The tokens that end an answer: `<|return|>`, `<|endoftext|>` and `<|call|>` with those of
    /// generation_config.json, and never a control token inside an answer such as `<|end|>`.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.0.stop
    }

    /// Longest conversation in tokens, the answer included.
    pub fn context(&self) -> usize {
        self.0.context
    }

    /// Most prompt tokens that go through the model at once.
    pub fn prefill_chunk(&self) -> usize {
        self.0.prefill_chunk
    }
}

impl Forward for Model {
    /// Gives up what sessions have cached before it says that the cache is full.
    fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor> {
        let logits = self.0.transformer.forward(batch, sequences);
        let is_full = |error: &crate::Error| error.kind() == ErrorKind::CacheFull;
        if !logits.as_ref().is_err_and(is_full) || !sequences[0].cache().same_pool(&self.0.cache) {
            return logits;
        }
        let counts = batch.tokens_per_sequence(sequences.len());
        let needed = sequences.iter().zip(counts).map(|(s, n)| s.pages_to_append(n)).sum();
        match self.prefix_cache().make_free(needed) {
            true => self.0.transformer.forward(batch, sequences),
            false => logits,
        }
    }

    fn is_on_device(&self) -> bool {
        self.0.transformer.is_on_device()
    }

    fn draw(&self, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
        self.0.transformer.draw(logits, draws)
    }

    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        self.0.transformer.each(count, task);
    }

    fn diagnose(&self) -> Option<String> {
        self.0.checkpoint.find_nan_scale()
    }
}
