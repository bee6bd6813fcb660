//! [`Grammar`]: which tokens of text a [`Format`] allows next, by way of llguidance. In builds without
//! the feature `structured`, no_grammar.rs stands in for this.
//!
//! Of control tokens it knows that they are not text, and nothing else; where in a turn its text stands
//! is for [`super::guide`] to know.

use super::{Format, json_schema};
use crate::generation::TokenSet;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::Value;
use std::fmt::Display;
use std::sync::Arc;

/// Levels of lists and maps, or of brackets, in a format: it is compiled by recursion, and a stack ends.
/// As deep as what serde_json reads.
const MAX_DEPTH: usize = 128;

/// Makes grammars for one vocabulary.
pub(super) struct Grammars(ParserFactory);

/// A grammar and how much of a text it has seen.
pub(super) struct Grammar(Box<Matcher>);

impl Grammars {
    /// Takes about a second for a vocabulary of 200,000.
    ///
    /// # Errors
    /// `Tokenizer` when the vocabulary has no `<|return|>`, or more bytes than can be indexed.
    pub(super) fn new(tokenizer: &Arc<Tokenizer>) -> Result<Grammars> {
        let end = tokenizer.special_tokens()?.ret;
        let make = || {
            let vocabulary =
                Vocabulary { trie: trie(tokenizer, end), tokenizer: Arc::clone(tokenizer) };
            let vocabulary: TokEnv = Arc::new(vocabulary);
            let mut factory = ParserFactory::new_simple(&vocabulary)?;
            factory.quiet().limits_mut().verbose_errors = false;
            Ok(factory)
        };
        let factory = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(make));
        factory.map(Grammars).map_err(|e| {
            let message = format!("the vocabulary cannot be indexed: {}", problem(e));
            Error::new(crate::ErrorKind::Tokenizer, message)
        })
    }

    /// Compiles a format; `of` says in errors what for.
    ///
    /// # Errors
    /// `InvalidRequest` for a format that is malformed, too large or cannot be followed.
    pub(super) fn compile(&self, format: &Format, of: &str) -> Result<Grammar> {
        if depth(format) > MAX_DEPTH {
            return Err(Error::invalid_request(format!(
                "the format of {of} is nested more than {MAX_DEPTH} levels deep"
            )));
        }
        let (kind, grammar) = match format {
            Format::JsonSchema(schema) => {
                ("JSON schema", TopLevelGrammar::from_json_schema(json_schema::prepare(schema)))
            }
            Format::Regex(pattern) => ("regular expression", TopLevelGrammar::from_regex(pattern)),
            Format::Lark(grammar) => ("grammar", TopLevelGrammar::from_lark(grammar.clone())),
        };
        let mut matcher = Matcher::new(self.0.create_parser(grammar));
        let problem = matcher.get_error().map(problem).or_else(|| {
            // A grammar that derives nothing is only found out when it is asked.
            let stuck = !matcher.is_stopped() && matcher.compute_mask().is_err();
            stuck.then(|| "no text follows it".into())
        });
        match problem {
            None => Ok(Grammar(Box::new(matcher))),
            Some(problem) => Err(Error::invalid_request(format!(
                "the {kind} of {of} cannot be followed: {problem}"
            ))),
        }
    }
}

impl Grammar {
    /// Takes the next token of the text.
    ///
    /// # Errors
    /// `InvalidRequest` for one that it does not allow, and when it turns out to be too complex.
    pub(super) fn take(&mut self, id: u32) -> Result<()> {
        self.0.consume_token(id).map_err(too_complex)
    }

    /// The next tokens, where they are the only way to go on.
    pub(super) fn forced(&mut self) -> Vec<u32> {
        match self.0.is_stopped() {
            true => Vec::new(),
            false => self.0.compute_ff_tokens(),
        }
    }

    /// The tokens that may come next, control tokens perhaps among them, and whether the text may end
    /// here.
    ///
    /// # Errors
    /// `InvalidRequest` when it turns out to be too complex.
    pub(super) fn next(&mut self) -> Result<(TokenSet, bool)> {
        if self.0.is_stopped() && self.0.stop_reason().is_ok() {
            return Ok((TokenSet::default(), true));
        }
        let mask = self.0.compute_mask().map_err(too_complex)?;
        let may_end = self.0.is_accepting().map_err(too_complex)?;
        Ok((TokenSet::from_words(mask.as_slice().to_vec()), may_end))
    }
}

/// The vocabulary as llguidance sees it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Text as the tokenizer has it; what is no text, such as half a character, in the longest tokens.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        for chunk in bytes.utf8_chunks() {
            match self.tokenizer.encode(chunk.valid()) {
                Ok(text) => ids.extend(text),
                Err(_) => ids.extend(self.trie.greedy_tokenize(chunk.valid().as_bytes())),
            }
            ids.extend(self.trie.greedy_tokenize(chunk.invalid()));
        }
        ids
    }
}

/// The tokens by their bytes. Those of a control token begin with one that no text has.
fn trie(tokenizer: &Tokenizer, end: u32) -> TokTrie {
    let bytes = |id| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        match tokenizer.special(id) {
            None => bytes.to_vec(),
            Some(_) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        }
    };
    let size = tokenizer.vocab_size() as u32;
    let words: Vec<Vec<u8>> = (0..size).map(bytes).collect();
    TokTrie::from(&TokRxInfo::new(size, end), &words)
}

/// How many levels a format is nested.
fn depth(format: &Format) -> usize {
    fn of_value(value: &Value, above: usize) -> usize {
        // No deeper than it takes to know.
        let inner = |value| of_value(value, above + 1);
        match value {
            _ if above > MAX_DEPTH => above,
            Value::Array(values) => values.iter().map(inner).max().unwrap_or(above + 1),
            Value::Object(map) => map.values().map(inner).max().unwrap_or(above + 1),
            _ => above,
        }
    }
    match format {
        Format::JsonSchema(schema) => of_value(schema, 0),
        Format::Regex(text) | Format::Lark(text) => {
            let levels = text.chars().scan(0_usize, |level, c| {
                match c {
                    '(' | '[' | '{' => *level += 1,
                    ')' | ']' | '}' => *level = level.saturating_sub(1),
                    _ => {}
                }
                Some(*level)
            });
            levels.max().unwrap_or(0)
        }
    }
}

#[cold]
fn too_complex(error: impl Display) -> Error {
    Error::invalid_request(format!("the format cannot be followed further: {}", problem(error)))
}

/// What a message says, without where in llguidance it was found out.
fn problem(error: impl Display) -> String {
    let message = error.to_string();
    let end = ["\n<backtrace>", "\n<non-verbose/>", "\n<state>"];
    let at = end.iter().filter_map(|tag| message.find(tag)).min().unwrap_or(message.len());
    message[..at].trim().replace('\n', " ")
}
