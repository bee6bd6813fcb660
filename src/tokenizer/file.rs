//! tokenizer.json, read and checked: what it says, and an encoder built from it.

use super::{Special, error};
use crate::Result;
use serde::Deserialize;
use std::collections::HashMap;
use std::ops::Range;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

/// The largest token id accepted; the id table is dense, so a stray huge id must not size it.
const MAX_ID: u32 = (1 << 22) - 1;

/// A checked file.
pub(super) struct File {
    /// Encodes text; knows none of the added tokens yet.
    pub(super) encoder: tokenizers::Tokenizer,
    pub(super) added: Vec<AddedTokenEntry>,
    pub(super) table: Table,
}

/// The parts of tokenizer.json that are read; truncation, padding, post-processor and decoder are
/// not, because encoding here never truncates or adds tokens and decoding is concatenation of bytes.
#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    added_tokens: Vec<AddedTokenEntry>,
    #[serde(default)]
    normalizer: Option<NormalizerWrapper>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: Model,
}

#[derive(Deserialize)]
pub(super) struct AddedTokenEntry {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
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

impl AddedTokenEntry {
    /// What the token means, if it is a control token.
    pub(super) fn special(&self) -> Option<Special> {
        let named = Special::NAMED.iter().find(|(_, text)| *text == self.token.content);
        named.map(|(special, _)| *special).or(self.token.special.then_some(Special::Other))
    }
}

impl File {
    pub(super) fn read(json: &[u8]) -> Result<File> {
        let json: Json = serde_json::from_slice(json)
            .map_err(|e| error(format!("not a byte-level tokenizer.json: {e}")).with_source(e))?;
        let Json { added_tokens: added, normalizer, pre_tokenizer, model } = json;
        let table = Table::new(&model.vocab, &added)?;
        let mut encoder = tokenizers::Tokenizer::new(model.build(&added)?);
        encoder
            .with_normalizer(normalizer)
            .map_err(|e| error(format!("invalid normalizer: {e}")).with_source(e))?;
        encoder.with_pre_tokenizer(pre_tokenizer);
        Ok(File { encoder, added, table })
    }
}

impl Model {
    fn build(self, added: &[AddedTokenEntry]) -> Result<BPE> {
        let Model { kind, mut vocab, merges, ignore_merges, .. } = self;
        if kind.as_deref().is_some_and(|kind| kind != "BPE") {
            let kind = kind.unwrap_or_default();
            return Err(error(format!("model type is {kind:?}, expected \"BPE\"")));
        }
        for (name, affix) in [
            ("continuing_subword_prefix", self.continuing_subword_prefix),
            ("end_of_word_suffix", self.end_of_word_suffix),
        ] {
            if affix.as_deref().is_some_and(|a| !a.is_empty()) {
                return Err(error(format!(
                    "{name} is {affix:?}, but byte-level tokens carry none"
                )));
            }
        }
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
        // Ordinary text must not encode to a control token that the vocabulary lists too.
        for control in added.iter().filter(|a| a.special().is_some()) {
            vocab.remove(&control.token.content);
        }
        // The builder copies merged tokens into a buffer as long as the longest token.
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some((left, right)) = merges.iter().find(|(l, r)| l.len() + r.len() > longest) {
            return Err(error(format!(
                "merge of {left:?} and {right:?} makes a token the vocabulary lacks"
            )));
        }
        BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges.unwrap_or(false))
            .build()
            .map_err(|e| error(format!("invalid vocabulary or merges: {e}")).with_source(e))
    }
}

/// The bytes of every token by id.
pub(super) struct Table {
    /// Of all tokens, one after another.
    bytes: Vec<u8>,
    /// Where each id's lie; empty for an id that is not in the file.
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

    /// The bytes of token `id`.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let span = self.spans.get(id as usize)?;
        let bytes = &self.bytes[span.start as usize..span.end as usize];
        (!bytes.is_empty()).then_some(bytes)
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
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
