//! From logits to a token.
//!
//! The steps, in the order of Hugging Face's processors and warpers:
//!
//! 1. repetition penalty over prompt and answer (Keskar et al. 2019, arXiv 1909.05858): a positive
//!    logit is divided by it, a negative one multiplied;
//! 2. presence and frequency penalties over the answer alone (OpenAI's):
//!    `logit -= presence + frequency · count`;
//! 3. logit bias, added;
//! 4. temperature 0 takes the largest logit (the lower id among equals) and ends here; any other
//!    temperature divides;
//! 5. top-k: the k largest, the lower id first among equals;
//! 6. top-p (Holtzman et al. 2019, arXiv 1904.09751): of those, the fewest whose probabilities reach
//!    p, largest first;
//! 7. min-p (Nguyen et al. 2024, arXiv 2407.01082): of those, the ones at least `min_p` times as
//!    probable as the most probable;
//! 8. one seeded draw from what is left.
//!
//! The vocabulary has 201,088 entries, so nothing here sorts it: steps 5 and 6 find their cut-off by
//! selection, in time linear in the vocabulary. The same logits, parameters and seed give the same
//! token; logits do not depend on the number of threads (see [`crate::kernels`]), so neither do tokens.

mod on_device;
mod params;

pub(super) use on_device::{DrawRow, draw_rows};
pub use params::SamplingParams;

use super::TokenSet;
use super::ranking::{argmax, key, largest, mass, nucleus, weight};
use crate::model::{Device, Tensor};
use crate::{Error, ErrorKind, Result};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Draws the tokens of one answer.
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    draw: LogitsProcessor,
    /// What a device was to draw a token by, until it has: a step that fails is made again.
    ahead: Option<f64>,
    /// Distinct tokens of prompt and answer, each with how often the answer has it.
    seen: BTreeMap<u32, u32>,
    scores: Vec<f32>,
    keys: Vec<u64>,
}

/// Candidates per draw. The draw sums probabilities in f32, which over a whole vocabulary would lose
/// the small ones; over this many it does not.
const GROUP: usize = 1024;

