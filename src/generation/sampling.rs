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

pub(super) use on_device::{DrawRow, draw_rows};

use super::TokenSet;
use super::ranking::{argmax, key, largest, mass, nucleus, weight};
use crate::model::{Device, Tensor};
use crate::{Error, ErrorKind, Result};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// How the next token is drawn; every field left out takes the checkpoint's default.
///
/// ```
/// use gpt_oss_puzzle::generation::SamplingParams;
///
/// let params = SamplingParams::default().temperature(0.7).top_p(0.9).seed(42);
/// assert_eq!(serde_json::to_string(&params).unwrap(), r#"{"temperature":0.7,"top_p":0.9,"seed":42}"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy. Without any default, 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Keeps this many of the largest logits; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens that together reach this probability, in (0, 1]; 1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Keeps tokens at least this times as probable as the most probable, in [0, 1]; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Above 1 discourages tokens of the prompt and the answer; positive, 1 changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Subtracted from the logit of every token of the answer, in [-2, 2].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Subtracted from a token's logit for each time the answer has it, in [-2, 2].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Added to the logits of these token ids; finite. -1e9 excludes a token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws; without one a fresh seed is taken, see [`Sampler::seed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingParams {
    /// Always the most probable token.
    pub fn greedy() -> SamplingParams {
        SamplingParams::default().temperature(0.0)
    }

    /// Sets [`SamplingParams::temperature`].
    pub fn temperature(self, temperature: f64) -> Self {
        Self { temperature: Some(temperature), ..self }
    }

    /// Sets [`SamplingParams::top_k`].
    pub fn top_k(self, top_k: usize) -> Self {
        Self { top_k: Some(top_k), ..self }
    }

    /// Sets [`SamplingParams::top_p`].
    pub fn top_p(self, top_p: f64) -> Self {
        Self { top_p: Some(top_p), ..self }
    }

    /// Sets [`SamplingParams::min_p`].
    pub fn min_p(self, min_p: f64) -> Self {
        Self { min_p: Some(min_p), ..self }
    }

    /// Sets [`SamplingParams::repetition_penalty`].
    pub fn repetition_penalty(self, penalty: f64) -> Self {
        Self { repetition_penalty: Some(penalty), ..self }
    }

    /// Sets [`SamplingParams::presence_penalty`].
    pub fn presence_penalty(self, penalty: f64) -> Self {
        Self { presence_penalty: Some(penalty), ..self }
    }

    /// Sets [`SamplingParams::frequency_penalty`].
    pub fn frequency_penalty(self, penalty: f64) -> Self {
        Self { frequency_penalty: Some(penalty), ..self }
    }

    /// Adds `bias` to the logit of token `id`.
    pub fn logit_bias(mut self, id: u32, bias: f32) -> Self {
        self.logit_bias.insert(id, bias);
        self
    }

    /// Sets [`SamplingParams::seed`].
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// These parameters, with what they leave open taken from `defaults`.
    pub fn or(self, defaults: &SamplingParams) -> SamplingParams {
        let logit_bias = match self.logit_bias.is_empty() {
            true => defaults.logit_bias.clone(),
            false => self.logit_bias,
        };
        SamplingParams {
            temperature: self.temperature.or(defaults.temperature),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.or(defaults.top_p),
            min_p: self.min_p.or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty),
            logit_bias,
            seed: self.seed.or(defaults.seed),
        }
    }

    /// Checks every value against its range, for a vocabulary of `vocab_size`.
    ///
    /// # Errors
    /// `InvalidRequest` names the field, its value and the range.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let check = |field: &str, value: Option<f64>, ok: fn(f64) -> bool, range: &str| match value
        {
            Some(value) if !ok(value) => {
                Err(Error::invalid_request(format!("{field} is {value}, expected {range}")))
            }
            _ => Ok(()),
        };
        let finite = |v: f64| v.is_finite() && v >= 0.0;
        check("temperature", self.temperature, finite, "a number of at least 0")?;
        check("top_p", self.top_p, |v| v > 0.0 && v <= 1.0, "more than 0 and at most 1")?;
        check("min_p", self.min_p, |v| (0.0..=1.0).contains(&v), "0 to 1")?;
        // As the f32 it is used as: neither 0 nor infinity.
        let positive = |v: f64| (v as f32).is_finite() && v as f32 > 0.0;
        check("repetition_penalty", self.repetition_penalty, positive, "a positive number")?;
        let penalty = |v: f64| (-2.0..=2.0).contains(&v);
        check("presence_penalty", self.presence_penalty, penalty, "-2 to 2")?;
        check("frequency_penalty", self.frequency_penalty, penalty, "-2 to 2")?;
        for (&id, &bias) in &self.logit_bias {
            if id as usize >= vocab_size {
                return Err(Error::invalid_request(format!(
                    "logit_bias names token {id}, outside the vocabulary of {vocab_size}"
                )));
            }
            if !bias.is_finite() {
                return Err(Error::invalid_request(format!(
                    "logit_bias of token {id} is {bias}, expected a finite number"
                )));
            }
        }
        Ok(())
    }
}

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
