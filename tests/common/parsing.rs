//! Streams for the parser's tests, and their events, in a compact notation.
//!
//! In a stream `‹s›` is `<|start|>` and so on, `‹xe6›` a byte, `‹q<|end|>›` the text of a marker that
//! ordinary tokens spell, and `⏎` a line break. Events: `[role channel >recipient :type]` opens a
//! message (`*` for a constrained type), `</end>` closes it, `{kind raw}` is a repair, the rest is
//! content.
#![allow(dead_code)] // Each test binary uses its part.

use crate::tokenizers::{o200k_harmony, tiny};
use gpt_oss_puzzle::harmony::{BuiltinTool, Event, Mode, Parser, Primed};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::{ErrorKind, Result};
use std::sync::Arc;

pub const TOOLS: [&str; 3] = ["f", "shell", "get_weather"];

const SHORT: [(&str, &str); 9] = [
    ("s", "<|start|>"),
    ("e", "<|end|>"),
    ("msg", "<|message|>"),
    ("ch", "<|channel|>"),
    ("co", "<|constrain|>"),
    ("call", "<|call|>"),
    ("ret", "<|return|>"),
    ("eot", "<|endoftext|>"),
    ("sot", "<|startoftext|>"),
];

/// A stream with its markers written out.
pub fn long(stream: &str) -> String {
    SHORT.iter().fold(stream.to_owned(), |s, (short, long)| s.replace(&format!("‹{short}›"), long))
}

/// A small generator of our own (SplitMix64), so that a seed means the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// How the text between markers is cut into tokens. The parser takes one token at a time, so this is
/// what a chunking is to it: markers are tokens in all of them.
#[derive(Clone, Copy, Debug)]
pub enum Chunking {
    /// As the tokenizer does: the fewest.
    Whole,
    /// One byte a token.
    Bytes,
    /// At random places, inside characters too, and each part as the tokenizer does.
    Random(u64),
}

pub const CHUNKINGS: [Chunking; 5] = [
    Chunking::Whole,
    Chunking::Bytes,
    Chunking::Random(1),
    Chunking::Random(2),
    Chunking::Random(3),
];

/// A tokenizer, and its token of each byte.
pub struct Vocabulary {
    pub tokenizer: Arc<Tokenizer>,
    bytes: Vec<u32>,
}

pub fn vocabularies() -> [Vocabulary; 2] {
    [tiny(), o200k_harmony()].map(|tokenizer| {
        let is = |id: &u32, byte: u8| tokenizer.token_bytes(*id) == Some(&[byte]);
        let token = |byte| (0..300).find(|id| is(id, byte)).expect("a token of this byte");
        let bytes = (0..=255).map(token).collect();
        Vocabulary { tokenizer, bytes }
    })
}

impl Vocabulary {
    pub fn tokens(&self, stream: &str, chunking: Chunking) -> Vec<u32> {
        let (mut tokens, mut text) = (Vec::new(), Vec::new());
        let mut random = Random(if let Chunking::Random(seed) = chunking { seed } else { 0 });
        let mut rest = stream;
        while let Some(c) = rest.chars().next() {
            let named = rest.strip_prefix('‹').and_then(|r| r.split_once('›'));
            let Some((name, after)) = named else {
                let c = if c == '⏎' { '\n' } else { c };
                text.extend(c.encode_utf8(&mut [0; 4]).bytes());
                rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
                continue;
            };
            rest = after;
            if let Some((_, marker)) = SHORT.iter().find(|(short, _)| *short == name) {
                self.text(&std::mem::take(&mut text), chunking, &mut random, &mut tokens);
                tokens.push(self.tokenizer.special_id(marker).expect("a marker"));
            } else if let Some(quoted) = name.strip_prefix('q') {
                text.extend(quoted.bytes());
            } else {
                let byte = name.strip_prefix('x').expect("a marker, a byte or a quotation");
                text.push(u8::from_str_radix(byte, 16).expect("a byte"));
            }
        }
        self.text(&text, chunking, &mut random, &mut tokens);
        tokens
    }

