//! The model that ships with the crate: its files are what the release's are, and it still answers.
//!
//! A kernel, a window, a scale, a sink, the router or the template that goes wrong shows here as wrong
//! answers. `cargo run --release --example eval` is the whole examination.
//!
//! `cargo test` builds the examples first; alone, this test needs `cargo build --examples` before it.

#[path = "common/example.rs"]
mod example;
#[path = "../examples/eval/exam.rs"]
mod exam;
#[path = "../examples/world/mod.rs"]
mod world;

use example::example;
use gpt_oss_puzzle::cache::KvDtype;
use gpt_oss_puzzle::generation::FinishReason;
use gpt_oss_puzzle::{ChatRequest, Model, ModelConfig};
use std::collections::BTreeSet;
use std::path::Path;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");

fn model(kv_dtype: KvDtype) -> Model {
    Model::builder(DIR).kv_dtype(kv_dtype).load().expect("the shipped model loads")
}

#[test]
fn the_files_are_a_release_in_small() {
    let mut total = 0;
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(DIR).expect("the shipped model") {
        let entry = entry.expect("an entry");
        total += entry.metadata().expect("its size").len();
        names.insert(entry.file_name().into_string().expect("UTF-8"));
    }
    assert!(total <= 6_000_000, "{total} bytes");
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    ] {
        assert!(names.contains(name), "{name} is missing from {names:?}");
    }
    let config = ModelConfig::from_file(&Path::new(DIR).join("config.json")).expect("valid");
    assert_eq!(config.model_type, "gpt_oss_puzzle");
    assert_eq!(config.head_dim, 64);
    assert!(config.max_position_embeddings >= 2048 && config.rope.factor > 1.0);
    let experts: BTreeSet<_> = config.block_configs.iter().map(|b| b.num_local_experts).collect();
    let windows: BTreeSet<_> = config.block_configs.iter().map(|b| b.sliding_window).collect();
    assert_eq!((experts.len(), windows.len()), (2, 3), "{:?}", config.block_configs);
    let model = model(KvDtype::Fp8);
    assert!((1000..=2000).contains(&model.tokenizer().vocab_size()));
    for layer in 0..config.num_hidden_layers() {
        let scales = model.checkpoint().kv_scales(layer).expect("readable").expect("calibrated");
        for scale in [scales.k, scales.v] {
            assert!(scale < 1.0 && scale.log2().fract() == 0.0, "layer {layer}: {scale}");
        }
    }
}

/// The quick examination: of each line, how many exercises, and how many of them were right when the model
/// was shipped.
const REACHED: [(&str, usize, usize); 22] = [
    ("facts", 12, 12),
    ("addition, 2 digits", 8, 8),
    ("subtraction, 2 digits", 8, 8),
    ("addition, 3 digits", 8, 8),
    ("subtraction, 3 digits", 8, 7),
    ("needle, 50 tokens", 4, 4),
    ("needle, 128 tokens", 8, 8),
    ("needle, 512 tokens", 6, 6),
    ("needle, 1024 tokens", 4, 4),
    ("needle, 2048 tokens", 4, 4),
    ("unknown", 12, 12),
    ("answer in JSON", 12, 12),
    ("tool call: weather", 12, 12),
    ("tool call: add", 12, 12),
    ("tool result: weather", 12, 12),
    ("tool result: add", 12, 12),
    ("fact beside tools", 12, 12),
    ("sum without its tool", 8, 7),
    ("weather without its tool", 12, 12),
    ("effort low", 12, 12),
    ("effort medium", 12, 12),
    ("effort high", 12, 12),
];

/// One fewer is allowed: another machine's sums differ in the last place. FP8 may be one worse than that.
#[test]
fn it_still_answers() {
    let mut lines = exam::lines(12, 11);
    assert_eq!(lines.iter().map(|line| line.name).collect::<Vec<_>>(), REACHED.map(|line| line.0));
    let (exact, rounded) = (model(KvDtype::Bf16), model(KvDtype::Fp8));
    let mut failed = Vec::new();
    for (line, (name, of, reached)) in lines.iter_mut().zip(REACHED) {
        line.exercises.truncate(of);
        let marks = [&exact, &rounded].map(|model| exam::sit(model, line).expect("runs"));
        let [exact, rounded] = &marks;
        println!("{name:26} {}/{of} fp8 {}", exact.right, rounded.right);
        if exact.right + 1 < reached || rounded.right + 2 < reached {
            let mistake = rounded.mistakes.first();
            let right = [exact.right, rounded.right];
            failed.push(format!("{name}: {right:?} of {reached}, {mistake:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn more_effort_thinks_longer() {
    let model = model(KvDtype::Bf16);
    let lines = exam::lines(12, 11);
    let [low, medium, high] = ["effort low", "effort medium", "effort high"].map(|name| {
        let line = lines.iter().find(|line| line.name == name).expect("a line");
        exam::sit(&model, line).expect("runs").reasoning_tokens
    });
    assert!(low < medium && medium < high && high >= 2.0 * low, "{low} {medium} {high}");
}

/// What an example prints with the instruction set capped.
fn run(name: &str, isa: &str, args: &[&str]) -> (String, String) {
    let output = example(name).args(args).env("MAX_CPU_ISA", isa).output().expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.code().is_some_and(|code| code < 2), "{out}{err}");
    (out, err)
}

#[test]
fn every_tier_gives_the_same_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let written = |isa: &str| -> Vec<serde_json::Value> {
        let path = dir.path().join(format!("{isa}.json"));
        let json = path.to_str().expect("UTF-8");
        run("eval", isa, &["--count", "4", "--seed", "5", "--json", json]);
        let all = std::fs::read(&path).expect("written");
        let all: serde_json::Value = serde_json::from_slice(&all).expect("JSON");
        let marks = all["marks"].as_array().expect("marks");
        assert!(marks.len() > 15);
        marks.iter().map(|mark| mark["written"].clone()).collect()
    };
    let scalar = written("scalar");
    for isa in ["avx2", "avx512"] {
        assert_eq!(written(isa), scalar, "{isa}");
    }
}

/// What the README shows is what the command prints.
#[test]
fn the_readme_shows_the_true_output() {
    let readme = include_str!("../README.md");
    let (out, err) = run("chat", "avx512", &["What is the capital of France?"]);
    assert_eq!(out, "The capital of France is Paris.\n");
    assert!(readme.contains(out.trim_end()), "the answer");
    let thought = "The user asks for the capital of France. The capital of France is Paris.";
    assert!(err.contains(thought) && readme.contains(thought), "{err}");
    let note = err.lines().find(|line| line.starts_with("no --model")).expect("what it is");
    assert!(readme.contains(note), "{note}");
}

#[test]
fn a_conversation_goes_on() {
    let model = model(KvDtype::Fp8);
    let mut session = model.session(ChatRequest::new([]).date("2026-05-01"));
    for (asked, answered) in [
        ("What is the capital of Spain?", "The capital of Spain is Madrid."),
        ("What is 12 + 29?", "12 + 29 = 41."),
    ] {
        let mut stream = session.send(asked).expect("starts");
        for event in stream.by_ref() {
            event.expect("an event");
        }
        let response = stream.finish().expect("ends");
        assert_eq!(response.text(), answered);
        assert_eq!(response.finish_reason, FinishReason::Stop);
    }
}
