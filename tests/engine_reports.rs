//! What users of other engines reported of answers that are made together, as tests of this one: each is named by what
//! should have been seen, above a link to what was.
//!
//! The rows of an HTTP server are in examples/serve/tests.

#[path = "common/engine.rs"]
mod engine;

use engine::{alone, endless, greedy, ids, model, reference, settled, whole, words};
use gpt_oss_puzzle::cache::KvCache;
use gpt_oss_puzzle::generation::{FinishReason, GenerateOptions, SamplingParams};
use gpt_oss_puzzle::harmony::Message;
use gpt_oss_puzzle::weights::write_tiny_checkpoint;
use gpt_oss_puzzle::{Call, ChatRequest, Engine, EngineOptions, ErrorKind, Model, Priority};
use std::sync::Mutex;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Pages of the shipped model that a sequence of `tokens` takes, read in chunks of a page.
fn pages_of(tokens: usize) -> usize {
    KvCache::pages_for(reference().config(), tokens, 64)
}

/// An engine whose pool is as large as sequences of these lengths need together.
fn engine_for(lengths: &[usize], options: EngineOptions) -> Engine {
    let pages = lengths.iter().map(|tokens| pages_of(*tokens)).sum();
    model().engine(options.pages(pages)).expect("an engine")
}

fn question(text: &str) -> ChatRequest {
    ChatRequest::user(text).date("2026-01-02").sampling(SamplingParams::greedy()).max_tokens(300)
}

/// Greedy, for models whose vocabulary is another.
fn likeliest() -> GenerateOptions {
    GenerateOptions::default().sampling(SamplingParams::greedy())
}

/// Asks for `tokens` after each prompt at once, and checks that each answer is the one that it gets alone.
fn all_as_alone(engine: &Engine, prompts: &[Vec<u32>], tokens: usize) {
    let options = |seed: usize| endless(seed as u64).max_tokens(tokens);
    let expected: Vec<_> =
        prompts.iter().enumerate().map(|(i, prompt)| alone(prompt, &options(i))).collect();
    let answers: Vec<_> = (prompts.iter().enumerate())
        .map(|(i, prompt)| engine.generate(prompt.as_slice(), options(i)).expect("taken"))
        .collect();
    for (i, (answer, expected)) in answers.into_iter().zip(expected).enumerate() {
        assert_eq!(ids(&whole(answer).expect("answered")), expected, "request {i}");
    }
}

// Running 0, waiting 2, for ever: each had part of what it needs.
// https://github.com/vllm-project/vllm/issues/45388
#[test]
fn two_that_have_begun_do_not_wait_for_each_other() {
    let engine = engine_for(&[700, 300], EngineOptions::default());
    let begun = words(600, 1);
    engine.generate(begun.as_slice(), greedy().max_tokens(1)).and_then(whole).expect("answered");
    // Both begin with what is cached, and together they need more than there is.
    let prompts = [[begun.clone(), words(20, 2)].concat(), [begun, words(20, 3)].concat()];
    all_as_alone(&engine, &prompts, 60);
    settled(&engine);
}

// It fits the context but never the cache: the request, and all behind it, hang.
// https://github.com/vllm-project/vllm/issues/39734
#[test]
fn what_can_never_fit_is_told_at_once() {
    let engine = engine_for(&[300], EngineOptions::default());
    let error = engine.generate(words(400, 1).as_slice(), greedy().max_tokens(600)).err();
    let error = error.expect("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    assert!(error.to_string().contains("pages"), "{error}");
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.running), (0, 0));
    all_as_alone(&engine, &[words(100, 2)], 100);
}

// Pages of those that gave way are not free yet, so that all give way and nobody advances.
// https://github.com/vllm-project/vllm-ascend/issues/16315
#[test]
fn one_gives_way_not_all() {
    let engine = engine_for(&[400, 200], EngineOptions::default().prefix_cache(0.0));
    let prompts: Vec<_> = (0..4).map(|i| words(70, i)).collect();
    all_as_alone(&engine, &prompts, 300);
    let stats = settled(&engine);
    assert!((1..=12).contains(&stats.preempted), "{stats:?}");
}

