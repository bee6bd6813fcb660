//! Sampling: which tokens may be drawn, and which is.

use crate::common::Rng;
use crate::device::{Gpu, device};
use gpt_oss_puzzle::generation::{Sampler, SamplingParams};
use gpt_oss_puzzle::kernels::cuda::{NOT_FINITE, NOTHING_LEFT};
use gpt_oss_puzzle::kernels::{Draw, reference};

/// A draw with lists of its own.
#[derive(Clone, Debug)]
struct Case {
    draw: Draw<'static>,
    seen: Vec<(u32, u32)>,
    bias: Vec<(u32, f32)>,
    allowed: Option<Vec<u32>>,
}

impl Case {
    fn draw(&self) -> Draw<'_> {
        Draw { seen: &self.seen, bias: &self.bias, allowed: self.allowed.as_deref(), ..self.draw }
    }

    /// Every step with a chance of one half, so that all of them meet.
    fn random(rng: &mut Rng, vocab: usize) -> Case {
        let mut draw =
            Draw { uniform: (rng.bits() >> 11) as f64 / (1u64 << 53) as f64, ..Draw::default() };
        let mut maybe = || rng.below(2) == 0;
        let [top_k, top_p, min_p, penalties, bias, mask, greedy] = std::array::from_fn(|_| maybe());
        draw.temperature = [0.2, 0.7, 1.0, 1.9][rng.below(4)];
        if greedy && rng.below(2) == 0 {
            draw.temperature = 0.0;
        }
        if top_k {
            draw.top_k = [1, 2, 7, 40, vocab][rng.below(5)];
        }
        if top_p {
            draw.top_p = [1e-9, 0.3, 0.9, 0.999][rng.below(4)];
        }
        if min_p {
            draw.min_p = [1.0, 0.5, 0.05][rng.below(3)];
        }
        let ids = |rng: &mut Rng, n: usize| {
            let mut ids: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let (mut seen, mut biases) = (Vec::new(), Vec::new());
        if penalties {
            draw.repetition_penalty = [1.0, 1.3, 0.8][rng.below(3)];
            draw.presence_penalty = [0.0, 0.7, -1.1][rng.below(3)];
            draw.frequency_penalty = [0.0, 0.3, 1.9][rng.below(3)];
            seen = ids(rng, vocab / 3).iter().map(|&id| (id, rng.below(4) as u32)).collect();
        }
        if bias {
            biases =
                ids(rng, 20).iter().map(|&id| (id, [5.0, -1e9, 0.1, 3e38][rng.below(4)])).collect();
        }
        // Some masks end before the vocabulary does, some behind it.
        let words = (vocab.div_ceil(32) + rng.below(4)).saturating_sub(2).max(1);
        let allowed = mask.then(|| (0..words).map(|_| rng.bits() as u32 | 1).collect());
        Case { draw, seen, bias: biases, allowed }
    }

    /// The same for the sampler of the CPU, whose own choice is not of interest.
    fn params(&self) -> SamplingParams {
        let mut params = SamplingParams::default()
            .temperature(self.draw.temperature)
            .top_k(self.draw.top_k)
            .top_p(self.draw.top_p)
            .min_p(self.draw.min_p)
            .repetition_penalty(f64::from(self.draw.repetition_penalty))
            .presence_penalty(f64::from(self.draw.presence_penalty))
            .frequency_penalty(f64::from(self.draw.frequency_penalty));
        for &(id, bias) in &self.bias {
            params = params.logit_bias(id, bias);
        }
        params
    }
}

/// Logits with many equals, as quantised models have them, or with hardly any.
fn logits(rng: &mut Rng, vocab: usize) -> Vec<f32> {
    let step = [0.0, 0.5, 0.01][rng.below(3)];
    let round = |x: f32| if step > 0.0 { (x / step).round() * step } else { x };
    rng.floats(vocab).iter().map(|x| round(x.powi(3) * 12.0)).collect()
}

