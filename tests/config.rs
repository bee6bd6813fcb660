//! config.json in every spelling the family is published in, and every contradiction with its
//! message.

use gpt_oss_puzzle::{BlockConfig, ErrorKind, ModelConfig};
use serde_json::{Value, json};

/// openai/gpt-oss-20b's config.json, transformers 4 spelling, with what a reader may ignore.
fn openai() -> Value {
    let types: Vec<_> = (0..24).map(|l| ["sliding_attention", "full_attention"][l % 2]).collect();
    json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02,
        "intermediate_size": 2880, "layer_types": types, "max_position_embeddings": 131072,
        "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
        "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": false, "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"
            ],
            "quant_method": "mxfp4"
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false
        },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0",
        "use_cache": true, "vocab_size": 201088
    })
}

/// nvidia/gpt-oss-puzzle-88B's config.json as third-party ports report it.
fn puzzle() -> Value {
    const WINDOWS: [Option<usize>; 36] = {
        let (w, f, m) = (Some(128), None, Some(8192));
        [
            w, f, w, m, w, m, w, f, w, f, w, f, w, f, w, f, w, f, w, f, w, m, w, m, w, f, w, m, w,
            f, w, m, w, m, w, m,
        ]
    };
    let experts = |layer: usize| match layer {
        0..=14 | 16 | 18 | 20 => 128,
        _ => 64,
    };
    let blocks: Vec<_> = (WINDOWS.iter().enumerate())
        .map(|(layer, window)| {
            json!({ "num_local_experts": experts(layer), "sliding_window": window })
        })
        .collect();
    let types: Vec<_> = (WINDOWS.iter())
        .map(|w| if w.is_some() { "sliding_attention" } else { "full_attention" })
        .collect();
    let mut config = openai();
    let fields = config.as_object_mut().unwrap();
    fields.remove("num_local_experts");
    fields.remove("sliding_window");
    fields.insert("model_type".into(), json!("gpt_oss_puzzle"));
    fields.insert("num_hidden_layers".into(), json!(36));
    fields.insert("layer_types".into(), json!(types));
    fields.insert("block_configs".into(), json!(blocks));
    fields.insert("auto_map".into(), json!({ "AutoConfig": "configuration_gpt_oss_puzzle.C" }));
    fields.insert(
        "rope_scaling".into(),
        json!({
            "rope_type": "yarn", "factor": 56.0, "original_max_position_embeddings": 4096,
            "beta_fast": 32.0, "beta_slow": 1.0
        }),
    );
    config
}

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::from_json(&config.to_string()).unwrap()
}

/// `config` with some fields set; null removes.
fn with(mut config: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(name)),
            value => config[name] = value.clone(),
        }
    }
    config
}

#[test]
fn the_published_configs() {
    assert_eq!(parse(&openai()), ModelConfig::gpt_oss_20b());
    let types: Vec<_> = (0..36).map(|l| ["sliding_attention", "full_attention"][l % 2]).collect();
    let big = json!({ "num_hidden_layers": 36, "layer_types": types, "num_local_experts": 128 });
    assert_eq!(parse(&with(openai(), big)), ModelConfig::gpt_oss_120b());
    assert_eq!(parse(&puzzle()), ModelConfig::puzzle_88b());
}

#[test]
fn puzzle_is_heterogeneous_as_published() {
    let config = parse(&puzzle());
    let layers = |f: fn(&BlockConfig) -> bool| config.block_configs.iter().filter(|b| f(b)).count();
    assert_eq!(config.num_hidden_layers(), 36);
    assert_eq!(layers(|b| b.num_local_experts == 128), 18);
    assert_eq!(layers(|b| b.num_local_experts == 64), 18);
    assert_eq!(layers(|b| b.sliding_window.is_none()), 10);
    assert_eq!(layers(|b| b.sliding_window == Some(128)), 18);
    assert_eq!(layers(|b| b.sliding_window == Some(8192)), 8);
    assert_eq!(config.block_configs.iter().map(|b| b.num_local_experts).sum::<usize>(), 3456);
    // The cache at 131,072 tokens, in tokens times layers: 41.6 % less than the parent's.
    let cached = |config: &ModelConfig| {
        config.block_configs.iter().map(|b| b.sliding_window.unwrap_or(131_072)).sum::<usize>()
    };
    assert_eq!(cached(&config), 1_378_560);
    assert_eq!(cached(&ModelConfig::gpt_oss_120b()), 2_361_600);
}

