//! Text to token ids and back, from a checkpoint's `tokenizer.json`, offline.
//!
//! Sits at the bottom of the text half of the crate: generation and harmony use it, it knows nothing
//! of messages, prompts or models. Only byte-level BPE is accepted, the kind every checkpoint of this
//! family ships (o200k_harmony): each token then has exact bytes, every text has tokens, and decoding
//! is concatenation.
//!
//! The file is untrusted. Everything the encoder would take on faith (ids, the byte alphabet, merges)
//! is checked while it is read, and the encoder is built from the checked parts.

mod file;
mod stream;

pub use stream::TextStream;

use crate::{Error, ErrorKind, Result};
use file::{File, Table};
use std::collections::HashMap;
use std::path::Path;

/// A byte-level BPE tokenizer with the harmony control tokens found by their text.
///
/// Cheap to share (`Arc<Tokenizer>`), and all methods take `&self`.
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    table: Table,
    /// Control tokens by text, and by id.
    special_ids: HashMap<String, u32>,
    specials: HashMap<u32, Special>,
    /// The distinct lengths of the control tokens' texts, longest first, and their first bytes.
    special_lengths: Vec<usize>,
    special_first: [bool; 256],
    harmony: Option<SpecialTokens>,
    stop: Vec<u32>,
}

/// What a control token means in the harmony format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Special {
    /// `<|start|>` opens a message header.
    Start,
    /// `<|end|>` closes a message.
    End,
    /// `<|message|>` separates header and content.
    Message,
    /// `<|channel|>` precedes the channel's name.
    Channel,
    /// `<|constrain|>` precedes the content type of constrained output.
    Constrain,
    /// `<|call|>` closes a tool call and hands over to the tool.
    Call,
    /// `<|return|>` closes the answer.
    Return,
    /// `<|endoftext|>`, also the padding token.
    EndOfText,
    /// `<|startoftext|>`.
    StartOfText,
    /// A control token without a meaning here (`<|reserved_…|>`, `<|endofprompt|>`).
    Other,
}

impl Special {
    /// The named control tokens with the text that identifies them in a vocabulary.
    pub const NAMED: [(Special, &'static str); 9] = [
        (Special::Start, "<|start|>"),
        (Special::End, "<|end|>"),
        (Special::Message, "<|message|>"),
        (Special::Channel, "<|channel|>"),
        (Special::Constrain, "<|constrain|>"),
        (Special::Call, "<|call|>"),
        (Special::Return, "<|return|>"),
        (Special::EndOfText, "<|endoftext|>"),
        (Special::StartOfText, "<|startoftext|>"),
    ];
}

/// The ids of the harmony control tokens in one vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `<|start|>`
    pub start: u32,
    /// `<|end|>`
    pub end: u32,
    /// `<|message|>`
    pub message: u32,
    /// `<|channel|>`
    pub channel: u32,
    /// `<|constrain|>`
    pub constrain: u32,
    /// `<|call|>`
    pub call: u32,
    /// `<|return|>`
    pub ret: u32,
    /// `<|endoftext|>`
    pub endoftext: u32,
    /// `<|startoftext|>`
    pub startoftext: u32,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the file cannot be read, else as [`Tokenizer::from_bytes`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Tokenizer::from_bytes(&bytes).map_err(|e| {
            Error::new(ErrorKind::Tokenizer, format!("{}: {e}", path.display())).with_source(e)
        })
    }

