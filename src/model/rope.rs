//! [`YarnRope`]: rotary frequencies stretched by YaRN (Peng et al. 2023, arXiv 2309.00071).
//!
//! Angles are computed in f64 and rounded once: at position 131,072 an f32 angle is already off by
//! thousandths of a radian.

use crate::RopeConfig;
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
    pub(super) fn cos_sin(&self, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let table = |f: fn(f64) -> f64| {
            let row = |&p: &u32| {
                self.inv_freq
                    .iter()
                    .map(move |w| (f(f64::from(p) * w) * self.attention_factor) as f32)
            };
            positions.iter().flat_map(row).collect()
        };
        (table(f64::cos), table(f64::sin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    /// Tables up to position 131,071 by transformers' own rope code in float64; tests/golden/make.py.
    #[test]
    fn rotary_tables_are_those_of_the_official_implementation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/yarn.safetensors");
        let bytes = std::fs::read(path).expect("part of the repository");
        let tables = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        let numbers = |name: &str| tables.tensor(name).expect(name).data().as_chunks().0.to_vec();
        let f64s =
            |name: &str| numbers(name).into_iter().map(f64::from_le_bytes).collect::<Vec<_>>();
        let positions: Vec<u32> =
            numbers("positions").into_iter().map(|b| i64::from_le_bytes(b) as u32).collect();
        assert!(positions.contains(&131_071), "{positions:?}");
        for (factor, truncate) in [(32.0, false), (32.0, true), (56.0, false), (56.0, true)] {
            let attention_factor = 0.1 * f64::ln(factor) + 1.0;
            let config = RopeConfig {
                factor,
                truncate,
                attention_factor,
                ..ModelConfig::gpt_oss_20b().rope
            };
            let (cos, sin) = YarnRope::new(&config, 64).cos_sin(&positions);
            for (name, got) in [("cos", cos), ("sin", sin)] {
                let name = format!("{name}.factor_{factor}.truncate_{truncate}");
                let want = f64s(&name);
                assert_eq!(got.len(), want.len(), "{name}");
                for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 2e-7, "{name}[{i}]: {got}, expected {want}");
                }
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
