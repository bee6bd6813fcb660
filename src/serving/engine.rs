//! [`Engine`]: the handle that requests are made of.

use super::answer::{Answer, Queue};
use super::inbox::{Closed, Inbox};
use super::job::{Continuation, Tells, Told};
use super::request::{Request, Terms};
use super::scheduler::Scheduler;
use super::{Call, EngineOptions, Stats, run};
use crate::cache::{Mark, PAGE_TOKENS, Windows};
use crate::chat::{ChatEvent, ChatRequest, Model, Prompt, Turn, boundaries};
use crate::generation::{CancelHandle, Forward, GenerateOptions, GeneratedToken, Lane};
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Makes the answers of all who ask it together: a step of the model is one for all of them.
///
/// Cheap to clone; clones are the same engine, any thread may ask any of them. It has a thread of its own and its
/// share of the model's cache until the last clone is dropped and the last answer has ended. An answer is the
/// same in any company: alone, among others, after it had to make room for one, or with its beginning cached.
///
/// ```no_run
/// use gpt_oss_puzzle::{ChatRequest, EngineOptions, Model};
///
/// let engine = Model::load("gpt-oss-puzzle-88B")?.engine(EngineOptions::default())?;
/// let questions = ["Why is the sky blue?", "Why is grass green?"];
/// let answers: Vec<_> =
///     questions.iter().map(|question| engine.chat(ChatRequest::user(*question))).collect();
/// for answer in answers {
///     println!("{}", answer?.finish()?.text());
/// }
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    model: Model,
    options: EngineOptions,
    inbox: Arc<Inbox>,
    /// Of the engine's own pages; keeps none.
    cache: CacheShape,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.close(Closed::Unowned);
    }
}

impl Model {
    /// Starts an engine that makes many answers at once. Its pages are taken from those that are free;
    /// [`Model::chat`] and sessions have the rest.
    ///
    /// # Errors
    /// `InvalidRequest` for an option out of range, `CacheFull` when fewer pages are free than asked for, or
    /// none, `Io` when the system gives no thread.
    pub fn engine(&self, options: EngineOptions) -> Result<Engine> {
        options.validate()?;
        let pages = options.pages.unwrap_or_else(|| self.cache().free_pages().max(1));
        let cache = self.cache().carve(pages)?;
        let inbox = Arc::new(Inbox::new(options.queue.saturating_add(options.max_sequences)));
        let shape = CacheShape { windows: cache.windows().clone(), pages };
        let model: Arc<dyn Forward> = Arc::new(self.clone());
        let scheduler = Scheduler::new(model, cache, options.clone());
        let requests = Arc::clone(&inbox);
        let thread = std::thread::Builder::new().name("engine".into());
        let thread = thread.spawn(move || run::run(scheduler, &requests)).map_err(|e| {
            Error::new(ErrorKind::Io, format!("the engine's thread cannot be started: {e}"))
                .with_source(e)
        })?;
        Ok(Engine(Arc::new(Shared {
            model: self.clone(),
            options,
            inbox,
            cache: shape,
            thread: Mutex::new(Some(thread)),
        })))
    }
}

impl Engine {
    /// Answers a request. Its prompt is written and checked here, on the caller's thread; the answer is made
    /// whether it is read or not.
    ///
    /// # Errors
    /// As [`Model::chat_stream`]; `InvalidRequest` when prompt and requested tokens can never fit the engine's
    /// pages; `Busy` when too many wait, see [`Error::retry_after`]; `Stopped` after [`Engine::shutdown`];
    /// `Device` when the device was lost.
    pub fn chat(&self, call: impl Into<Call<ChatRequest>>) -> Result<Answer<ChatEvent>> {
        let (call, request) = call.into().with(());
        let model = self.model();
        let prompt = model.render(&request)?.tokens;
        let mut lane = model.lane(0, &prompt, &request)?;
        self.0.cache.fit(&mut lane, request.max_tokens)?;
        let turn = Turn::new(model, lane, &request)?;
        let boundaries = boundaries(model.tokenizer(), &prompt, Some(&request));
        self.submit(turn, call, boundaries)
    }

    /// Answers a request `n` times, each with a seed of its own: the request's and those that follow it, if it
    /// has one. The prompt is read once, as far as the prefix cache goes.
    ///
    /// # Errors
    /// As [`Engine::chat`]; no answer is then made.
    pub fn chat_choices(
        &self,
        call: impl Into<Call<ChatRequest>>,
        n: usize,
    ) -> Result<Vec<Answer<ChatEvent>>> {
        let call = call.into();
        let answers = (0..n as u64).map(|choice| {
            let mut call = call.clone();
            let seed = &mut call.request.sampling.seed;
            *seed = seed.map(|seed| seed.wrapping_add(choice));
            self.chat(call)
        });
        answers.collect()
    }

