//! The engine: many answers at once, each as it would be alone.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(unreachable_pub)]
#[path = "common/speaking.rs"]
mod models;

use gpt_oss_puzzle::cache::PAGE_TOKENS;
use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, ChatResponse, Model, Reasoning};
use gpt_oss_puzzle::generation::{FinishReason, GenerateOptions, GeneratedToken, SamplingParams};
use gpt_oss_puzzle::harmony::ToolChoice;
use gpt_oss_puzzle::{Answer, Call, Engine, EngineOptions, ErrorKind, Priority, Stats};
use models::{ENDLESS, biased, speaking, tiny};
use std::task::Poll;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn request(text: &str, seed: u64) -> ChatRequest {
    let sampling = SamplingParams::default().seed(seed);
    ChatRequest::user(text).date("2026-01-02").sampling(sampling).max_tokens(40)
}

/// Questions of many lengths.
fn requests(count: u64) -> Vec<ChatRequest> {
    (0..count)
        .map(|seed| {
            let length = [1, 3, 40, 7, 90][seed as usize % 5];
            request(&"Why? ".repeat(length), seed).max_tokens(10 + seed as usize % 40)
        })
        .collect()
}

fn engine(model: &Model) -> Engine {
    model.engine(EngineOptions::default()).unwrap()
}

