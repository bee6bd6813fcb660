//! The scheduler on a model that nobody waits for: any order of requests, cancels and faults, tiny pools.

mod faults;
mod hashing;
mod inbox;
mod order;
mod prefixes;
mod readers;
mod touchy;

use super::answer::{Answer, Queue};
use super::inbox::Inbox;
use super::job::{Continuation, Tells, Told};
use super::request::{Request, Terms};
use super::scheduler::Scheduler;
use super::{EngineOptions, Generated, Priority};
use crate::cache::testing::{Random, cache};
use crate::cache::{KvCache, Mark, PAGE_TOKENS};
use crate::generation::{
    CancelHandle, FinishReason, GenerateOptions, GeneratedToken, Generator, Lane, Limits,
    SamplingParams, StopTokens,
};
use crate::{ErrorKind, Result};
use hashing::{Hashing, VOCAB};
use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// A full layer, and windows of a page, a few pages and odd ones.
const WINDOWS: [Option<usize>; 4] = [None, Some(64), Some(130), Some(200)];

/// A request without its company.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    prompt: Vec<u32>,
    seed: u64,
    max_tokens: usize,
    /// Whether nothing but the number of its tokens ends it.
    is_full: bool,
}

impl Asked {
    fn lane(&self) -> Lane {
        let options = GenerateOptions::default()
            .sampling(SamplingParams::default().seed(self.seed))
            .max_tokens(self.max_tokens);
        let options = GenerateOptions { ignore_eos: self.is_full, ..options };
        let limits = Limits { vocab_size: VOCAB, context: 4096 };
        Lane::new(limits, 0, &self.prompt, &StopTokens::new(&[0], &[], &[]), &options).unwrap()
    }

    fn terms(&self, priority: Priority) -> Terms {
        let last = self.prompt.len() - 1;
        Terms {
            priority,
            submitted: Instant::now(),
            deadline: None,
            cache_salt: None,
            cancel: CancelHandle::default(),
            boundaries: vec![(last.min(128), Mark::Turn), (last, Mark::Turn)],
        }
    }

    /// The answer that it gets alone, in a cache that nobody else uses.
    fn alone(&self) -> Vec<GeneratedToken> {
        let cache = cache(&WINDOWS, 4096);
        let model = Hashing::new(&cache);
        let generator = Generator::of(&model, cache.sequence(), self.lane(), 512);
        generator.map(|token| token.unwrap()).collect()
    }
}

/// A scheduler and who asks it.
struct World {
    scheduler: Scheduler,
    model: Arc<Hashing>,
    cache: KvCache,
    options: EngineOptions,
    inbox: Arc<Inbox>,
    turns: usize,
}

impl World {
    fn new(pages: usize, options: EngineOptions) -> World {
        let cache = cache(&WINDOWS, pages);
        let model = Arc::new(Hashing::new(&cache));
        World {
            scheduler: Scheduler::new(model.clone(), cache.clone(), options.clone()),
            model,
            cache,
            options,
            inbox: Arc::new(Inbox::new(usize::MAX)),
            turns: 0,
        }
    }

    fn ask(
        &mut self,
        asked: &Asked,
        priority: Priority,
        salt: Option<&str>,
    ) -> Answer<GeneratedToken> {
        let drive = Continuation::new(asked.lane());
        self.submit(drive, Terms { cache_salt: salt.map(str::to_owned), ..asked.terms(priority) })
    }