fn run(gpu: &Gpu, logits: &[f32], draws: &[Draw<'_>]) -> (Vec<u32>, Vec<f32>) {
    let logits = gpu.input(logits, 1);
    let mut logprobs = Vec::new();
    let tokens = gpu.guarded(draws.len(), 1, |tokens| {
        logprobs = gpu.guarded(draws.len(), 1, |logprobs| {
            gpu.cuda.sample(tokens, logprobs, &logits.view(), draws)
        });
        Ok(())
    });
    (tokens, logprobs)
}

/// The token the reference draws, unless rounding may decide between it and a neighbour.
fn assert_drawn(token: u32, logprob: f32, logits: &[f32], draw: &Draw<'_>, what: &str) {
    let want = reference::sample(logits, draw).expect("a token");
    let Some(at) = want.candidates.iter().position(|c| c.0 == token) else {
        panic!(
            "{what}: {token} is none of {} candidates, want {}",
            want.candidates.len(),
            want.token
        )
    };
    let before: f64 = want.candidates[..at].iter().map(|c| c.1).sum();
    let after = before + want.candidates[at].1;
    let within = (before - 1e-11..=after + 1e-11).contains(&draw.uniform);
    assert!(within, "{what}: {token} is drawn by {before}..{after}, not {}", draw.uniform);
    if token == want.token {
        let error = (f64::from(logprob) - want.logprob).abs();
        assert!(
            error <= 1e-6 * (1.0 + want.logprob.abs()),
            "{what}: {logprob}, want {}",
            want.logprob
        );
    }
}

#[test]
fn the_reference_has_the_candidates_of_the_sampler() {
    let mut rng = Rng(1);
    for i in 0..400 {
        let vocab = [1, 2, 5, 33, 300, 2500][rng.below(6)];
        let logits = logits(&mut rng, vocab);
        let case = Case { allowed: None, ..Case::random(&mut rng, vocab) };
        // The prompt is what was seen and not drawn; answers cannot be handed in, so counts are 0.
        let seen: Vec<(u32, u32)> = case.seen.iter().map(|s| (s.0, 0)).collect();
        let prompt: Vec<u32> = seen.iter().map(|s| s.0).collect();
        let want = Sampler::new(case.params(), &prompt, vocab).unwrap().candidates(&logits);
        let got = reference::sample(&logits, &Draw { seen: &seen, ..case.draw() }).unwrap();
        let mut ids: Vec<u32> = got.candidates.iter().map(|c| c.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, want, "{i}: {case:?}");
        let total: f64 = got.candidates.iter().map(|c| c.1).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
    }
}

#[test]
fn a_draw_is_the_references() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(2);
    // Around the ends of pieces and of parts of a row.
    for vocab in [1, 2, 31, 2047, 2048, 2049, 5003, 8191, 8192, 8193] {
        let cases: Vec<Case> = (0..13).map(|_| Case::random(&mut rng, vocab)).collect();
        let draws: Vec<Draw<'_>> = cases.iter().map(Case::draw).collect();
        let all: Vec<f32> = (0..13).flat_map(|_| logits(&mut rng, vocab)).collect();
        let (tokens, logprobs) = run(gpu, &all, &draws);
        for (row, logits) in all.chunks(vocab).enumerate() {
            let what = format!("vocabulary {vocab}, {:?}", cases[row].draw);
            assert_drawn(tokens[row], logprobs[row], logits, &draws[row], &what);
        }
        let (alone, logprob) = run(gpu, &all[11 * vocab..12 * vocab], &draws[11..12]);
        assert_eq!((alone[0], logprob[0].to_bits()), (tokens[11], logprobs[11].to_bits()), "alone");
        assert_eq!(run(gpu, &all, &draws).0, tokens, "again");
    }
}

/// More rows than are worked on together, no two of them alike.
#[test]
fn a_row_does_not_depend_on_others() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab, rows) = (Rng(5), 9001, 67);
    let cases: Vec<Case> = (0..rows).map(|_| Case::random(&mut rng, vocab)).collect();
    let draws: Vec<Draw<'_>> = cases.iter().map(Case::draw).collect();
    let all: Vec<f32> = (0..rows).flat_map(|_| logits(&mut rng, vocab)).collect();
    let (tokens, logprobs) = run(gpu, &all, &draws);
    for (row, logits) in all.chunks(vocab).enumerate() {
        let what = format!("{row}: {:?}", cases[row].draw);
        assert_drawn(tokens[row], logprobs[row], logits, &draws[row], &what);
        let (token, logprob) = run(gpu, logits, &draws[row..row + 1]);
        let together = (tokens[row], logprobs[row].to_bits());
        assert_eq!((token[0], logprob[0].to_bits()), together, "{what}");
    }
}

