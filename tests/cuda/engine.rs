//! The engine on a device: many answers at once, each as it would be alone.

use super::graph::gpu;
use crate::batches::tokens;
use crate::models::{ENDLESS, biased, speaking_on};
use gpt_oss_puzzle::chat::{Model, Reasoning};
use gpt_oss_puzzle::generation::{FinishReason, GenerateOptions, GeneratedToken, SamplingParams};
use gpt_oss_puzzle::model::DeviceName;
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::{Checkpoint, tiny_config, write_tiny_checkpoint};
use gpt_oss_puzzle::{Answer, BlockConfig, Engine, EngineOptions, ErrorKind, Stats};
use std::io::Write;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A model of two layers, one with a window, and its pages; `None` when this machine has no GPU.
fn model() -> Option<Model> {
    gpu()?;
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    let mut config = tiny_config();
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (2, 1, 16);
    config.block_configs = [(8, Some(16)), (4, None)]
        .map(|(num_local_experts, sliding_window)| BlockConfig {
            num_local_experts,
            sliding_window,
        })
        .to_vec();
    let checkpoint = Checkpoint::random(&config, 5).unwrap();
    let builder = Model::from_parts(checkpoint, tokenizer).device(DeviceName::Cuda(0));
    Some(builder.threads(1).context(512).sequences(20).load().unwrap())
}

/// Steps of up to 256 rows, to which the kernels give the same bits in any company; half of the pages.
fn options(model: &Model) -> EngineOptions {
    EngineOptions::default().max_step_tokens(256).pages(model.cache().pages() / 2)
}

/// One of eight requests: the most likely tokens, others drawn on the device, and others drawn on the host.
fn request(number: usize) -> (Vec<u32>, GenerateOptions) {
    let prompt = tokens([1, 5, 17, 40, 65, 64, 100, 130][number], number as u32);
    let seeded = SamplingParams::default().temperature(1.5).seed(number as u64);
    let options = GenerateOptions::default().max_tokens(5 + 2 * number).ignore_eos();
    let options = match number % 3 {
        0 => options.sampling(SamplingParams::greedy()),
        1 => options.sampling(seeded),
        _ => options.sampling(seeded).logprobs(20),
    };
    (prompt, options)
}

/// What is answered to a request without an engine.
fn alone(model: &Model, number: usize) -> Vec<GeneratedToken> {
    let (prompt, options) = request(number);
    model.generate(&prompt, &options).unwrap().map(|token| token.unwrap()).collect()
}

fn ask(engine: &Engine, number: usize) -> Answer<GeneratedToken> {
    let (prompt, options) = request(number);
    engine.generate(&prompt, options).unwrap()
}

