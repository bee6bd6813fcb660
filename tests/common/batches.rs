//! A narrow model, tokens for it, and ways of feeding them.

use gpt_oss_puzzle::model::{Batch, LogitRows};
use gpt_oss_puzzle::{BlockConfig, ModelConfig};

/// A model of Puzzle's kind with a vocabulary of 96; experts and window of each layer.
pub fn config(layers: &[(usize, Option<usize>)]) -> ModelConfig {
    let block = |&(num_local_experts, sliding_window): &(usize, Option<usize>)| BlockConfig {
        num_local_experts,
        sliding_window,
    };
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = 96;
    config.hidden_size = 64;
    config.intermediate_size = 32;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.max_position_embeddings = 1024;
    config.block_configs = layers.iter().map(block).collect();
    config
}

/// Tokens of a vocabulary of 96.
pub fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let scramble = |i: u32| (i + 1000 * seed).wrapping_mul(2_654_435_761) >> 8;
    (0..count as u32).map(|i| scramble(i) % 96).collect()
}

/// Feeds three prompts as one changing batch, a prefill chunk of one beside decode steps of the others:
/// `step` runs a batch and gives a row for each of its tokens. The rows of each prompt.
pub fn interleave<Row>(
    prompts: &[Vec<u32>; 3],
    mut step: impl FnMut(&Batch) -> Vec<Row>,
) -> [Vec<Row>; 3] {
    let mut rows = [vec![], vec![], vec![]];
    let mut round = 0;
    while (0..3).any(|s| rows[s].len() < prompts[s].len()) {
        let mut batch = Batch::new();
        let mut order = Vec::new();
        for turn in 0..3 {
            let s = (turn + round) % 3;
            let done = rows[s].len();
            let take = [23, 1, 1][turn].min(prompts[s].len() - done);
            batch.push(s, done, &prompts[s][done..done + take], LogitRows::All);
            order.extend(std::iter::repeat_n(s, take));
        }
        for (s, row) in order.into_iter().zip(step(&batch)) {
            rows[s].push(row);
        }
        round += 1;
    }
    rows
}