    /// Continues a raw prompt, token by token, as [`Model::generate`].
    ///
    /// # Errors
    /// As [`Model::generate`], and as [`Engine::chat`] where it is about the engine.
    pub fn generate<'a>(
        &self,
        prompt: impl Into<Prompt<'a>>,
        options: impl Into<Call<GenerateOptions>>,
    ) -> Result<Answer<GeneratedToken>> {
        let (call, options) = options.into().with(());
        let model = self.model();
        let tokens = match prompt.into() {
            Prompt::Tokens(tokens) => tokens.to_vec(),
            Prompt::Text(text) => model.tokenizer().encode_with_special(text)?,
        };
        let mut lane = model.plain_lane(0, &tokens, &options)?;
        self.0.cache.fit(&mut lane, options.max_tokens)?;
        let boundaries = boundaries(model.tokenizer(), &tokens, None);
        self.submit(Continuation::new(lane), call, boundaries)
    }

    fn submit<D: Tells + 'static>(
        &self,
        drive: D,
        call: Call<()>,
        boundaries: Vec<(usize, Mark)>,
    ) -> Result<Answer<D::Event>> {
        let options = &self.0.options;
        let (queue, cancel, now) = (Queue::new(), CancelHandle::default(), Instant::now());
        let deadline = call.deadline.or(options.deadline);
        let terms = Terms {
            priority: call.priority.unwrap_or(options.priority),
            submitted: now,
            // One too far away to be named never comes.
            deadline: deadline.and_then(|deadline| now.checked_add(deadline)),
            cache_salt: call.cache_salt,
            cancel: cancel.clone(),
            boundaries,
        };
        let prompt_tokens = drive.lane().usage().prompt_tokens;
        let told = Told::new(drive, Arc::clone(&queue), options.stream_interval, options.unread);
        self.0.inbox.submit(Request::new(Box::new(told), terms))?;
        Ok(Answer::new(queue, Arc::clone(&self.0.inbox), cancel, prompt_tokens))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// The options it was started with.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// What it has done and has to do, as of its last step.
    pub fn stats(&self) -> Stats {
        self.0.inbox.stats()
    }

    /// Whether it takes requests: what a service's health is asked by.
    ///
    /// # Errors
    /// `Stopped` after [`Engine::shutdown`], `Device` when the device was lost.
    pub fn check(&self) -> Result<()> {
        self.0.inbox.closed().map_or(Ok(()), |closed| Err(closed.error()))
    }

    /// Takes no further requests, ends those that have not begun with an error, `Stopped`, lets the others run
    /// for at most `within` and then ends them as they are. Returns when all of them have ended.
    ///
    /// # Errors
    /// `Device` when the device was lost.
    pub fn shutdown(&self, within: Duration) -> Result<()> {
        let now = Instant::now();
        // A century is for ever.
        let end = now.checked_add(within).unwrap_or(now + Duration::from_secs(3_000_000_000));
        self.0.inbox.close(Closed::Shutdown(end));
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) =
            thread.filter(|thread| thread.thread().id() != std::thread::current().id())
        {
            // Had it panicked, its guard would have closed the inbox.
            _ = thread.join();
        }
        match self.0.inbox.closed() {
            Some(closed @ Closed::Lost(_)) => Err(closed.error()),
            _ => Ok(()),
        }
    }
}

/// What fits the engine's pages.
struct CacheShape {
    windows: Windows,
    pages: usize,
}

impl CacheShape {
    /// Has `lane` end where the pages do, if the number of its tokens was not asked for.
    ///
    /// # Errors
    /// `InvalidRequest` when it can never fit.
    fn fit(&self, lane: &mut Lane, asked: Option<usize>) -> Result<()> {
        let prompt = lane.usage().prompt_tokens;
        let needed = self.windows.most(prompt + asked.unwrap_or(1), PAGE_TOKENS);
        let longest = self.windows.longest(self.pages, PAGE_TOKENS);
        if needed > self.pages {
            return Err(Error::invalid_request(format!(
                "a prompt of {prompt} tokens and {} of an answer take {needed} pages, the engine has {}: \
                 {longest} tokens fit",
                asked.unwrap_or(1),
                self.pages
            )));
        }
        lane.limit(longest - prompt);
        Ok(())
    }
}
