//! [`Choice`]: a continuation as text.

use gpt_oss_puzzle::chat::StopStrings;
use gpt_oss_puzzle::generation::{FinishReason, GeneratedToken, Usage};
use gpt_oss_puzzle::serving::Generated;
use gpt_oss_puzzle::tokenizer::{TextStream, Tokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What has become of one answer, and what of it was not passed on yet.
pub(super) struct Choice {
    tokenizer: Arc<Tokenizer>,
    stops: StopStrings,
    skip_special_tokens: bool,
    bytes: TextStream,
    text: String,
    logprobs: Logprobs,
    /// Characters of the text so far.
    length: usize,
    /// Tokens so far.
    tokens: usize,
    finish_reason: Option<&'static str>,
    usage: Usage,
}

/// The four lists of the old shape, an entry for each token.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl Choice {
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        stops: StopStrings,
        skip_special_tokens: bool,
    ) -> Choice {
        Choice {
            tokenizer,
            stops,
            skip_special_tokens,
            bytes: TextStream::default(),
            text: String::new(),
            logprobs: Logprobs::default(),
            length: 0,
            tokens: 0,
            finish_reason: None,
            usage: Usage::default(),
        }
    }

    /// Goes on with a token.
    pub(super) fn token(&mut self, token: GeneratedToken) {
        if self.is_stopped() {
            return;
        }
        self.tokens += 1;
        if let Some(logprobs) = &token.logprobs {
            let mut top: Map<String, Value> = Map::new();
            for top_token in &logprobs.top {
                top.insert(self.name(top_token.id), finite(top_token.logprob));
            }
            top.entry(self.name(token.id)).or_insert(finite(logprobs.logprob));
            self.logprobs.tokens.push(self.name(token.id).into());
            self.logprobs.token_logprobs.push(finite(logprobs.logprob));
            self.logprobs.top_logprobs.push(top.into());
            self.logprobs.text_offset.push(self.length.into());
        }
        if self.skip_special_tokens && self.tokenizer.special(token.id).is_some() {
            return;
        }
        let text = self.bytes.push(self.tokenizer.token_bytes(token.id).unwrap_or_default());
        self.length += text.chars().count();
        self.text += &self.stops.push(&text);
    }

    /// What was held back is text after all.
    pub(super) fn flush(&mut self) {
        if !self.is_stopped() {
            let rest = self.bytes.finish();
            self.text += &self.stops.push(&rest);
        }
        if !self.is_stopped() {
            self.text += &self.stops.flush();
        }
    }

    /// The end.
    pub(super) fn whole(&mut self, whole: &Generated) {
        self.flush();
        self.usage = whole.usage;
        if self.is_stopped() {
            // The model may have gone on before it heard of it.
            self.usage.completion_tokens = self.tokens;
        }
        self.finish_reason = Some(match whole.finish_reason {
            _ if self.is_stopped() => "stop",
            // Also what was cut off: clients take `stop` for a whole answer.
            FinishReason::Length | FinishReason::Cancelled | FinishReason::Deadline => "length",
            _ => "stop",
        });
    }

    /// Whether a stop string came up.
    pub(super) fn is_stopped(&self) -> bool {
        self.stops.found().is_some()
    }

    /// Whether there is text that was not passed on.
    pub(super) fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// Token counts, once it has ended.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// What was not passed on, as an element of `choices`.
    pub(super) fn take(&mut self, index: usize) -> Value {
        let Logprobs { tokens, token_logprobs, top_logprobs, text_offset } =
            std::mem::take(&mut self.logprobs);
        let logprobs = match tokens.is_empty() {
            true => Value::Null,
            false => json!({
                "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs,
                "text_offset": text_offset,
            }),
        };
        json!({
            "index": index, "text": std::mem::take(&mut self.text), "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        })
    }

    /// A token's text, for people: half a character has none.
    fn name(&self, id: u32) -> String {
        String::from_utf8_lossy(self.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
    }
}

/// JSON has no infinity; this is OpenAI's number for very unlikely.
fn finite(logprob: f32) -> Value {
    json!(if logprob.is_finite() { logprob } else { -9999.0 })
}