// Whoever gave way is looked at again in the same pass, and gives way again: an endless line of warnings.
// https://github.com/EricLBuehler/mistral.rs/pull/2043
#[test]
fn thirty_in_a_pool_for_three_are_all_answered() {
    let options = EngineOptions::default().max_sequences(30);
    let engine = engine_for(&[200, 200, 200], options);
    let prompts: Vec<_> = (0..30).map(|i| words(40 + i as usize, i)).collect();
    all_as_alone(&engine, &prompts, 100);
    let stats = settled(&engine);
    // Each step has made a token at least, of an answer or of a prompt that is read again.
    assert!(stats.steps < 30 * 100 + 100, "{stats:?}");
}

// The queue that is being emptied is filled from behind: one core at 100 %, no tokens, with two requests of two kinds.
// https://github.com/EricLBuehler/mistral.rs/issues/2321
#[test]
fn requests_of_all_kinds_run_together_and_then_none() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let chat = engine.chat(question("What is the capital of France?")).expect("taken");
    let logprobs = endless(1).max_tokens(30).logprobs(3);
    let logprobs = engine.generate(words(10, 1).as_slice(), logprobs).expect("taken");
    let plain = engine.generate(words(200, 2).as_slice(), greedy().max_tokens(30)).expect("taken");
    assert_eq!(whole(chat).expect("answered").text(), "The capital of France is Paris.");
    let logprobs = whole(logprobs).expect("answered");
    assert!(logprobs.tokens.iter().all(|token| token.logprobs.is_some()));
    assert_eq!(whole(plain).expect("answered").tokens.len(), 30);
    let steps = settled(&engine).steps;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.stats().steps, steps);
}

// The client hangs up, the engine cannot send, panics, and every other answer goes with it.
// https://github.com/EricLBuehler/mistral.rs/issues/2147
#[test]
fn answers_that_nobody_takes_do_not_end_the_engine() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let stays = endless(7).max_tokens(300);
    let expected = alone(&words(30, 7), &stays);
    let stays = engine.generate(words(30, 7).as_slice(), stays).expect("taken");
    for seed in 0..20 {
        let mut left = engine.chat(question("What is 17 + 25?")).expect("taken");
        // Before it has begun, in the middle, and after its end.
        for _ in 0..seed * 5 {
            left.next();
        }
    }
    assert_eq!(ids(&whole(stays).expect("answered")), expected);
    assert!(engine.check().is_ok());
    settled(&engine);
}

// What has failed is scheduled again, and its pages answer others.
// https://github.com/EricLBuehler/mistral.rs/pull/2243
#[test]
fn what_has_failed_is_neither_run_again_nor_cached() {
    const POISON: u32 = 77;
    let dir = tempfile::tempdir().expect("a directory");
    write_tiny_checkpoint(dir.path(), 3).expect("written");
    engine::poison_embedding(dir.path(), POISON);
    let model = || Model::builder(dir.path()).threads(1).context(1024).sequences(4).load();
    let (engine, other) = (model().expect("loads"), model().expect("loads"));
    let engine = engine.engine(EngineOptions::default()).expect("an engine");
    let prompt: Vec<u32> = (0..200).map(|i| i * 7 % 70).collect();
    // Before the first place that a later request could begin from.
    let poisoned = [&prompt[..30], &[POISON], &prompt[30..]].concat();
    let options = likeliest().max_tokens(50);
    let expected: Vec<u32> = other
        .generate(prompt.as_slice(), &options)
        .expect("starts")
        .map(|token| token.expect("a token").id)
        .collect();
    for _ in 0..2 {
        let fails = engine.generate(poisoned.as_slice(), &options).expect("taken");
        let beside = engine.generate(prompt.as_slice(), &options).expect("taken");
        let error = whole(fails).expect_err("fails");
        assert_eq!(error.kind(), ErrorKind::Numeric, "{error}");
        assert_eq!(ids(&whole(beside).expect("answered")), expected);
    }
    let stats = settled(&engine);
    assert_eq!((stats.failed, stats.finished), (2, 2), "{stats:?}");
    assert_eq!(stats.cached_tokens, 192, "the second time, of the prompt that was answered");
}

// The draws begin anew after a request gave way: its seed no longer gives its answer.
// https://github.com/vllm-project/vllm/pull/19940
#[test]
fn a_seed_gives_its_answer_also_to_who_gave_way() {
    let engine = engine_for(&[330, 120], EngineOptions::default());
    let prompts: Vec<_> = (0..3).map(|i| words(20, i)).collect();
    all_as_alone(&engine, &prompts, 300);
    let stats = settled(&engine);
    assert!(stats.preempted > 0, "{stats:?}");
}

