//! [`Format`]: what the text of an answer has to follow.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the text of an answer has to follow, from its first character to its last.
///
/// The model thinks as it likes; from where its answer begins it can only draw tokens that lead to a
/// text of this format, and can only end its turn when the text is one. What the format leaves no choice
/// in is put into the stream without being drawn. Nothing is said of it in the prompt: a model that is
/// told what to answer, and in which shape, answers better.
///
/// - An answer that [`super::ChatRequest::max_tokens`], the context, a stop string or a cancellation
///   ends is cut off where it is; its `finish_reason` is then not
///   [`crate::generation::FinishReason::Stop`].
/// - The chain of thought is limited by [`super::Reasoning`] as ever.
/// - With tools on offer the model may call one instead, and the result of that is what it answers to.
///   Arguments are not the answer: see [`crate::harmony::ToolChoice::Required`].
///
/// Following a format takes the feature `structured`; without it a request with one is refused.
///
/// ```
/// use gpt_oss_puzzle::chat::{ChatRequest, Format};
///
/// let colour = serde_json::json!({"enum": ["red", "green", "blue"]});
/// let request = ChatRequest::user("Which colour is the sky? Answer as a JSON string.")
///     .format(Format::json_schema(colour));
/// # assert!(request.format.is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// JSON of this schema, on one line or indented. A schema with a keyword that cannot be followed
    /// (such as `not`, or a `oneOf` whose cases overlap) is refused, not followed in part; `$ref` leads
    /// to places in the same schema. `x-guidance` in it has llguidance's own settings.
    JsonSchema(Value),
    /// A text that this regular expression matches whole, in the syntax of the crate `regex`, without
    /// anchors and look-around.
    Regex(String),
    /// A text of this context-free grammar, whose first rule is `start`, in llguidance's dialect of
    /// Lark (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>). Control tokens
    /// cannot be part of it.
    Lark(String),
}

impl Format {
    /// JSON of this schema.
    pub fn json_schema(schema: Value) -> Format {
        Format::JsonSchema(schema)
    }

    /// A JSON object.
    pub fn json_object() -> Format {
        Format::JsonSchema(json!({"type": "object"}))
    }

    /// What a regular expression matches.
    pub fn regex(pattern: impl Into<String>) -> Format {
        Format::Regex(pattern.into())
    }

    /// What a grammar derives.
    pub fn lark(grammar: impl Into<String>) -> Format {
        Format::Lark(grammar.into())
    }
}
