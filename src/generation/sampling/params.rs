//! [`SamplingParams`]: how tokens are drawn, as plain data.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Seed of the draws; without one a fresh seed is taken, see [`super::Sampler::seed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingParams {
    /// The names of its fields, which requests to OpenAI's API have too; some are additions of other servers.
    pub const FIELDS: [&str; 9] = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
    ];

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
