//! [`Model`]: everything that is needed to talk, loaded once and shared.

use super::guide::Guidance;
use super::{ChatRequest, ChatResponse, ChatSession, ChatStream, ModelBuilder};
use crate::cache::{KvCache, Sequence};
use crate::generation::{GenerateOptions, GenerationConfig, Generator, StopTokens};
use crate::harmony::{Rendered, Renderer};
use crate::model::GptOss;
use crate::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use crate::{ModelConfig, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        let generator = self.continue_sequence(self.0.cache.sequence(), &prompt, request)?;
        ChatStream::new(self, generator, request)
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
        match prompt.into() {
            Prompt::Tokens(tokens) => self.generator(self.0.cache.sequence(), tokens, options),
            Prompt::Text(text) => {
                let tokens = self.0.tokenizer.encode_with_special(text)?;
                self.generator(self.0.cache.sequence(), &tokens, options)
            }
        }
    }

    /// Answers `request`, whose prompt starts with what `sequence` holds.
    pub(super) fn continue_sequence(
        &self,
        sequence: Sequence,
        prompt: &[u32],
        request: &ChatRequest,
    ) -> Result<Generator<'_>> {
        let options = GenerateOptions {
            sampling: request.sampling.clone(),
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            ..GenerateOptions::default()
        };
        self.generator(sequence, prompt, &options)
    }

    fn generator(
        &self,
        sequence: Sequence,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generator<'_>> {
        let parts = &*self.0;
        let options = GenerateOptions {
            sampling: options.sampling.clone().or(&parts.generation_config.sampling),
            context: Some(options.context.map_or(parts.context, |c| c.min(parts.context))),
            prefill_chunk: options.prefill_chunk.or(Some(parts.prefill_chunk)),
            ..options.clone()
        };
        let stop = parts.stop.clone();
        let generator = Generator::new(&parts.transformer, sequence, prompt, stop, &options)?;
        Ok(generator.diagnosis(Box::new(|| parts.checkpoint.find_nan_scale())))
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
