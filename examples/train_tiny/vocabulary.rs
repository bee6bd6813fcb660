//! A tokenizer.json for the tiny model: byte-level BPE trained on the generator's own text, digits one
//! by one, harmony's control tokens at the end.

use gpt_oss_puzzle::weights::write_tiny_checkpoint;
use serde_json::{Value, json};
use std::error::Error;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

/// Words with the space before them, words with a capital alone (so that a name is the same tokens
/// wherever it stands), single digits, runs of signs, white space.
const PATTERN: &str =
    r"[^\r\n\p{L}\p{N}]?\p{Ll}+|\p{L}\p{Ll}*|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+";

/// The tokenizer.json of a vocabulary of `size` tokens, trained on `texts`.
pub fn train(
    texts: impl Iterator<Item = String> + Send,
    size: usize,
) -> Result<Value, Box<dyn Error + Send + Sync>> {
    // The control tokens, in the order and with the flags of the crate's own small tokenizer.
    let dir = tempfile::tempdir()?;
    write_tiny_checkpoint(dir.path(), 0)?;
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("tokenizer.json"))?)?;
    let control = json["added_tokens"].as_array_mut().ok_or("no control tokens")?;
    let first_control = size - control.len();
    for (i, token) in control.iter_mut().enumerate() {
        token["id"] = (first_control + i).into();
    }

    let split =
        Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    let trainer = BpeTrainer::builder()
        .vocab_size(first_control)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts)?;

    let trained: Value = serde_json::from_str(&tokenizer.to_string(false)?)?;
    let found = trained["model"]["vocab"].as_object().map_or(0, |vocab| vocab.len());
    if found != first_control {
        return Err(format!("the texts give {found} tokens, {first_control} are wanted").into());
    }
    json["model"]["vocab"] = trained["model"]["vocab"].clone();
    json["model"]["merges"] = trained["model"]["merges"].clone();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({ "Regex": PATTERN });
    Ok(json)
}