    fn submit<D: Tells + 'static>(&mut self, drive: D, terms: Terms) -> Answer<D::Event> {
        let (queue, cancel) = (Queue::new(), terms.cancel.clone());
        let prompt_tokens = drive.lane().usage().prompt_tokens;
        let (interval, unread) = (self.options.stream_interval, self.options.unread);
        let told = Told::new(drive, Arc::clone(&queue), interval, unread);
        self.scheduler.add(Request::new(Box::new(told), terms));
        Answer::new(queue, Arc::clone(&self.inbox), cancel, prompt_tokens)
    }

    /// A turn, after which every page is somewhere.
    fn turn(&mut self) -> Result<bool> {
        let made = self.scheduler.turn();
        self.turns += 1;
        let free = self.cache.free_pages();
        let held = self.scheduler.pages_in_use();
        assert_eq!(free + held, self.cache.pages(), "turn {}: pages are lost", self.turns);
        made
    }

    /// Turns until nothing is left.
    fn settle(&mut self) {
        let mut idle = 0;
        while !self.scheduler.is_idle() {
            idle = if self.turn().unwrap() { 0 } else { idle + 1 };
            assert!(idle < 3, "nothing goes on: {:?}", self.scheduler.stats());
        }
    }

    /// All pages come back.
    fn close(mut self) {
        self.settle();
        let stats = self.scheduler.stats().clone();
        assert_eq!(stats.free_pages + stats.cached_pages, stats.pages, "{stats:?}");
        let cache = self.cache.clone();
        drop(self);
        assert_eq!(cache.free_pages(), cache.pages());
    }
}

/// A prompt and an answer of so many tokens; the prompt begins as no other prompt of another `kind` does.
fn asked(kind: u32, prompt: usize, max_tokens: usize) -> Asked {
    let prompt = (0..prompt as u32).map(|at| 1 + (kind + at * at / 3) % 23).collect();
    Asked { prompt, seed: u64::from(kind), max_tokens, is_full: true }
}

/// What can be read at once.
fn read_all(answer: &mut Answer<GeneratedToken>) -> Vec<GeneratedToken> {
    let mut read = Vec::new();
    while let Poll::Ready(Some(token)) = answer.next_within(Duration::ZERO) {
        read.push(token.unwrap());
    }
    read
}

/// Prompts that begin alike, in some of four ways.
fn any_request(random: &mut Random, longest: usize) -> Asked {
    let (family, length) = (random.below(4) as u32, 1 + random.below(longest));
    let shared = random.below(length + 1);
    let branch = random.below(3) as u32;
    let token = |at: usize| match at < shared {
        true => 1 + (family + at as u32 / 7) % 23,
        false => 1 + (family + branch + at as u32 / 5) % 23,
    };
    Asked {
        prompt: (0..length).map(token).collect(),
        seed: random.below(3) as u64,
        max_tokens: [1, 2, 5, 9, 30, 100][random.below(6)],
        is_full: false,
    }
}

/// What became of an answer that is still read.
struct Reader {
    asked: Asked,
    answer: Answer<GeneratedToken>,
    read: Vec<GeneratedToken>,
    /// Turns until it reads again.
    sleeps: usize,
    /// It may also end for one of these reasons.
    cancelled: bool,
}

#[derive(Debug, Default)]
struct Outcomes {
    whole: usize,
    cut: usize,
    numeric: usize,
    device: usize,
    panicked: usize,
    dropped: usize,
}