// Tokens inside the sliding window are evicted between two chunks of a prompt: answers get worse.
// https://github.com/sgl-project/sglang/issues/8649
#[test]
fn windows_are_whole_wherever_a_prompt_is_cut() {
    for step_tokens in [16, 63, 64, 65, 512] {
        let options = EngineOptions::default().max_sequences(4).max_step_tokens(step_tokens);
        let engine = model().engine(options).expect("an engine");
        let prompts: Vec<_> = [61, 130, 575, 640].map(|n| words(n, n as u64)).into();
        all_as_alone(&engine, &prompts, 10);
    }
}

// A page is longer than the window: the last block of a prefix is left without the window's page.
// https://github.com/sgl-project/sglang/pull/29860
#[test]
fn a_window_shorter_than_a_page_is_resumed_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    write_tiny_checkpoint(dir.path(), 3).expect("written");
    let load = || Model::builder(dir.path()).threads(1).context(1024).sequences(4).load();
    let (model, other) = (load().expect("loads"), load().expect("loads"));
    let engine = model.engine(EngineOptions::default()).expect("an engine");
    let words: Vec<u32> = (0..400).map(|i| i * 31 % 250).collect();
    for length in [63, 64, 65, 127, 128, 129, 192, 255, 256, 257] {
        let options = likeliest().max_tokens(8);
        let prompt = &words[..length];
        let expected: Vec<u32> = other
            .generate(prompt, &options)
            .expect("starts")
            .map(|token| token.expect("a token").id)
            .collect();
        for time in 0..2 {
            let answer =
                whole(engine.generate(prompt, &options).expect("taken")).expect("answered");
            assert_eq!(ids(&answer), expected, "{length} tokens, time {time}");
            // Of its own prompt a request finds all full pages but what must be fed.
            let found = if time == 0 { 0 } else { (length - 1) / 64 * 64 };
            assert!(answer.usage.cached_tokens >= found, "{length} tokens: {:?}", answer.usage);
        }
    }
}

// Several conversations in turn: nobody finds anything in the cache, at a quarter of its size.
// https://github.com/vllm-project/vllm/issues/48435
#[test]
fn conversations_in_turn_all_find_their_prefixes() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let mut seats: Vec<Vec<u32>> = (0..6).map(|seat| words(300, seat)).collect();
    for turn in 0..4 {
        for seat in &mut seats {
            let answer = engine.generate(seat.as_slice(), greedy().max_tokens(1));
            let answer = whole(answer.expect("taken")).expect("answered");
            let known = if turn == 0 { 0 } else { (seat.len() - 31) / 64 * 64 };
            assert!(answer.usage.cached_tokens >= known, "turn {turn}: {:?}", answer.usage);
            seat.extend(words(30, turn));
        }
    }
    let stats = settled(&engine);
    assert_eq!((stats.prefix_hits, stats.prefix_misses), (18, 6), "{stats:?}");
}

// A model with windows: the whole conversation is read again in every turn.
// https://github.com/ggml-org/llama.cpp/issues/21831
#[test]
fn a_turn_reads_only_what_is_new() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let mut messages: Vec<Message> = Vec::new();
    for (turn, country) in
        ["France", "Spain", "Italy", "Japan", "Norway", "Greece"].iter().enumerate()
    {
        messages.push(Message::user(format!("What is the capital of {country}?")));
        let request = ChatRequest::new(messages.clone()).date("2026-01-02");
        let request = request.sampling(SamplingParams::greedy()).max_tokens(300);
        let answer = whole(engine.chat(request).expect("taken")).expect("answered");
        let usage = answer.usage;
        // Chain of thought is dropped: the answer without it, the question and a page are read.
        assert!(turn == 0 || usage.prompt_tokens - usage.cached_tokens <= 64 + 60, "{usage:?}");
        messages.push(Message::Assistant(answer.message));
    }
}