    /// Reads the contents of a tokenizer.json.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] when it is not JSON of that shape, not byte-level BPE, lacks one of
    /// the 256 byte tokens, gives an id twice or above 4,194,303, or merges tokens it does not have.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer> {
        let File { mut encoder, mut added, table } = File::read(json)?;
        let mut special_ids = HashMap::new();
        let mut specials = HashMap::new();
        for entry in &added {
            let Some(special) = entry.special() else { continue };
            let (id, content) = (entry.id, entry.token.content.clone());
            specials.insert(id, special);
            if let Some(other) = special_ids.insert(content, id) {
                let content = &entry.token.content;
                return Err(error(format!(
                    "added token {content:?} has two ids, {other} and {id}"
                )));
            }
        }
        // Control tokens are split off here, by `encode_with_special`, and never by the encoder: in
        // `encode` their text is text. Other added tokens (this family has none) stay the encoder's,
        // which numbers them itself; a file that numbers them otherwise cannot be honoured.
        added.retain(|a| a.special().is_none());
        let expected: Vec<(String, u32)> =
            added.iter().map(|a| (a.token.content.clone(), a.id)).collect();
        encoder
            .add_tokens(added.into_iter().map(|a| a.token))
            .map_err(|e| error(format!("invalid added tokens: {e}")).with_source(e))?;
        for (content, id) in expected {
            if encoder.token_to_id(&content) != Some(id) {
                return Err(error(format!(
                    "added token {content:?} has id {id}, which is not next after the vocabulary"
                )));
            }
        }
        let mut special_lengths: Vec<usize> = special_ids.keys().map(String::len).collect();
        special_lengths.sort_unstable_by(|a, b| b.cmp(a));
        special_lengths.dedup();
        let mut special_first = [false; 256];
        special_ids
            .keys()
            .filter_map(|k| k.bytes().next())
            .for_each(|b| special_first[usize::from(b)] = true);
        let id =
            |special: Special| specials.iter().find(|(_, s)| **s == special).map(|(id, _)| *id);
        let named = || {
            Some(SpecialTokens {
                start: id(Special::Start)?,
                end: id(Special::End)?,
                message: id(Special::Message)?,
                channel: id(Special::Channel)?,
                constrain: id(Special::Constrain)?,
                call: id(Special::Call)?,
                ret: id(Special::Return)?,
                endoftext: id(Special::EndOfText)?,
                startoftext: id(Special::StartOfText)?,
            })
        };
        let harmony = named();
        let stop = [Special::Return, Special::EndOfText, Special::Call]
            .into_iter()
            .filter_map(id)
            .collect();
        Ok(Tokenizer {
            encoder,
            table,
            special_ids,
            specials,
            special_lengths,
            special_first,
            harmony,
            stop,
        })
    }

    /// The token ids of `text`, in which nothing is a control token: `<|end|>` typed by a user is
    /// ordinary characters. Adds no token at either end.
    ///
    /// The splitter's regex engine gives up in a run of more than a million whitespace characters;
    /// what follows in that text is then tokenized as one piece, which changes the ids, not the text.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] when the file's own normalizer or pre-tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .encoder
            .encode_fast(text, false)
            .map_err(|e| error(format!("cannot encode text: {e}")).with_source(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of `text`, in which the texts of control tokens are those tokens. Only for text
    /// from a trusted source, such as a prompt written by the program itself.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut from = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((id, len)) = self.special_at(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            if from < at {
                ids.extend(self.encode(&text[from..at])?);
            }
            ids.push(id);
            at += len;
            from = at;
        }
        if from < text.len() {
            ids.extend(self.encode(&text[from..])?);
        }
        Ok(ids)
    }

    /// The longest control token whose text `rest` begins with, and that text's length.
    fn special_at(&self, rest: &[u8]) -> Option<(u32, usize)> {
        if !self.special_first[usize::from(*rest.first()?)] {
            return None;
        }
        self.special_lengths.iter().find_map(|&len| {
            let text = std::str::from_utf8(rest.get(..len)?).ok()?;
            Some((*self.special_ids.get(text)?, len))
        })
    }

    /// The text of `tokens` without the control tokens; bytes that are not UTF-8 become U+FFFD, one
    /// for each maximal invalid part.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] for an id that is not in the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.decode_where(tokens, |id| !self.specials.contains_key(&id))
    }

    /// The text of `tokens`, control tokens as their texts.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_with_special(&self, tokens: &[u32]) -> Result<String> {
        self.decode_where(tokens, |_| true)
    }

    fn decode_where(&self, tokens: &[u32], keep: impl Fn(u32) -> bool) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in tokens {
            let token = self.token_bytes(id).ok_or_else(|| {
                error(format!("token id {id} is not in the vocabulary of {} ids", self.table.len()))
            })?;
            if keep(id) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes of one token, often only a part of a character; a control token's are its text.
    /// `None` for an id that is not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.get(id)
    }

    /// What `id` means in the harmony format; `None` for an ordinary token or an unknown id.
    pub fn special(&self, id: u32) -> Option<Special> {
        self.specials.get(&id).copied()
    }

    /// The id of the control token with this text, such as `<|start|>`.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        self.special_ids.get(text).copied()
    }

    /// The ids of the harmony control tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`], naming the first one that the vocabulary lacks.
    pub fn special_tokens(&self) -> Result<SpecialTokens> {
        self.harmony.ok_or_else(|| {
            let missing =
                Special::NAMED.iter().find(|(_, text)| !self.special_ids.contains_key(*text));
            error(format!(
                "the vocabulary has no {} token, so it cannot speak harmony",
                missing.map_or("", |m| m.1)
            ))
        })
    }

    /// The tokens that end a generation: `<|return|>`, `<|endoftext|>` and `<|call|>`, and never
    /// `<|end|>`, which only ends a message. Empty for a vocabulary without them.
    ///
    /// Derived from the vocabulary on purpose: the puzzle checkpoint's generation_config.json omits
    /// `<|call|>`, and tool calls break without it.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }

    /// One more than the largest token id; a model's output rows may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.table.len()).finish_non_exhaustive()
    }
}

#[cold]
fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Tokenizer, message)
}
