//! [`Budget`]: watches the chain of thought of one turn, and ends it.

use super::{ChatRequest, Reasoning, ReasoningCut};
use crate::generation::Lane;
use crate::harmony::Content;
use crate::tokenizer::{Special, Tokenizer};
use crate::{Error, Result};

/// Tokens of a turn that go to the header of its first message and a first thought: fewer before the
/// place where a chain of thought has to end make no sense.
const FIRST: usize = 9;
/// What [`Reasoning::min_answer_tokens`] is at most by default.
const RESERVE: usize = 256;

/// Watches the chain of thought of one turn.
#[derive(Debug)]
pub(super) struct Budget {
    /// Most tokens of chain of thought.
    max_tokens: Option<usize>,
    /// Tokens of the turn after which the answer has to begin.
    deadline: Option<usize>,
    /// Whether the model may end in a tool call as well as in an answer.
    tools: bool,
    /// Whether it has to end in a tool call.
    required: bool,
    loops: Option<Loops>,
    /// The last bytes of the chain of thought.
    tail: Vec<u8>,
    /// The header being read, from its `<|start|>` on.
    header: Vec<u32>,
    /// Whether the chain of thought was ended.
    spent: bool,
    ids: Ids,
}

/// Tokens of this vocabulary.
#[derive(Debug)]
struct Ids {
    /// `<|start|>assistant<|channel|>`
    channel: Vec<u32>,
    /// `final<|message|>`
    answer: Vec<u32>,
    /// The first token of `analysis`.
    analysis: u32,
    end: u32,
    message: u32,
    /// Every named control token.
    special: Vec<u32>,
}

impl Budget {
    /// Watches the turn that `lane` is about to make.
    ///
    /// # Errors
    /// `InvalidRequest` when the reserve leaves no room to think; `Tokenizer` for a vocabulary that
    /// lacks a harmony control token.
    pub(super) fn new(
        request: &ChatRequest,
        tokenizer: &Tokenizer,
        lane: &mut Lane,
    ) -> Result<Budget> {
        let reasoning = &request.reasoning;
        let special = tokenizer.special_tokens()?;
        let ids = Ids {
            channel: tokenizer.encode_with_special("<|start|>assistant<|channel|>")?,
            answer: tokenizer.encode_with_special("final<|message|>")?,
            analysis: tokenizer.encode("analysis")?[0],
            end: special.end,
            message: special.message,
            special: Special::NAMED
                .iter()
                .filter_map(|(_, text)| tokenizer.special_id(text))
                .collect(),
        };
        // A header that is cut short takes one token more than a message that is.
        let switch = 2 + ids.channel.len() + ids.answer.len();
        let most = lane.max_tokens();
        let default = (most / 3).min(RESERVE);
        let reserve = match reasoning.min_answer_tokens {
            _ if reasoning.is_skipped() => None,
            Some(0) => None,
            Some(reserve) if most < reserve.saturating_add(switch + FIRST) => {
                return Err(Error::invalid_request(format!(
                    "reasoning.min_answer_tokens is {reserve} and at most {most} tokens can be \
                     generated, expected {} more than the former",
                    switch + FIRST
                )));
            }
            None if most < Reasoning::RESERVED_FROM.max(default + switch + FIRST) => None,
            reserve => reserve.or(Some(default)),
        };
        if reasoning.is_skipped() {
            lane.forbid(&ids.special)?;
        }
        Ok(Budget {
            max_tokens: reasoning.max_tokens,
            deadline: reserve.map(|reserve| most - reserve - switch),
            tools: request.offers_tools(),
            required: request.requires_call(),
            loops: reasoning.break_loops.then(Loops::default),
            tail: Vec::new(),
            header: ids.channel[..ids.channel.len() - 1].to_vec(),
            spent: reasoning.is_skipped(),
            ids,
        })
    }

