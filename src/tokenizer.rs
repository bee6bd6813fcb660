//! Text to token ids and back, from a checkpoint's `tokenizer.json`, offline.
//!
//! Sits at the bottom of the text half of the crate: generation and harmony use it, it knows nothing
//! of messages, prompts or models. Only byte-level BPE is accepted, the kind every checkpoint of this
//! family ships (o200k_harmony): each token then has exact bytes, every text has tokens, and decoding
//! is concatenation.
//!
//! The file is untrusted. Everything the encoder would take on faith (ids, the byte alphabet, merges)
//! is checked while it is read, and the encoder is built from the checked parts.

use crate::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

/// The largest token id accepted; the id table is dense, so a stray huge id must not size it.
const MAX_ID: u32 = (1 << 22) - 1;

/// A byte-level BPE tokenizer with the harmony control tokens found by their text.
///
/// Cheap to share (`Arc<Tokenizer>`), and all methods take `&self`.
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// Where in `bytes` each id's token lies; empty for an id that is not in the file.
    spans: Vec<Range<u32>>,
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

/// The parts of tokenizer.json that are read; truncation, padding, post-processor and decoder are
/// not, because encoding here never truncates or adds tokens and decoding is concatenation of bytes.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedTokenEntry>,
    #[serde(default)]
    normalizer: Option<NormalizerWrapper>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedTokenEntry {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    merges: MergeList,
    #[serde(default)]
    ignore_merges: Option<bool>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// Merges as pairs, or as the older `"left right"` strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeList {
    Pairs(Merges),
    Lines(Vec<String>),
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
        let file: File = serde_json::from_slice(json)
            .map_err(|e| error(format!("not a byte-level tokenizer.json: {e}")).with_source(e))?;
        let Model { kind, vocab, merges, ignore_merges, .. } = file.model;
        if kind.as_deref().is_some_and(|kind| kind != "BPE") {
            return Err(error(format!(
                "model type is {:?}, expected \"BPE\"",
                kind.unwrap_or_default()
            )));
        }
        for (name, affix) in [
            ("continuing_subword_prefix", file.model.continuing_subword_prefix),
            ("end_of_word_suffix", file.model.end_of_word_suffix),
        ] {
            if affix.as_deref().is_some_and(|a| !a.is_empty()) {
                return Err(error(format!(
                    "{name} is {affix:?}, but byte-level tokens carry none"
                )));
            }
        }
        let table = Table::new(&vocab, &file.added_tokens)?;
        let merges = match merges {
            MergeList::Pairs(pairs) => pairs,
            MergeList::Lines(lines) => lines
                .iter()
                .filter(|line| !line.starts_with("#version"))
                .map(|line| match line.split_once(' ') {
                    Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                    None => {
                        Err(error(format!("merge {line:?} is not two tokens with a space between")))
                    }
                })
                .collect::<Result<_>>()?,
        };
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some((left, right)) = merges.iter().find(|(l, r)| l.len() + r.len() > longest) {
            return Err(error(format!(
                "merge of {left:?} and {right:?} makes a token the vocabulary lacks"
            )));
        }
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges.unwrap_or(false))
            .build()
            .map_err(|e| error(format!("invalid vocabulary or merges: {e}")).with_source(e))?;
        Tokenizer::assemble(model, file.normalizer, file.pre_tokenizer, file.added_tokens, table)
    }

    fn assemble(
        model: BPE,
        normalizer: Option<NormalizerWrapper>,
        pre_tokenizer: Option<PreTokenizerWrapper>,
        mut added: Vec<AddedTokenEntry>,
        table: Table,
    ) -> Result<Tokenizer> {
        let mut encoder = tokenizers::Tokenizer::new(model);
        encoder
            .with_normalizer(normalizer)
            .map_err(|e| error(format!("invalid normalizer: {e}")).with_source(e))?;
        encoder.with_pre_tokenizer(pre_tokenizer);
        let mut special_ids = HashMap::new();
        let mut specials = HashMap::new();
        for AddedTokenEntry { id, token } in &added {
            let named = Special::NAMED.iter().find(|(_, text)| *text == token.content);
            if let Some((special, _)) = named {
                specials.insert(*id, *special);
            } else if token.special {
                specials.insert(*id, Special::Other);
            } else {
                continue;
            }
            if let Some(other) = special_ids.insert(token.content.clone(), *id) {
                return Err(error(format!(
                    "added token {:?} has two ids, {other} and {id}",
                    token.content
                )));
            }
        }
        // Control tokens are split off here, by `encode_with_special`, and never by the encoder: in
        // `encode` their text is text. Other added tokens (this family has none) stay the encoder's,
        // which numbers them itself; a file that numbers them otherwise cannot be honoured.
        added.retain(|a| !special_ids.contains_key(&a.token.content));
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
        let Table { bytes, spans } = table;
        Ok(Tokenizer {
            encoder,
            bytes,
            spans,
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
                error(format!("token id {id} is not in the vocabulary of {} ids", self.spans.len()))
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
        let span = self.spans.get(id as usize)?;
        let bytes = &self.bytes[span.start as usize..span.end as usize];
        (!bytes.is_empty()).then_some(bytes)
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
        self.spans.len()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.spans.len()).finish_non_exhaustive()
    }
}