// At temperature 0 the first answer differs from all later ones, which come from the cache.
// https://github.com/vllm-project/vllm/issues/40896
#[test]
fn the_first_answer_is_that_of_the_cache() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    for length in [64, 100, 511, 600] {
        let (prompt, options) = (words(length, 5), endless(5).max_tokens(40));
        let expected = alone(&prompt, &options);
        let cached: Vec<usize> = (0..3)
            .map(|_| {
                let answer = engine.generate(prompt.as_slice(), &options).expect("taken");
                let answer = whole(answer).expect("answered");
                assert_eq!(ids(&answer), expected, "{length} tokens");
                answer.usage.cached_tokens
            })
            .collect();
        let all = (length - 1) / 64 * 64;
        assert!(cached[1..].iter().all(|cached| *cached == all), "{length} tokens: {cached:?}");
    }
}

// A schema that cannot be compiled ends the engine, and with it all that run.
// https://github.com/vllm-project/vllm/pull/47312
#[cfg(feature = "structured")]
#[test]
fn a_schema_that_breaks_ends_its_own_request() {
    use gpt_oss_puzzle::chat::Format;
    use serde_json::json;

    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let options = endless(1).max_tokens(300);
    let expected = alone(&words(30, 1), &options);
    let beside = engine.generate(words(30, 1).as_slice(), options).expect("taken");
    for schema in [json!({"type": "strin"}), json!({"$ref": "#/nowhere"}), json!({"properties": 5})]
    {
        let request = question("What is 17 + 25?").format(Format::json_schema(schema.clone()));
        let error = engine.chat(request).and_then(whole).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{schema}: {error}");
    }
    assert_eq!(ids(&whole(beside).expect("answered")), expected);
    // And one that holds is followed as if nobody else asked.
    let request = question("What is 17 + 25? Answer in JSON.").format(Format::json_object());
    let answer = whole(engine.chat(&request).expect("taken")).expect("answered");
    assert_eq!(answer.tokens, reference().chat(&request).expect("answered").tokens);
}

// A request that waits is answered although who asked has gone.
// https://github.com/ggml-org/llama.cpp/issues/13262
#[test]
fn a_request_whose_asker_left_is_never_begun() {
    let engine = model().engine(EngineOptions::default().max_sequences(1)).expect("an engine");
    let mut first = engine.generate(words(10, 1).as_slice(), endless(1)).expect("taken");
    assert!(first.next().expect("goes on").is_ok());
    let left = engine.generate(words(500, 2).as_slice(), endless(2)).expect("taken");
    let last = engine.generate(words(20, 3).as_slice(), endless(3).max_tokens(5)).expect("taken");
    drop(left);
    drop(first);
    assert_eq!(whole(last).expect("answered").tokens.len(), 5);
    let stats = settled(&engine);
    assert_eq!((stats.prompt_tokens, stats.cancelled, stats.finished), (30, 2, 1), "{stats:?}");
}

// Leaving the queue stops the answer that is being made for another.
// https://github.com/ikawrakow/ik_llama.cpp/issues/1929
#[test]
fn leaving_the_queue_stops_nobody_else() {
    let engine = model().engine(EngineOptions::default().max_sequences(1)).expect("an engine");
    let options = endless(1).max_tokens(500);
    let expected = alone(&words(10, 1), &options);
    let mut first = engine.generate(words(10, 1).as_slice(), options).expect("taken");
    assert!(first.next().expect("goes on").is_ok());
    for seed in 0..10 {
        let waits = engine.generate(words(10, seed).as_slice(), endless(seed)).expect("taken");
        match seed % 2 {
            0 => drop(waits),
            _ => waits.cancel_handle().cancel(),
        }
    }
    assert_eq!(ids(&whole(first).expect("answered")), expected);
    assert_eq!(settled(&engine).cancelled, 10);
}

// Who leaves while the prompt is read is noticed only with the first token, minutes later.
// https://github.com/ollama/ollama/issues/11889
#[test]
fn leaving_while_the_prompt_is_read_ends_it() {
    let options = EngineOptions::default().max_step_tokens(16);
    let engine = model().engine(options).expect("an engine");
    let answer = engine.generate(words(3500, 1).as_slice(), endless(1)).expect("taken");
    let until = Instant::now() + Duration::from_secs(10);
    while engine.stats().step_tokens == 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    drop(answer);
    let stats = settled(&engine);
    assert_eq!((stats.cancelled, stats.completion_tokens), (1, 0), "{stats:?}");
    assert!((1..3000).contains(&stats.step_tokens), "{stats:?}");
}

