//! A checkpoint whose next token depends on the last token alone, by a table written here: a model that
//! speaks harmony without training, in random turns of every shape.

use super::checkpoint::Draft;
use gpt_oss_puzzle::BlockConfig;
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::{Checkpoint, tiny_config, write_tiny_checkpoint};
use half::bf16;
use std::path::Path;

/// What follows what; a single byte is that byte's token.
pub type Table = [(&'static [u8], &'static [&'static [u8]])];

/// Writes the checkpoint of [`TABLE`].
pub fn write_bigram_checkpoint(dir: &Path) {
    write_bigram_checkpoint_of(dir, TABLE);
}

/// Writes the checkpoint. After each token the listed ones follow with equal probability.
///
/// The residual stream is as wide as the vocabulary and its embedding is the identity; attention and
/// experts add nothing; the head is the table.
pub fn write_bigram_checkpoint_of(dir: &Path, table: &Table) {
    let random = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(random.path(), 0).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    for file in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(random.path().join(file), dir.join(file)).unwrap();
    }
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let mut config = tiny_config();
    let size = config.vocab_size;
    config.hidden_size = size;
    config.intermediate_size = 32;
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (2, 1, 16);
    config.num_experts_per_tok = 1;
    config.block_configs = vec![BlockConfig { num_local_experts: 2, sliding_window: Some(128) }];
    Checkpoint::random(&config, 0).unwrap().save(random.path(), u64::MAX).unwrap();
    let mut draft = Draft::read(random.path());
    for (name, tensor) in &mut draft.tensors {
        if name.contains("o_proj") || name.contains("down_proj") {
            tensor.bytes.fill(0);
        }
        if name.ends_with("layernorm.weight") || name == "model.norm.weight" {
            tensor.bytes = matrix(&vec![1.0; size]);
        }
    }
    let mut identity = vec![0.0; size * size];
    (0..size).for_each(|id| identity[id * size + id] = 1.0);
    draft.tensor("model.embed_tokens.weight").bytes = matrix(&identity);
    // The norm brings the one 1 of a row to the square root of the width.
    let unlikely = -40.0 / (size as f32).sqrt();
    let mut head = vec![unlikely; size * size];
    let id = |token: &[u8]| match token {
        [byte] => usize::from(*byte),
        text => {
            let text = std::str::from_utf8(text).unwrap();
            tokenizer.encode_with_special(text).unwrap()[0] as usize
        }
    };
    for (token, next) in table {
        for next in *next {
            head[id(next) * size + id(token)] = 0.0;
        }
    }
    draft.tensor("lm_head.weight").bytes = matrix(&head);
    draft.write(dir);
}

fn matrix(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}

/// Random turns of every shape, with calls of `python`.
const TABLE: &Table = &[
    (b"assistant", &[b"<|channel|>"]),
    (b"<|channel|>", &[b"analysis", b"final", b"commentary"]),
    (b"analysis", &[b"<|message|>"]),
    (b"final", &[b"<|message|>"]),
    (b"commentary", &[b"<|message|>", b" "]),
    (b" ", &[b"to"]),
    (b"to", &[b"="]),
    (b"=", &[b"p"]),
    (b"p", &[b"y"]),
    (b"y", &[b"t"]),
    (b"t", &[b"h"]),
    (b"h", &[b"o"]),
    (b"o", &[b"n"]),
    (b"n", &[b"<|message|>"]),
    (b"<|message|>", &[b"A", b"B", b"\xf0", b"\xf0"]),
    (b"A", &[b"B", b"\xf0", b"B", b"\xf0", b"<|end|>"]),
    (b"B", &[b"A", b"\xf0", b"<|end|>", b"<|return|>", b"<|call|>"]),
    // An emoji in four tokens: U+1F327, cloud with rain.
    (b"\xf0", &[b"\x9f"]),
    (b"\x9f", &[b"\x8c"]),
    (b"\x8c", &[b"\xa7"]),
    (b"\xa7", &[b"A", b"B"]),
    (b"<|end|>", &[b"<|start|>"]),
    (b"<|start|>", &[b"assistant"]),
];