impl Sampler {
    /// A sampler for an answer to `prompt`, over logits of length `vocab_size`.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams, prompt: &[u32], vocab_size: usize) -> Result<Sampler> {
        params.validate(vocab_size)?;
        let seed = params.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Ok(Sampler {
            draw: LogitsProcessor::from_sampling(seed, Sampling::All { temperature: 1.0 }),
            ahead: None,
            seed,
            seen: prompt.iter().map(|&id| (id, 0)).collect(),
            params,
            scores: Vec::with_capacity(vocab_size),
            keys: Vec::new(),
        })
    }

    /// The seed in use: the one asked for, else one taken when the sampler was made.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Draws the next token of the answer from its logits `[V]`.
    ///
    /// # Errors
    /// `Numeric` when a logit is not finite, naming the first such token, or when there are none.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.sample_from(logits, None, &[])
    }

    /// The same among the tokens `allowed` (if there is a choice of them) and not `forbidden`, whatever
    /// their bias.
    pub(super) fn sample_from(
        &mut self,
        logits: &[f32],
        allowed: Option<&TokenSet>,
        forbidden: &[u32],
    ) -> Result<u32> {
        if logits.is_empty() {
            return Err(Error::new(ErrorKind::Numeric, "there are no logits to draw from"));
        }
        // First of all together: a search that may end early looks at one after another.
        if logits.iter().fold(false, |any, logit| any | !logit.is_finite())
            && let Some(id) = logits.iter().position(|l| !l.is_finite())
        {
            let message = format!("the logit of token {id} is {}, expected a number", logits[id]);
            return Err(Error::new(ErrorKind::Numeric, message));
        }
        let is_restricted = allowed.is_some() || !forbidden.is_empty();
        let is_changed =
            is_restricted || self.penalties().is_some() || !self.params.logit_bias.is_empty();
        let mut changed = std::mem::take(&mut self.scores);
        let scores: &[f32] = match is_changed {
            false => logits,
            true => {
                changed.clear();
                changed.extend_from_slice(logits);
                self.penalise(&mut changed);
                let is_out = |id| allowed.is_some_and(|allowed| !allowed.contains(id));
                let out = (0..).zip(&mut changed).filter(|(id, _)| is_out(*id));
                out.for_each(|(_, score)| *score = f32::NEG_INFINITY);
                forbidden.iter().for_each(|&id| changed[id as usize] = f32::NEG_INFINITY);
                &changed
            }
        };
        if is_restricted && largest(scores) == f32::NEG_INFINITY {
            return Err(Error::invalid_request("no token is both allowed and not forbidden"));
        }
        let id = match self.params.temperature.unwrap_or(1.0) {
            0.0 => argmax(scores),
            temperature => self.draw(scores, temperature)?,
        };
        self.scores = changed;
        self.note(id);
        Ok(id)
    }

    /// Takes a token of the answer that was not drawn here.
    pub(super) fn note(&mut self, id: u32) {
        *self.seen.entry(id).or_default() += 1;
    }

    /// The tokens that [`Sampler::sample`] would draw from, by ascending id.
    ///
    /// ```
    /// use gpt_oss_puzzle::generation::{Sampler, SamplingParams};
    ///
    /// let params = SamplingParams::default().top_k(3).min_p(0.4);
    /// let mut sampler = Sampler::new(params, &[], 4).unwrap();
    /// assert_eq!(sampler.candidates(&[1.0, 2.0, 0.5, 1.5]), [1, 3]);
    /// ```
    pub fn candidates(&mut self, logits: &[f32]) -> Vec<u32> {
        if logits.is_empty() {
            return Vec::new();
        }
        let mut scores = logits.to_vec();
        self.penalise(&mut scores);
        match self.params.temperature.unwrap_or(1.0) {
            0.0 => vec![argmax(&scores)],
            temperature => {
                let all = || (0..).take(scores.len()).collect();
                self.keep(&scores, temperature).unwrap_or_else(all)
            }
        }
    }

    /// Repetition, presence and frequency; `None` when none of them changes anything.
    fn penalties(&self) -> Option<[f32; 3]> {
        let params = &self.params;
        let penalties = [
            params.repetition_penalty.unwrap_or(1.0) as f32,
            params.presence_penalty.unwrap_or(0.0) as f32,
            params.frequency_penalty.unwrap_or(0.0) as f32,
        ];
        (penalties != [1.0, 0.0, 0.0]).then_some(penalties)
    }

    /// Steps 1 to 3.
    fn penalise(&self, scores: &mut [f32]) {
        if let Some([repetition, presence, frequency]) = self.penalties() {
            for (&id, &count) in &self.seen {
                let Some(score) = scores.get_mut(id as usize) else { continue };
                *score = if *score > 0.0 { *score / repetition } else { *score * repetition };
                if count > 0 {
                    *score -= presence + frequency * count as f32;
                }
            }
        }
        for (&id, &bias) in &self.params.logit_bias {
            if let Some(score) = scores.get_mut(id as usize) {
                *score += bias;
            }
        }
        // A penalty may push a finite logit past the largest float.
        for score in scores {
            *score = score.clamp(f32::MIN, f32::MAX);
        }
    }

    /// Steps 5 to 7: the ids that are left, ascending; `None` when all are.
    fn keep(&mut self, scores: &[f32], temperature: f64) -> Option<Vec<u32>> {
        let max = largest(scores);
        let mut cutoff = 0;
        let top_k = self.params.top_k.filter(|&k| k > 0 && k < scores.len());
        let top_p = self.params.top_p.filter(|&p| p < 1.0);
        if top_k.is_some() || top_p.is_some() {
            self.keys.clear();
            self.keys.extend((0..).zip(scores).map(|(id, &score)| key(score, id)));
            let mut keys = &mut self.keys[..];
            if let Some(k) = top_k {
                cutoff = *keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
                keys = &mut keys[..k];
            }
            if let Some(p) = top_p {
                cutoff = nucleus(keys, p, max, temperature);
            }
        }
        let min_p = self.params.min_p.filter(|min_p| *min_p > 0.0);
        let is_excluded = |score: f32| score == f32::NEG_INFINITY;
        if cutoff == 0
            && min_p.is_none()
            && !scores.iter().fold(false, |any, score| any | is_excluded(*score))
        {
            return None;
        }
        let is_likely = |score| min_p.is_none_or(|min_p| weight(score, max, temperature) >= min_p);
        let is_kept =
            |id, score| !is_excluded(score) && key(score, id) >= cutoff && is_likely(score);
        let kept = (0..).zip(scores).filter(|(id, score)| is_kept(*id, **score));
        Some(kept.map(|(id, _)| id).collect())
    }

    /// Steps 5 to 8. More candidates than [`GROUP`] are drawn in two steps: a group by its share of
    /// the probability, then a token of that group.
    fn draw(&mut self, scores: &[f32], temperature: f64) -> Result<u32> {
        let candidates = self.keep(scores, temperature);
        let kept: Vec<f32>;
        let scores = match &candidates {
            None => scores,
            Some(ids) => {
                kept = ids.iter().map(|id| scores[*id as usize]).collect();
                &kept
            }
        };
        let max = largest(scores);
        let mut first = 0;
        if scores.len() > GROUP {
            let shares =
                scores.chunks(GROUP).map(|s| mass(s, |score| score, max, temperature).ln() as f32);
            first = GROUP * self.draw_index(&shares.collect::<Vec<_>>())?;
        }
        let group = scores[first..].iter().take(GROUP);
        let weights = group.map(|score| (f64::from(score - max) / temperature) as f32);
        let index = first + self.draw_index(&weights.collect::<Vec<_>>())?;
        Ok(candidates.map_or(index as u32, |ids| ids[index]))
    }

    /// An index drawn in proportion to `exp(log_weights)`.
    fn draw_index(&mut self, log_weights: &[f32]) -> Result<usize> {
        let log_weights = Tensor::new(log_weights, &Device::Cpu)?;
        Ok(self.draw.sample(&log_weights)? as usize)
    }
}
