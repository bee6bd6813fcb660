//! Tokenizers for tests: a tiny one of single bytes, and the real o200k_harmony, rebuilt from the
//! ranks that the crate tiktoken-rs carries and cached between runs.
#![allow(dead_code)] // Each test binary uses its part.

use gpt_oss_puzzle::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

pub const MARKERS: [&str; 9] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
];

/// How GPT-2's byte-level alphabet writes each byte.
pub fn alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("a letter")
        }
    })
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// 256 byte tokens, `he`, `hel`, and the control tokens from id 258 on.
pub fn tiny_json() -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        alphabet().iter().enumerate().map(|(byte, c)| (c.to_string(), byte.into())).collect();
    vocab.insert("he".into(), 256.into());
    vocab.insert("hel".into(), 257.into());
    let mut specials: Vec<Value> =
        MARKERS.iter().enumerate().map(|(i, m)| added(258 + i, m)).collect();
    specials.push(added(258 + MARKERS.len(), "<|reserved_267|>"));
    json!({
        "version": "1.0",
        "added_tokens": specials,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["he", "l"]]},
    })
}

pub fn tiny() -> Arc<Tokenizer> {
    static TINY: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        Arc::new(
            Tokenizer::from_bytes(tiny_json().to_string().as_bytes())
                .expect("the tiny tokenizer loads"),
        )
    });
    Arc::clone(&TINY)
}

/// The tokenizer of the released checkpoints.
pub fn o200k_harmony() -> Arc<Tokenizer> {
    static O200K: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        Arc::new(Tokenizer::from_file(o200k_harmony_path()).expect("the real tokenizer loads"))
    });
    Arc::clone(&O200K)
}

/// Its tokenizer.json, 20 MB, made at the first use.
pub fn o200k_harmony_path() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("o200k_harmony.tokenizer.json");
    if !path.exists() {
        // Other test binaries may be doing the same: write aside, then rename.
        let aside = path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&aside, o200k_harmony_json().to_string()).expect("the cache is writable");
        std::fs::rename(&aside, &path).expect("the cache is writable");
    }
    path
}

const PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const RANKS: u32 = 199_998;

fn o200k_harmony_json() -> Value {
    let bpe = tiktoken_rs::o200k_base().expect("the ranks load");
    let tokens: Vec<Vec<u8>> =
        (0..RANKS).map(|rank| bpe.decode_bytes(&[rank]).expect("a rank")).collect();
    let ranks: HashMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(rank, t)| (t.as_slice(), rank)).collect();
    let alphabet = alphabet();
    let written =
        |token: &[u8]| token.iter().map(|b| alphabet[usize::from(*b)]).collect::<String>();
    let merges = tokens.iter().enumerate().filter_map(|(rank, token)| {
        let at = last_merge(token, rank, &ranks)?;
        Some(json!([written(&token[..at]), written(&token[at..])]))
    });
    let named = [
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
    let specials: Vec<Value> = (199_998..201_088)
        .map(|id| match named.iter().find(|(named, _)| *named == id) {
            Some((_, text)) => added(id, text),
            None => added(id, &format!("<|reserved_{id}|>")),
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(rank, t)| (written(t), rank.into())).collect();
    json!({
        "version": "1.0",
        "added_tokens": specials,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "model": {"type": "BPE", "ignore_merges": true, "vocab": vocab, "merges": merges.collect::<Vec<_>>()},
    })
}

/// Where the last merge that makes `token` joins its two halves: merging its bytes with the ranks
/// below its own, lowest first, ends in two.
fn last_merge(token: &[u8], rank: usize, ranks: &HashMap<&[u8], usize>) -> Option<usize> {
    let mut bounds: Vec<usize> = (0..=token.len()).collect();
    while bounds.len() > 3 {
        let lowest = (0..bounds.len() - 2)
            .filter_map(|i| {
                Some((*ranks.get(&token[bounds[i]..bounds[i + 2]]).filter(|r| **r < rank)?, i))
            })
            .min()?;
        bounds.remove(lowest.1 + 1);
    }
    (bounds.len() == 3).then(|| bounds[1])
}
