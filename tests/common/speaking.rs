//! Two models to chat with, and what they are to be made to say.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use super::bigram;
use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, Model};
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::model::DeviceName;
use gpt_oss_puzzle::weights::write_tiny_checkpoint;

/// A model of random weights that has forgotten nothing.
pub fn tiny() -> Model {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    Model::builder(dir.path()).threads(1).context(4096).load().unwrap()
}

/// A model that speaks harmony.
pub fn speaking() -> Model {
    speaking_on(DeviceName::Cpu)
}

/// The same elsewhere.
pub fn speaking_on(device: DeviceName) -> Model {
    let dir = tempfile::tempdir().unwrap();
    bigram::write_bigram_checkpoint(dir.path());
    Model::builder(dir.path()).device(device).threads(1).context(1024).load().unwrap()
}

/// A request whose draws are biased by these amounts on these tokens.
pub fn biased(model: &Model, seed: u64, biases: &[(&str, f32)]) -> ChatRequest {
    let mut sampling = SamplingParams::default().seed(seed);
    for (text, bias) in biases {
        let id = match *text {
            "\u{f0}" => 0xf0,
            text => model.tokenizer().encode_with_special(text).unwrap()[0],
        };
        sampling = sampling.logit_bias(id, *bias);
    }
    ChatRequest::user("Hello").date("2026-01-02").sampling(sampling).max_tokens(160)
}

/// Thinks for ever, in one message.
pub const ENDLESS: &[(&str, f32)] =
    &[("analysis", 10.0), ("<|end|>", -30.0), ("<|return|>", -30.0), ("<|call|>", -30.0)];
/// Thinks for ever, in message after message.
pub const AGAIN: &[(&str, f32)] = &[("analysis", 10.0), ("<|return|>", -30.0), ("<|call|>", -30.0)];
/// Thinks ABABAB.
pub const LOOPING: &[(&str, f32)] = &[
    ("analysis", 10.0),
    ("<|end|>", -30.0),
    ("<|return|>", -30.0),
    ("<|call|>", -30.0),
    ("\u{f0}", -30.0),
];
/// Ends every message as soon as it has begun.
pub const EMPTY: &[(&str, f32)] = &[
    ("<|end|>", 45.0),
    ("<|message|>", 20.0),
    ("<|start|>", 20.0),
    ("assistant", 20.0),
    ("<|channel|>", 20.0),
    ("analysis", 30.0),
    ("final", 20.0),
];
/// Speaks before a tool call that never comes.
pub const PREAMBLE: &[(&str, f32)] = &[
    ("commentary", 10.0),
    (" ", -35.0),
    ("<|end|>", -30.0),
    ("<|return|>", -30.0),
    ("<|call|>", -30.0),
];
/// Writes arguments for ever.
pub const CALLING: &[(&str, f32)] = &[
    ("commentary", 10.0),
    (" ", 10.0),
    ("<|end|>", -30.0),
    ("<|return|>", -30.0),
    ("<|call|>", -30.0),
];

/// All events of a chat.
pub fn events(model: &Model, request: &ChatRequest) -> Vec<ChatEvent> {
    model.chat_stream(request).unwrap().map(Result::unwrap).collect()
}