/// Once nothing runs any more.
fn at_rest(engine: &Engine) -> Stats {
    let until = Instant::now() + 60 * SECOND;
    loop {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 {
            return stats;
        }
        assert!(Instant::now() < until, "still busy: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bit for bit, the log-probabilities too, however many there are, and whoever joins and leaves.
#[test]
fn answers_are_the_same_in_any_company() {
    let Some(model) = model() else { return };
    let alone: Vec<_> = (0..8).map(|number| alone(&model, number)).collect();
    let before = model.transformer().replayed_steps();
    let mut steps = Vec::new();
    for together in [1, 3, 8] {
        let engine = model.engine(options(&model).prefix_cache(0.0)).unwrap();
        for group in (0..8).collect::<Vec<_>>().chunks(together) {
            let (first, others) = group.split_at(group.len().div_ceil(2));
            let mut answers: Vec<_> = first.iter().map(|number| ask(&engine, *number)).collect();
            let begun = answers[0].next().unwrap().unwrap();
            assert_eq!(begun, alone[first[0]][0]);
            answers.extend(others.iter().map(|number| ask(&engine, *number)));
            for (answer, number) in answers.into_iter().zip(group) {
                assert_eq!(
                    answer.finish().unwrap().tokens,
                    alone[*number],
                    "{number} of {group:?}"
                );
            }
        }
        let stats = at_rest(&engine);
        assert_eq!((stats.finished, stats.failed, stats.preempted), (8, 0, 0));
        assert_eq!(stats.free_pages, stats.pages);
        steps.push(stats.steps);
        engine.shutdown(SECOND).unwrap();
    }
    assert!(steps[2] < steps[1] && steps[1] < steps[0], "{steps:?}");
    let replayed = model.transformer().replayed_steps() - before;
    assert!(replayed > steps.iter().sum::<u64>() / 2, "{replayed} of {steps:?} steps");
    assert_eq!(model.cache().free_pages(), model.cache().pages());
}

/// What gives its pages back is read again, by other kernels than made it: the tokens are the same.
#[test]
fn answers_are_the_same_when_pages_are_few() {
    let Some(model) = model() else { return };
    // Both begin, and there are no pages for both to end.
    let engine = model.engine(options(&model).pages(8)).unwrap();
    let prompt = |seed: u32| tokens(60 + seed as usize, seed);
    let asked = |seed: u32| {
        let temperature = [0.0, 1.5][seed as usize];
        let sampling = SamplingParams::default().temperature(temperature).seed(seed.into());
        GenerateOptions::default().max_tokens(74).ignore_eos().sampling(sampling)
    };
    let answers = [0, 1].map(|seed| engine.generate(&prompt(seed), asked(seed)).unwrap());
    for (seed, answer) in (0..).zip(answers) {
        let alone = model.generate(&prompt(seed), &asked(seed)).unwrap();
        let alone: Vec<_> = alone.map(|token| token.unwrap()).collect();
        assert_eq!(answer.finish().unwrap().tokens, alone, "{seed}");
    }
    let stats = at_rest(&engine);
    assert_eq!((stats.finished, stats.failed), (2, 0));
    assert!(stats.preempted > 0, "{stats:?}");
    assert_eq!(stats.free_pages + stats.cached_pages, 8);
}

#[test]
fn dropped_answers_give_their_pages_back() {
    let Some(model) = model() else { return };
    let engine = model.engine(options(&model).max_sequences(2).prefix_cache(0.0)).unwrap();
    let long = GenerateOptions::default().max_tokens(300).ignore_eos();
    let asked = |seed| engine.generate(&tokens(70, seed), long.clone()).unwrap();
    let (mut running, other, waiting) = (asked(1), asked(2), asked(3));
    running.next().unwrap().unwrap();
    let kept = ask(&engine, 4);
    drop((running, waiting));
    other.cancel_handle().cancel();
    assert_eq!(other.finish().unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(kept.finish().unwrap().tokens, alone(&model, 4));
    let stats = at_rest(&engine);
    assert_eq!((stats.cancelled, stats.finished, stats.failed), (3, 1, 0));
    assert_eq!(stats.free_pages, stats.pages);
}

/// A prompt whose beginning is cached goes on from there, beside others, as it would have from the start.
#[test]
fn cached_beginnings_change_nothing() {
    let Some(model) = model() else { return };
    let engine = model.engine(options(&model)).unwrap();
    let alone: Vec<_> = (0..8).map(|number| alone(&model, number)).collect();
    for cached in [false, true] {
        // In another order, so that none comes to where it was.
        let number = |at| if cached { 7 - at } else { at };
        let answers: Vec<_> = (0..8).map(|at| (number(at), ask(&engine, number(at)))).collect();
        for (number, answer) in answers {
            let answer = answer.finish().unwrap();
            assert_eq!(answer.tokens, alone[number], "{number}, cached: {cached}");
            // Whole pages, and a token is left to be read.
            let pages = (answer.usage.prompt_tokens - 1) / 64;
            assert_eq!(answer.usage.cached_tokens, if cached { 64 * pages } else { 0 }, "{number}");
        }
    }
    let stats = at_rest(&engine);
    assert_eq!((stats.prefix_hits, stats.prefix_misses), (3, 13));
    assert_eq!(stats.free_pages + stats.cached_pages, stats.pages);
}

/// The engine's pages are of the same memory as the model's: a step that was recorded for one of them is
/// started for the other, in between.
#[test]
fn steps_of_the_model_go_between_those_of_an_engine() {
    let Some(model) = model() else { return };
    let [ours, theirs] = [4, 6].map(|number| alone(&model, number));
    // It waits for each token to be read.
    let engine = model.engine(options(&model).unread(1)).unwrap();
    let before = model.transformer().replayed_steps();
    let mut answer = ask(&engine, 6);
    let (prompt, asked) = request(4);
    let mut generator = model.generate(&prompt, &asked).unwrap();
    for (round, token) in theirs.iter().enumerate() {
        assert_eq!(answer.next().unwrap().unwrap(), *token, "the engine's, {round}");
        if let Some(token) = ours.get(round) {
            assert_eq!(generator.next().unwrap().unwrap(), *token, "the model's, {round}");
        }
    }
    // All that is decode: both were recorded when they came alone.
    let replayed = model.transformer().replayed_steps() - before;
    assert_eq!(replayed as usize, ours.len() + theirs.len() - 2);
}

/// Forced tokens, tokens that are forbidden and draws without either share steps.
#[test]
fn limited_thoughts_are_as_they_are_alone() {
    let Some(_) = gpu() else { return };
    let model = speaking_on(DeviceName::Cuda(0));
    let engine = model.engine(options(&model)).unwrap();
    let request = |seed: u64| {
        let reasoning = Reasoning::default().max_tokens(3 + 5 * seed as usize);
        biased(&model, seed, ENDLESS).max_tokens(60).reasoning(reasoning)
    };
    let answers: Vec<_> = (0..5).map(|seed| engine.chat(request(seed)).unwrap()).collect();
    for (seed, answer) in (0..).zip(answers) {
        let (answer, alone) = (answer.finish().unwrap(), model.chat(&request(seed)).unwrap());
        assert!(!alone.forced.is_empty());
        assert_eq!((answer.tokens, answer.forced), (alone.tokens, alone.forced), "{seed}");
        assert_eq!(answer.message, alone.message, "{seed}");
        assert_eq!(answer.usage.reasoning_tokens, alone.usage.reasoning_tokens, "{seed}");
    }
}

/// Every answer is told, so is whoever asks later, and the process goes on. In a process of its own, whose
/// device does nothing more.
#[test]
fn a_lost_device_ends_every_answer() {
    let Some(model) = model() else { return };
    if !model.transformer().kernels().contains("CUDA emulator") {
        let line = b"NOT TESTED: a device that is lost\n";
        return std::io::stderr().write_all(line).unwrap();
    }
    const LOST: &str = "EMULATOR_LOST";
    let Some(lost) = std::env::var_os(LOST) else {
        let (dir, name) =
            (tempfile::tempdir().unwrap(), "cuda::engine::a_lost_device_ends_every_answer");
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let again = again.args([name, "--exact"]).env(LOST, dir.path().join("lost"));
        let ended = again.output().unwrap();
        return assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    };
    let engine = model.engine(options(&model).max_sequences(3)).unwrap();
    let long = GenerateOptions::default().max_tokens(400).ignore_eos();
    let mut answers: Vec<_> =
        (0..5).map(|seed| engine.generate(&tokens(30, seed), long.clone()).unwrap()).collect();
    for answer in &mut answers[..3] {
        (0..3).for_each(|_| drop(answer.next().unwrap().unwrap()));
    }
    engine.check().unwrap();
    std::fs::write(lost, "").unwrap();
    for answer in answers {
        let error = answer.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    }
    let stats = at_rest(&engine);
    assert_eq!((stats.finished, stats.failed), (0, 5));
    let refused = [engine.check(), ask_for_nothing(&engine), engine.shutdown(SECOND)];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().starts_with("the engine has lost its device"), "{error}");
    }
    // Nor without an engine; and all that is left can be dropped.
    drop(engine);
    let (prompt, asked) = request(0);
    let error = model.generate(&prompt, &asked).unwrap().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert_eq!(model.cache().free_pages(), model.cache().pages());
    drop(model);
}

fn ask_for_nothing(engine: &Engine) -> gpt_oss_puzzle::Result<()> {
    engine.generate("Hello", GenerateOptions::default()).map(drop)
}