    fn text(&self, bytes: &[u8], chunking: Chunking, random: &mut Random, tokens: &mut Vec<u32>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = match chunking {
                Chunking::Whole => rest.len(),
                Chunking::Bytes => 1,
                Chunking::Random(_) => 1 + random.below(rest.len().min(9)),
            };
            let (part, after) = rest.split_at(length);
            for chunk in part.utf8_chunks() {
                match chunking {
                    Chunking::Bytes => tokens.extend(chunk.valid().bytes().map(|b| self.byte(b))),
                    _ => tokens.extend(self.tokenizer.encode(chunk.valid()).expect("encodes")),
                }
                tokens.extend(chunk.invalid().iter().map(|b| self.byte(*b)));
            }
            rest = after;
        }
    }

    fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }
}

pub fn parser(tokenizer: &Arc<Tokenizer>, primed: Primed, mode: Mode) -> Parser {
    let parser = Parser::new(Arc::clone(tokenizer), primed, mode).expect("harmony");
    parser.tools(TOOLS).builtin_tools([BuiltinTool::Python, BuiltinTool::Browser])
}

pub fn events(mut parser: Parser, tokens: &[u32]) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for token in tokens {
        events.extend(parser.push(*token)?);
    }
    events.extend(parser.finish()?);
    Ok(events)
}

pub fn compact(events: &[Event]) -> String {
    let mut out = String::new();
    for event in events {
        match event {
            Event::Open(header) => {
                let channel = header.channel.as_ref().map(|c| format!(" {}", c.as_str()));
                let recipient = header.recipient.as_ref().map(|r| format!(" >{r}"));
                let star = if header.constrained { "*" } else { "" };
                let kind = header.content_type.as_ref().map(|t| format!(" {star}:{t}"));
                let parts = [channel, recipient, kind].into_iter().flatten().collect::<String>();
                out += &format!("[{}{parts}]", header.role);
            }
            Event::Delta(text) => {
                assert!(!text.is_empty());
                out += &text.replace('\n', "⏎");
            }
            Event::Close(end) => out += &format!("</{}>", name(end)),
            Event::Repaired(repair) => {
                let space = if repair.raw.is_empty() { "" } else { " " };
                out += &format!("{{{}{space}{}}}", name(&repair.kind), repair.raw);
            }
            other => panic!("{other:?}"),
        }
    }
    out
}

/// How serde writes a variant.
pub fn name(value: &impl serde::Serialize) -> String {
    let name = serde_json::to_value(value).expect("writes");
    name.as_str().expect("a name").to_owned()
}

/// Whether the stream has the expected events in every vocabulary and chunking, and strict mode fails
/// where they have repairs and else agrees.
pub fn check(vocabularies: &[Vocabulary], primed: &Primed, stream: &str, expected: &str) {
    for vocabulary in vocabularies {
        for chunking in CHUNKINGS {
            let tokens = vocabulary.tokens(stream, chunking);
            let run = |mode| events(parser(&vocabulary.tokenizer, primed.clone(), mode), &tokens);
            let tolerant = run(Mode::Tolerant).expect("tolerant mode has no errors");
            assert_eq!(compact(&tolerant), expected, "{stream} {chunking:?}");
            let malformed = repairs(&tolerant).any(|kind| !TAKEN_LITERALLY.contains(&&*kind));
            match run(Mode::Strict) {
                Ok(strict) => {
                    assert!(!malformed, "strict mode takes {stream}: {strict:?}");
                    let literally = repairs(&tolerant).any(|kind| kind != "undeclared_tool");
                    assert!(literally || strict == tolerant, "{stream}: {strict:?}");
                }
                Err(error) => {
                    assert!(malformed, "strict mode refuses {stream}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Malformed);
                }
            }
        }
    }
}

/// Repairs that strict mode does not fail for: it takes names as they are, and an undeclared tool is
/// none of the stream's faults.
const TAKEN_LITERALLY: [&str; 3] = ["self_recipient", "decorated_name", "undeclared_tool"];

pub fn repairs(events: &[Event]) -> impl Iterator<Item = String> {
    events
        .iter()
        .filter_map(|e| if let Event::Repaired(r) = e { Some(name(&r.kind)) } else { None })
}
