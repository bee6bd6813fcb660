//! Sampling against naive references, and the generator on a small random model.

use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::generation::{
    FinishReason, GenerateOptions, GeneratedToken, GenerationConfig, Generator, Logprob, Sampler,
    SamplingParams, StopTokens, Timings, TokenLogprobs, Usage,
};
use gpt_oss_puzzle::model::{Batch, Device, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, tiny_config};
use gpt_oss_puzzle::{ErrorKind, ModelConfig};
use std::sync::mpsc;
use std::time::Duration;

/// Numbers in [0, 1), the same for the same seed.
fn uniform(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// `n` logits in [-8, 8); coarse ones tie often.
fn random_logits(n: usize, seed: u64, coarse: bool) -> Vec<f32> {
    let logit = |u: f64| 16.0 * u - 8.0;
    let round = |l: f64| if coarse { (2.0 * l).round() / 2.0 } else { l };
    uniform(seed).take(n).map(|u| round(logit(u)) as f32).collect()
}

/// Steps 4 to 7 of the documentation with a full sort.
fn naive_candidates(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    let temperature = params.temperature.unwrap_or(1.0);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |id: u32| f64::from(logits[id as usize]);
    ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    if let Some(k) = params.top_k.filter(|k| *k > 0) {
        ids.truncate(k);
    }
    let max = logit(ids[0]);
    let weight = |id: u32| ((logit(id) - max) / temperature).exp();
    if let Some(p) = params.top_p.filter(|p| *p < 1.0) {
        let total: f64 = ids.iter().map(|&id| weight(id)).sum();
        let mut sum = 0.0;
        let end = ids.iter().position(|&id| {
            sum += weight(id);
            sum >= p * total * (1.0 - 1e-12)
        });
        ids.truncate(end.map_or(ids.len(), |end| end + 1));
    }
    if let Some(p) = params.min_p {
        ids.retain(|&id| weight(id) >= p);
    }
    ids.sort_unstable();
    ids
}

#[test]
fn candidates_equal_those_of_a_full_sort() {
    let mut cases = 0;
    for n in [1, 2, 7, 64, 1000, 5000] {
        for coarse in [false, true] {
            let logits = random_logits(n, n as u64, coarse);
            for temperature in [0.5, 1.0, 3.0] {
                for top_k in [None, Some(0), Some(1), Some(3), Some(50), Some(n), Some(n + 1)] {
                    for top_p in [None, Some(1e-9), Some(0.3), Some(0.9), Some(0.999), Some(1.0)] {
                        for min_p in [None, Some(0.0), Some(0.05), Some(1.0)] {
                            let mut params = SamplingParams::default().temperature(temperature);
                            (params.top_k, params.top_p, params.min_p) = (top_k, top_p, min_p);
                            let mut sampler = Sampler::new(params.clone(), &[], n).unwrap();
                            let found = sampler.candidates(&logits);
                            assert_eq!(found, naive_candidates(&logits, &params), "{n} {params:?}");
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(cases, 6 * 2 * 3 * 7 * 6 * 4);
}

#[test]
fn nucleus_ends_where_the_probability_is_reached() {
    // Four equal tokens: half of the probability is exactly two of them, the lower ids.
    let mut half = Sampler::new(SamplingParams::default().top_p(0.5), &[], 4).unwrap();
    assert_eq!(half.candidates(&[1.0; 4]), [0, 1]);
    let mut more = Sampler::new(SamplingParams::default().top_p(0.51), &[], 4).unwrap();
    assert_eq!(more.candidates(&[1.0; 4]), [0, 1, 2]);
    // Top-p counts what top-k has left, not the whole vocabulary.
    let both = SamplingParams::default().top_k(2).top_p(0.5);
    assert_eq!(Sampler::new(both, &[], 4).unwrap().candidates(&[1.0; 4]), [0]);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.1f32.ln(), 0.2f32.ln(), 0.3f32.ln(), 0.4f32.ln()];
    let mut sampler = Sampler::new(SamplingParams::default().seed(1), &[], 4).unwrap();
    let mut counts = [0; 4];
    for _ in 0..20_000 {
        counts[sampler.sample(&logits).unwrap() as usize] += 1;
    }
    for (count, p) in counts.into_iter().zip([0.1, 0.2, 0.3, 0.4]) {
        let deviation = (20_000.0f64 * p * (1.0 - p)).sqrt();
        assert!((f64::from(count) - 20_000.0 * p).abs() <= 5.0 * deviation, "{counts:?}");
    }
}

#[test]
fn draws_from_many_candidates_follow_the_probabilities() {
    // Half of the probability on one token, the rest spread over 5,000 others in three bands.
    let mut logits = vec![(0.1f32 / 2000.0).ln(); 5001];
    logits[1500] = 0.5f32.ln();
    logits[2000..4001].fill((0.3f32 / 2001.0).ln());
    logits[4001..].fill((0.1f32 / 1000.0).ln());
    let band = |id: u32| match id {
        1500 => 0,
        0..2000 => 1,
        2000..4001 => 2,
        _ => 3,
    };
    let mut sampler = Sampler::new(SamplingParams::default().seed(2), &[], 5001).unwrap();
    let mut counts = [0; 4];
    let mut distinct = std::collections::BTreeSet::new();
    for _ in 0..8_000 {
        let id = sampler.sample(&logits).unwrap();
        counts[band(id)] += 1;
        distinct.insert(id);
    }
    for (count, p) in counts.into_iter().zip([0.5, 0.1, 0.3, 0.1]) {
        let deviation = (8_000.0f64 * p * (1.0 - p)).sqrt();
        assert!((f64::from(count) - 8_000.0 * p).abs() <= 5.0 * deviation, "{counts:?}");
    }
    // 4,000 draws over 5,000 tokens repeat some and reach most of the others.
    assert!(distinct.len() > 2_000, "{}", distinct.len());
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits = random_logits(3000, 3, false);
    let draw = |params: SamplingParams| {
        let mut sampler = Sampler::new(params, &[], 3000).unwrap();
        let ids: Vec<u32> = (0..50).map(|_| sampler.sample(&logits).unwrap()).collect();
        (sampler.seed(), ids)
    };
    let (_, one) = draw(SamplingParams::default().seed(7));
    assert_eq!(draw(SamplingParams::default().seed(7)).1, one);
    assert_ne!(draw(SamplingParams::default().seed(8)).1, one);
    // Without a seed each sampler takes a fresh one, and says which.
    let (seed, ids) = draw(SamplingParams::default());
    assert_ne!(draw(SamplingParams::default()).0, seed);
    assert_eq!(draw(SamplingParams::default().seed(seed)).1, ids);
}

#[test]
fn greedy_takes_the_lower_id_among_equals() {
    let mut sampler = Sampler::new(SamplingParams::greedy(), &[], 4).unwrap();
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
    assert_eq!(sampler.sample(&[-0.0, 0.0, -0.0, -1.0]).unwrap(), 0);
    let mut one = Sampler::new(SamplingParams::default().top_k(1), &[], 4).unwrap();
    assert_eq!(one.candidates(&[-0.0, 0.0, -0.0, -1.0]), [0]);
}

#[test]
fn penalties_and_bias_change_the_logits_as_documented() {
    let greedy = |params: SamplingParams, prompt: &[u32], logits: &[f32]| {
        let mut sampler = Sampler::new(params, prompt, logits.len()).unwrap();
        (0..3).map(|_| sampler.sample(logits).unwrap()).collect::<Vec<u32>>()
    };
    let params = SamplingParams::greedy;
    // 2 / 1.2 < 1.9, for a token of the prompt; then 1.9 / 1.2 < 2 / 1.2.
    assert_eq!(greedy(params().repetition_penalty(1.2), &[0], &[2.0, 1.9]), [1, 0, 0]);
    // A negative logit is multiplied: -1 · 1.2 < -1.1.
    assert_eq!(greedy(params().repetition_penalty(1.2), &[0], &[-1.0, -1.1]), [1, 0, 0]);
    // Presence counts the answer, not the prompt, and counts once.
    assert_eq!(greedy(params().presence_penalty(0.5), &[0], &[2.0, 1.6]), [0, 1, 0]);
    // Frequency counts every time: 2, 1.6 → 1.5, 1.6 → 1.5, 1.1 → 1, 1.1.
    assert_eq!(greedy(params().frequency_penalty(0.5), &[1], &[2.0, 1.6]), [0, 1, 0]);
    assert_eq!(greedy(params().frequency_penalty(0.25), &[], &[2.0, 1.1]), [0, 0, 0]);
    assert_eq!(greedy(params().frequency_penalty(1.0), &[], &[2.0, 0.5]), [0, 0, 1]);
    assert_eq!(greedy(params().logit_bias(1, 0.5), &[], &[2.0, 1.6]), [1, 1, 1]);
    assert_eq!(greedy(params().logit_bias(0, -1e9), &[], &[2.0, -5.0]), [1, 1, 1]);
    // Bias comes after the penalty: 2 / 2 + 3 > 3.9 - 0, where (2 + 3) / 2 would not be.
    let both = params().repetition_penalty(2.0).logit_bias(0, 3.0);
    assert_eq!(greedy(both, &[0], &[2.0, 3.9])[0], 0);
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_names_the_token() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for params in [SamplingParams::greedy(), SamplingParams::default().top_p(0.5)] {
            let mut sampler = Sampler::new(params, &[], 4).unwrap();
            let error = sampler.sample(&[0.0, 1.0, bad, 2.0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Numeric);
            let expected = format!("the logit of token 2 is {shown}, expected a number");
            assert_eq!(error.to_string(), expected);
        }
    }
}

#[test]
fn parameters_out_of_range_are_errors_that_name_field_and_value() {
    let p = SamplingParams::default;
    for (params, message) in [
        (p().temperature(-0.5), "temperature is -0.5, expected a number of at least 0"),
        (p().temperature(f64::NAN), "temperature is NaN, expected a number of at least 0"),
        (p().top_p(0.0), "top_p is 0, expected more than 0 and at most 1"),
        (p().top_p(1.5), "top_p is 1.5, expected more than 0 and at most 1"),
        (p().min_p(-0.1), "min_p is -0.1, expected 0 to 1"),
        (p().min_p(f64::NAN), "min_p is NaN, expected 0 to 1"),
        (p().repetition_penalty(0.0), "repetition_penalty is 0, expected a positive number"),
        (
            // Logits are f32, in which these are 0 and infinity.
            p().repetition_penalty(1e-60),
            "repetition_penalty is 0.000000000000000000000000000000000000000000000000000000000001, expected a positive number",
        ),
        (
            p().repetition_penalty(1e60),
            "repetition_penalty is 1000000000000000000000000000000000000000000000000000000000000, expected a positive number",
        ),
        (p().presence_penalty(2.5), "presence_penalty is 2.5, expected -2 to 2"),
        (p().frequency_penalty(-3.0), "frequency_penalty is -3, expected -2 to 2"),
        (p().logit_bias(10, 1.0), "logit_bias names token 10, outside the vocabulary of 10"),
        (
            p().logit_bias(3, f32::INFINITY),
            "logit_bias of token 3 is inf, expected a finite number",
        ),
    ] {
        let error = Sampler::new(params, &[], 10).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn no_logits_at_all_are_an_error() {
    for params in [SamplingParams::greedy(), SamplingParams::default().top_k(3).top_p(0.5)] {
        let mut sampler = Sampler::new(params, &[], 4).unwrap();
        let error = sampler.sample(&[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numeric);
        assert_eq!(error.to_string(), "there are no logits to draw from");
        assert!(sampler.candidates(&[]).is_empty());
    }
}

#[test]
fn rates_are_defined_for_any_usage() {
    let usage: Usage = serde_json::from_str(
        r#"{"prompt_tokens":1,"cached_tokens":2,"completion_tokens":0,"reasoning_tokens":0}"#,
    )
    .unwrap();
    let mut timings = Timings::default();
    (timings.prefill, timings.decode) = (Duration::from_secs(1), Duration::from_secs(1));
    assert_eq!((timings.prefill_rate(&usage), timings.decode_rate(&usage)), (0.0, 0.0));
}

#[test]
fn log_probabilities_are_a_log_softmax_with_the_largest_first() {
    let logits = random_logits(500, 11, true);
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let expected = |id: u32| f64::from(logits[id as usize]) - total.ln();
    let mut sorted: Vec<u32> = (0..500).collect();
    sorted.sort_by(|&a, &b| expected(b).total_cmp(&expected(a)).then(a.cmp(&b)));
    for top in [0, 1, 5, 500] {
        let found = TokenLogprobs::new(&logits, 123, top);
        assert!((f64::from(found.logprob) - expected(123)).abs() <= 1e-6);
        let ids: Vec<u32> = found.top.iter().map(|l| l.id).collect();
        assert_eq!(ids, sorted[..top]);
        for Logprob { id, logprob, .. } in found.top {
            assert!((f64::from(logprob) - expected(id)).abs() <= 1e-6);
        }
    }
    // Large logits do not overflow.
    assert_eq!(TokenLogprobs::new(&[3e38, 0.0], 0, 0).logprob, 0.0);
}

#[test]
fn stop_tokens_are_the_harmony_ones_whatever_the_file_says() {
    // nvidia/gpt-oss-puzzle-88B at 9c0e0746: no <|call|>.
    let puzzle = r#"{"bos_token_id":199998,"do_sample":true,"eos_token_id":[200002,199999],
        "pad_token_id":199999,"transformers_version":"4.57.3"}"#;
    let config = GenerationConfig::parse(puzzle).unwrap();
    assert_eq!(config.sampling, SamplingParams::default());
    let always = [200002, 199999, 200012];
    let stop = StopTokens::new(&always, &config.eos_token_id, &[200007]);
    assert_eq!(stop.ids(), [199999, 200002, 200012]);
    let config = GenerationConfig::parse(r#"{"eos_token_id":200007}"#).unwrap();
    let stop = StopTokens::new(&always, &config.eos_token_id, &[200007]);
    assert!(stop.contains(200012) && !stop.contains(200007));
    assert_eq!(StopTokens::new(&always, &[5], &[]).ids(), [5, 199999, 200002, 200012]);
}

#[test]
fn generation_config_gives_defaults_and_names_what_is_wrong() {
    let json = r#"{"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":0.1,
        "repetition_penalty":1.05}"#;
    let sampling = GenerationConfig::parse(json).unwrap().sampling;
    let expected = SamplingParams::default()
        .temperature(0.6)
        .top_k(20)
        .top_p(0.95)
        .min_p(0.1)
        .repetition_penalty(1.05);
    assert_eq!(sampling, expected);
    // What the caller says wins, the rest is the file's.
    let asked = SamplingParams::default().temperature(0.0).seed(3).or(&sampling);
    assert_eq!(asked, expected.clone().temperature(0.0).seed(3));
    let greedy = GenerationConfig::parse(r#"{"do_sample":false,"temperature":0.6}"#).unwrap();
    assert_eq!(greedy.sampling.temperature, Some(0.0));

    let dir = tempfile::tempdir().unwrap();
    let absent = GenerationConfig::from_checkpoint(dir.path()).unwrap();
    assert_eq!(absent, GenerationConfig::default());
    for (json, part) in [
        ("{", "EOF while parsing"),
        (r#"{"temperature":"hot"}"#, "expected f64"),
        (r#"{"eos_token_id":-1}"#, "eos_token_id is neither a token id nor a list of them"),
        (r#"{"top_p":2.0}"#, "top_p is 2, expected more than 0 and at most 1"),
    ] {
        std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
        let error = GenerationConfig::from_checkpoint(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let message = error.to_string();
        assert!(message.contains("generation_config.json") && message.contains(part), "{message}");
    }
}

/// A small random model with a cache for a few sequences.
struct Small {
    model: GptOss,
    cache: KvCache,
}

impl Small {
    fn new(threads: usize) -> Small {
        Small::with_config(tiny_config(), threads)
    }

    fn with_config(config: ModelConfig, threads: usize) -> Small {
        let checkpoint = Checkpoint::random(&config, 5).unwrap();
        let pages = 4 * KvCache::pages_for(&config, 4096, 512);
        let pool = KvCacheConfig { dtype: KvDtype::Bf16, pages, scales: None };
        Small {
            cache: KvCache::new(&config, &pool, &Device::Cpu).unwrap(),
            model: GptOss::new(&checkpoint, threads).unwrap(),
        }
    }

    fn generator(&self, prompt: &[u32], options: &GenerateOptions) -> Generator<'_> {
        let stop = StopTokens::default();
        Generator::new(&self.model, self.cache.sequence(), prompt, stop, options).unwrap()
    }

    fn ids(&self, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
        self.generator(prompt, options).map(|token| token.unwrap().id).collect()
    }
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 37 + 11) % 250).collect()
}

#[test]
fn greedy_generation_is_the_argmax_of_each_step() {
    let small = Small::new(2);
    let options = GenerateOptions::default().sampling(SamplingParams::greedy()).max_tokens(12);
    let ids = small.ids(&prompt(40), &options);
    let mut sequence = small.cache.sequence();
    let mut pending = prompt(40);
    for &id in &ids {
        let batch = Batch::single(&sequence, &pending, LogitRows::Last);
        let logits = small.model.forward(&batch, &mut [&mut sequence]).unwrap();
        let logits = &logits.to_vec2::<f32>().unwrap()[0];
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        assert_eq!(id as usize, best.unwrap());
        pending = vec![id];
    }
    assert_eq!(ids.len(), 12);
}

#[test]
fn tokens_depend_on_neither_chunks_nor_threads() {
    let sampling = SamplingParams::default().seed(4).repetition_penalty(1.1);
    let options = GenerateOptions::default().sampling(sampling).max_tokens(20);
    let two = Small::new(2);
    let ids = two.ids(&prompt(200), &options);
    for chunk in [1, 7, 64, 200, 1000] {
        assert_eq!(two.ids(&prompt(200), &options.clone().prefill_chunk(chunk)), ids, "{chunk}");
    }
    assert_eq!(Small::new(1).ids(&prompt(200), &options), ids);
    assert_eq!(Small::new(3).ids(&prompt(200), &options), ids);
}

#[test]
fn interleaved_generators_equal_separate_ones() {
    let small = Small::new(2);
    let options = |seed| {
        let sampling = SamplingParams::default().seed(seed);
        GenerateOptions::default().sampling(sampling).max_tokens(15)
    };
    let separate = [small.ids(&prompt(100), &options(1)), small.ids(&prompt(33), &options(2))];
    let mut generators =
        [small.generator(&prompt(100), &options(1)), small.generator(&prompt(33), &options(2))];
    let mut interleaved = [Vec::new(), Vec::new()];
    for _ in 0..15 {
        for (generator, ids) in generators.iter_mut().zip(&mut interleaved) {
            ids.push(generator.next().unwrap().unwrap().id);
        }
    }
    assert_eq!(interleaved, separate);
}

#[test]
fn a_stop_token_is_the_last_token() {
    let small = Small::new(1);
    let options = GenerateOptions::default().sampling(SamplingParams::greedy()).max_tokens(30);
    let ids = small.ids(&prompt(40), &options);
    let end = ids[7];
    let first = ids.iter().position(|&id| id == end).unwrap();
    let mut generator = small.generator(&prompt(40), &options.stop_tokens([end]));
    let stopped: Vec<u32> = generator.by_ref().map(|t| t.unwrap().id).collect();
    assert_eq!(stopped, ids[..=first]);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Stop));
    assert!(generator.next().is_none());
    assert_eq!(generator.sequence().len(), 40 + first);
}

#[test]
fn length_ends_at_max_tokens_or_at_the_context() {
    let small = Small::new(1);
    for (options, count) in [
        (GenerateOptions::default().max_tokens(3), 3),
        (GenerateOptions::default().context(45), 5),
        (GenerateOptions::default().context(45).max_tokens(5), 5),
    ] {
        let mut generator = small.generator(&prompt(40), &options);
        assert_eq!(generator.by_ref().count(), count);
        assert_eq!(generator.finish_reason(), Some(FinishReason::Length));
        assert_eq!(generator.usage().prompt_tokens, 40);
        assert_eq!(generator.usage().completion_tokens, count);
        let timings = generator.timings();
        assert!(timings.first_token >= timings.prefill && timings.prefill > Duration::ZERO);
    }
}

#[test]
fn what_cannot_be_generated_is_refused_before_anything_runs() {
    let small = Small::new(1);
    let refuse = |prompt: &[u32], options: GenerateOptions| {
        let sequence = small.cache.sequence();
        let made = Generator::new(&small.model, sequence, prompt, StopTokens::default(), &options);
        let error = made.err().unwrap();
        (error.kind(), error.to_string())
    };
    let invalid = |message: &str| (ErrorKind::InvalidRequest, message.to_string());
    let overflow = |message: &str| (ErrorKind::ContextOverflow, message.to_string());
    let options = GenerateOptions::default;
    assert_eq!(
        refuse(&prompt(40), options().context(100).max_tokens(61)),
        overflow("a prompt of 40 tokens and 61 requested tokens do not fit the context of 100")
    );
    assert_eq!(
        refuse(&prompt(40), options().context(40)),
        overflow("a prompt of 40 tokens and any answer do not fit the context of 40")
    );
    let limit = tiny_config().max_position_embeddings;
    assert_eq!(
        refuse(&prompt(40), options().max_tokens(usize::MAX)),
        overflow(&format!(
            "a prompt of 40 tokens and {} requested tokens do not fit the context of {limit}",
            usize::MAX
        ))
    );
    assert_eq!(
        refuse(&[], options()),
        invalid("the prompt has 0 tokens and 0 of them are cached, expected at least one to feed")
    );
    let vocab = tiny_config().vocab_size;
    assert_eq!(
        refuse(&[5, vocab as u32], options()),
        invalid(&format!("the prompt has token {vocab}, outside the vocabulary of {vocab}"))
    );
    assert_eq!(
        refuse(&[5], options().max_tokens(0)),
        invalid("max_tokens is 0, expected at least 1")
    );
    assert_eq!(
        refuse(&[5], options().prefill_chunk(0)),
        invalid("prefill_chunk is 0, expected at least 1")
    );
    assert_eq!(
        refuse(&[5], options().logprobs(vocab + 1)),
        invalid(&format!("logprobs is {}, more than the vocabulary of {vocab}", vocab + 1))
    );
    assert_eq!(
        refuse(&[5], options().sampling(SamplingParams::default().top_p(7.0))),
        invalid("top_p is 7, expected more than 0 and at most 1")
    );
}

#[test]
fn cancelled_from_another_thread_within_one_step() {
    let small = Small::new(1);
    let mut generator = small.generator(&prompt(40), &GenerateOptions::default());
    let handle = generator.cancel_handle();
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let other = std::thread::spawn(move || {
        asked.recv().unwrap();
        handle.cancel();
        answer.send(()).unwrap();
    });
    for step in 0.. {
        if step == 5 {
            ask.send(()).unwrap();
            answered.recv().unwrap();
        }
        match generator.next() {
            Some(token) => assert!(token.is_ok() && step < 5),
            None => break,
        }
    }
    other.join().unwrap();
    assert_eq!(generator.usage().completion_tokens, 5);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Cancelled));
    assert!(generator.next().is_none());
}

#[test]
fn cancelled_during_the_prompt_within_one_chunk() {
    let small = Small::new(1);
    let options = GenerateOptions::default().prefill_chunk(1);
    let mut generator = small.generator(&prompt(4000), &options);
    let handle = generator.cancel_handle();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        handle.cancel();
    });
    assert!(generator.next().is_none());
    other.join().unwrap();
    assert_eq!(generator.finish_reason(), Some(FinishReason::Cancelled));
    assert!(generator.sequence().len() < 4000, "the whole prompt was fed");
    // The sequence is whole: what is cached can be gone on from.
    let cached = generator.sequence().len();
    let prompt = &prompt(4000)[..cached + 3];
    let options = GenerateOptions::default().sampling(SamplingParams::greedy()).max_tokens(1);
    let sequence = generator.into_sequence();
    let mut resumed =
        Generator::new(&small.model, sequence, prompt, StopTokens::default(), &options).unwrap();
    let token = resumed.next().unwrap().unwrap().id;
    assert_eq!(small.ids(prompt, &options), [token]);
    assert_eq!(resumed.usage().cached_tokens, cached);
}

#[test]
fn log_probabilities_are_of_the_unmodified_logits() {
    let small = Small::new(1);
    let options = GenerateOptions::default().logprobs(3).max_tokens(4);
    let plain = SamplingParams::greedy();
    let first = |sampling: SamplingParams| -> GeneratedToken {
        let options = options.clone().sampling(sampling);
        small.generator(&prompt(40), &options).next().unwrap().unwrap()
    };
    let best = first(plain.clone());
    let logprobs = best.logprobs.clone().unwrap();
    assert_eq!(logprobs.top.len(), 3);
    assert_eq!((logprobs.top[0].id, logprobs.top[0].logprob), (best.id, logprobs.logprob));
    // A bias chooses another token; the numbers stay the model's.
    let forced = first(plain.logit_bias(17, 1e6).repetition_penalty(2.0));
    assert_eq!(forced.id, 17);
    assert_eq!(forced.logprobs.unwrap().top, logprobs.top);
    let without = small.generator(&prompt(40), &GenerateOptions::default()).next().unwrap();
    assert_eq!(without.unwrap().logprobs, None);
}

/// A petabyte: less than 64 bits can address, more than any system gives.
#[test]
fn a_cache_that_no_system_has_room_for_is_an_error() {
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: u32::MAX as usize - 1, scales: None };
    let error = KvCache::new(&ModelConfig::gpt_oss_20b(), &pool, &Device::Cpu).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        error.to_string(),
        "a key-value cache of 4294967294 pages of 262144 bytes cannot be addressed"
    );
}

#[test]
fn a_full_cache_is_an_error_and_ends_the_generation() {
    let config = tiny_config();
    let small = Small::new(1);
    let layers = config.num_hidden_layers();
    let pool = KvCacheConfig { dtype: KvDtype::Bf16, pages: 2 * layers, scales: None };
    let cache = KvCache::new(&config, &pool, &Device::Cpu).unwrap();
    let mut generator = Generator::new(
        &small.model,
        cache.sequence(),
        &prompt(126),
        StopTokens::default(),
        &GenerateOptions::default(),
    )
    .unwrap();
    let results: Vec<_> = generator.by_ref().take(500).collect();
    let error = results.last().unwrap().as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull, "{error}");
    assert_eq!(generator.finish_reason(), None);
    assert!(generator.next().is_none());
    drop(generator);
    assert_eq!(cache.free_pages(), 2 * layers);
}

#[test]
fn data_types_survive_json() {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
        value: T,
    ) {
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    }
    let sampling = SamplingParams::default()
        .temperature(0.3)
        .top_k(4)
        .top_p(0.5)
        .min_p(0.01)
        .repetition_penalty(1.5)
        .presence_penalty(0.5)
        .frequency_penalty(-0.5)
        .logit_bias(7, -1e9)
        .seed(u64::MAX);
    same(SamplingParams::default());
    same(sampling.clone());
    same(GenerateOptions::default());
    same(
        GenerateOptions::default()
            .sampling(sampling)
            .max_tokens(5)
            .logprobs(2)
            .stop_tokens([1, 2])
            .context(99)
            .prefill_chunk(3),
    );
    same(GenerationConfig::parse(r#"{"eos_token_id":[1,2],"temperature":0.5}"#).unwrap());
    same([FinishReason::Stop, FinishReason::ToolCalls, FinishReason::Length].to_vec());
    same(FinishReason::Cancelled);
    same(FinishReason::StopSequence("END".into()));
    let (mut usage, mut timings) = (Usage::default(), Timings::default());
    (usage.prompt_tokens, usage.reasoning_tokens) = (5, 2);
    timings.decode = Duration::from_nanos(1_234_567_891);
    same(usage);
    same(timings);
    same(TokenLogprobs::new(&[0.1, 0.7, 0.3], 1, 2));
    assert_eq!(
        serde_json::to_string(&SamplingParams::greedy().logit_bias(3, 1.5)).unwrap(),
        r#"{"temperature":0.0,"logit_bias":{"3":1.5}}"#
    );
}

#[test]
fn types_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Generator<'_>>();
    shared::<SamplingParams>();
    shared::<gpt_oss_puzzle::generation::CancelHandle>();
    fn sent<T: Send>() {}
    sent::<Sampler>();
}
