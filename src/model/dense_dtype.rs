//! [`DenseDtype`]: how dense matrices are held.

use crate::kernels::Q8_BLOCK;
use crate::{Error, ModelConfig, Result};

/// How the dense matrices (the projections of attention and the head) are held; the embedding, the
/// routers and the experts are always as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenseDtype {
    /// As stored, in the mapped files.
    #[default]
    Bf16,
    /// In 8 bits with a scale for every 32 ([`crate::kernels::Dense::Q8`]), made when the model is
    /// loaded: 53 % of the bytes, which is what decoding reads, in memory of the process's own and
    /// from there on the device. The logits change a little; README says by how much.
    Q8,
}

impl DenseDtype {
    /// Bytes that the weights of a model of shape `config` take when they are held so: the `stored` ones
    /// ([`Checkpoint::total_bytes`](crate::weights::Checkpoint::total_bytes)), less where dense matrices
    /// are in 8 bits.
    pub fn weight_bytes(self, config: &ModelConfig, stored: u64) -> u64 {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        // As in `DenseWeight::quantize`: a block becomes a byte per weight and a scale, and rows that are no
        // whole blocks stay as they are.
        let saved = |rows: usize, cols: usize| match self {
            DenseDtype::Q8 if cols.is_multiple_of(Q8_BLOCK) => {
                (rows * (cols / Q8_BLOCK) * (2 * Q8_BLOCK - (Q8_BLOCK + 2))) as u64
            }
            _ => 0,
        };
        let layer = saved(queries + 2 * keys, hidden) + saved(hidden, queries);
        let all = config.num_hidden_layers() as u64 * layer + saved(vocab, hidden);
        stored.saturating_sub(all)
    }
}

impl std::str::FromStr for DenseDtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<DenseDtype> {
        match s {
            "bf16" => Ok(DenseDtype::Bf16),
            "q8" => Ok(DenseDtype::Q8),
            _ => Err(Error::invalid_request(format!(
                "dense dtype is {s:?}, expected \"bf16\" or \"q8\""
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_half_and_a_scale_for_every_32() {
        let mut config = ModelConfig::puzzle_88b();
        config.block_configs.truncate(2);
        let stored = 1 << 40;
        assert_eq!(DenseDtype::Bf16.weight_bytes(&config, stored), stored);
        let (attention, head) = (2880 * (2 * 4096 + 2 * 512), 2880 * 201_088);
        let saved = stored - DenseDtype::Q8.weight_bytes(&config, stored);
        assert_eq!(saved, (2 * attention + head) * 30 / 32);
        // Of the attention, rows of 4,096 alone are whole blocks.
        config.hidden_size = 2888;
        let saved = stored - DenseDtype::Q8.weight_bytes(&config, stored);
        assert_eq!(saved, 2 * 2888 * 4096 * 30 / 32);
    }
}