#[test]
fn yarn_is_what_the_file_says() {
    let rope = parse(&puzzle()).rope;
    assert_eq!((rope.factor, rope.truncate), (56.0, true), "silent means true");
    assert!(
        (rope.attention_factor - 1.402_535_169_073_514_7).abs() <= 1e-15,
        "{}",
        rope.attention_factor
    );
    let rope = parse(&openai()).rope;
    assert_eq!((rope.factor, rope.truncate), (32.0, false));
    assert!(
        (rope.attention_factor - 1.346_573_590_279_972_7).abs() <= 1e-15,
        "{}",
        rope.attention_factor
    );
    assert_eq!(rope.original_max_position_embeddings, 4096);
    let own = json!({ "rope_scaling": {
        "type": "yarn", "factor": 8, "original_max_position_embeddings": 4096, "beta_fast": 16,
        "beta_slow": 2.5, "truncate": true, "attention_factor": 1.25
    }, "rope_theta": 10000.5 });
    let rope = parse(&with(openai(), own)).rope;
    assert_eq!([rope.factor, rope.beta_fast, rope.beta_slow], [8.0, 16.0, 2.5]);
    assert_eq!((rope.truncate, rope.attention_factor, rope.rope_theta), (true, 1.25, 10000.5));
    // No scaling at all leaves the frequencies alone.
    let plain = json!({ "rope_scaling": null, "initial_context_length": null });
    let rope = parse(&with(openai(), plain)).rope;
    assert_eq!((rope.factor, rope.attention_factor), (1.0, 1.0));
    assert_eq!(rope.original_max_position_embeddings, 131_072);
}

#[test]
fn one_config_in_every_spelling() {
    let expected = parse(&puzzle());
    let yarn = puzzle()["rope_scaling"].clone();
    let inner = with(yarn.clone(), json!({ "rope_theta": 150000 }));
    // transformers 5.
    let five = json!({ "rope_scaling": null, "rope_theta": null, "rope_parameters": inner });
    assert_eq!(parse(&with(puzzle(), five)), expected);
    // MLX conversions park YaRN aside, with rope_scaling null.
    let mut mlx = with(puzzle(), json!({ "yarn_rope_scaling": yarn }));
    mlx["rope_scaling"] = Value::Null;
    assert_eq!(parse(&mlx), expected);
    let default = json!({ "rope_type": "default", "rope_theta": 150000.0 });
    mlx["rope_parameters"] = default;
    assert_eq!(parse(&mlx), expected, "a default beside the real one says nothing");
    // transformers 4 saves the type of the scaling under both its names.
    for old in [json!({ "type": "yarn" }), json!({ "type": "yarn", "rope_type": null })] {
        let both = json!({ "rope_scaling": with(yarn.clone(), old) });
        assert_eq!(parse(&with(puzzle(), both)), expected);
    }
    // openai's names beside Hugging Face's.
    let twice = json!({ "num_experts": 32, "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1.0,
        "rope_ntk_beta": 32.0 });
    assert_eq!(parse(&with(openai(), twice)), parse(&openai()));
    // Twice the same is no contradiction.
    assert_eq!(parse(&with(puzzle(), json!({ "rope_parameters": inner }))), expected);
    // block_configs without layer_types, and the other way round.
    assert_eq!(parse(&with(puzzle(), json!({ "layer_types": null }))), expected);
    assert_eq!(parse(&with(openai(), json!({ "layer_types": null }))), parse(&openai()));
    assert_eq!(parse(&with(openai(), json!({ "experts_per_token": null }))), parse(&openai()));
    assert_eq!(parse(&with(openai(), json!({ "num_experts_per_tok": null }))), parse(&openai()));
    assert_eq!(parse(&with(puzzle(), json!({ "num_hidden_layers": null }))), expected);
    // Defaults of the family, where other writers leave them out.
    let silent = json!({ "rms_norm_eps": null, "swiglu_limit": null, "hidden_act": null,
        "attention_bias": null, "tie_word_embeddings": null });
    assert_eq!(parse(&with(openai(), silent)), parse(&openai()));
    // A block may leave its experts to the top level.
    let mut partial = with(puzzle(), json!({ "num_local_experts": 128 }));
    for block in partial["block_configs"].as_array_mut().unwrap() {
        if block["num_local_experts"] == 128 {
            block.as_object_mut().unwrap().remove("num_local_experts");
        }
        block["extra"] = json!({ "unknown": [1] });
    }
    assert_eq!(parse(&partial), expected);
    // Layers need not alternate.
    let types = vec!["full_attention"; 24];
    let full = parse(&with(openai(), json!({ "layer_types": types, "sliding_window": null })));
    assert!(full.block_configs.iter().all(|b| b.sliding_window.is_none()));
}

#[test]
fn openai_s_original_config() {
    let config = parse(&json!({
        "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088,
        "hidden_size": 2880, "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128,
        "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1, "rope_ntk_beta": 32
    }));
    assert_eq!(config, ModelConfig::gpt_oss_20b());
}

