//! The examples as their users meet them: help, wrong flags, bad input, exit codes, closed pipes.
//!
//! `cargo test` builds the examples first; alone, this test needs `cargo build --examples` before it.

#[path = "common/example.rs"]
mod example;

use example::example;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};

const NAMES: [&str; 8] =
    ["bench", "chat", "eval", "generate", "harmony", "logprobs", "make_tiny", "train_tiny"];

/// What an example makes of arguments and input.
fn run(name: &str, args: &[&str], input: &[u8]) -> Output {
    let mut child = example(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // One that does not read its input may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("ends")
}

fn code(output: &Output) -> Option<i32> {
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A tiny checkpoint, made by the example.
fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let made = run("make_tiny", &["--out", text(dir.path())], b"");
    assert_eq!(code(&made), Some(0), "{}", stderr(&made));
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn every_example_explains_itself_and_refuses_unknown_flags() {
    for name in NAMES {
        let help = run(name, &["--help"], b"");
        assert_eq!(code(&help), Some(0), "{name}");
        assert!(stdout(&help).contains("Usage:"), "{name}: {}", stdout(&help));
        let wrong = run(name, &["--no-such-flag"], b"");
        assert_eq!(code(&wrong), Some(2), "{name}");
        assert!(stderr(&wrong).contains("--no-such-flag"), "{name}: {}", stderr(&wrong));
    }
}

#[test]
fn values_out_of_range_are_refused_before_anything_is_loaded() {
    for (name, args) in [
        ("chat", &["--max-tokens", "0", "hi"][..]),
        ("chat", &["--ctx", "0", "hi"]),
        ("chat", &["--effort", "extreme", "hi"]),
        ("chat", &[""]),
        ("generate", &["--max-tokens", "0", "hi"]),
        ("logprobs", &["--model", "x", "--tokens", ""]),
        ("logprobs", &["--model", "x", "--tokens", "1,-2"]),
        ("logprobs", &["--model", "x", "--tokens", "1", "--chunk", "0"]),
        ("logprobs", &["--model", "x", "--tokens", "1", "--kv-dtype", "int4"]),
        ("bench", &["--synthetic", "tiny", "--activations", "fp8"]),
        ("bench", &["--synthetic", "gpt-oss-20b", "-r", "0"]),
        ("bench", &["--synthetic", "tiny", "-b", "1,0"]),
        ("bench", &["--synthetic", "tiny", "--device", "tpu"]),
        ("chat", &["--device", "cuda:-1", "hi"]),
        ("bench", &["--synthetic", "gpt-oss-20b", "-p", "18446744073709551615"]),
        ("bench", &[]),
        ("harmony", &[]),
        ("make_tiny", &[]),
    ] {
        let output = run(name, args, b"");
        assert_eq!(code(&output), Some(2), "{name} {args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("loaded"), "{name} {args:?}");
    }
}

#[test]
fn a_model_that_is_not_there_is_named() {
    for (name, args) in [
        ("chat", &["--model", "./no/such/place", "hi"][..]),
        ("generate", &["--model", "./no/such/place", "hi"]),
        ("logprobs", &["--model", "./no/such/place", "--tokens", "1"]),
        ("bench", &["--model", "./no/such/place"]),
        ("eval", &["--model", "./no/such/place"]),
        ("harmony", &["render", "--model", "./no/such/place"]),
    ] {
        let output = run(name, args, b"");
        assert_eq!(code(&output), Some(1), "{name}");
        assert!(stderr(&output).contains("no/such/place"), "{name}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{name}: {}", stdout(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "said once: {}", stderr(&output));
    }
    let deep = ["--synthetic", "gpt-oss-120b", "-p", "512", "-d", "131000"];
    let deep = run("bench", &deep, b"");
    assert_eq!(code(&deep), Some(1));
    assert!(stderr(&deep).contains("131512 tokens do not fit"), "{}", stderr(&deep));
    let empty = run("generate", &[], b"");
    assert_eq!(code(&empty), Some(1));
    assert!(stderr(&empty).contains("the prompt is empty"), "{}", stderr(&empty));
}

#[test]
fn a_checkpoint_is_not_overwritten_unasked() {
    let dir = tiny();
    let again = run("make_tiny", &["--out", text(dir.path())], b"");
    assert_eq!(code(&again), Some(2));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    let forced = run("make_tiny", &["--out", text(dir.path()), "--force"], b"");
    assert_eq!(code(&forced), Some(0), "{}", stderr(&forced));
}

#[test]
fn logprobs_prints_the_rows_asked_for() {
    let dir = tiny();
    let base = ["--model", text(dir.path()), "--tokens", "1,2,3,4,5"];
    let value = |extra: &[&str]| -> serde_json::Value {
        let output = run("logprobs", &[&base[..], extra].concat(), b"");
        assert_eq!(code(&output), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let (last, full) = (value(&[]), value(&["--full", "--chunk", "2"]));
    let rounded = value(&["--activations", "bf16"]);
    assert_ne!(rounded["logits"], last["logits"]);
    assert_eq!(last["logits"].as_array().map(Vec::len), Some(1));
    assert_eq!(full["logits"].as_array().map(Vec::len), Some(5));
    assert_eq!(full["logits"][4], last["logits"][0]);
    assert_eq!(full["logprobs"], last["logprobs"]);
    assert_eq!(full["logprobs"].as_array().map(Vec::len), Some(4));
    let outside = run("logprobs", &["--model", text(dir.path()), "--tokens", "99999"], b"");
    assert_eq!(code(&outside), Some(1));
    assert!(stderr(&outside).contains("token 99999"), "{}", stderr(&outside));
}

#[test]
fn harmony_answers_every_line() {
    let lines: &[u8] =
        b"{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"date\":\"2026-01-02\"}\n\
        not json\n\xff\xfe\n\n[]\n{\"messages\":[{\"role\":\"user\",\"content\":\"ho\"}]}";
    let output = run("harmony", &["render"], lines);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let replies: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(replies.len(), 5, "{replies:?}");
    for (reply, field) in replies.iter().zip(["text", "error", "error", "error", "text"]) {
        assert!(reply[field].is_string(), "{reply}");
    }
    let dir = tiny();
    let parsed =
        run("harmony", &["parse", "--model", text(dir.path())], b"{\"tokens\":[65]}\n{}\n");
    assert_eq!(code(&parsed), Some(0), "{}", stderr(&parsed));
    let replies = stdout(&parsed);
    let replies: Vec<&str> = replies.lines().collect();
    assert!(
        replies[0].contains("\"events\"") && replies[0].contains("\"messages\""),
        "{replies:?}"
    );
    assert!(replies[1].contains("\"error\""), "{replies:?}");
}

#[test]
fn a_conversation_whose_turns_fail_says_so_in_its_exit_code() {
    let args = ["--ctx", "100", "--max-tokens", "5", "--seed", "1"];
    let long = format!("{}\n", "word ".repeat(100));
    let output = run("chat", &args, long.as_bytes());
    assert_eq!(code(&output), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("do not fit the context of 100"), "{}", stderr(&output));
}

/// `example | head -c 0`: the reader goes away, and that is no error of the example.
#[test]
fn a_closed_pipe_ends_an_example_quietly() {
    let dir = tiny();
    let model = text(dir.path());
    for (name, args) in [
        ("generate", &["--model", model, "--max-tokens", "200", "--seed", "1", "hi"][..]),
        ("logprobs", &["--model", model, "--tokens", "1,2,3", "--full"]),
        ("bench", &["--model", model, "-p", "8", "-n", "2", "-r", "1"]),
        ("chat", &["--model", model, "--max-tokens", "300", "--seed", "1", "hi"]),
        ("make_tiny", &["--out", model, "--force"]),
    ] {
        let mut child = example(name)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
        let status = child.wait().expect("ends");
        assert!(!said.contains("panicked") && !said.contains("error"), "{name}: {said}");
        assert_eq!(status.code(), Some(0), "{name}: {said}");
    }
}