/// As `requests` come and go at random; one turn in `patience` a reader does something else than to read.
fn live(
    seed: u64,
    requests: usize,
    pages: usize,
    options: EngineOptions,
    faults: bool,
    patience: usize,
) -> Outcomes {
    let mut random = Random(seed);
    let longest = 300;
    let mut world = World::new(pages, options);
    let mut known: HashMap<Asked, Vec<GeneratedToken>> = HashMap::new();
    let pool: Vec<Asked> = (0..200).map(|_| any_request(&mut random, longest)).collect();
    let mut readers: Vec<Reader> = Vec::new();
    let mut outcomes = Outcomes::default();
    let mut asked = 0;
    let mut idle = 0;
    while asked < requests || !readers.is_empty() {
        for _ in 0..random.below(6) {
            if asked < requests && readers.len() < 40 {
                let request = pool[random.below(pool.len())].clone();
                let priority = [Priority::Low, Priority::Normal, Priority::High][random.below(3)];
                let salt = [None, None, Some("a"), Some("b")][random.below(4)];
                let answer = world.ask(&request, priority, salt);
                let sleeps = if random.below(8) == 0 { random.below(60) } else { 0 };
                readers.push(Reader {
                    asked: request,
                    answer,
                    read: Vec::new(),
                    sleeps,
                    cancelled: false,
                });
                asked += 1;
            }
        }
        if faults && random.below(400) == 0 {
            let mut faults = world.model.faults.lock().unwrap_or_else(|e| e.into_inner());
            match random.below(3) {
                0 => faults.fail_in = Some((random.below(9), 1)),
                1 => faults.nan_in = Some(random.below(20)),
                _ => faults.panic_in = Some(1 + random.below(9)),
            }
        }
        let asleep = readers.iter().any(|reader| reader.sleeps > 0);
        idle = if world.turn().unwrap() || asleep { 0 } else { idle + 1 };
        let stats = world.scheduler.stats();
        assert!(idle < 5 || readers.is_empty(), "nothing goes on: {stats:?}");
        readers.retain_mut(|reader| {
            if reader.sleeps > 0 {
                reader.sleeps -= 1;
                return true;
            }
            match random.below(patience) {
                0 => {
                    outcomes.dropped += 1;
                    return false;
                }
                1 => {
                    reader.answer.cancel_handle().cancel();
                    reader.cancelled = true;
                }
                2 => reader.sleeps = random.below(60),
                _ => {}
            }
            loop {
                match reader.answer.next_within(Duration::ZERO) {
                    Poll::Pending => return true,
                    Poll::Ready(Some(Ok(token))) => reader.read.push(token),
                    Poll::Ready(Some(Err(error))) => {
                        match error.kind() {
                            ErrorKind::Numeric => outcomes.numeric += 1,
                            ErrorKind::Device => outcomes.device += 1,
                            ErrorKind::Panic => outcomes.panicked += 1,
                            _ => panic!("{error}"),
                        }
                        assert!(faults);
                        return false;
                    }
                    Poll::Ready(None) => break,
                }
            }
            let alone = known.entry(reader.asked.clone()).or_insert_with(|| reader.asked.alone());
            let whole: Generated = reader.answer.take_whole().unwrap();
            assert_eq!(whole.tokens, reader.read, "what was told is the whole");
            if whole.finish_reason == FinishReason::Cancelled {
                assert!(reader.cancelled);
                assert!(alone.starts_with(&reader.read), "as far as it came: {:?}", reader.asked);
                outcomes.cut += 1;
            } else {
                assert_eq!(&reader.read, alone, "{:?}", reader.asked);
                outcomes.whole += 1;
            }
            false
        });
    }
    let stats = world.scheduler.stats();
    assert!(stats.preempted > 0 && stats.prefix_hits > 0, "{stats:?}");
    world.close();
    outcomes
}

/// Pages that the longest request takes: fewer are refused by the engine before they come here.
fn least_pages() -> usize {
    cache(&WINDOWS, 1).windows().most(400, PAGE_TOKENS)
}

fn options() -> EngineOptions {
    EngineOptions::default()
        .max_sequences(8)
        .max_step_tokens(96)
        .unread(6)
        .reader_grace(Duration::ZERO)
}

/// For those who read when they like.
fn calm() -> EngineOptions {
    options().unread(10_000)
}

/// A hundred thousand requests, in pools from one that has room for the longest alone to one with room for all.
#[test]
fn every_request_gets_its_answer_and_every_page_comes_back() {
    let mut whole = 0;
    for (seed, requests, pages, share) in [
        (1, 30_000, least_pages(), 1.0),
        (2, 30_000, 2 * least_pages(), 1.0),
        (3, 20_000, 2 * least_pages() - 7, 0.3),
        (4, 20_000, 6 * least_pages(), 1.0),
    ] {
        let outcomes = live(seed, requests, pages, options().prefix_cache(share), false, 5000);
        assert!(outcomes.dropped > 20 && outcomes.cut > 20, "{outcomes:?}");
        whole += outcomes.whole;
    }
    assert!(whole > 90_000, "{whole}");
}

#[test]
fn faults_end_one_request_and_the_others_go_on() {
    let outcomes = live(5, 8_000, 3 * least_pages(), options(), true, 700);
    assert!(outcomes.numeric > 0, "{outcomes:?}");
    assert!(outcomes.whole > 4_000, "{outcomes:?}");
}