/// The bytes of every token by id.
struct Table {
    bytes: Vec<u8>,
    spans: Vec<Range<u32>>,
}

impl Table {
    fn new(vocab: &Vocab, added: &[AddedTokenEntry]) -> Result<Table> {
        let mut table = Table { bytes: Vec::new(), spans: Vec::new() };
        let alphabet = byte_alphabet();
        let added_ids: HashMap<u32, &str> =
            added.iter().map(|a| (a.id, a.token.content.as_str())).collect();
        let mut token = Vec::new();
        for (text, &id) in vocab {
            token.clear();
            // An added token listed in the vocabulary too is spelled as it is, not byte by byte.
            if added_ids.get(&id) == Some(&text.as_str()) {
                continue;
            }
            for c in text.chars() {
                token.push(*alphabet.get(&c).ok_or_else(|| {
                    error(format!(
                        "token {text:?} (id {id}) is not byte-level: no byte is written {c:?}"
                    ))
                })?);
            }
            table.insert(id, text, &token)?;
        }
        for byte in 0..=255u8 {
            let written: String =
                alphabet.iter().find(|(_, b)| **b == byte).map(|(c, _)| *c).into_iter().collect();
            if !vocab.contains_key(&written) {
                return Err(error(format!(
                    "the vocabulary has no token for byte 0x{byte:02x} ({written:?})"
                )));
            }
        }
        for a in added {
            table.insert(a.id, &a.token.content, a.token.content.as_bytes())?;
        }
        Ok(table)
    }

    fn insert(&mut self, id: u32, text: &str, token: &[u8]) -> Result<()> {
        if id > MAX_ID {
            return Err(error(format!(
                "token {text:?} has id {id}, above the largest possible {MAX_ID}"
            )));
        }
        if token.is_empty() {
            return Err(error(format!("the token with id {id} is empty")));
        }
        let at = id as usize;
        if at >= self.spans.len() {
            self.spans.resize(at + 1, 0..0);
        }
        if !self.spans[at].is_empty() {
            return Err(error(format!(
                "id {id} is given twice, the second time to token {text:?}"
            )));
        }
        let end = |table: &Table| {
            u32::try_from(table.bytes.len()).map_err(|_| error("the vocabulary is above 4 GiB"))
        };
        let start = end(self)?;
        self.bytes.extend_from_slice(token);
        self.spans[at] = start..end(self)?;
        Ok(())
    }
}

/// The byte-level alphabet of GPT-2's encoder: printable Latin-1 stands for itself, the other 68
/// bytes for U+0100 onwards in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .filter_map(|byte| {
            let c = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1)?
            };
            Some((c, byte))
        })
        .collect()
}

#[cold]
fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Tokenizer, message)
}

/// Turns a stream of token bytes into text, never splitting a character: bytes that may still become
/// one are held back (three at most), bytes that cannot become U+FFFD, one for each maximal invalid
/// part, exactly as decoding the whole at once would.
///
/// ```
/// # use gpt_oss_puzzle::tokenizer::TextStream;
/// let mut stream = TextStream::default();
/// assert_eq!(stream.push(b"\xf0\x9f"), "");
/// assert_eq!(stream.push(b"\x8c\xa7!"), "🌧!");
/// assert_eq!(stream.push(b"\xe6\x97"), "");
/// assert_eq!(stream.finish(), "\u{fffd}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // Without a length the bytes are a character's beginning: wait for the others.
                    let Some(len) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let keep = self.pending.len() - rest.len();
        self.pending.drain(..keep);
        text
    }

    /// The end of the stream: U+FFFD if it ended inside a character. The stream is then as new.
    pub fn finish(&mut self) -> String {
        let cut = !self.pending.is_empty();
        self.pending.clear();
        if cut { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}