/// The last number that draws a token is the same, to the bit, alone and in company: so are all sums. And it
/// is the reference's.
#[test]
fn sums_do_not_depend_on_others() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(10);
    for vocab in [4, 9001] {
        let logits: Vec<f32> = rng.floats(vocab).iter().map(|x| x * 4.0).collect();
        let draw = |bits| Draw { uniform: f64::from_bits(bits), top_p: 0.999, ..Draw::default() };
        let (mut low, mut high) = (0.5f64.to_bits(), 0.99f64.to_bits());
        let first = run(gpu, &logits, &[draw(low)]).0[0];
        while high - low > 1 {
            let step = (high - low).div_ceil(8);
            let bits: Vec<u64> = (1..8).map(|i| low + i * step).take_while(|b| *b < high).collect();
            let draws: Vec<Draw<'_>> = bits.iter().map(|&bits| draw(bits)).collect();
            let tokens = run(gpu, &logits.repeat(draws.len()), &draws).0;
            for (&bits, token) in bits.iter().zip(tokens).rev() {
                match token == first {
                    true => low = low.max(bits),
                    false => high = bits,
                }
            }
        }
        assert_eq!(run(gpu, &logits, &[draw(low)]).0[0], first);
        assert_ne!(run(gpu, &logits, &[draw(high)]).0[0], first);
        let candidates = reference::sample(&logits, &draw(low)).unwrap().candidates;
        let at = candidates.iter().position(|c| c.0 == first).unwrap();
        let want: f64 = candidates[..=at].iter().map(|c| c.1).sum();
        let error = (f64::from_bits(high) - want).abs();
        assert!(error < 1e-12, "vocabulary {vocab}: off by {error}");
    }
}

/// A penalty is rounded after every operation: of two scores that are then equal the first is drawn, which
/// a fused operation would have made less.
#[test]
fn penalties_are_rounded_as_on_the_cpu() {
    let Some(gpu) = device() else { return };
    let (presence, frequency) = (0.7f32, 0.3f32);
    let mut cases = 0;
    for count in 2..300u32 {
        let penalty = presence + frequency * count as f32;
        if frequency.mul_add(count as f32, presence) <= penalty {
            continue;
        }
        let draw = Draw {
            temperature: 0.0,
            presence_penalty: presence,
            frequency_penalty: frequency,
            seen: &[(0, count)],
            ..Draw::default()
        };
        assert_eq!(run(gpu, &[0.0, -penalty], &[draw]).0, [0], "{count} times");
        cases += 1;
    }
    assert!(cases > 5, "{cases} cases");
}

/// One draw from the middle of each candidate's share gives the candidates, all of them and in order.
#[test]
fn draws_from_every_share_are_the_candidates() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(3);
    for round in 0..30 {
        let vocab = if round % 10 == 9 { 2100 } else { 7 };
        // Of either sign, and negative throughout: penalties treat them differently.
        let shift = [0.0, 13.0][round % 2];
        let logits: Vec<f32> = logits(&mut rng, vocab).iter().map(|l| l / 4.0 - shift).collect();
        let mut case = Case::random(&mut rng, vocab);
        (case.draw.temperature, case.draw.top_k) = (1.5, 25);
        let want = reference::sample(&logits, &case.draw()).unwrap().candidates;
        let mut running = 0.0;
        let middles = want.iter().filter(|c| c.1 > 1e-9).map(|c| {
            running += c.1;
            running - c.1 / 2.0
        });
        let draws: Vec<Draw<'_>> = middles.map(|uniform| Draw { uniform, ..case.draw() }).collect();
        let (tokens, _) = run(gpu, &logits.repeat(draws.len()), &draws);
        let ids: Vec<u32> = want.iter().take(draws.len()).map(|c| c.0).collect();
        assert_eq!(tokens, ids, "{case:?}");
    }
}