    /// Takes a token of the turn, after which `content` is open and `thought` tokens have been chain
    /// of thought, and ends that if it is time to.
    ///
    /// # Errors
    /// As [`Lane::force`].
    pub(super) fn follow(
        &mut self,
        id: u32,
        content: Option<Content>,
        thought: usize,
        tokenizer: &Tokenizer,
        lane: &mut Lane,
    ) -> Result<Option<ReasoningCut>> {
        self.read(id, content, tokenizer);
        if lane.is_forcing() || lane.finish_reason().is_some() {
            return Ok(None);
        }
        let made = lane.usage().completion_tokens;
        let to_deadline = self.deadline.map(|deadline| deadline.saturating_sub(made));
        let overdue = to_deadline == Some(0) && !self.tools;
        let call_overdue = to_deadline == Some(0) && self.required;
        let cut = match content {
            Some(Content::Reasoning) => self.is_due(thought, to_deadline),
            Some(Content::Preamble) if overdue || call_overdue => Some(ReasoningCut::Reserve),
            None if overdue => return self.end_header(tokenizer, lane),
            _ => None,
        };
        let Some(cut) = cut else {
            // The model may open messages after the chain of thought was ended, but not more of it.
            if self.spent && content.is_none() && self.header.last() == self.ids.channel.last() {
                lane.forbid(&[self.ids.analysis])?;
            }
            return Ok(None);
        };
        let mut switch = vec![self.ids.end];
        switch.extend(&self.ids.channel);
        if self.tools {
            lane.force(&switch)?;
            lane.forbid(&[self.ids.analysis])?;
        } else {
            switch.extend(&self.ids.answer);
            lane.force(&switch)?;
            // The answer has at least one token of text.
            lane.forbid(&self.ids.special)?;
        }
        Ok(self.spend(cut))
    }

    /// Keeps up with where the stream is.
    fn read(&mut self, id: u32, content: Option<Content>, tokenizer: &Tokenizer) {
        let special = tokenizer.special(id);
        match content {
            Some(content) => {
                self.header.clear();
                if content == Content::Text && special.is_none() {
                    // There is an answer: nothing has to be kept free for it.
                    self.deadline = None;
                }
                if content == Content::Reasoning && special.is_none() {
                    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                    self.tail.extend_from_slice(bytes);
                    self.tail.drain(..self.tail.len().saturating_sub(4));
                    if let Some(loops) = &mut self.loops {
                        loops.push(id);
                    }
                } else {
                    self.tail.clear();
                }
            }
            None => match special {
                Some(Special::Start) => self.header = vec![id],
                Some(Special::End | Special::Call | Special::Return) => self.header.clear(),
                _ => self.header.push(id),
            },
        }
    }

    /// Whether the chain of thought is to end here.
    fn is_due(&self, thought: usize, to_deadline: Option<usize>) -> Option<ReasoningCut> {
        let grace = Reasoning::GRACE;
        let room = self.max_tokens.map(|max| max.saturating_add(grace).saturating_sub(thought));
        let near = self.deadline.map_or(0, |deadline| grace.min(deadline / 4));
        if self.spent || self.ends_within(room, grace) {
            Some(ReasoningCut::Budget)
        } else if self.ends_within(to_deadline, near) {
            Some(ReasoningCut::Reserve)
        } else if self.loops.as_ref().is_some_and(Loops::found) {
            Some(ReasoningCut::Loop)
        } else {
            None
        }
    }

    /// Whether this is a place to end at, when `room` tokens are left until any place is.
    fn ends_within(&self, room: Option<usize>, grace: usize) -> bool {
        let Some(room) = room else { return false };
        room == 0
            || room <= grace / 2 && is_whole(&self.tail)
            || room <= grace && is_pause(&self.tail)
    }

    /// Completes a header, too late for anything but the answer.
    fn end_header(
        &mut self,
        tokenizer: &Tokenizer,
        lane: &mut Lane,
    ) -> Result<Option<ReasoningCut>> {
        let header = [&self.ids.channel[..], &self.ids.answer].concat();
        if let Some(rest) = header.strip_prefix(&self.header[..]) {
            lane.force(rest)?;
            lane.forbid(&self.ids.special)?;
            return Ok(self.spend(ReasoningCut::Reserve));
        }
        // A call goes on. Any other header ends, and then its message.
        let bytes = self.header.iter().filter_map(|id| tokenizer.token_bytes(*id));
        if !bytes.flatten().copied().collect::<Vec<u8>>().windows(3).any(|w| w == b"to=") {
            lane.force(&[self.ids.message])?;
        }
        Ok(None)
    }

