//! Reading checkpoints: the three layouts, every spelling of the KV scales, alignment, and what
//! random weights look like on disk.

#[path = "common/checkpoint.rs"]
mod common;

use common::{Draft, decoded, dequantised, file_of, original, parts_of, small_config};
use gpt_oss_puzzle::weights::{
    Checkpoint, ExpertTensors, KvScales, Layout, StoredTensor, tiny_config, write_tiny_checkpoint,
};
use gpt_oss_puzzle::{ErrorKind, ModelConfig};
use half::bf16;
use std::path::Path;

fn with_vocab(vocab_size: usize) -> ModelConfig {
    let mut config = small_config();
    config.vocab_size = vocab_size;
    config
}

fn open(draft: &Draft) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path());
    // The mapping outlives the name.
    Checkpoint::open(dir.path()).unwrap()
}

/// Every BF16 tensor of `small_config` outside the experts, by its Hugging Face name.
fn dense_names() -> Vec<(String, Vec<usize>)> {
    let mut names = vec![
        ("model.embed_tokens.weight".into(), vec![24, 32]),
        ("lm_head.weight".into(), vec![24, 32]),
        ("model.norm.weight".into(), vec![32]),
    ];
    for (layer, experts) in [(0, 4), (1, 2)] {
        for (name, shape) in [
            ("input_layernorm.weight", vec![32]),
            ("post_attention_layernorm.weight", vec![32]),
            ("self_attn.q_proj.weight", vec![64, 32]),
            ("self_attn.q_proj.bias", vec![64]),
            ("self_attn.k_proj.weight", vec![32, 32]),
            ("self_attn.k_proj.bias", vec![32]),
            ("self_attn.v_proj.weight", vec![32, 32]),
            ("self_attn.v_proj.bias", vec![32]),
            ("self_attn.o_proj.weight", vec![32, 64]),
            ("self_attn.o_proj.bias", vec![32]),
            ("self_attn.sinks", vec![4]),
            ("mlp.router.weight", vec![experts, 32]),
            ("mlp.router.bias", vec![experts]),
            ("mlp.experts.gate_up_proj_bias", vec![experts, 128]),
            ("mlp.experts.down_proj_bias", vec![experts, 32]),
        ] {
            names.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    names
}

/// Element `[expert, row, col]` of a projection, whatever the layout.
fn expert_value(
    experts: &ExpertTensors,
    (rows, cols): (usize, usize),
    [e, r, c]: [usize; 3],
) -> f32 {
    match experts {
        ExpertTensors::Mxfp4 { blocks, scales } => {
            decoded(blocks.bytes(), scales.bytes(), (e * rows + r) * cols + c)
        }
        ExpertTensors::Bf16(dense) => dense.bf16()[(e * cols + c) * rows + r].to_f32(),
    }
}

#[test]
fn three_layouts_read_back_equal_values() {
    let draft = Draft::new(3);
    let hf = open(&draft);
    let dense = open(&dequantised(&draft));
    let openai = open(&original(&draft));
    assert_eq!(hf.layout(), Layout::HfMxfp4);
    assert_eq!(dense.layout(), Layout::HfBf16);
    assert_eq!(openai.layout(), Layout::Original);
    for (name, shape) in dense_names() {
        let bits = |c: &Checkpoint| c.bf16(&name, &shape).unwrap().bytes().to_vec();
        assert_eq!(bits(&hf), draft.tensors[&name].bytes, "{name}");
        assert_eq!(bits(&hf), bits(&dense), "{name}");
        assert_eq!(bits(&hf), bits(&openai), "{name}");
        assert_eq!(hf.f32(&name, &shape).unwrap(), openai.f32(&name, &shape).unwrap(), "{name}");
    }
    let mut compared = 0;
    for (layer, e) in [(0, 4), (1, 2)] {
        assert_eq!(hf.kv_scales(layer).unwrap(), openai.kv_scales(layer).unwrap());
        for (projection, rows, cols) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
            let [a, b, c] =
                [&hf, &dense, &openai].map(|c| c.experts(layer, projection, rows, cols).unwrap());
            let all = (0..e).flat_map(|e| (0..rows).map(move |r| (e, r)));
            for (at, col) in all.flat_map(|at| (0..cols).map(move |col| (at, col))) {
                let at = [at.0, at.1, col];
                let value = |x| expert_value(x, (rows, cols), at).to_bits();
                assert_eq!([value(&b), value(&c)], [value(&a); 2], "{projection} {at:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, (4 + 2) * (128 * 32 + 32 * 64));
}

#[test]
fn openai_keeps_its_weights_in_a_folder_without_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = original(&Draft::new(3));
    draft.config = serde_json::json!({
        "num_hidden_layers": 2, "num_experts": 2, "experts_per_token": 2, "vocab_size": 24,
        "hidden_size": 32, "intermediate_size": 64, "swiglu_limit": 7.0, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8,
        "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
    });
    // openai's models have as many experts in every layer.
    for (name, tensor) in &mut draft.tensors {
        if name.starts_with("block.0.mlp.") && tensor.shape[0] == 4 {
            tensor.shape[0] = 2;
            tensor.bytes.truncate(tensor.bytes.len() / 2);
        }
    }
    let folder = dir.path().join("original");
    draft.write(&folder);
    std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    std::fs::rename(
        folder.join(draft.shard_name(1)),
        folder.join("model--00002-of-00002.safetensors"),
    )
    .unwrap();
    std::fs::write(folder.join("dtypes.json"), "{}").unwrap();
    std::fs::write(dir.path().join("README.md"), "").unwrap();
    for path in [dir.path(), &folder] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.layout(), Layout::Original);
        assert_eq!(checkpoint.files().len(), 2);
        assert!(!checkpoint.config().rope.truncate);
    }
}

#[test]
fn q_k_and_v_are_views_of_the_fused_tensor() {
    let checkpoint = open(&original(&Draft::new(3)));
    let start = |name: &str, rows| {
        let name = format!("model.layers.1.self_attn.{name}_proj.weight");
        checkpoint.bf16(&name, &[rows, 32]).unwrap().bytes().as_ptr() as usize
    };
    assert_eq!(start("k", 32) - start("q", 64), 64 * 32 * 2);
    assert_eq!(start("v", 32) - start("k", 32), 32 * 32 * 2);
}

#[test]
fn blocks_and_scales_may_sit_in_different_shards() {
    let mut draft = Draft::new(5);
    let whole = {
        draft.shards = 1;
        open(&draft)
    };
    draft.shards = 3;
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path());
    let index = std::fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let shard =
        |end: &str| &index["weight_map"][format!("model.layers.0.mlp.experts.down_proj{end}")];
    assert_ne!(shard("_blocks"), shard("_scales"));
    let split = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(split.files().len(), 3);
    let parts = |c: &Checkpoint| match c.experts(0, "down_proj", 32, 64).unwrap() {
        ExpertTensors::Mxfp4 { blocks, scales } => {
            [blocks.bytes().to_vec(), scales.bytes().to_vec()]
        }
        ExpertTensors::Bf16(_) => panic!("dense"),
    };
    assert_eq!(parts(&whole), parts(&split));
}

#[test]
fn every_spelling_of_the_kv_scales() {
    let f32 = |v: f32| ("F32", v.to_le_bytes().to_vec());
    let bf16 = |v: f32| ("BF16", bf16::from_f32(v).to_le_bytes().to_vec());
    let f16 = |v: f32| ("F16", half::f16::from_f32(v).to_le_bytes().to_vec());
    type Store = fn(f32) -> (&'static str, Vec<u8>);
    let stores: [Store; 3] = [f32, bf16, f16];
    for (k, v) in [
        ("k_scale", "v_scale"),
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("attn.k_scale", "attn.v_scale"),
        ("qkv_proj.k_scale", "qkv_proj.v_scale"),
        ("k_scale", "v_proj.v_scale"),
    ] {
        for store in stores {
            for shape in [&[][..], &[1]] {
                let mut draft = Draft::new(1);
                draft.tensors.retain(|name, _| !name.ends_with("_scale"));
                for (name, value) in [(k, 0.25), (v, 0.5)] {
                    let (dtype, bytes) = store(value);
                    draft.put(&format!("model.layers.1.self_attn.{name}"), dtype, shape, bytes);
                }
                let checkpoint = open(&draft);
                assert_eq!(checkpoint.kv_scales(0).unwrap(), None);
                let scales = Some(KvScales { k: 0.25, v: 0.5 });
                assert_eq!(checkpoint.kv_scales(1).unwrap(), scales, "{k} {v} {shape:?}");
            }
        }
    }
    // Two spellings may stand side by side while they agree; a q_scale changes nothing.
    let mut draft = Draft::new(1);
    let k = draft.tensor("model.layers.0.self_attn.k_scale").clone();
    draft.tensors.insert("model.layers.0.self_attn.attn.k_scale".into(), k.clone());
    draft.tensors.insert("model.layers.0.self_attn.q_scale".into(), k);
    assert_eq!(open(&draft).kv_scales(0).unwrap(), open(&Draft::new(1)).kv_scales(0).unwrap());
    assert_eq!(open(&draft).kv_scales(2).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn tensors_at_odd_addresses_read_the_same() {
    let mut draft = Draft::new(9);
    draft.shards = 1;
    let even = open(&draft);
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path());
    let path = dir.path().join("model.safetensors");
    let (header, data) = parts_of(&std::fs::read(&path).unwrap());
    let mut header = header.to_string();
    header.push_str([" ", ""][header.len() % 2]);
    std::fs::write(&path, file_of(header.as_bytes(), &data)).unwrap();
    let odd = Checkpoint::open(dir.path()).unwrap();
    for (name, shape) in dense_names() {
        let values = |c: &Checkpoint| c.bf16(&name, &shape).unwrap().bf16().to_vec();
        assert_eq!(values(&even), values(&odd), "{name}");
        // Copied when opened, not each time it is asked for.
        let address = || odd.bf16(&name, &shape).unwrap().bf16().as_ptr();
        assert_eq!(address(), address());
    }
    let value = |c: &Checkpoint| {
        expert_value(&c.experts(1, "down_proj", 32, 64).unwrap(), (32, 64), [1, 31, 63])
    };
    assert_eq!(value(&even).to_bits(), value(&odd).to_bits());
}

#[test]
fn small_tensors_may_be_f32_or_f16() {
    let mut draft = Draft::new(2);
    let name = "model.layers.0.input_layernorm.weight";
    let plain = open(&draft).f32(name, &[32]).unwrap();
    let wide = plain.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    draft.put(name, "F32", &[32], wide);
    assert_eq!(open(&draft).f32(name, &[32]).unwrap(), plain);
    let half: Vec<u8> = plain.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    draft.put(name, "F16", &[32], half);
    let read = open(&draft).f32(name, &[32]).unwrap();
    assert!(read.iter().zip(&plain).all(|(a, b)| (a - b).abs() <= 1e-3), "{read:?} {plain:?}");
}

#[test]
fn rows_are_views() {
    let checkpoint = Checkpoint::random(&small_config(), 4).unwrap();
    let whole = checkpoint.bf16("lm_head.weight", &[24, 32]).unwrap();
    let rows = whole.rows(3..7);
    assert_eq!(rows.shape(), [4, 32]);
    assert_eq!(rows.bf16(), &whole.bf16()[3 * 32..7 * 32]);
    assert_eq!(rows.rows(1..2).bf16(), &whole.bf16()[4 * 32..5 * 32]);
    assert!(whole.rows(24..24).bytes().is_empty());
    let escape = std::panic::catch_unwind(|| rows.rows(3..5).bytes().len());
    assert!(escape.is_err(), "row 4 of 4 rows");
}

#[test]
fn random_weights_survive_saving_and_opening() {
    let config = small_config();
    let made = Checkpoint::random(&config, 11).unwrap();
    for max_shard_bytes in [0, 4096, u64::MAX] {
        let dir = tempfile::tempdir().unwrap();
        made.save(dir.path(), max_shard_bytes).unwrap();
        let read = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(read.config(), &config);
        assert_eq!(read.total_bytes(), made.total_bytes());
        assert_eq!(read.kv_scales(1).unwrap(), made.kv_scales(1).unwrap());
        assert!(read.kv_scales(1).unwrap().is_some());
        for (name, shape) in dense_names() {
            let bytes = |c: &Checkpoint| c.bf16(&name, &shape).unwrap().bytes().to_vec();
            assert_eq!(bytes(&made), bytes(&read), "{name}");
        }
        for (projection, rows, cols) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
            let all = |c: &Checkpoint| match c.experts(0, projection, rows, cols).unwrap() {
                ExpertTensors::Mxfp4 { blocks, scales } => {
                    (blocks.bytes().to_vec(), scales.bytes().to_vec())
                }
                ExpertTensors::Bf16(_) => panic!("dense"),
            };
            assert_eq!(all(&made), all(&read));
        }
        let left: Vec<_> = names(dir.path()).into_iter().filter(|n| n.contains("tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
        let shards = names(dir.path()).iter().filter(|n| n.ends_with(".safetensors")).count();
        assert!(max_shard_bytes == u64::MAX || shards > 2, "{shards} shards");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    std::fs::read_dir(dir).unwrap().map(name).collect()
}

#[test]
fn random_weights_follow_the_seed_and_the_wanted_spread() {
    let config = with_vocab(16 * 1024);
    let make = |seed| Checkpoint::random(&config, seed).unwrap();
    let embedding = |c: &Checkpoint| c.bf16("model.embed_tokens.weight", &[16 * 1024, 32]).unwrap();
    let (a, again, other) = (make(1), make(1), make(2));
    assert_eq!(embedding(&a).bytes(), embedding(&again).bytes());
    assert_ne!(embedding(&a).bytes(), embedding(&other).bytes());
    let head = a.bf16("lm_head.weight", &[16 * 1024, 32]).unwrap();
    assert_ne!(embedding(&a).bytes(), head.bytes(), "each tensor has its own stream");
    let spread = |values: Vec<f32>| {
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt())
    };
    let widened = |t: StoredTensor| t.bf16().iter().map(|v| v.to_f32()).collect::<Vec<_>>();
    let (mean, std) = spread(widened(embedding(&a)));
    assert!(mean.abs() <= 0.01 && (std - 1.0).abs() <= 0.01, "{mean} {std}");
    let ExpertTensors::Mxfp4 { blocks, scales } = a.experts(0, "gate_up_proj", 128, 32).unwrap()
    else {
        panic!("dense")
    };
    let count = blocks.bytes().len() * 2;
    let (mean, std) =
        spread((0..count).map(|at| decoded(blocks.bytes(), scales.bytes(), at)).collect());
    // 1.5/√32 = 0.27 to the nearest power of two.
    assert!(mean.abs() <= 0.02 && (0.18..=0.38).contains(&std), "{mean} {std}");
}

#[test]
fn repeating_weights_are_those_of_a_model_and_share_their_memory() {
    let config = small_config();
    let (made, repeating) = (
        Checkpoint::random(&config, 3).unwrap(),
        Checkpoint::random_repeating(&config, 3).unwrap(),
    );
    assert_eq!(repeating.total_bytes(), made.total_bytes());
    let (rows, hidden) = (config.num_attention_heads * config.head_dim, config.hidden_size);
    let matrix = |layer: usize, part: &str| {
        let name = format!("model.layers.{layer}.self_attn.{part}.weight");
        repeating.bf16(&name, &[rows, hidden]).unwrap()
    };
    let (first, second) = (matrix(0, "q_proj"), matrix(1, "q_proj"));
    assert_ne!(first.bf16(), second.bf16(), "no two are equal");
    let apart = second.bf16().as_ptr().addr() - first.bf16().as_ptr().addr();
    assert!(apart < first.bytes().len(), "{apart} bytes apart: not in one place");
    let spread = |values: &[half::bf16]| {
        let squares: f64 = values.iter().map(|v| f64::from(v.to_f32()).powi(2)).sum();
        (squares / values.len() as f64).sqrt()
    };
    let name = "model.layers.0.self_attn.q_proj.weight";
    let wanted = spread(made.bf16(name, &[rows, hidden]).unwrap().bf16());
    assert!((spread(first.bf16()) / wanted - 1.0).abs() < 0.05, "{}", spread(first.bf16()));
}

#[test]
fn random_weights_do_not_depend_on_the_threads() {
    let rows = 64 * 1024;
    let checkpoint = Checkpoint::random(&with_vocab(rows), 1).unwrap();
    let head = checkpoint.bf16("lm_head.weight", &[rows, 32]).unwrap();
    // Pieces of a megabyte have their own streams: none repeats, on however many cores.
    let pieces: Vec<_> = head.bytes().chunks(1 << 20).collect();
    assert_eq!(pieces.len(), 4);
    assert!((1..4).all(|i| pieces[..i].iter().all(|piece| *piece != pieces[i])));
    let sum =
        head.bytes().iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    assert_eq!(sum, 1_741_995_614_322_199_286, "the bytes of seed 1");
}

#[test]
fn a_nan_scale_is_found_when_asked_for() {
    let mut draft = Draft::new(6);
    assert_eq!(open(&draft).find_nan_scale(), None);
    let scales = draft.tensor("model.layers.1.mlp.experts.down_proj_scales");
    assert_eq!(scales.shape, [2, 32, 2]);
    scales.bytes[32 * 2 + 5 * 2 + 1] = 255;
    let found = open(&draft).find_nan_scale().unwrap();
    for part in ["`model.layers.1.mlp.experts.down_proj_scales`", "[1, 5, 1]", "255"] {
        assert!(found.contains(part), "{found}");
    }
    let found = open(&original(&draft)).find_nan_scale().unwrap();
    assert!(found.contains("`block.1.mlp.mlp2_weight.scales`"), "{found}");
}

#[test]
fn unknown_tensors_are_ignored() {
    let mut draft = Draft::new(1);
    draft.put("model.layers.0.self_attn.rotary_emb.inv_freq", "F64", &[2], [0; 16]);
    draft.put("other", "U8", &[0, 7], []);
    open(&draft);
}

#[test]
fn a_hub_cache_of_links_opens() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--nvidia--gpt-oss-puzzle-88B");
    let (snapshot, blobs) = (repo.join("snapshots/9c0e0746"), repo.join("blobs"));
    Draft::new(1).write(&snapshot);
    std::fs::create_dir_all(&blobs).unwrap();
    for (i, name) in names(&snapshot).iter().enumerate() {
        std::fs::rename(snapshot.join(name), blobs.join(i.to_string())).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), snapshot.join(name)).unwrap();
    }
    Checkpoint::open(&snapshot).unwrap();
}

#[test]
fn the_tiny_checkpoint_is_complete() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_tiny_checkpoint(a.path(), 7).unwrap();
    write_tiny_checkpoint(b.path(), 7).unwrap();
    let mut size = 0;
    for name in names(a.path()) {
        let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
        size += read(a.path()).len();
        // The free-text metadata of a shard is a hash map with one entry, so even the bytes agree.
        assert_eq!(read(a.path()), read(b.path()), "{name}");
    }
    assert!(size < 2_000_000, "{size} bytes");
    let checkpoint = Checkpoint::open(a.path()).unwrap();
    assert_eq!(checkpoint.config(), &tiny_config());
    assert!(checkpoint.kv_scales(5).unwrap().is_some());
    let config = ModelConfig::from_file(&a.path().join("config.json")).unwrap();
    assert_eq!(config.rope.factor, 56.0);
    let generation = std::fs::read_to_string(a.path().join("generation_config.json")).unwrap();
    let generation: serde_json::Value = serde_json::from_str(&generation).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(a.path().join("tokenizer.json")).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let stops = [id("<|return|>"), id("<|endoftext|>"), id("<|call|>")];
    assert_eq!(generation["eos_token_id"], serde_json::json!(stops));
    assert_eq!(tokenizer.get_vocab_size(true), tiny_config().vocab_size);
    let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    for word in
        ["assistant", "user", "system", "final", "analysis", "commentary", " the", "json", "to"]
    {
        assert_eq!(ids(word).len(), 1, "{word}");
    }
    let text = "<|start|>assistant<|channel|>final<|message|>Grüße, 12345 ☃\r\n\u{0}<|return|>";
    assert_eq!(ids(text)[..2], [id("<|start|>"), id("assistant")]);
    assert_eq!(tokenizer.decode(&ids(text), false).unwrap(), text);
}

