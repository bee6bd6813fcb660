//! [`YarnRope`]: rotary frequencies stretched by YaRN (Peng et al. 2023, arXiv 2309.00071).
//!
//! Angles are computed in f64 and rounded once: at position 131,072 an f32 angle is already off by
//! thousandths of a radian.

use crate::{Result, RopeConfig};
use candle_core::{Device, Tensor};
use std::f64::consts::TAU;

/// Angle per position of each of the `D/2` rotated pairs, and the factor on cosine and sine.
pub(super) struct YarnRope {
    inv_freq: Vec<f64>, // D/2
    attention_factor: f64,
}

impl YarnRope {
    /// Pair i turns by `θ^(−2i/D)` per position where that is fast (many turns over the original
    /// context), by the same over `factor` where it is slow, and by a blend between.
    pub(super) fn new(config: &RopeConfig, head_dim: usize) -> YarnRope {
        let half = head_dim / 2;
        let context = config.original_max_position_embeddings as f64;
        // The (fractional) pair that makes `turns` turns over the original context.
        let pair =
            |turns: f64| half as f64 * (context / (turns * TAU)).ln() / config.rope_theta.ln();
        let (mut low, mut high) = (pair(config.beta_fast), pair(config.beta_slow));
        if config.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        low = low.max(0.0);
        high = high.min(head_dim as f64 - 1.0);
        if low == high {
            high += 0.001; // as transformers does, against a ramp of no width
        }
        let inv_freq = (0..half).map(|i| {
            let freq = config.rope_theta.powf(-2.0 * i as f64 / head_dim as f64);
            let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            slow * freq / config.factor + (1.0 - slow) * freq
        });
        YarnRope { inv_freq: inv_freq.collect(), attention_factor: config.attention_factor }
    }

    /// Cosine and sine of every pair at every position, `[T, D/2]` each.
    pub(super) fn cos_sin(&self, positions: &[u32], device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (positions.len(), self.inv_freq.len());
        let table = |f: fn(f64) -> f64| {
            let row = |&p: &u32| {
                self.inv_freq
                    .iter()
                    .map(move |w| (f(f64::from(p) * w) * self.attention_factor) as f32)
            };
            Tensor::from_iter(positions.iter().flat_map(row), device)?.reshape(shape)
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    /// Values published for the 20b shape (transformers 5.23 `_compute_yarn_parameters`).
    #[test]
    fn inverse_frequencies_follow_factor_and_truncate() {
        let cases = [
            (
                32.0,
                false,
                [0.0317056962, 0.00679495949, 4.56483919e-4, 3.83088124e-5, 3.02351143e-7],
            ),
            (
                32.0,
                true,
                [0.0316207523, 0.00701571391, 5.80947502e-4, 3.83088124e-5, 3.02351143e-7],
            ),
            (
                56.0,
                false,
                [0.0316599787, 0.00673054566, 4.27099058e-4, 2.18907499e-5, 1.72772082e-7],
            ),
            (
                56.0,
                true,
                [0.0315738604, 0.00695435198, 5.53283335e-4, 2.18907499e-5, 1.72772082e-7],
            ),
        ];
        for (factor, truncate, want) in cases {
            let config = RopeConfig { factor, truncate, ..ModelConfig::gpt_oss_20b().rope };
            let rope = YarnRope::new(&config, 64);
            for (i, want) in [9, 12, 16, 18, 31].into_iter().zip(want) {
                let got: f64 = rope.inv_freq[i];
                let err = (got - want).abs();
                assert!(
                    err <= 1e-6 * want,
                    "factor {factor} truncate {truncate}: [{i}] {got} {want}"
                );
            }
        }
    }

    #[test]
    fn no_scaling_leaves_the_frequencies_alone() {
        let config =
            RopeConfig { factor: 1.0, attention_factor: 1.0, ..ModelConfig::gpt_oss_20b().rope };
        let rope = YarnRope::new(&config, 64);
        for (i, got) in rope.inv_freq.iter().enumerate() {
            let want = 150_000f64.powf(-(i as f64) / 32.0);
            assert!((got - want).abs() <= 1e-15, "[{i}] {got} {want}");
        }
    }
}
