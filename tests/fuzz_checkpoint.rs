//! The loader under random damage: configs, indexes, headers and lengths of a small checkpoint are
//! mutated, and opening and reading must end in a value or an error: never in a panic, never in an
//! allocation out of proportion to the files.
//!
//! Runs for two seconds, or for `FUZZ_SECONDS`. Seeded: `FUZZ_SEED` repeats a run, and a failure
//! prints seed, round and what was done.

#[path = "common/checkpoint.rs"]
mod common;
#[path = "common/peak.rs"]
mod peak;

use common::{Draft, dequantised, file_of, original, parts_of};
use gpt_oss_puzzle::weights::{Checkpoint, ExpertTensors};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

#[global_allocator]
static WATCHED: peak::Watched = peak::Watched;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(4) as u64,
            1 => u64::MAX - self.below(3) as u64,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(200) as u64,
            _ => self.next(),
        }
    }

    fn value(&mut self) -> Value {
        const TEXTS: [&str; 14] = [
            "",
            ".",
            "..",
            "/",
            "/dev/zero",
            "../x",
            "model.safetensors",
            "BF16",
            "F64",
            "F4",
            "U8",
            "yarn",
            "full_attention",
            "\u{0}",
        ];
        match self.below(9) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(TEXTS[self.below(TEXTS.len())]),
            3 => json!([]),
            4 => json!({}),
            5 => json!(-(self.below(1000) as i64)),
            6 => json!([f64::MAX, 1e-300, -0.0, 0.5][self.below(4)]),
            7 => json!([self.number(), self.number()]),
            _ => json!(self.number()),
        }
    }
}

/// Changes one random place of a JSON document.
fn mutate_json(random: &mut Random, value: &mut Value) {
    let deeper = random.below(8) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            match random.below(10) {
                0 => drop(map.remove(&key)),
                1 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    map.insert(
                        format!("{key}{}", ["x", "_scale", ".bias"][random.below(3)]),
                        moved,
                    );
                }
                2 => {
                    // Another key's value under this one.
                    let from = random.below(map.len());
                    let other = map.values().nth(from).cloned().unwrap_or_default();
                    map.insert(key, other);
                }
                _ => mutate_json(random, &mut map[&key]),
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(6) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, random.value()),
                2 => list.extend(vec![list[at].clone(); random.below(300)]),
                _ => mutate_json(random, &mut list[at]),
            }
        }
        Value::Number(number) if random.below(3) > 0 => {
            let number = number.as_u64().unwrap_or(0);
            let step = 1 << random.below(12);
            *value = json!(if random.below(2) == 0 {
                number.wrapping_add(step)
            } else {
                number.wrapping_sub(step)
            });
        }
        other => *other = random.value(),
    }
}

/// Changes a few bytes, or the length.
fn mutate_bytes(random: &mut Random, bytes: &mut Vec<u8>, reach: usize) {
    for _ in 0..=random.below(3) {
        let reach = reach.min(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(random.below(bytes.len() + 1)),
            1 => bytes.extend(vec![random.next() as u8; random.below(64)]),
            2 if reach > 0 => drop(bytes.remove(random.below(reach))),
            3 if reach > 0 => bytes.insert(random.below(reach), random.next() as u8),
            _ if reach > 0 => bytes[random.below(reach)] ^= 1 << random.below(8),
            _ => {}
        }
    }
}

fn mutate(random: &mut Random, name: &str, file: &[u8]) -> Vec<u8> {
    if name.ends_with(".json") {
        let mut text = file.to_vec();
        if random.below(4) == 0 {
            mutate_bytes(random, &mut text, usize::MAX);
            return text;
        }
        let mut value = serde_json::from_slice(&text).expect("the undamaged file parses");
        (0..=random.below(2)).for_each(|_| mutate_json(random, &mut value));
        return value.to_string().into_bytes();
    }
    let (mut header, data) = parts_of(file);
    let mut bytes = file.to_vec();
    match random.below(4) {
        0 => mutate_bytes(random, &mut bytes, 8 + header.to_string().len()),
        1 => bytes[..8].copy_from_slice(&random.number().to_le_bytes()),
        _ => {
            (0..=random.below(2)).for_each(|_| mutate_json(random, &mut header));
            bytes = file_of(header.to_string().as_bytes(), &data);
        }
    }
    bytes
}