#[test]
fn a_full_vocabulary() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab) = (Rng(4), 201_088);
    let cases: Vec<Case> = (0..4)
        .map(|i| {
            let mut case = Case::random(&mut rng, vocab);
            (case.draw.temperature, case.draw.top_p) =
                [(1.0, 1.0), (1.0, 0.9), (0.6, 0.95), (0.0, 1.0)][i];
            (case.draw.top_k, case.draw.min_p) = [(0, 0.0), (0, 0.0), (50, 0.01), (0, 0.0)][i];
            case
        })
        .collect();
    let draws: Vec<Draw<'_>> = cases.iter().map(Case::draw).collect();
    let all: Vec<f32> = (0..draws.len()).flat_map(|_| logits(&mut rng, vocab)).collect();
    let (tokens, logprobs) = run(gpu, &all, &draws);
    for (row, logits) in all.chunks(vocab).enumerate() {
        assert_drawn(
            tokens[row],
            logprobs[row],
            logits,
            &draws[row],
            &format!("{:?}", cases[row].draw),
        );
    }
}

/// Half of the vocabulary and more is in the nucleus, and what decides is in the midst of it.
#[test]
fn wide_nuclei_of_a_full_vocabulary() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab) = (Rng(6), 201_088);
    let logits: Vec<f32> = rng.floats(vocab).iter().map(|x| x * 3.0).collect();
    let all = Draw { temperature: 1.5, uniform: 0.97, ..Draw::default() };
    let draws = [
        Draw { uniform: 0.5, ..all },
        Draw { top_p: 0.9999, ..all },
        Draw { top_k: 150_000, top_p: 0.95, min_p: 0.05, ..all },
    ];
    let (tokens, logprobs) = run(gpu, &logits.repeat(draws.len()), &draws);
    for (row, draw) in draws.iter().enumerate() {
        assert_drawn(tokens[row], logprobs[row], &logits, draw, &format!("{draw:?}"));
    }
}

#[test]
fn a_full_vocabulary_of_equals() {
    let Some(gpu) = device() else { return };
    let vocab = 201_088;
    let draw = Draw { temperature: 0.3, uniform: 0.7, ..Draw::default() };
    let half = Draw { top_k: 100_000, top_p: 0.5, min_p: 1.0, ..draw };
    let draws = [draw, half, Draw { temperature: 0.0, ..draw }];
    let (tokens, logprobs) = run(gpu, &vec![-2.5; draws.len() * vocab], &draws);
    assert_eq!(tokens, [(0.7 * 201_088.0) as u32, 35_000, 0]);
    assert!(logprobs.iter().all(|l| (l + 201_088f32.ln()).abs() < 1e-5), "{logprobs:?}");
}

/// More tokens in one bin than are collected, all with scores of their own or hardly any.
#[test]
fn cuts_through_a_crowd() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab) = (Rng(7), 20_011);
    for width in [1e-3, 1e-6] {
        let mut logits: Vec<f32> = rng.floats(vocab).iter().map(|x| x * width - 1.0).collect();
        (logits[77], logits[78]) = (0.0, -60.0);
        let draw = Draw { uniform: 0.6, ..Draw::default() };
        let draws = [
            draw,
            Draw { top_k: 9_000, ..draw },
            Draw { top_p: 0.3, ..draw },
            // Half of the crowd, but for a few.
            Draw { min_p: (-1.0f64 + f64::from(width) / 16.0).exp(), ..draw },
            Draw { top_k: 15_000, top_p: 0.8, min_p: (-1.0f64).exp(), ..draw },
        ];
        let (tokens, logprobs) = run(gpu, &logits.repeat(draws.len()), &draws);
        for (row, draw) in draws.iter().enumerate() {
            assert_drawn(tokens[row], logprobs[row], &logits, draw, &format!("{width} {draw:?}"));
        }
    }
}

