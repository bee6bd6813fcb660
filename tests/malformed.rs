//! Malformed and hostile checkpoints: each is refused with the right error, which names what is
//! wrong, and none makes the loader allocate more than its files hold.

#[path = "common/checkpoint.rs"]
mod common;
#[path = "common/peak.rs"]
mod peak;

use ErrorKind::{Checkpoint as Bad, Config, Io};
use common::{Draft, file_of, parts_of};
use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::weights::Checkpoint;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[global_allocator]
static WATCHED: peak::Watched = peak::Watched;

/// How a good checkpoint becomes a bad one.
enum Damage {
    /// Before it is written.
    Draft(fn(&mut Draft)),
    /// On disk: two shards and their index.
    Files(fn(&Path)),
}
use Damage::{Draft as D, Files as F};

struct Case(&'static str, ErrorKind, &'static [&'static str], Damage);

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00000-of-00001.safetensors";
const SECOND: &str = "model-00001-of-00001.safetensors";
const K: &str = "model.layers.1.self_attn.k_scale";
const V: &str = "model.layers.1.self_attn.v_scale";
const GU: &str = "model.layers.1.mlp.experts.gate_up_proj";

fn k_scale(draft: &mut Draft, value: f32) {
    draft.put(K, "F32", &[], value.to_le_bytes());
}

/// Rewrites the bytes of the first shard.
fn shard(dir: &Path, edit: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = dir.join(FIRST);
    fs::write(&path, edit(fs::read(&path).unwrap())).unwrap();
}

/// Rewrites the header of the first shard.
fn header(dir: &Path, edit: impl FnOnce(&mut Value)) {
    shard(dir, |file| {
        let (mut header, data) = parts_of(&file);
        edit(&mut header);
        file_of(header.to_string().as_bytes(), &data)
    });
}

/// Adds a tensor without bytes to the first shard.
fn entry(dir: &Path, entry: Value) {
    header(dir, |header| header["extra"] = entry);
}

fn index(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(INDEX);
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    fs::write(path, index.to_string()).unwrap();
}

/// Makes the index name another file for one tensor.
fn redirect(dir: &Path, file: &str) {
    index(dir, |index| index["weight_map"]["lm_head.weight"] = json!(file));
}

fn rename_experts(draft: &mut Draft, from: &str, to: &str) {
    draft.rename(|name| name.replace(from, to));
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    vec![
        // config.json
        Case("no config", Io, &["config.json"], F(|d| fs::remove_file(d.join("config.json")).unwrap())),
        Case("config is no JSON", Config, &["config.json", "invalid JSON"], F(|d| fs::write(d.join("config.json"), "{").unwrap())),
        Case("config is a directory", Config, &["config.json", "expected a file"], F(|d| { fs::remove_file(d.join("config.json")).unwrap(); fs::create_dir(d.join("config.json")).unwrap() })),
        Case("config of megabytes", Config, &["config.json", "expected a file of at most"], F(|d| fs::write(d.join("config.json"), " ".repeat(2 << 20)).unwrap())),
        Case("unknown architecture", Config, &["model_type", "llama"], D(|d| d.config["model_type"] = json!("llama"))),
        Case("block_configs too short", Config, &["block_configs has 1 entries", "num_hidden_layers is 2"], D(|d| drop(d.config["block_configs"].as_array_mut().unwrap().pop()))),
        Case("zero experts", Config, &["num_local_experts of layer 1 is 0"], D(|d| d.config["block_configs"][1]["num_local_experts"] = json!(0))),
        Case("window 0", Config, &["sliding_window of layer 0 is 0"], D(|d| d.config["block_configs"][0]["sliding_window"] = json!(0))),
        Case("top-k above the experts", Config, &["num_experts_per_tok is 3", "layer 1 has 2 experts"], D(|d| d.config["num_experts_per_tok"] = json!(3))),
        Case("absurd vocabulary", Config, &["vocab_size is 18446744073709551615"], D(|d| d.config["vocab_size"] = json!(u64::MAX))),
        Case("absurd layers", Config, &["num_hidden_layers is 1000000000"], D(|d| { d.config["num_hidden_layers"] = json!(1_000_000_000); d.config.as_object_mut().unwrap().remove("block_configs"); d.config["num_local_experts"] = json!(2); d.config["sliding_window"] = json!(8) })),
        Case("more experts than stored", Bad, &["`model.layers.1.mlp.router.weight`", "[16777216, 32]", "[2, 32]"], D(|d| d.config["block_configs"][1]["num_local_experts"] = json!(1 << 24))),
        Case("more layers than stored", Bad, &["`model.layers.2.self_attn.q_proj.weight`", "found none"], D(|d| { d.config["num_hidden_layers"] = json!(3); let b = d.config["block_configs"][1].clone(); d.config["block_configs"].as_array_mut().unwrap().push(b); d.config.as_object_mut().unwrap().remove("layer_types"); })),

        // tensors
        Case("no head", Bad, &["`lm_head.weight`", "BF16 [24, 32]", "found none"], D(|d| drop(d.tensors.remove("lm_head.weight")))),
        Case("no bias", Bad, &["`model.layers.0.self_attn.o_proj.bias`", "[32]", "found none"], D(|d| drop(d.tensors.remove("model.layers.0.self_attn.o_proj.bias")))),
        Case("blocks without scales", Bad, &["gate_up_proj_scales`", "U8 [2, 128, 1]", "found none"], D(|d| drop(d.tensors.remove(&format!("{GU}_scales"))))),
        Case("embedding in F32", Bad, &["`model.embed_tokens.weight`", "BF16", "F32 [24, 32]", "safetensors"], D(|d| d.put("model.embed_tokens.weight", "F32", &[24, 32], vec![0; 24 * 32 * 4]))),
        Case("blocks in I8", Bad, &["gate_up_proj_blocks`", "U8", "found I8"], D(|d| d.tensor(&format!("{GU}_blocks")).dtype = "I8".into())),
        Case("norm in I16", Bad, &["`model.norm.weight`", "BF16, F16 or F32", "I16"], D(|d| d.tensor("model.norm.weight").dtype = "I16".into())),
        Case("another layer's experts", Bad, &["`model.layers.1.mlp.experts.gate_up_proj_blocks`", "[2, 128, 1, 16]", "[4, 128, 1, 16]", "safetensors"], D(|d| { let t = d.tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"].clone(); d.tensors.insert(format!("{GU}_blocks"), t); })),
        Case("transposed projection", Bad, &["q_proj.weight`", "[64, 32]", "[32, 64]"], D(|d| d.tensor("model.layers.0.self_attn.q_proj.weight").shape.reverse())),
        Case("a dimension more", Bad, &["sinks`", "[4]", "[4, 1]"], D(|d| d.tensor("model.layers.1.self_attn.sinks").shape.push(1))),
        Case("scales of another block size", Bad, &["down_proj_scales`", "[4, 32, 2]", "[4, 32, 2, 1]"], D(|d| d.tensor("model.layers.0.mlp.experts.down_proj_scales").shape.push(1))),

        // KV scales
        Case("NaN scale", Bad, &["`model.layers.1.self_attn.k_scale`", "NaN"], D(|d| k_scale(d, f32::NAN))),
        Case("infinite scale", Bad, &[K, "inf"], D(|d| k_scale(d, f32::INFINITY))),
        Case("zero scale", Bad, &[K, "expected a positive number, found 0"], D(|d| k_scale(d, 0.0))),
        Case("negative scale", Bad, &[K, "expected a positive number, found -0.5"], D(|d| k_scale(d, -0.5))),
        Case("two scales in one", Bad, &[K, "[] or [1]", "F32 [2]"], D(|d| d.put(K, "F32", &[2], [0; 8]))),
        Case("scale in I32", Bad, &[K, "F32, BF16 or F16", "I32 []"], D(|d| d.put(K, "I32", &[], [1, 0, 0, 0]))),
        Case("scale of K alone", Bad, &[K, "has no v_scale"], D(|d| drop(d.tensors.remove(V)))),
        Case("scale of V alone", Bad, &[V, "has no k_scale"], D(|d| drop(d.tensors.remove(K)))),
        Case("two spellings disagree", Bad, &["`model.layers.1.self_attn.attn.k_scale` is 0.5", "`model.layers.1.self_attn.k_scale` is 0.25"], D(|d| { k_scale(d, 0.25); d.put("model.layers.1.self_attn.attn.k_scale", "F32", &[1], 0.5f32.to_le_bytes()) })),

        // the shape of a shard
        Case("shard missing", Io, &["cannot open", SECOND], F(|d| fs::remove_file(d.join(SECOND)).unwrap())),
        Case("shard truncated", Bad, &[FIRST, "ends at byte", "truncated"], F(|d| shard(d, |f| f[..f.len() - 1].to_vec()))),
        Case("shard cut in its header", Bad, &[FIRST, "header of", "in a file of 100 bytes"], F(|d| shard(d, |f| f[..100].to_vec()))),
        Case("shard cut in its length", Bad, &[FIRST, "found 7 bytes"], F(|d| shard(d, |f| f[..7].to_vec()))),
        Case("shard empty", Bad, &[FIRST, "found 0 bytes"], F(|d| shard(d, |_| vec![]))),
        Case("shard too long", Bad, &[FIRST, "bytes of data, but the header describes"], F(|d| shard(d, |f| [f, vec![0]].concat()))),
        Case("shard a directory", Bad, &[FIRST, "not a regular file"], F(|d| { fs::remove_file(d.join(FIRST)).unwrap(); fs::create_dir(d.join(FIRST)).unwrap() })),
        Case("shard a pipe", Bad, &[FIRST, "not a regular file"], F(|d| { fs::remove_file(d.join(FIRST)).unwrap(); assert!(std::process::Command::new("mkfifo").arg(d.join(FIRST)).status().unwrap().success()) })),
        Case("header of 2^64-1 bytes", Bad, &[FIRST, "header of 18446744073709551615 bytes"], F(|d| shard(d, |f| [&[255; 8], &f[8..]].concat()))),
        Case("header longer than the file", Bad, &[FIRST, "header of", "expected at most"], F(|d| shard(d, |f| [&(f.len() as u64 - 7).to_le_bytes(), &f[8..]].concat()))),
        Case("header of gigabytes", Bad, &[FIRST, "header of 2147483648 bytes, expected at most 16777216"], F(|d| { shard(d, |_| (2u64 << 30).to_le_bytes().to_vec()); fs::File::options().write(true).open(d.join(FIRST)).unwrap().set_len(3 << 30).unwrap() })),
        Case("header of no bytes", Bad, &[FIRST, "invalid header"], F(|d| shard(d, |f| file_of(b"", &f[8..])))),
        Case("header not UTF-8", Bad, &[FIRST, "invalid header"], F(|d| shard(d, |f| file_of(b"{\"\xff\xfe\":{}}", &f[8..])))),
        Case("header no JSON", Bad, &[FIRST, "invalid header"], F(|d| shard(d, |f| file_of(b"{\"a\":", &f[8..])))),
        Case("header a list", Bad, &[FIRST, "invalid header", "expected an object"], F(|d| shard(d, |_| file_of(b"[]", b"")))),
        Case("header with more behind it", Bad, &[FIRST, "invalid header", "trailing"], F(|d| shard(d, |_| file_of(b"{}{}", b"")))),
        Case("header nested deep", Bad, &[FIRST, "invalid header", "EOF"], F(|d| shard(d, |_| file_of(format!("{{\"__metadata__\":{}", "[".repeat(100_000)).as_bytes(), b"")))),

        // its records
        Case("tensor twice", Bad, &[FIRST, "`extra` twice"], F(|d| shard(d, |f| {
            let (header, data) = parts_of(&f);
            let one = r#""extra":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
            file_of(format!("{{{one},{one},{}", &header.to_string()[1..]).as_bytes(), &data)
        }))),
        Case("tensors overlap", Bad, &[FIRST, "`extra`", "overlaps", "starts at byte 1"], F(|d| entry(d, json!({"dtype": "U8", "shape": [1], "data_offsets": [1, 2]})))),
        Case("hole between tensors", Bad, &[FIRST, "leaves a hole", "expected 0"], F(|d| header(d, |h| h.as_object_mut().unwrap().retain(|_, t| t["data_offsets"][0] != 0)))),
        Case("offsets decrease", Bad, &[FIRST, "`extra`", "data_offsets say [2, 1]"], F(|d| entry(d, json!({"dtype": "U8", "shape": [1], "data_offsets": [2, 1]})))),
        Case("offsets beyond the file", Bad, &[FIRST, "`extra`", "ends at byte 18446744073709551615"], F(|d| entry(d, json!({"dtype": "U8", "shape": [1], "data_offsets": [u64::MAX - 1, u64::MAX]})))),
        Case("offsets beyond 64 bits", Bad, &[FIRST, "`extra`"], F(|d| shard(d, |f| file_of(br#"{"extra":{"dtype":"U8","shape":[1],"data_offsets":[0,99999999999999999999]}}"#, &f[8..])))),
        Case("shape overflows", Bad, &[FIRST, "`extra`", "overflows"], F(|d| entry(d, json!({"dtype": "U8", "shape": [1u64 << 32, 1u64 << 32], "data_offsets": [0, 0]})))),
        Case("bytes overflow", Bad, &[FIRST, "`extra`", "overflows"], F(|d| entry(d, json!({"dtype": "F64", "shape": [1u64 << 60], "data_offsets": [0, 0]})))),
        Case("shape and bytes disagree", Bad, &[FIRST, "`extra`", "takes 6 bytes", "[0, 4]"], F(|d| entry(d, json!({"dtype": "BF16", "shape": [3], "data_offsets": [0, 4]})))),
        Case("half a byte", Bad, &[FIRST, "`extra`"], F(|d| entry(d, json!({"dtype": "F4", "shape": [3], "data_offsets": [0, 2]})))),
        Case("unknown dtype", Bad, &[FIRST, "`extra`", "Q4_K"], F(|d| entry(d, json!({"dtype": "Q4_K", "shape": [0], "data_offsets": [0, 0]})))),
        Case("negative dimension", Bad, &[FIRST, "`extra`", "-1"], F(|d| entry(d, json!({"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]})))),
        Case("too many dimensions", Bad, &[FIRST, "`extra`", "at most 8 dimensions"], F(|d| entry(d, json!({"dtype": "U8", "shape": vec![1; 100_000], "data_offsets": [0, 1]})))),
        Case("no offsets", Bad, &[FIRST, "`extra`", "data_offsets"], F(|d| entry(d, json!({"dtype": "U8", "shape": [0]})))),
        Case("control characters in a name", Bad, &["`bell\\u{7}`"], F(|d| header(d, |h| h["bell\u{7}"] = json!(1)))),

        // the index
        Case("index no JSON", Bad, &[INDEX, "invalid index"], F(|d| fs::write(d.join(INDEX), "[").unwrap())),
        Case("index without a map", Bad, &[INDEX, "weight_map"], F(|d| fs::write(d.join(INDEX), "{}").unwrap())),
        Case("index empty", Bad, &[INDEX, "weight_map is empty"], F(|d| fs::write(d.join(INDEX), r#"{"weight_map":{}}"#).unwrap())),
        Case("index of numbers", Bad, &[INDEX, "`lm_head.weight`", "7"], F(|d| index(d, |i| i["weight_map"]["lm_head.weight"] = json!(7)))),
        Case("index names a tensor twice", Bad, &[INDEX, "`a` twice"], F(|d| fs::write(d.join(INDEX), format!(r#"{{"weight_map":{{"a":"{FIRST}","a":"{SECOND}"}}}}"#)).unwrap())),
        Case("index names the wrong shard", Bad, &[INDEX, "`lm_head.weight` should be in", FIRST, SECOND], F(|d| index(d, |i| { let m = &mut i["weight_map"]["lm_head.weight"]; *m = json!(if *m == FIRST { SECOND } else { FIRST }) }))),
        Case("index names a tensor nobody has", Bad, &[INDEX, "`ghost`", "nowhere"], F(|d| index(d, |i| i["weight_map"]["ghost"] = json!(FIRST)))),
        Case("index leaves by ..", Bad, &["the index names `../weights.safetensors`"], F(|d| redirect(d, "../weights.safetensors"))),
        Case("index leaves by /", Bad, &["the index names `/dev/zero`"], F(|d| redirect(d, "/dev/zero"))),
        Case("index names a folder's file", Bad, &["the index names `a/b.safetensors`"], F(|d| redirect(d, "a/b.safetensors"))),
        Case("index names .", Bad, &["the index names `.`"], F(|d| redirect(d, "."))),
        Case("index names nothing", Bad, &["the index names ``"], F(|d| redirect(d, ""))),
        Case("index names a trailing slash", Bad, &["the index names `model-00000-of-00001.safetensors/`"], F(|d| redirect(d, "model-00000-of-00001.safetensors/"))),
        Case("NUL in a file name", Io, &["cannot open"], F(|d| redirect(d, "a\0b"))),
        Case("shard links out of the directory", Bad, &[FIRST, "is a link to", "/dev/zero"], F(|d| { fs::remove_file(d.join(FIRST)).unwrap(); symlink("/dev/zero", d.join(FIRST)).unwrap() })),
        Case("shard links nowhere", Io, &["cannot open", FIRST], F(|d| { fs::remove_file(d.join(FIRST)).unwrap(); symlink("gone", d.join(FIRST)).unwrap() })),
        Case("tensor in two shards", Bad, &["`lm_head.weight` is in", "again in", SECOND], F(|d| {
            for name in [FIRST, SECOND] {
                let (mut header, mut data) = parts_of(&fs::read(d.join(name)).unwrap());
                if header.get("lm_head.weight").is_some() { continue }
                header["lm_head.weight"] = json!({"dtype": "U8", "shape": [1], "data_offsets": [data.len(), data.len() + 1]});
                data.push(0);
                fs::write(d.join(name), file_of(header.to_string().as_bytes(), &data)).unwrap();
            }
        })),

        // files and layouts this crate does not read
        Case("no directory", Io, &["cannot open the checkpoint directory"], F(|d| fs::remove_dir_all(d).unwrap())),
        Case("empty directory", Bad, &["expected model.safetensors.index.json", "0 files"], F(|d| { fs::remove_dir_all(d).unwrap(); fs::create_dir(d).unwrap() })),
        Case("GGUF", Bad, &["expected model.safetensors.index.json", "`model.gguf`"], F(|d| { fs::remove_dir_all(d).unwrap(); fs::create_dir(d).unwrap(); fs::write(d.join("model.gguf"), "GGUF").unwrap() })),
        Case("PyTorch", Bad, &["`pytorch_model.bin`"], F(|d| { fs::remove_dir_all(d).unwrap(); fs::create_dir(d).unwrap(); fs::write(d.join("pytorch_model.bin"), "").unwrap() })),
        Case("MLX", Bad, &["by MLX", "`model.layers.0.mlp.experts.down_proj.weight` of U32 [4, 32, 8]", "supported are", "gate_up_proj_blocks"], D(|d| {
            rename_experts(d, "gate_up_proj_", "gate_proj_");
            for (hf, mlx) in [("blocks", "weight"), ("scales", "scales"), ("bias", "bias")] { rename_experts(d, &format!("proj_{hf}"), &format!("proj.{mlx}")) }
            for (_, t) in d.tensors.iter_mut().filter(|(n, _)| n.contains("experts") && n.ends_with("weight")) {
                *t = common::Tensor::new("U32", &[t.shape[0], t.shape[1], t.shape[2] * 4], t.bytes.clone());
            }
        })),
        Case("Quark", Bad, &["by Quark", "supported are"], D(|d| { rename_experts(d, "gate_up_proj_scales", "gate_up_proj.weight_scale"); rename_experts(d, "gate_up_proj_blocks", "gate_up_proj.weight") })),
        Case("bitsandbytes", Bad, &["by bitsandbytes", "supported are"], D(|d| { rename_experts(d, "gate_up_proj_scales", "gate_up_proj.absmax"); rename_experts(d, "gate_up_proj_blocks", "gate_up_proj.weight") })),
        Case("no experts", Bad, &["no expert weights among", "supported are"], D(|d| d.tensors.retain(|n, _| !n.contains("experts")))),
        Case("openai's names, one missing", Bad, &["`embedding.weight`", "found none"], D(|d| rename_experts(d, "mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks"))),
        Case("dequantised, not transposed", Bad, &["gate_up_proj`", "BF16 [4, 32, 128]", "[4, 128, 32]"], D(|d| for (layer, e) in [(0, 4), (1, 2)] {
            for (p, rows, cols) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
                let name = format!("model.layers.{layer}.mlp.experts.{p}");
                d.tensors.remove(&format!("{name}_blocks"));
                d.tensors.remove(&format!("{name}_scales"));
                d.put(&name, "BF16", &[e, rows, cols], vec![0; e * rows * cols * 2]);
            }
        })),
    ]
}

fn size_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten();
    files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn every_malformed_checkpoint_is_refused_for_its_reason() {
    let (draft, cases) = (Draft::new(1), cases());
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for Case(what, kind, parts, damage) in cases {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("checkpoint");
        let mut draft = draft.clone();
        if let D(damage) = damage {
            damage(&mut draft);
        }
        draft.write(&dir);
        if let F(damage) = damage {
            damage(&dir);
        }
        let (opened, largest) = peak::largest_allocation(|| Checkpoint::open(&dir));
        let Err(error) = opened else {
            wrong.push(format!("{what}: opened"));
            continue;
        };
        let text = error.to_string();
        if error.kind() != kind || !parts.iter().all(|part| text.contains(part)) {
            wrong.push(format!(
                "{what}: expected {kind:?} with {parts:?}, found {:?}: {text}",
                error.kind()
            ));
        }
        if text.len() > 2000 || text.contains('\n') {
            wrong.push(format!("{what}: {} bytes of message: {text:.200}", text.len()));
        }
        // 4 KiB for paths and messages where there are hardly any files.
        let limit = size_of(&dir).max(4096);
        if largest as u64 > limit {
            wrong.push(format!(
                "{what}: an allocation of {largest} bytes for {limit} bytes of files"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_undamaged_draft_opens_without_large_allocations() {
    let dir = tempfile::tempdir().unwrap();
    Draft::new(1).write(dir.path());
    let (opened, largest) = peak::largest_allocation(|| Checkpoint::open(dir.path()));
    opened.unwrap();
    assert!(largest as u64 <= size_of(dir.path()) / 2, "{largest} bytes");
}

#[test]
fn a_single_file_is_a_checkpoint_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = Draft::new(1);
    draft.shards = 1;
    draft.write(dir.path());
    Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let error = Checkpoint::open(&path).err().unwrap();
    assert_eq!(error.kind(), Bad);
    assert!(error.to_string().contains("model.safetensors is a file"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_refused_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = Draft::new(1);
    let name = "model.layers.0.self_attn.sinks";
    draft.tensor(name).bytes[4..6].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    draft.write(dir.path());
    let error = Checkpoint::open(dir.path()).unwrap().f32(name, &[4]).unwrap_err();
    assert_eq!(error.kind(), Bad);
    for part in [name, "element 2 is NaN", "safetensors"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_part_of_a_fused_tensor_goes_by_the_name_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = common::original(&Draft::new(1));
    let name = "block.1.attn.qkv.bias";
    let elements = draft.tensor(name).bytes.len() / 2;
    draft.tensor(name).bytes[2 * elements - 2..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    draft.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = checkpoint.f32("model.layers.1.self_attn.v_proj.bias", &[32]).unwrap_err();
    for part in ["`block.1.attn.qkv.bias`", &format!("element {} is NaN", elements - 1)] {
        assert!(error.to_string().contains(part), "{error}");
    }
}