/// Reads everything a model would read.
fn read_all(checkpoint: &Checkpoint) {
    let config = checkpoint.config().clone();
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert!(checkpoint.bf16(name, &[config.vocab_size, h]).is_ok(), "{name} was checked");
    }
    let _ = checkpoint.f32("model.norm.weight", &[h]);
    for layer in 0..config.num_hidden_layers() {
        for (name, rows, cols) in
            [("q_proj", q, h), ("k_proj", kv, h), ("v_proj", kv, h), ("o_proj", h, q)]
        {
            let name = format!("model.layers.{layer}.self_attn.{name}");
            let weight = checkpoint.bf16(&format!("{name}.weight"), &[rows, cols]);
            assert_eq!(weight.expect("was checked").bf16().len(), rows * cols);
            let _ = checkpoint.f32(&format!("{name}.bias"), &[rows]);
        }
        for (projection, rows, cols) in [("gate_up_proj", 2 * i, h), ("down_proj", h, i)] {
            let experts = config.block_configs[layer].num_local_experts;
            match checkpoint.experts(layer, projection, rows, cols).expect("was checked") {
                ExpertTensors::Mxfp4 { blocks, scales } => {
                    assert_eq!(blocks.bytes().len(), experts * rows * cols / 2);
                    assert_eq!(scales.bytes().len(), experts * rows * cols / 32);
                }
                ExpertTensors::Bf16(dense) => assert_eq!(dense.bf16().len(), experts * rows * cols),
            }
        }
        let scales = checkpoint.kv_scales(layer).expect("was checked");
        assert!(
            scales.is_none_or(|s| s.k > 0.0 && s.v > 0.0 && s.k.is_finite() && s.v.is_finite())
        );
    }
    checkpoint.find_nan_scale();
}

fn size_of(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.map(|file| file.metadata().map_or(0, |meta| meta.len() as usize)).sum()
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        Err(_) => default,
    }
}

/// Damages the files of `draft` for this long.
fn fuzz(draft: &Draft, time: Duration, seed: u64) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = home.path().join("checkpoint");
    draft.write(&dir);
    let mut originals: Vec<(String, Vec<u8>)> = Vec::new();
    for entry in std::fs::read_dir(&dir).expect("just written") {
        let path = entry.expect("just written").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        originals.push((name, std::fs::read(&path).expect("just written")));
    }
    originals.sort();
    assert_eq!(originals.len(), 4, "config, index and two shards");
    let (start, mut rounds, mut opened, mut round_seeds) =
        (Instant::now(), 0u64, 0u64, Random(seed));
    while start.elapsed() < time || rounds < 200 {
        let mut random = Random(round_seeds.next());
        let mut damaged = Vec::new();
        for _ in 0..=random.below(8) / 7 {
            let (name, file) = &originals[random.below(originals.len())];
            let bytes = mutate(&mut random, name, file);
            std::fs::write(dir.join(name), &bytes).expect("writable");
            damaged.push((name, bytes, file));
        }
        let limit = size_of(&dir) + 256 * 1024;
        let (outcome, largest) = peak::largest_allocation(|| {
            std::panic::catch_unwind(|| {
                Checkpoint::open(&dir).map(|checkpoint| read_all(&checkpoint))
            })
        });
        let what = || {
            let texts = damaged.iter().map(|(name, bytes, _)| {
                format!("{name}: {:.2000}", String::from_utf8_lossy(bytes))
            });
            format!("FUZZ_SEED={seed}, round {rounds}: {}", texts.collect::<Vec<_>>().join("; "))
        };
        match outcome {
            Err(_) => panic!("panicked; {}", what()),
            Ok(Ok(())) => opened += 1,
            Ok(Err(error)) => assert!(error.to_string().len() <= 4000, "{}", what()),
        }
        assert!(largest <= limit, "{largest} bytes in one allocation, {limit} allowed; {}", what());
        for (name, _, file) in &damaged {
            std::fs::write(dir.join(name), file).expect("writable");
        }
        rounds += 1;
    }
    println!("{rounds} rounds, {opened} still opened");
    // Damage that never shows, or always, would test nothing.
    assert!(opened > 0 && opened < rounds / 2, "{opened} of {rounds} opened");
    Checkpoint::open(&dir).expect("the originals are back");
}

#[test]
fn damaged_checkpoints_end_in_a_value_or_an_error() {
    let (seconds, seed) = (setting("FUZZ_SECONDS", 2), setting("FUZZ_SEED", 1));
    let draft = Draft::new(seed);
    for draft in [dequantised(&draft), original(&draft), draft] {
        fuzz(&draft, Duration::from_secs(seconds) / 3, seed);
    }
}
