//! How likely tokens were: log-softmax of the model's logits.
//!
//! Always of the logits as the model gave them, before penalties, bias and temperature: the numbers
//! say what the model thinks, not what the sampling parameters made of it.

use super::ranking::{id_of, key};
use serde::{Deserialize, Serialize};

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability; at most 0.
    pub logprob: f32,
}

/// The log-probability of a generated token, with the most likely tokens of its position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability; at most 0.
    pub logprob: f32,
    /// The most likely tokens, most likely first; as many as were asked for.
    pub top: Vec<Logprob>,
}

impl TokenLogprobs {
    /// Of token `id` under `logits` `[V]`, with the `top` most likely tokens.
    ///
    /// ```
    /// use gpt_oss_puzzle::generation::TokenLogprobs;
    ///
    /// let of_one = TokenLogprobs::new(&[0.0, 0.0, 0.0, 0.0], 2, 1);
    /// assert_eq!(of_one.logprob, 0.25f32.ln());
    /// assert_eq!(of_one.top[0].id, 0);
    /// ```
    ///
    /// # Panics
    /// When `id` is outside `logits`.
    pub fn new(logits: &[f32], id: u32, top: usize) -> TokenLogprobs {
        let total = log_sum_exp(logits);
        let logprob = |id: u32| (f64::from(logits[id as usize]) - total) as f32;
        TokenLogprobs {
            logprob: logprob(id),
            top: largest(logits, top)
                .into_iter()
                .map(|id| Logprob { id, logprob: logprob(id) })
                .collect(),
        }
    }
}

/// `ln Σ exp(logits)`, stable, in f64; a token's log-probability is its logit minus this.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}

/// The ids of the `count` largest logits, largest first, the lower id first among equals.
fn largest(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let mut keys: Vec<u64> = (0..).zip(logits).map(|(id, &logit)| key(logit, id)).collect();
    if count < keys.len() {
        keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        keys.truncate(count);
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.into_iter().map(id_of).collect()
}
