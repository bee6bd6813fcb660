//! An engine that is asked for a long time, by many who come and go as they like.
//!
//! `SOAK_REQUESTS=100000 cargo test --release --test soak -- --nocapture` asks so many requests and prints what
//! became of them; without, it ends after about twenty seconds.

#[path = "common/engine.rs"]
mod engine;

use engine::settled;
use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, ChatResponse, Model};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::Tool;
use gpt_oss_puzzle::{Answer, Call, Engine, EngineOptions, ErrorKind, Priority};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");
/// Different requests.
const REQUESTS: u64 = 96;
const CLIENTS: u64 = 4;
/// What memory may grow by after the first tenth.
const GROWTH: u64 = 8 << 20;

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn weather() -> Tool {
    let city =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    Tool::new("get_weather", "The weather in a city.", city)
}

/// Questions that the model knows and some that it does not, short and long, with tools and formats.
fn request(number: u64) -> ChatRequest {
    let mut random = Random(number);
    let question = [
        format!("What is {} + {}?", random.below(90), random.below(90)),
        format!("What is {} - {}?", random.below(900), random.below(90)),
        "What is the weather in Oslo?".into(),
        "Which city is the capital of France?".into(),
        format!("{} Which word was it?", "red blue green ".repeat(1 + random.below(9) as usize)),
        "word ".repeat(30 + random.below(60) as usize),
    ];
    let sampling = SamplingParams::default().seed(number).temperature(0.7);
    let request = ChatRequest::user(&question[number as usize % 6])
        .date("2026-01-02")
        .sampling(sampling)
        .max_tokens(1 + random.below(9) as usize);
    let request = if number % 5 < 2 { request.tools([weather()]) } else { request };
    match number % 8 {
        #[cfg(feature = "structured")]
        5 => request.format(gpt_oss_puzzle::chat::Format::json_schema(
            json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}),
        )),
        #[cfg(feature = "structured")]
        6 => request
            .tools([Tool { name: "look".into(), ..weather() }])
            .tool_choice(gpt_oss_puzzle::harmony::ToolChoice::Required),
        7 => request.logprobs(3),
        _ => request,
    }
}

/// When it is over, and how far it is.
struct Progress {
    asked: AtomicU64,
    most: Option<u64>,
    begin: Instant,
}

const TIME: Duration = Duration::from_secs(20);

impl Progress {
    fn share(&self) -> f64 {
        match self.most {
            Some(most) => self.asked.load(Ordering::Relaxed) as f64 / most as f64,
            None => self.begin.elapsed().as_secs_f64() / TIME.as_secs_f64(),
        }
    }
}