#[test]
fn written_and_read_back() {
    let mut odd = ModelConfig::puzzle_88b();
    odd.block_configs.truncate(3);
    odd.rope.truncate = false;
    odd.rope.attention_factor = 1.5;
    odd.swiglu_alpha = 1.0;
    odd.rms_norm_eps = 1e-6;
    let mut uniform = ModelConfig::gpt_oss_20b();
    uniform.block_configs[0].sliding_window = None;
    let mut full = ModelConfig::gpt_oss_20b();
    full.block_configs.iter_mut().for_each(|b| b.sliding_window = None);
    let mut mixed = ModelConfig::gpt_oss_20b();
    mixed.block_configs[3].num_local_experts = 8;
    for config in [
        ModelConfig::gpt_oss_20b(),
        ModelConfig::gpt_oss_120b(),
        ModelConfig::puzzle_88b(),
        odd,
        uniform,
        full,
        mixed,
    ] {
        assert_eq!(parse(&config.to_json()), config);
    }
}

#[test]
fn contradictions_name_both_sides() {
    let yarn = |fields| with(openai()["rope_scaling"].clone(), fields);
    let block = |layer: usize, fields| {
        let mut config = puzzle();
        config["block_configs"][layer] = with(config["block_configs"][layer].clone(), fields);
        config
    };
    let short = {
        let mut config = puzzle();
        config["block_configs"].as_array_mut().unwrap().pop();
        config
    };
    let long = with(openai(), json!({ "num_hidden_layers": 25 }));
    let edit = |fields| with(openai(), fields);
    let cases: Vec<(Value, &[&str])> = vec![
        // two statements
        (short, &["block_configs has 35 entries", "num_hidden_layers is 36"]),
        (long, &["layer_types has 24 entries", "num_hidden_layers is 25"]),
        (
            edit(json!({ "experts_per_token": 2 })),
            &["num_experts_per_tok is 4", "experts_per_token is 2"],
        ),
        (
            block(1, json!({ "sliding_window": 64 })),
            &["layer_types[1] is \"full_attention\"", "block_configs[1].sliding_window is 64"],
        ),
        (
            block(2, json!({ "sliding_window": null })),
            &["layer_types[2] is \"sliding_attention\"", "block_configs[2].sliding_window is null"],
        ),
        (
            edit(json!({ "rope_parameters": yarn(json!({ "factor": 56.0 })) })),
            &["rope_scaling is", "32", "but rope_parameters is", "56"],
        ),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "rope_theta": 10000 })) })),
            &["rope_theta is 150000", "rope_scaling.rope_theta is 10000"],
        ),
        (
            edit(json!({
                "rope_theta": null, "rope_scaling": yarn(json!({ "rope_theta": 10000 })),
                "rope_parameters": { "rope_type": "default", "rope_theta": 20000 }
            })),
            &["rope_scaling.rope_theta is 10000", "rope_parameters.rope_theta is 20000"],
        ),
        (
            edit(json!({ "initial_context_length": 8192 })),
            &[
                "rope_scaling.original_max_position_embeddings is 4096",
                "initial_context_length is 8192",
            ],
        ),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "type": "linear" })) })),
            &["rope_scaling.rope_type is \"yarn\"", "rope_scaling.type is \"linear\""],
        ),
        (
            edit(json!({ "rope_scaling_factor": 56.0 })),
            &["rope_scaling.factor is 32", "rope_scaling_factor is 56"],
        ),
        (
            edit(json!({ "rope_ntk_beta": 16 })),
            &["rope_scaling.beta_fast is 32", "rope_ntk_beta is 16"],
        ),
        (edit(json!({ "num_experts": 128 })), &["num_local_experts is 32", "num_experts is 128"]),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "beta_fast": 1.0 })) })),
            &["rope_scaling.beta_fast is 1", "rope_scaling.beta_slow is 1"],
        ),
        (
            edit(json!({ "num_key_value_heads": 7 })),
            &["num_attention_heads is 64", "num_key_value_heads 7"],
        ),
        (
            block(35, json!({ "num_local_experts": 3 })),
            &["num_experts_per_tok is 4", "layer 35 has 3 experts"],
        ),
        (
            edit(json!({ "num_experts_per_tok": 33, "experts_per_token": null })),
            &["num_experts_per_tok is 33", "layer 0 has 32 experts"],
        ),
        // one statement, impossible
        (block(5, json!({ "num_local_experts": 0 })), &["num_local_experts of layer 5 is 0"]),
        (block(5, json!({ "sliding_window": 0 })), &["sliding_window of layer 5 is 0"]),
        (
            block(4, json!({ "sliding_window": u64::MAX })),
            &["sliding_window of layer 4 is 18446744073709551615"],
        ),
        (
            block(6, json!({ "attention": { "no_op": false }, "ffn": {} })),
            &["block_configs[6] has attention and ffn", "num_local_experts"],
        ),
        (edit(json!({ "sliding_window": 0 })), &["sliding_window of layer 0 is 0"]),
        (edit(json!({ "num_local_experts": 0 })), &["num_local_experts of layer 0 is 0"]),
        (edit(json!({ "num_hidden_layers": 0, "layer_types": [] })), &["num_hidden_layers is 0"]),
        (
            edit(json!({ "num_experts_per_tok": 0, "experts_per_token": 0 })),
            &["num_experts_per_tok is 0"],
        ),
        (edit(json!({ "vocab_size": 0 })), &["vocab_size is 0"]),
        (edit(json!({ "hidden_size": 2881 })), &["hidden_size is 2881", "32"]),
        (edit(json!({ "intermediate_size": 1 << 30 })), &["intermediate_size is 1073741824"]),
        (edit(json!({ "head_dim": 63 })), &["head_dim is 63"]),
        (
            edit(json!({ "max_position_embeddings": u64::MAX })),
            &["max_position_embeddings is 18446744073709551615"],
        ),
        (
            edit(json!({ "num_hidden_layers": 1u64 << 40, "layer_types": null })),
            &["num_hidden_layers is 1099511627776"],
        ),
        (edit(json!({ "rms_norm_eps": 0.0 })), &["rms_norm_eps is 0"]),
        (edit(json!({ "swiglu_limit": -7.0 })), &["swiglu_limit is -7"]),
        (edit(json!({ "rope_theta": 1.0 })), &["rope_theta is 1"]),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "factor": 0.0 })) })),
            &["rope_scaling.factor is 0"],
        ),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "factor": null })) })),
            &["rope_scaling.factor is missing"],
        ),
        (
            edit(json!({ "rope_scaling": yarn(json!({ "rope_type": "llama3" })) })),
            &["rope_scaling.rope_type is \"llama3\"", "yarn"],
        ),
        (edit(json!({ "rope_scaling": yarn(json!({ "mscale": 1.0 })) })), &["rope_scaling.mscale"]),
        (
            edit(json!({ "layer_types": vec!["chunked_attention"; 24] })),
            &["\"chunked_attention\"", "sliding_attention"],
        ),
        // another architecture
        (edit(json!({ "model_type": "llama" })), &["model_type is \"llama\"", "gpt_oss_puzzle"]),
        (edit(json!({ "hidden_act": "gelu" })), &["hidden_act is \"gelu\""]),
        (edit(json!({ "attention_bias": false })), &["attention_bias is false"]),
        (edit(json!({ "tie_word_embeddings": true })), &["tie_word_embeddings is true"]),
        // not there
        (edit(json!({ "model_type": null })), &["model_type is missing"]),
        (edit(json!({ "hidden_size": null })), &["hidden_size is missing"]),
        (edit(json!({ "sliding_window": null })), &["sliding_window is missing"]),
        (edit(json!({ "num_local_experts": null })), &["num_local_experts is missing"]),
        (edit(json!({ "rope_theta": null })), &["rope_theta is missing"]),
        (
            block(7, json!({ "num_local_experts": null })),
            &["block_configs[7].num_local_experts is missing"],
        ),
        // another type
        (edit(json!({ "hidden_size": "2880" })), &["invalid JSON", "2880"]),
        (edit(json!({ "vocab_size": -1 })), &["invalid JSON", "-1"]),
        (edit(json!({ "block_configs": 3 })), &["invalid JSON"]),
    ];
    for (config, parts) in cases {
        let error = match ModelConfig::from_json(&config.to_string()) {
            Ok(_) => panic!("{parts:?}: accepted"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Config);
        for part in parts {
            assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
        }
    }
    for text in ["", "{", "[]", "null", "{\"a\":}"] {
        assert_eq!(ModelConfig::from_json(text).unwrap_err().kind(), ErrorKind::Config, "{text}");
    }
}

#[test]
fn a_file_is_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    assert_eq!(ModelConfig::from_file(&path).unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(&path, with(openai(), json!({ "vocab_size": 0 })).to_string()).unwrap();
    let error = ModelConfig::from_file(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("config.json: vocab_size is 0"), "{error}");
    std::fs::write(&path, openai().to_string()).unwrap();
    assert_eq!(ModelConfig::from_file(&path).unwrap(), ModelConfig::gpt_oss_20b());
    // Byte sequences that are no text.
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(ModelConfig::from_file(&path).is_err());
}
