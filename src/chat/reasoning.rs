//! [`Reasoning`]: how long a model may think, and what of it is shown.

use super::ChatRequest;
use crate::harmony::{Channel, Header, Primed, Rendered};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Limits on the chain of thought of a turn.
///
/// A chain of thought that reaches a limit is ended as the model itself would end it, and the model
/// goes on with the answer, knowing what it has thought so far: the tokens
/// `<|end|><|start|>assistant<|channel|>final<|message|>` are put into the stream. With tools on offer
/// the last two are left to the model, so that it may still call one; it is only kept from going back
/// to thinking. [`super::ChatEvent::BudgetReached`] tells of it, once per turn.
///
/// Thinking cannot be left out without harm: gpt-oss-puzzle, put straight into the final channel,
/// degenerates into runs of no-break spaces and ellipses. To save time, ask for
/// [`crate::harmony::Effort::Low`], set [`Reasoning::max_tokens`], and let two thirds of a short
/// answer's tokens be thought. A limit of 0 is therefore refused unless [`Reasoning::allow_skipping`]
/// is set.
///
/// ```
/// use gpt_oss_puzzle::chat::{ChatRequest, Reasoning};
///
/// let request = ChatRequest::user("Why is the sky blue?")
///     .max_tokens(600)
///     .reasoning(Reasoning::default().max_tokens(200).hidden());
/// # assert!(request.reasoning.hidden);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Reasoning {
    /// Most tokens of chain of thought in a turn, all its messages together, headers and tool calls
    /// not counted; `None` for no limit.
    ///
    /// From there on the next pause in the text (a space, a line's end, punctuation) ends it, or after
    /// half of [`Reasoning::GRACE`] any whole character, or after all of it any token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Tokens of the answer's text that [`ChatRequest::max_tokens`], or the context, keeps free: the
    /// chain of thought ends in time for them, and so do words before a call that is required. A turn
    /// then never ends in
    /// [`crate::generation::FinishReason::Length`] without a word of the answer; with a call of a tool,
    /// or with words to the user before one, it can.
    ///
    /// `None` keeps a third of the turn free, at most 256 tokens, where there are at least
    /// [`Reasoning::RESERVED_FROM`]; 0 keeps nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_answer_tokens: Option<usize>,
    /// Ends a chain of thought that only repeats itself: whose last tokens are the same 1 to 128
    /// tokens at least four times over, and 64 tokens or more. On by default.
    pub break_loops: bool,
    /// Keeps the chain of thought out of events and of the message; its tokens are still counted, and
    /// their ids are in [`super::ChatResponse::tokens`]. Log-probabilities are then those of the rest
    /// alone, and repairs come without the text concerned.
    ///
    /// A session keeps the thought that led to a call in its conversation, where the model needs it until
    /// it has answered. Whoever sends the message back in a request of their own sends it without.
    pub hidden: bool,
    /// Permits a [`Reasoning::max_tokens`] of 0: the prompt then ends in the header of the answer, and
    /// the model does not think. It was never trained to answer so, and gpt-oss-puzzle fails at it.
    pub allow_skipping: bool,
}

impl Default for Reasoning {
    fn default() -> Reasoning {
        Reasoning {
            max_tokens: None,
            min_answer_tokens: None,
            break_loops: true,
            hidden: false,
            allow_skipping: false,
        }
    }
}

impl Reasoning {
    /// Tokens that a chain of thought may go on past [`Reasoning::max_tokens`], to end between words.
    pub const GRACE: usize = 16;

    /// The fewest tokens of a turn of which some are kept free for the answer by default.
    pub const RESERVED_FROM: usize = 24;

    /// Sets [`Reasoning::max_tokens`].
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    /// Sets [`Reasoning::min_answer_tokens`].
    pub fn min_answer_tokens(self, min_answer_tokens: usize) -> Self {
        Self { min_answer_tokens: Some(min_answer_tokens), ..self }
    }

    /// Sets [`Reasoning::break_loops`].
    pub fn break_loops(self, break_loops: bool) -> Self {
        Self { break_loops, ..self }
    }

    /// Sets [`Reasoning::hidden`].
    pub fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    /// Sets [`Reasoning::allow_skipping`].
    pub fn allow_skipping(self) -> Self {
        Self { allow_skipping: true, ..self }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Reasoning::default()
    }

    /// Whether there is to be no chain of thought.
    pub(super) fn is_skipped(&self) -> bool {
        self.max_tokens == Some(0)
    }

    /// Where in the format the model's tokens begin.
    pub(super) fn primed(&self) -> Primed {
        match self.is_skipped() {
            true => Primed::Content(Header::assistant(Channel::Final)),
            false => Primed::Role,
        }
    }

    /// Ends `prompt` in the header of the answer when thinking is skipped.
    ///
    /// # Errors
    /// `InvalidRequest` when that is not permitted, or tools are on offer.
    pub(super) fn prefill(
        &self,
        request: &ChatRequest,
        tokenizer: &Tokenizer,
        prompt: &mut Rendered,
    ) -> Result<()> {
        if !self.is_skipped() {
            return Ok(());
        }
        if !self.allow_skipping {
            return Err(Error::invalid_request(
                "reasoning.max_tokens is 0, expected at least 1: without thinking these models \
                 answer badly or not at all, reasoning.allow_skipping permits it",
            ));
        }
        if request.offers_tools() {
            return Err(Error::invalid_request(
                "reasoning.max_tokens is 0 and tools are on offer, expected one or the other: an \
                 answer without thinking cannot call tools",
            ));
        }
        let header = "<|channel|>final<|message|>";
        prompt.tokens.extend(tokenizer.encode_with_special(header)?);
        prompt.text += header;
        Ok(())
    }
}

/// Why a chain of thought was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReasoningCut {
    /// It reached [`Reasoning::max_tokens`].
    Budget,
    /// What is left is kept free by [`Reasoning::min_answer_tokens`].
    Reserve,
    /// It repeated itself, see [`Reasoning::break_loops`].
    Loop,
}