/// Once nothing runs any more.
fn at_rest(engine: &Engine) -> Stats {
    let until = Instant::now() + 20 * SECOND;
    loop {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 {
            return stats;
        }
        assert!(Instant::now() < until, "still busy: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two answers that differ in nothing but the time they took.
#[track_caller]
fn assert_same(one: &ChatResponse, other: &ChatResponse) {
    assert_eq!(one.tokens, other.tokens);
    assert_eq!(one.message, other.message);
    assert_eq!(one.finish_reason, other.finish_reason);
    assert_eq!(one.logprobs, other.logprobs);
    assert_eq!(one.usage.completion_tokens, other.usage.completion_tokens);
}

#[test]
fn answers_are_the_same_in_any_company() {
    for model in [tiny(), speaking()] {
        let requests = requests(24);
        let alone: Vec<ChatResponse> = requests.iter().map(|r| model.chat(r).unwrap()).collect();
        for (max_sequences, max_step_tokens) in [(1, 512), (5, 64), (16, 512), (24, 24)] {
            let options = EngineOptions::default()
                .max_sequences(max_sequences)
                .max_step_tokens(max_step_tokens);
            let engine = model.engine(options).unwrap();
            let answers: Vec<Answer> = requests.iter().map(|r| engine.chat(r).unwrap()).collect();
            for (answer, alone) in answers.into_iter().zip(&alone) {
                assert_same(&answer.finish().unwrap(), alone);
            }
            // Again: now their beginnings are cached.
            for (request, alone) in requests.iter().zip(&alone) {
                let again = engine.chat(request).unwrap().finish().unwrap();
                let whole = (alone.usage.prompt_tokens - 1) / PAGE_TOKENS * PAGE_TOKENS;
                assert_eq!(again.usage.cached_tokens, whole);
                assert_same(&again, alone);
            }
            let stats = at_rest(&engine);
            assert_eq!((stats.finished, stats.failed, stats.cancelled), (48, 0, 0));
            assert_eq!(stats.free_pages + stats.cached_pages, stats.pages);
            engine.shutdown(SECOND).unwrap();
        }
        assert_eq!(model.cache().free_pages(), model.cache().pages());
    }
}

#[test]
fn a_batch_takes_fewer_steps_than_its_answers() {
    let model = tiny();
    let engine = engine(&model);
    let one = engine.chat(request("Hello", 1)).unwrap().finish().unwrap();
    let alone = at_rest(&engine).steps;
    assert!(alone as usize >= one.usage.completion_tokens - one.forced.len());
    let answers: Vec<Answer> = (0..8).map(|_| engine.chat(request("Hello", 1)).unwrap()).collect();
    for answer in answers {
        assert_same(&answer.finish().unwrap(), &one);
    }
    let together = at_rest(&engine).steps - alone;
    assert!(together < 3 * alone, "{together} steps for eight, {alone} for one");
}

/// A limit on thinking forces tokens, at the beginning too when thinking is skipped.
#[test]
fn forced_tokens_are_the_same_as_alone() {
    let model = speaking();
    let limits = [
        Reasoning::default().max_tokens(3),
        Reasoning::default().max_tokens(0).allow_skipping(),
        Reasoning::default().max_tokens(1).hidden(),
    ];
    let requests: Vec<ChatRequest> = (0..15)
        .map(|seed| biased(&model, seed, ENDLESS).reasoning(limits[seed as usize % 3].clone()))
        .collect();
    let alone: Vec<ChatResponse> = requests.iter().map(|r| model.chat(r).unwrap()).collect();
    assert!(alone.iter().filter(|answer| !answer.forced.is_empty()).count() > 3);
    let engine = engine(&model);
    let answers: Vec<Answer> = requests.iter().map(|r| engine.chat(r).unwrap()).collect();
    for (answer, alone) in answers.into_iter().zip(&alone) {
        let answer = answer.finish().unwrap();
        assert_same(&answer, alone);
        assert_eq!(answer.forced, alone.forced);
    }
}

/// Pages run out: the last give theirs back and go on later, with the same answer.
#[test]
fn answers_are_the_same_when_pages_are_few() {
    let model = tiny();
    let requests = requests(24);
    let alone: Vec<ChatResponse> = requests.iter().map(|r| model.chat(r).unwrap()).collect();
    // Room for little more than the longest.
    let layers = model.config().num_hidden_layers();
    let longest = alone.iter().map(|r| r.usage.prompt_tokens + 50).max().unwrap();
    let pages = layers * (longest.div_ceil(PAGE_TOKENS) + 1);
    for share in [0.0, 0.3, 1.0] {
        let options = EngineOptions::default().pages(pages).prefix_cache(share);
        let engine = model.engine(options).unwrap();
        let answers: Vec<Answer> = requests.iter().map(|r| engine.chat(r).unwrap()).collect();
        for (answer, alone) in answers.into_iter().zip(&alone) {
            assert_same(&answer.finish().unwrap(), alone);
        }
        let stats = at_rest(&engine);
        assert_eq!((stats.pages, stats.finished), (pages, 24));
        assert_eq!(stats.free_pages + stats.cached_pages, pages);
        assert!(stats.cached_pages as f32 <= share * pages as f32);
    }
}

#[test]
fn what_can_never_fit_is_an_error_that_says_what_would() {
    let model = tiny();
    let layers = model.config().num_hidden_layers();
    let engine = model.engine(EngineOptions::default().pages(3 * layers)).unwrap();
    let prompt = vec![5; 150];
    let options = GenerateOptions::default();
    let error = engine.generate(&prompt, options.clone().max_tokens(100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    let said = "a prompt of 150 tokens and 100 of an answer take 22 pages, the engine has 18: ";
    assert!(error.to_string().starts_with(said), "{error}");
    // What it says fits does.
    let fits: usize = error.to_string().split(' ').rev().nth(2).unwrap().parse().unwrap();
    let exact = options.clone().max_tokens(fits - 150);
    let answer = engine.generate(&prompt, exact.clone().ignore_eos()).unwrap().finish().unwrap();
    assert_eq!(answer.tokens.len(), fits - 150);
    // And an answer without a limit ends there.
    let open = engine.generate(&prompt, options.ignore_eos()).unwrap().finish().unwrap();
    assert_eq!(open.tokens.len(), fits - 150);
    assert_eq!(open.finish_reason, FinishReason::Length);
}

#[test]
fn dropped_answers_give_their_pages_back() {
    let model = tiny();
    let engine = model.engine(EngineOptions::default().max_sequences(2).prefix_cache(0.0)).unwrap();
    let long = GenerateOptions::default().max_tokens(2000).ignore_eos();
    let mut running = engine.generate(&vec![7; 100], long.clone()).unwrap();
    running.next().unwrap().unwrap();
    let other = engine.generate(&vec![8; 100], long.clone()).unwrap();
    let waiting = engine.generate(&vec![9; 100], long.clone()).unwrap();
    drop(waiting);
    drop(running);
    other.cancel_handle().cancel();
    let other = other.finish().unwrap();
    assert_eq!(other.finish_reason, FinishReason::Cancelled);
    let stats = at_rest(&engine);
    assert_eq!((stats.cancelled, stats.finished, stats.failed), (3, 0, 0));
    assert_eq!(stats.free_pages, stats.pages);
}

#[test]
fn a_request_that_is_too_much_is_busy_and_says_when_to_come_back() {
    let model = tiny();
    let options = EngineOptions::default().max_sequences(1).queue(2);
    let engine = model.engine(options).unwrap();
    let long = GenerateOptions::default().max_tokens(2000).ignore_eos();
    let running: Vec<_> =
        (0..3).map(|_| engine.generate(&vec![7; 10], long.clone()).unwrap()).collect();
    let busy = engine.generate(&vec![7; 10], long.clone()).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert!(busy.retry_after().unwrap() >= SECOND);
    drop(running);
    at_rest(&engine);
    engine.generate(&vec![7; 10], long.max_tokens(3)).unwrap().finish().unwrap();
}

#[test]
fn deadlines_end_answers_as_they_are() {
    let model = tiny();
    let engine = model.engine(EngineOptions::default().max_sequences(1)).unwrap();
    let long = GenerateOptions::default().max_tokens(3000).ignore_eos();
    let soon = Call::new(long.clone()).deadline(Duration::from_millis(150));
    let running = engine.generate(&vec![7; 10], soon.clone()).unwrap();
    let behind =
        engine.generate(&vec![7; 10], soon.clone().deadline(Duration::from_millis(5))).unwrap();
    let error = behind.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    let answer = running.finish().unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Deadline);
    assert!((1..3000).contains(&answer.tokens.len()));
}

#[test]
fn a_reader_who_stops_reading_holds_up_nobody_and_loses_nothing() {
    let model = tiny();
    let options =
        EngineOptions::default().max_sequences(1).unread(8).reader_grace(Duration::from_millis(20));
    let engine = model.engine(options).unwrap();
    let options = GenerateOptions::default().sampling(SamplingParams::default().seed(5));
    let options = options.max_tokens(100).ignore_eos();
    let alone = generated(&options);
    let mut slow = engine.generate(&vec![7; 70], options.clone()).unwrap();
    let first = slow.next().unwrap().unwrap();
    // It has the only place, until it is seen that nobody reads.
    let other = engine.generate(&vec![7; 70], options).unwrap().finish().unwrap();
    assert_eq!(other.tokens, alone);
    let read: Vec<_> = std::iter::once(first).chain(slow.by_ref().map(|t| t.unwrap())).collect();
    assert_eq!(read, alone);
    assert!(engine.stats().preempted >= 1);
}

#[test]
fn higher_priorities_go_first_and_lower_ones_go_on_with_the_same_answer() {
    let model = tiny();
    let engine = model.engine(EngineOptions::default().max_sequences(1)).unwrap();
    let options = GenerateOptions::default().sampling(SamplingParams::default().seed(5));
    let options = options.max_tokens(1000).ignore_eos();
    let alone = generated(&options);
    let mut low =
        engine.generate(&vec![7; 70], Call::new(options.clone()).priority(Priority::Low)).unwrap();
    let first = low.next().unwrap().unwrap();
    let mut high = engine
        .generate(&vec![9; 70], Call::new(options.max_tokens(20)).priority(Priority::High))
        .unwrap();
    high.by_ref().for_each(|token| assert!(token.is_ok()));
    let stats = engine.stats();
    assert!(stats.preempted >= 1, "{stats:?}");
    let low = low.finish().unwrap();
    assert_eq!(low.tokens, alone);
    assert_eq!(low.tokens[0], first);
}

#[test]
fn a_stream_interval_joins_tokens_and_changes_no_text() {
    let model = speaking();
    let text = |options: EngineOptions| -> (String, usize) {
        let engine = model.engine(options.pages(model.cache().free_pages())).unwrap();
        let (mut text, mut events) = (String::new(), 0);
        for seed in 0..10 {
            for event in engine.chat(request("Hello", seed)).unwrap() {
                events += 1;
                match event.unwrap() {
                    ChatEvent::Text(more) | ChatEvent::Reasoning(more) => text += &more,
                    ChatEvent::ToolCallDelta { arguments, .. } => text += &arguments,
                    _ => {}
                }
            }
        }
        engine.shutdown(SECOND).unwrap();
        (text, events)
    };
    let (one, many) =
        (text(EngineOptions::default()), text(EngineOptions::default().stream_interval(8)));
    assert_eq!(one.0, many.0);
    assert!(many.1 < one.1, "{} and {} events", one.1, many.1);
}

#[test]
fn choices_have_seeds_of_their_own() {
    let model = tiny();
    let engine = engine(&model);
    let choices = engine.chat_choices(request("Hello", 7), 3).unwrap();
    for (choice, seed) in choices.into_iter().zip(7..) {
        let answer = choice.finish().unwrap();
        assert_eq!(answer.seed, seed);
        assert_same(&answer, &model_chat(&model, seed));
    }
}

/// What follows seventy tokens, without an engine.
fn generated(options: &GenerateOptions) -> Vec<GeneratedToken> {
    let model = tiny();
    let tokens = model.generate(&vec![7; 70], options).unwrap();
    tokens.map(|token| token.unwrap()).collect()
}

/// By another model with the same weights: the engine has all pages of its own.
fn model_chat(model: &Model, seed: u64) -> ChatResponse {
    let other = tiny();
    assert_eq!(other.config(), model.config());
    other.chat(&request("Hello", seed)).unwrap()
}

#[test]
fn salts_keep_caches_apart() {
    let model = tiny();
    let engine = engine(&model);
    let ask = |salt: Option<&str>| {
        let mut call = Call::new(request(&"Why? ".repeat(90), 1));
        call.cache_salt = salt.map(str::to_owned);
        engine.chat(call).unwrap().finish().unwrap().usage.cached_tokens
    };
    assert_eq!((ask(None), ask(Some("a")), ask(Some("b"))), (0, 0, 0));
    assert!(ask(None) > 64 && ask(Some("a")) > 64 && ask(Some("b")) > 64);
}

#[test]
fn shutting_down_lets_answers_end() {
    let model = tiny();
    let engine = model.engine(EngineOptions::default().max_sequences(1)).unwrap();
    let options = GenerateOptions::default().max_tokens(200).ignore_eos();
    let mut running = engine.generate(&vec![7; 10], options.clone()).unwrap();
    running.next().unwrap().unwrap();
    let waiting = engine.generate(&vec![7; 10], options.clone()).unwrap();
    engine.shutdown(60 * SECOND).unwrap();
    assert_eq!(running.finish().unwrap().finish_reason, FinishReason::Length);
    assert_eq!(waiting.finish().unwrap_err().kind(), ErrorKind::Stopped);
    let late = engine.generate(&vec![7; 10], options.clone()).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stopped);
    assert_eq!(engine.check().unwrap_err().kind(), ErrorKind::Stopped);
    // What takes too long ends as it is.
    let engine = model.engine(EngineOptions::default()).unwrap();
    let mut running = engine.generate(&vec![7; 10], options.max_tokens(3000)).unwrap();
    running.next().unwrap().unwrap();
    engine.shutdown(Duration::ZERO).unwrap();
    assert_eq!(running.finish().unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(model.cache().free_pages(), model.cache().pages());
}

#[test]
fn answers_outlive_their_engine() {
    let model = tiny();
    let answer = engine(&model).chat(request("Hello", 1)).unwrap();
    assert_same(&answer.finish().unwrap(), &model_chat(&model, 1));
}

#[test]
fn waiting_ends_when_it_is_to() {
    let model = tiny();
    let engine = model.engine(EngineOptions::default().max_sequences(1)).unwrap();
    let long = GenerateOptions::default().max_tokens(3000).ignore_eos();
    let _running = engine.generate(&vec![7; 10], long.clone()).unwrap();
    let mut behind = engine.generate(&vec![7; 10], long).unwrap();
    assert!(matches!(behind.next_within(Duration::from_millis(30)), Poll::Pending));
}

#[test]
fn requests_are_checked_where_they_are_made() {
    let model = tiny();
    let engine = engine(&model);
    let kind = |request: ChatRequest| engine.chat(request).unwrap_err().kind();
    assert_eq!(kind(request("Hello", 1).max_tokens(100_000)), ErrorKind::ContextOverflow);
    let sampling = SamplingParams::default().temperature(-1.0);
    assert_eq!(kind(request("Hello", 1).sampling(sampling)), ErrorKind::InvalidRequest);
    let called = request("Hello", 1).tool_choice(ToolChoice::Required);
    assert_eq!(kind(called), ErrorKind::InvalidRequest);
    for options in [
        EngineOptions::default().max_sequences(0),
        EngineOptions::default().max_sequences(600),
        EngineOptions::default().prefix_cache(1.5),
        EngineOptions::default().prefix_cache(f32::NAN),
        EngineOptions::default().pages(0),
    ] {
        assert_eq!(model.engine(options).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
    let error = model.engine(EngineOptions::default().pages(usize::MAX)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull);
}

#[test]
fn handles_and_answers_go_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Engine>();
    sent::<Answer>();
    let model = tiny();
    let engine = engine(&model);
    let threads: Vec<_> = (0..8)
        .map(|seed| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                engine.chat(request("Hello", seed)).unwrap().finish().unwrap()
            })
        })
        .collect();
    for (thread, seed) in threads.into_iter().zip(0..) {
        assert_same(&thread.join().unwrap(), &model_chat(&model, seed));
    }
}