#[test]
fn temperatures_from_one_end_to_the_other() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab) = (Rng(8), 90);
    let temperatures = [1e-310, 1e-40, 1e-3, 0.02, 1e2, 1e6, 1e20, 1e39, 1e300];
    let uniforms = [0.0, 0.3, 0.99];
    for (scale, top_k) in [(1.0, 0), (1e38, 0), (1.0, 60), (1e-30, 5)] {
        let logits: Vec<f32> = rng.floats(vocab).iter().map(|x| x * scale).collect();
        let draw = |temperature| {
            let draw = Draw { temperature, top_k, ..Draw::default() };
            uniforms.map(|uniform| Draw { uniform, ..draw })
        };
        let draws: Vec<Draw<'_>> = temperatures.into_iter().flat_map(draw).collect();
        let (tokens, logprobs) = run(gpu, &logits.repeat(draws.len()), &draws);
        for (row, draw) in draws.iter().enumerate() {
            assert_drawn(tokens[row], logprobs[row], &logits, draw, &format!("{scale} {draw:?}"));
        }
    }
}

/// Numbers from 0 to 1 at equal distances draw every token as often as it is probable.
#[test]
fn a_sweep_of_the_uniform() {
    let Some(gpu) = device() else { return };
    let (mut rng, vocab, rows) = (Rng(9), 12, 128);
    let logits = logits(&mut rng, vocab);
    let draw = |row| Draw { uniform: f64::from(row) / 128.0, top_p: 0.98, ..Draw::default() };
    let draws: Vec<Draw<'_>> = (0..rows).map(draw).collect();
    let (tokens, _) = run(gpu, &logits.repeat(draws.len()), &draws);
    let want: Vec<u32> =
        draws.iter().map(|draw| reference::sample(&logits, draw).unwrap().token).collect();
    assert_eq!(tokens, want);
}

#[test]
fn the_ends_of_the_uniform_draw_the_ends_of_the_candidates() {
    let Some(gpu) = device() else { return };
    // Equal weights have exact sums: 0.25 is the first that does not draw the first of four.
    let logits = [1.0, 1.0, 1.0, 1.0];
    let draw = |uniform| Draw { uniform, ..Draw::default() };
    let below = |x: f64| x.next_down();
    let uniforms = [0.0, below(0.25), 0.25, below(0.5), 0.5, 0.75, below(1.0)];
    let (tokens, logprobs) = run(gpu, &logits.repeat(7), &uniforms.map(draw));
    assert_eq!(tokens, [0, 0, 1, 1, 2, 3, 3]);
    assert_eq!(logprobs, [0.25f32.ln(); 7]);
    // The nucleus of half of them is two, of a little more three.
    let draw = |top_p| Draw { uniform: 0.999, top_p, ..Draw::default() };
    assert_eq!(run(gpu, &logits.repeat(3), &[0.25, 0.5, 0.500001].map(draw)).0, [0, 1, 2]);
    // Zeros of either sign are equal.
    let greedy = Draw { temperature: 0.0, ..Draw::default() };
    assert_eq!(run(gpu, &[-1.0, -0.0, 0.0], &[greedy]).0, [1]);
    assert_eq!(run(gpu, &[-1.0, -0.0, 0.0], &[Draw { top_k: 1, ..Draw::default() }]).0, [1]);
}

#[test]
fn no_token_is_drawn_from_what_is_none() {
    let Some(gpu) = device() else { return };
    let mask = [0b1001_1111];
    let draws = |temperature| {
        let draw = Draw { temperature, ..Draw::default() };
        [draw, Draw { allowed: Some(&mask), ..draw }, Draw { allowed: Some(&[]), ..draw }]
    };
    for temperature in [0.0, 1.0] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = [0.5; 21];
            // A token that the mask excludes, too.
            (logits[3], logits[7 + 5]) = (bad, bad);
            let (tokens, logprobs) = run(gpu, &logits, &draws(temperature));
            assert_eq!(tokens, [NOT_FINITE, NOT_FINITE, NOTHING_LEFT]);
            assert!(logprobs.iter().all(|l| l.is_nan()));
        }
    }
    assert!(run(gpu, &[], &[]).0.is_empty());
}
