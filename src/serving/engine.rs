//! [`Engine`]: the handle. First form: one request after another.

use super::answer::{Answer, Generated, Queue};
use super::inbox::Inbox;
use super::{Call, EngineOptions, Stats};
use crate::Result;
use crate::chat::{ChatEvent, ChatRequest, Model, Prompt};
use crate::generation::{CancelHandle, GenerateOptions, GeneratedToken};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Makes the answers of all who ask it together. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    model: Model,
    inbox: Arc<Inbox>,
    stats: Arc<Mutex<Stats>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl Model {
    /// Starts an engine.
    ///
    /// # Errors
    /// `InvalidRequest` for an option out of range.
    pub fn engine(&self, options: EngineOptions) -> Result<Engine> {
        options.validate()?;
        let inbox = Arc::new(Inbox::default());
        let jobs = Arc::clone(&inbox);
        std::thread::spawn(move || {
            while let Some(batch) = jobs.take() {
                batch.into_iter().for_each(|job| job());
            }
        });
        Ok(Engine(Arc::new(Shared { model: self.clone(), inbox, stats: Arc::default() })))
    }
}

impl Engine {
    /// Answers a request.
    ///
    /// # Errors
    /// As [`Model::chat_stream`].
    pub fn chat(&self, call: impl Into<Call<ChatRequest>>) -> Result<Answer<ChatEvent>> {
        let call = call.into();
        let prompt = self.0.model.render(&call.request)?.tokens.len();
        drop(self.0.model.chat_stream(&call.request)?);
        let (queue, cancel) = (Queue::new(), CancelHandle::default());
        let answer = Answer::new(queue.clone(), self.0.inbox.clone(), cancel.clone(), prompt);
        let (model, stats) = (self.0.model.clone(), self.0.stats.clone());
        self.0.inbox.put(Box::new(move || {
            let result = (|| {
                let mut stream = model.chat_stream(&call.request)?;
                while let Some(event) = stream.next() {
                    queue.send(std::iter::once(event?));
                    if cancel.is_cancelled() {
                        stream.cancel_handle().cancel();
                    }
                }
                stream.finish()
            })();
            let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
            match cancel.is_cancelled() {
                true => stats.cancelled += 1,
                false => stats.finished += 1,
            }
            drop(stats);
            queue.end(result);
        }));
        Ok(answer)
    }

    /// Answers a request `n` times.
    ///
    /// # Errors
    /// As [`Engine::chat`].
    pub fn chat_choices(
        &self,
        call: impl Into<Call<ChatRequest>>,
        n: usize,
    ) -> Result<Vec<Answer<ChatEvent>>> {
        let call = call.into();
        (0..n as u64)
            .map(|choice| {
                let mut call = call.clone();
                let seed = &mut call.request.sampling.seed;
                *seed = seed.map(|seed| seed.wrapping_add(choice));
                self.chat(call)
            })
            .collect()
    }

    /// Continues a raw prompt.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate<'a>(
        &self,
        prompt: impl Into<Prompt<'a>>,
        options: impl Into<Call<GenerateOptions>>,
    ) -> Result<Answer<GeneratedToken>> {
        let tokens = match prompt.into() {
            Prompt::Tokens(tokens) => tokens.to_vec(),
            Prompt::Text(text) => self.0.model.tokenizer().encode_with_special(text)?,
        };
        let options = options.into().request;
        drop(self.0.model.generate(&tokens, &options)?);
        let (queue, cancel) = (Queue::new(), CancelHandle::default());
        let answer = Answer::new(queue.clone(), self.0.inbox.clone(), cancel.clone(), tokens.len());
        let model = self.0.model.clone();
        self.0.inbox.put(Box::new(move || {
            let result = (|| {
                let mut generator = model.generate(&tokens, &options)?;
                let mut all = Vec::new();
                while let Some(token) = generator.next() {
                    let token = token?;
                    all.push(token.clone());
                    queue.send(std::iter::once(token));
                    if cancel.is_cancelled() {
                        generator.cancel_handle().cancel();
                    }
                }
                Ok(Generated {
                    tokens: all,
                    finish_reason: generator.finish_reason().expect("ended"),
                    usage: generator.usage(),
                    timings: generator.timings(),
                    seed: generator.seed(),
                })
            })();
            queue.end(result);
        }));
        Ok(answer)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// What it has done and has to do.
    pub fn stats(&self) -> Stats {
        self.0.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it can answer.
    ///
    /// # Errors
    /// `Stopped` after [`Engine::shutdown`], `Device` when the device was lost.
    pub fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Refuses further requests and ends after `within` at the latest.
    ///
    /// # Errors
    /// `Device` when the device was lost.
    pub fn shutdown(&self, within: Duration) -> Result<()> {
        let _ = within;
        self.0.inbox.close();
        Ok(())
    }
}
