//! Where other prompts are likely to go on differently from one: what is worth being kept of it.

use super::ChatRequest;
use crate::cache::Mark;
use crate::harmony::Message;
use crate::tokenizer::Tokenizer;

/// Positions of `prompt` at which others may leave it, ascending.
///
/// The end of what the system and the developer say is where other conversations leave it; the end of the
/// prompt is where the next turn of this one does, which drops the chain of thought of the answer. In a loop
/// of tool calls it is given up for the next: after the loop all its chain of thought is dropped.
pub(crate) fn boundaries(
    tokenizer: &Tokenizer,
    prompt: &[u32],
    request: Option<&ChatRequest>,
) -> Vec<(usize, Mark)> {
    let last = prompt.len().saturating_sub(1);
    let after_tool =
        request.is_some_and(|request| matches!(request.messages.last(), Some(Message::Tool(_))));
    let end = (last, if after_tool { Mark::Inner } else { Mark::Turn });
    let preface = preface(tokenizer, prompt).filter(|preface| *preface < last);
    preface.map(|preface| (preface, Mark::Turn)).into_iter().chain([end]).collect()
}

/// How many tokens are the system's and the developer's messages, if others follow.
fn preface(tokenizer: &Tokenizer, prompt: &[u32]) -> Option<usize> {
    let start = tokenizer.special_tokens().ok()?.start;
    let roles = [tokenizer.encode("system").ok()?, tokenizer.encode("developer").ok()?];
    let is_other = |(at, id): &(usize, &u32)| {
        **id == start && !roles.iter().any(|role| prompt[at + 1..].starts_with(role))
    };
    prompt.iter().enumerate().find(is_other).map(|(at, _)| at)
}