    /// Tells of the end of the chain of thought, the first time.
    fn spend(&mut self, cut: ReasoningCut) -> Option<ReasoningCut> {
        (!std::mem::replace(&mut self.spent, true)).then_some(cut)
    }
}

/// Whether the bytes end with a whole character, or with what never becomes one.
fn is_whole(bytes: &[u8]) -> bool {
    let rest = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(rest) {
        Ok(_) => true,
        Err(e) => e.error_len().is_some(),
    }
}

/// Whether the bytes end between words.
fn is_pause(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .next_back()
        .is_some_and(|c| c.is_whitespace() || ".,;:!?)。、，；：！？".contains(c))
}

/// Looks for the same tokens over and over again.
#[derive(Debug, Default)]
struct Loops {
    /// The last [`Loops::LONGEST`] tokens, the latest last.
    last: Vec<u32>,
    /// For each distance from 1, how many tokens in a row have been what was that far before them.
    runs: Vec<usize>,
}

impl Loops {
    /// Most tokens that are repeated.
    const LONGEST: usize = 128;
    /// How often they have to come.
    const TIMES: usize = 4;
    /// How many tokens that has to be in all.
    const TOKENS: usize = 64;

    fn push(&mut self, id: u32) {
        self.runs.resize(Loops::LONGEST, 0);
        for (run, earlier) in self.runs.iter_mut().zip(self.last.iter().rev()) {
            *run = if *earlier == id { *run + 1 } else { 0 };
        }
        if self.last.len() == Loops::LONGEST {
            self.last.remove(0);
        }
        self.last.push(id);
    }

    fn found(&self) -> bool {
        (1..).zip(&self.runs).any(|(length, run)| {
            run + length >= Loops::TOKENS && *run >= (Loops::TIMES - 1) * length
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Loops, is_pause, is_whole};

    /// After how many of the tokens a loop is found.
    fn found(tokens: impl IntoIterator<Item = u32>) -> Option<usize> {
        let mut loops = Loops::default();
        tokens.into_iter().position(|id| {
            loops.push(id);
            loops.found()
        })
    }

    #[test]
    fn loops_are_found_when_they_are_long_enough() {
        // One token 64 times; ten 7 times, less a bit; a hundred 4 times.
        assert_eq!(found([7; 1000]), Some(63));
        assert_eq!(found((0..1000).map(|i| i % 10)), Some(63));
        assert_eq!(found((0..1000).map(|i| i % 100)), Some(399));
        assert_eq!(found((0..1000).map(|i| i % 128)), Some(511));
        assert_eq!(found((0..1000).map(|i| i % 129)), None);
        assert_eq!(found((50..300).chain((0..1000).map(|i| i % 10))), Some(250 + 63));
        // Nearly, but with another token now and then.
        assert_eq!(found((0..5000).map(|i| if i % 40 == 0 { i } else { 1 })), None);
        assert_eq!(found(0..5000), None);
    }

    #[test]
    fn places_to_end_at() {
        for (bytes, whole, pause) in [
            (&b""[..], true, false),
            (b"word", true, false),
            (b"two ", true, true),
            (b"end.", true, true),
            (b"new\n", true, true),
            ("語。".as_bytes(), true, true),
            ("語".as_bytes(), true, false),
            (b"\xf0\x9f\x8c\xa7", true, false),
            (b"a\xf0\x9f\x8c", false, false),
            (b"\xf0", false, false),
            (b" \xff", true, false),
            // The last bytes of one character, all of the next.
            (b"\x8c\xa7\xc3\xa9", true, false),
        ] {
            assert_eq!((is_whole(bytes), is_pause(bytes)), (whole, pause), "{bytes:?}");
        }
    }
}