// Everybody waits until the whole of a long prompt is read.
// https://github.com/ggml-org/llama.cpp/issues/29175
#[test]
fn a_long_prompt_holds_others_up_for_a_chunk_alone() {
    let options = EngineOptions::default().max_step_tokens(64).unread(1000);
    let engine = model().engine(options).expect("an engine");
    let mut running = engine.generate(words(10, 1).as_slice(), endless(1)).expect("taken");
    assert!(running.next().expect("goes on").is_ok());
    let mut long = engine.generate(words(2000, 2).as_slice(), endless(2)).expect("taken");
    while let Poll::Ready(Some(Ok(_))) = running.next_within(Duration::ZERO) {}
    assert!(long.next().expect("goes on").is_ok());
    let mut meanwhile = 0;
    while let Poll::Ready(Some(Ok(_))) = running.next_within(Duration::ZERO) {
        meanwhile += 1;
    }
    // 32 chunks, and in each step a token of the other.
    assert!(meanwhile >= 28, "{meanwhile} tokens");
}

// Under load the newest is served first, and the oldest gives way to all.
// https://github.com/EricLBuehler/mistral.rs/issues/2033
#[test]
fn first_come_is_first_served() {
    let engine = model().engine(EngineOptions::default().max_sequences(1)).expect("an engine");
    assert_eq!(ends(&engine, 6, 50), [0, 1, 2, 3, 4, 5]);
    // Where pages are short it is the newest that gives way.
    let engine = engine_for(&[350, 120], EngineOptions::default().prefix_cache(0.0));
    assert_eq!(ends(&engine, 2, 300), [0, 1]);
    assert!(settled(&engine).preempted > 0);
}

/// Asks for so many answers, and says in which order they ended.
fn ends(engine: &Engine, answers: u64, tokens: usize) -> Vec<u64> {
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for i in 0..answers {
            let options = endless(i).max_tokens(tokens);
            let answer = engine.generate(words(10, i).as_slice(), options).expect("taken");
            let ends = &ends;
            scope.spawn(move || {
                whole(answer).expect("answered");
                ends.lock().expect("held").push((Instant::now(), i));
            });
        }
    });
    // Threads are woken up in no order, but that of answers many steps apart.
    let mut ends = ends.into_inner().expect("whole");
    ends.sort();
    ends.into_iter().map(|(_, i)| i).collect()
}

// Greedy answers depend on who else asks at the time.
// https://github.com/jundot/omlx/issues/3476
#[test]
fn an_answer_is_the_same_in_any_company() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let ask = || engine.chat(question("What is 123 + 456?")).expect("taken");
    let expected = reference().chat(&question("What is 123 + 456?")).expect("answered").tokens;
    for company in [0, 1, 3, 7, 15] {
        let others: Vec<_> = (0..company)
            .map(|i| engine.generate(words(10 + 30 * i, i as u64).as_slice(), endless(i as u64)))
            .collect();
        assert_eq!(whole(ask()).expect("answered").tokens, expected, "beside {company}");
        drop(others);
    }
}

// Several choices of one request are all the same, whether it has a seed or not.
// https://github.com/vllm-project/vllm/issues/10852
#[test]
fn choices_differ_and_each_is_that_of_its_seed() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let request = |seed: Option<u64>| {
        let sampling = SamplingParams::default().temperature(2.0);
        let sampling = seed.map_or(sampling.clone(), |seed| sampling.seed(seed));
        question("What is the population of Zorvania?").sampling(sampling).max_tokens(40)
    };
    for seed in [Some(30), None] {
        let choices = engine.chat_choices(request(seed), 4).expect("taken");
        let choices: Vec<_> =
            choices.into_iter().map(|answer| whole(answer).expect("answered")).collect();
        for (i, choice) in choices.iter().enumerate() {
            assert!(seed.is_none_or(|seed| choice.seed == seed + i as u64), "{}", choice.seed);
            let again = reference().chat(&request(Some(choice.seed))).expect("answered");
            assert_eq!(choice.tokens, again.tokens, "choice {i} of {seed:?}");
        }
        assert!(choices.iter().any(|choice| choice.tokens != choices[0].tokens), "{seed:?}");
    }
}

