//! A complete random checkpoint of about a megabyte, tokenizer included: what the examples and the
//! tests run on where no trained one is at hand.

use super::Checkpoint;
use super::random::write_json;
use crate::{BlockConfig, ModelConfig, Result};
use serde_json::{Value, json};
use std::path::Path;

/// First special token of o200k_harmony, and how many follow with a name or a gap between names.
const FIRST_SPECIAL: usize = 199_998;
const SPECIALS: usize = 21;
const NAMED: [(usize, &str); 10] = [
    (199_998, "<|startoftext|>"),
    (199_999, "<|endoftext|>"),
    (200_002, "<|return|>"),
    (200_003, "<|constrain|>"),
    (200_005, "<|channel|>"),
    (200_006, "<|start|>"),
    (200_007, "<|end|>"),
    (200_008, "<|message|>"),
    (200_012, "<|call|>"),
    (200_018, "<|endofprompt|>"),
];

/// Words that are one token each, as they are in o200k_harmony; 43 merges.
const WORDS: [&str; 9] =
    ["assistant", "user", "system", "final", "analysis", "commentary", " the", "json", "to"];

/// How o200k splits text before merging (openai/tiktoken, `tiktoken_ext/openai_public.py`).
const SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Where a small vocabulary keeps the special token that o200k_harmony numbers `id`: the last 21
/// ids, in the same order.
pub(super) fn special_id(vocab_size: usize, id: usize) -> usize {
    (vocab_size + id).saturating_sub(FIRST_SPECIAL + SPECIALS)
}

/// The configuration of [`write_tiny_checkpoint`]: six layers of 16 or 8 experts, windows from 16
/// to 8,192 and none, everything else as in Puzzle but for the widths.
pub fn tiny_config() -> ModelConfig {
    let mut config = ModelConfig::puzzle_88b();
    config.vocab_size = 256 + merges().len() + SPECIALS;
    config.hidden_size = 64;
    config.intermediate_size = 64;
    config.num_attention_heads = 8;
    config.num_key_value_heads = 2;
    config.block_configs =
        [(16, Some(16)), (16, None), (8, Some(128)), (16, Some(8192)), (8, Some(64)), (8, None)]
            .map(|(num_local_experts, sliding_window)| BlockConfig {
                num_local_experts,
                sliding_window,
            })
            .to_vec();
    config
}

/// Writes a random checkpoint in the layout of nvidia/gpt-oss-puzzle-88B, about a megabyte, to
/// `dir`: config, sharded weights with their index, KV scales, generation_config.json, and a
/// byte-level tokenizer with the harmony special tokens. The same for the same seed. Its model
/// speaks nonsense.
///
/// # Errors
/// `Io` when a file cannot be written.
pub fn write_tiny_checkpoint(dir: &Path, seed: u64) -> Result<()> {
    let config = tiny_config();
    Checkpoint::random(&config, seed)?.save(dir, 512 * 1024)?;
    write_json(dir, "tokenizer.json", &tokenizer(config.vocab_size))?;
    let settings = json!({
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<|return|>",
        "model_max_length": config.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write_json(dir, "tokenizer_config.json", &settings)
}

/// Byte-level BPE in the format of Hugging Face tokenizers: 256 bytes, a few merges, the specials.
fn tokenizer(vocab_size: usize) -> Value {
    let merges = merges();
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(byte_char(byte).to_string(), byte.into());
    }
    for (left, right) in &merges {
        vocab.insert(format!("{left}{right}"), vocab.len().into());
    }
    let added: Vec<Value> = (FIRST_SPECIAL..FIRST_SPECIAL + SPECIALS)
        .map(|id| {
            let named = NAMED.iter().find(|(n, _)| *n == id).map(|(_, name)| name.to_string());
            let content = named.unwrap_or_else(|| format!("<|reserved_{id}|>"));
            json!({
                "id": special_id(vocab_size, id), "content": content, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let split = json!({
        "type": "Split", "pattern": { "Regex": SPLIT }, "behavior": "Isolated", "invert": false,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, byte_level] },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    })
}

/// Each word built from left to right, a byte at a time.
fn merges() -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for word in WORDS {
        let mut bytes = word.bytes().map(byte_char);
        let mut left: String = bytes.next().into_iter().collect();
        for right in bytes {
            let merge = (left.clone(), right.to_string());
            if !merges.contains(&merge) {
                merges.push(merge);
            }
            left.push(right);
        }
    }
    merges
}

/// GPT-2's printable stand-in for a byte: itself where it prints, else a letter from U+0100 on.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !prints(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('?')
}