/// What has become of requests.
#[derive(Default)]
struct Outcomes(Mutex<BTreeMap<&'static str, u64>>);

impl Outcomes {
    fn count(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }
}

/// One of those who ask: some requests at once, and then does something else with each of them.
fn client(
    engine: &Engine,
    random: &mut Random,
    known: &[ChatResponse],
    outcomes: &Outcomes,
) -> u64 {
    let mut answers = Vec::new();
    for _ in 0..1 + random.below(8) {
        let number = random.below(REQUESTS);
        let mut call = Call::new(request(number))
            .priority([Priority::Low, Priority::Normal, Priority::High][random.below(3) as usize]);
        if random.below(12) == 0 {
            call = call.deadline(Duration::from_millis(random.below(60)));
        }
        call.cache_salt = [None, None, Some("one".into()), Some("other".into())]
            [random.below(4) as usize]
            .clone();
        match engine.chat(call) {
            Ok(answer) => answers.push((number, answer)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
                outcomes.count("busy");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let asked = answers.len() as u64;
    while !answers.is_empty() {
        let (number, answer) = answers.swap_remove(random.below(answers.len() as u64) as usize);
        let alone = &known[number as usize];
        match random.below(20) {
            0 => {
                drop(answer);
                outcomes.count("gone");
            }
            1 | 2 => read_some(answer, random.below(30), Duration::ZERO, outcomes),
            3 => {
                answer.cancel_handle().cancel();
                end(answer, alone, true, outcomes);
            }
            4 => {
                let mut answer = answer;
                if answer.by_ref().take(random.below(20) as usize).any(|event| event.is_err()) {
                    outcomes.count("too late");
                    continue;
                }
                answer.cancel_handle().cancel();
                end(answer, alone, true, outcomes);
            }
            // So slow that it loses its place.
            5 => {
                std::thread::sleep(Duration::from_millis(random.below(20)));
                end(answer, alone, false, outcomes);
            }
            6 => read_some(answer, 12, Duration::from_micros(700), outcomes),
            _ => end(answer, alone, false, outcomes),
        }
    }
    asked
}

/// Reads some events and goes away.
fn read_some(mut answer: Answer, events: u64, pause: Duration, outcomes: &Outcomes) {
    for event in answer.by_ref().take(events as usize) {
        if let Err(error) = event {
            assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
        }
        std::thread::sleep(pause);
    }
    outcomes.count("gone");
}

/// Reads it to the end, which is that of the same request alone.
fn end(mut answer: Answer, alone: &ChatResponse, cancelled: bool, outcomes: &Outcomes) {
    let mut finish = None;
    for event in answer.by_ref() {
        match event {
            Ok(ChatEvent::Finish { reason, .. }) => finish = Some(reason),
            Ok(_) => assert!(finish.is_none(), "after the end"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
                return outcomes.count("too late");
            }
        }
    }
    // Some have read a part of it before.
    let whole = answer.take_whole().expect("it ended");
    assert_eq!(finish.unwrap_or(whole.finish_reason.clone()), whole.finish_reason);
    match whole.finish_reason {
        FinishReason::Cancelled => {
            assert!(cancelled && alone.tokens.starts_with(&whole.tokens));
            outcomes.count("cancelled");
        }
        FinishReason::Deadline => {
            assert!(alone.tokens.starts_with(&whole.tokens));
            outcomes.count("at its deadline");
        }
        reason => {
            assert_eq!(whole.tokens, alone.tokens, "in company and alone");
            assert_eq!(
                (whole.message, reason),
                (alone.message.clone(), alone.finish_reason.clone())
            );
            assert_eq!(whole.logprobs, alone.logprobs);
            outcomes.count("whole");
        }
    }
}

/// Of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// How often the engine's thread has gone to sleep.
fn sleeps() -> Option<String> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let is_engine = |dir: &std::path::PathBuf| {
        std::fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == "engine")
    };
    let dir = tasks.flatten().map(|task| task.path()).find(is_engine)?;
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned)
}

#[test]
fn whoever_comes_and_goes_leaves_nothing_behind() {
    let model = Model::builder(DIR).load().expect("the shipped model loads");
    let known: Vec<ChatResponse> =
        (0..REQUESTS).map(|number| model.chat(&request(number)).expect("answers")).collect();
    let (threads_before, pages_before) = (threads(), model.cache().free_pages());

    // Room for three of the longest; the prefix cache takes what they leave.
    let longest = known.iter().map(|answer| answer.usage.prompt_tokens + 9).max().unwrap();
    let pages = 3 * gpt_oss_puzzle::cache::KvCache::pages_for(model.config(), longest, 64);
    let options = EngineOptions::default()
        .pages(pages)
        .max_sequences(12)
        .max_step_tokens(256)
        .queue(16)
        .unread(8)
        .reader_grace(Duration::from_millis(5))
        .aging(Duration::from_millis(200));
    let engine = model.engine(options).expect("starts");
    let most = std::env::var("SOAK_REQUESTS").ok().map(|most| most.parse().expect("a number"));
    let progress = Progress { asked: AtomicU64::new(0), most, begin: Instant::now() };
    let outcomes = Outcomes::default();
    let mut early = 0;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| {
                let (engine, known, progress, outcomes) = (&engine, &known, &progress, &outcomes);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    while progress.share() < 1.0 {
                        let asked = client(engine, &mut random, known, outcomes);
                        progress.asked.fetch_add(asked, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        while !clients.iter().all(|client| client.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
            if early == 0 && progress.share() >= 0.1 {
                early = resident();
            }
        }
    });
    let stats = settled(&engine);
    let late = resident();
    let asked = progress.asked.load(Ordering::Relaxed);
    println!(
        "{asked} requests in {:.1?}: {:?}; {} preempted, {} of {} prompt tokens cached, {} steps of {:.1} tokens, \
         {:.1?} of a step outside the model; {} KiB in memory after a tenth, {} at the end",
        progress.begin.elapsed(),
        outcomes.0.lock().unwrap(),
        stats.preempted,
        stats.cached_tokens,
        stats.prompt_tokens,
        stats.steps,
        stats.step_tokens as f64 / stats.steps as f64,
        stats.outside_model / stats.steps as u32,
        early >> 10,
        late >> 10,
    );
    assert!(asked > 100 && stats.preempted > 10, "{asked} requests, {stats:?}");
    assert_eq!(stats.finished + stats.failed + stats.cancelled, asked);
    assert_eq!(stats.free_pages + stats.cached_pages, stats.pages);
    assert!(late <= early + GROWTH, "{early} bytes after a tenth, {late} at the end");
    // With nothing to do it sleeps.
    let before = sleeps();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(before, sleeps(), "an idle engine wakes up");
    engine.shutdown(Duration::from_secs(1)).expect("stops");
    drop(engine);
    assert_eq!(threads(), threads_before);
    assert_eq!(model.cache().free_pages(), pages_before);
}
