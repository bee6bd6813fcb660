//! What a chat gives back: events while it runs, and the whole once it has ended.

use super::ReasoningCut;
use crate::generation::{FinishReason, Timings, Usage};
use crate::harmony::{AssistantMessage, Repair, ToolCall, ToolKind};
use serde::{Deserialize, Serialize};

/// Something that happened in a [`super::ChatStream`].
///
/// Texts are whole characters and never control tokens; those of one kind concatenated are the
/// corresponding part of [`ChatResponse::message`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "value", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatEvent {
    /// More chain of thought. Not meant for end users.
    Reasoning(String),
    /// More of what the model tells the user before it calls tools.
    Preamble(String),
    /// More of the answer.
    Text(String),
    /// The model calls a tool.
    ToolCallStart {
        /// Which call of this answer, from 0.
        index: usize,
        /// As in [`ToolCall::id`].
        id: String,
        /// As in [`ToolCall::name`].
        name: String,
        /// As in [`ToolCall::kind`].
        kind: ToolKind,
    },
    /// More of a call's arguments.
    ToolCallDelta {
        /// Which call.
        index: usize,
        /// The arguments' next part, as the model wrote it.
        arguments: String,
    },
    /// The call is complete. A call without this event was cut off and must not be run.
    ToolCallDone {
        /// Which call.
        index: usize,
    },
    /// A token was drawn; comes before the text it completes. Only when log-probabilities were asked
    /// for.
    Logprob(TokenLogprob),
    /// The model's output was malformed, and this is how it was understood.
    Repaired(Repair),
    /// The chain of thought was ended; see [`super::Reasoning`]. At most once.
    BudgetReached {
        /// How many tokens it had.
        reasoning_tokens: usize,
        /// Why it was ended.
        cut: ReasoningCut,
    },
    /// The end; nothing follows.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// How many tokens went where.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
    },
}

/// A drawn token and how likely it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its bytes, which need not be whole characters; empty for a token without a text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability before penalties, bias and temperature; at most 0.
    pub logprob: f32,
    /// The most likely tokens of this position, most likely first.
    pub top: Vec<TopLogprob>,
}

/// A token that could have been drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TopLogprob {
    /// The token.
    pub id: u32,
    /// Its bytes, as in [`TokenLogprob::bytes`].
    pub bytes: Vec<u8>,
    /// As [`TokenLogprob::logprob`].
    pub logprob: f32,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatResponse {
    /// What the model said: add it to the conversation with [`super::ChatRequest::message`].
    pub message: AssistantMessage,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How many tokens went where.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Where the model's output was malformed, and how it was understood.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<Repair>,
    /// One entry per token that was drawn, when they were asked for: none for
    /// [`ChatResponse::forced`] tokens, which the model did not choose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Every generated token, control tokens and forced ones included.
    pub tokens: Vec<u32>,
    /// Which of them, as indices, were not drawn but put there: to end the chain of thought, or because
    /// a [`super::Format`] left no choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forced: Vec<usize>,
    /// Why the chain of thought was ended, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_cut: Option<ReasoningCut>,
    /// The seed of the draws: the same request with this seed gives the same tokens.
    pub seed: u64,
}

impl ChatResponse {
    /// The answer.
    pub fn text(&self) -> String {
        self.message.text()
    }

    /// The chain of thought. Not meant for end users.
    pub fn reasoning(&self) -> String {
        self.message.reasoning()
    }

    /// The tool calls in order.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.message.tool_calls()
    }
}