#[test]
fn the_harmony_vocabulary_keeps_its_stop_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let config = with_vocab(201_088);
    Checkpoint::random(&config, 1).unwrap().save(dir.path(), u64::MAX).unwrap();
    let generation = std::fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
    let generation: serde_json::Value = serde_json::from_str(&generation).unwrap();
    assert_eq!(generation["eos_token_id"], serde_json::json!([200_002, 199_999, 200_012]));
}

#[test]
fn only_the_published_layout_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(&original(&Draft::new(1))).save(dir.path(), u64::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn absurd_random_sizes_are_refused() {
    let mut config = small_config();
    config.block_configs[0].num_local_experts = 1 << 24;
    (config.hidden_size, config.intermediate_size) = (1 << 24, 1 << 24);
    (config.vocab_size, config.num_attention_heads, config.num_key_value_heads) = (1, 1, 1);
    let error = Checkpoint::random(&config, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("gate_up_proj_blocks` [16777216, "), "{error}");
}

#[test]
fn a_configuration_made_by_hand_is_held_to_what_files_are() {
    let refused = |change: fn(&mut ModelConfig)| {
        let mut config = small_config();
        change(&mut config);
        let error = Checkpoint::random(&config, 1).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    let experts = refused(|c| c.num_experts_per_tok = 3);
    assert_eq!(experts, "num_experts_per_tok is 3 but layer 1 has 2 experts");
    assert!(refused(|c| c.head_dim = 20).contains("head_dim is 20"));
    assert!(refused(|c| c.block_configs[0].sliding_window = Some(0)).contains("window of layer 0"));
    assert!(refused(|c| c.vocab_size = usize::MAX / 2).contains("vocab_size is 9223"));
    assert!(refused(|c| c.rope.factor = f64::NAN).contains("factor"));
    for model_type in ["gpt_oss", "gpt_oss_puzzle"] {
        let mut config = small_config();
        (config.model_type, config.block_configs) = (model_type.into(), Vec::new());
        let error = Checkpoint::random(&config, 1).expect_err("refused");
        assert!(error.to_string().contains("num_hidden_layers is 0"), "{error}");
    }
}

#[test]
fn asking_wrongly_is_an_error() {
    let checkpoint = open(&Draft::new(1));
    let fails = |error: gpt_oss_puzzle::Error, kind, parts: &[&str]| {
        assert_eq!(error.kind(), kind, "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error}"));
    };
    let norm = "model.norm.weight";
    let kind = ErrorKind::Checkpoint;
    fails(checkpoint.f32(norm, &[33]).unwrap_err(), kind, &[norm, "[33]", "[32]"]);
    fails(checkpoint.bf16(norm, &[]).err().unwrap(), kind, &[norm, "[]", "[32]"]);
    fails(checkpoint.bf16("no.such", &[1]).err().unwrap(), kind, &["no.such", "found none"]);
    let experts =
        |layer, projection, cols| checkpoint.experts(layer, projection, 32, cols).err().unwrap();
    let kind = ErrorKind::InvalidRequest;
    fails(experts(2, "down_proj", 64), kind, &["layer 2 of 2"]);
    fails(experts(0, "up_proj", 64), kind, &["up_proj"]);
    fails(experts(0, "down_proj", 63), kind, &["63"]);
    fails(
        experts(0, "down_proj", 96),
        ErrorKind::Checkpoint,
        &["down_proj_blocks", "[4, 32, 3, 16]"],
    );
    let original = open(&original(&Draft::new(1)));
    let q = "model.layers.0.self_attn.q_proj.weight";
    fails(original.bf16(q, &[63, 32]).err().unwrap(), ErrorKind::Checkpoint, &["qkv.weight", "63"]);
}

#[test]
fn warming_reads_every_weight_and_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut reports = Vec::new();
    checkpoint.warm(|done, total| reports.push((done, total)));
    assert!(reports.is_sorted() && reports.len() > 10, "{reports:?}");
    assert!(reports.iter().all(|(_, total)| *total == checkpoint.total_bytes()));
    assert_eq!(reports.last().map(|(done, _)| *done), Some(checkpoint.total_bytes()));
}