// Who asked for several choices leaves: the log says cancelled, but they run on.
// https://github.com/vllm-project/vllm/pull/14326
#[test]
fn leaving_ends_every_choice() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let mut sampling = SamplingParams::default().temperature(1.0).seed(1);
    for id in engine::ENDS {
        sampling = sampling.logit_bias(id, -100.0);
    }
    let request = question("Hello").sampling(sampling).max_tokens(3500);
    let mut choices = engine.chat_choices(request, 3).expect("taken");
    for choice in &mut choices {
        assert!(choice.next().expect("goes on").is_ok());
    }
    // One alone, then the others.
    choices.remove(1);
    assert!(choices[0].next().expect("goes on").is_ok());
    drop(choices);
    let stats = settled(&engine);
    assert_eq!(stats.cancelled, 3);
    assert!(stats.completion_tokens < 3000, "{stats:?}");
}

// Equal prompts at once: one reads pages of another that are not written yet.
// https://github.com/vllm-project/vllm/pull/37152
#[test]
fn equal_prompts_at_once_are_answered_alike() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let prompts: Vec<_> = (0..8).map(|_| words(400, 9)).collect();
    all_as_alone(&engine, &prompts, 20);
    // And prompts that part late, of which each begins with what another is about to compute.
    let prompts: Vec<_> = (0..8).map(|i| [words(400, 8), words(5, i)].concat()).collect();
    all_as_alone(&engine, &prompts, 20);
}

// How fast an answer begins tells what others have asked.
// https://github.com/vllm-project/vllm/issues/16016
#[test]
fn tenants_do_not_find_each_others_prompts() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    let prompt = words(300, 4);
    let ask = |salt: Option<&str>| {
        let call = Call::new(greedy().max_tokens(5));
        let call = salt.map_or(call.clone(), |salt| call.cache_salt(salt));
        let answer = engine.generate(prompt.as_slice(), call).expect("taken");
        let answer = whole(answer).expect("answered");
        (answer.usage.cached_tokens, ids(&answer))
    };
    let (first, expected) = ask(None);
    assert_eq!(first, 0);
    for salt in ["a", "b", ""] {
        assert_eq!(ask(Some(salt)), (0, expected.clone()), "{salt:?}");
        assert_eq!(ask(Some(salt)), (256, expected.clone()), "{salt:?} again");
    }
    assert_eq!(ask(None), (256, expected));
}

// After answers that a stop text ended, others with the same beginning are answered differently.
// https://github.com/vllm-project/vllm/issues/5543
#[test]
fn a_stop_text_leaves_no_trace_in_the_cache() {
    let engine = model().engine(EngineOptions::default()).expect("an engine");
    for text in ["What is the capital of France?", "What is 123 + 456?"] {
        let stopped = question(text).stop(["The", "123"]);
        let stopped = whole(engine.chat(stopped).expect("taken")).expect("answered");
        assert!(matches!(stopped.finish_reason, FinishReason::StopSequence(_)), "{stopped:?}");
        let after = whole(engine.chat(question(text)).expect("taken")).expect("answered");
        assert_eq!(after.tokens, reference().chat(&question(text)).expect("answered").tokens);
    }
}

// A steady stream of more urgent requests: one of low priority never comes to its turn.
// https://github.com/vllm-project/vllm/pull/20608
#[test]
fn the_lowest_priority_comes_to_its_turn() {
    let options = EngineOptions::default().max_sequences(1).aging(Duration::from_millis(20));
    let engine = model().engine(options).expect("an engine");
    let urgent = |seed: u64| {
        let call = Call::new(endless(seed).max_tokens(20)).priority(Priority::High);
        engine.generate(words(10, seed).as_slice(), call).expect("taken")
    };
    let mut waiting: std::collections::VecDeque<_> = (0..3).map(urgent).collect();
    let low = Call::new(endless(99).max_tokens(20)).priority(Priority::Low);
    let mut low = engine.generate(words(10, 99).as_slice(), low).expect("taken");
    let begun = Instant::now();
    let mut seed = 3;
    // There are always three that are more urgent.
    while low.next_within(Duration::ZERO).is_pending() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", engine.stats());
        whole(waiting.pop_front().expect("waits")).expect("answered");
        waiting.push_back(urgent(seed));
        seed += 1;
    }
    assert!(whole(low).expect("answered").tokens.len() == 20);
}
