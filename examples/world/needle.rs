//! A code word told once somewhere in a longer text, and asked for at its end.

use super::rng::{Rng, hash};
use super::words::{CODES, DEEDS, KEYS, PEOPLE, PLACES, TIMES, TRAITS};
use super::{Reply, Split, Turn, estimate_tokens};
use gpt_oss_puzzle::harmony::Effort;

const QUESTIONS: &[&str] = &[
    "What is the code for {}?",
    "Tell me the code for {}.",
    "Which code belongs to {}?",
    "code for {}",
];

/// In longer texts the code that is asked for is always there.
const LONGEST_WITHOUT: usize = 300;

/// Whether this code for this key is kept out of training: one in eight is.
pub fn is_held_out(key: &str, code: &str) -> bool {
    hash(&format!("{key} {code}")).is_multiple_of(8)
}

/// The sentence that tells a code.
pub fn sentence(key: &str, code: &str) -> String {
    format!("The code for {key} is {code}.")
}

/// A code for `key`.
fn code(key: &str, split: Split, rng: &mut Rng) -> &'static str {
    loop {
        let code = *rng.pick(CODES);
        if is_held_out(key, code) == (split == Split::HeldOut) {
            return code;
        }
    }
}

/// A sentence that tells no code.
fn filler(rng: &mut Rng) -> String {
    let mut text = String::from("The ");
    if rng.chance(0.5) {
        text += *rng.pick(TRAITS);
        text.push(' ');
    }
    text += *rng.pick(PEOPLE);
    text.push(' ');
    text += *rng.pick(DEEDS);
    text += " the ";
    text += *rng.pick(PLACES);
    if rng.chance(0.3) {
        text.push(' ');
        text += *rng.pick(TIMES);
    }
    text.push('.');
    text
}

/// `count` keys, no two the same; at most all of them.
fn keys(count: usize, rng: &mut Rng) -> Vec<&'static str> {
    let mut keys = KEYS.to_vec();
    rng.shuffle(&mut keys);
    keys.truncate(count);
    keys
}

/// Adds filler until `sentences` are about `tokens` long.
fn fill(sentences: &mut Vec<String>, tokens: usize, rng: &mut Rng) {
    let mut length: usize = sentences.iter().map(|s| estimate_tokens(s)).sum();
    loop {
        let next = filler(rng);
        length += estimate_tokens(&next);
        if length > tokens {
            return;
        }
        sentences.push(next);
    }
}

/// A text of about `tokens` tokens with a question for a code in it, and the answer. The sentence
/// with the code stands at a uniformly random depth, among others with the codes of other keys; in
/// short texts it is missing now and then, and the answer says so.
pub fn question(tokens: usize, split: Split, effort: Effort, rng: &mut Rng) -> (String, Turn) {
    let most = (tokens / 25).clamp(2, 20);
    let keys = keys(1 + rng.between(2, most), rng);
    let key = keys[0];
    let question = rng.pick(QUESTIONS).replace("{}", key);
    let mut text = String::new();
    if rng.chance(0.3) {
        text = format!("{question} ");
    }
    text += "Here are some notes. ";
    let given = tokens > LONGEST_WITHOUT || !rng.chance(0.08);
    let code = code(key, split, rng);
    let mut notes: Vec<String> =
        keys[1..].iter().map(|key| sentence(key, self::code(key, Split::Train, rng))).collect();
    let needle = sentence(key, code);
    let asked = estimate_tokens(&text) + estimate_tokens(&question);
    let reserved = asked + if given { estimate_tokens(&needle) } else { 0 };
    fill(&mut notes, tokens.saturating_sub(reserved), rng);
    rng.shuffle(&mut notes);
    if given {
        notes.insert(rng.below(notes.len() + 1), needle.clone());
    }
    text += &notes.join(" ");
    text.push(' ');
    text += &question;
    let turn = if given { found(key, code, effort) } else { missing(key, effort) };
    (text, turn)
}

/// What the model says where the code is told.
fn found(key: &str, code: &str, effort: Effort) -> Turn {
    let sentence = sentence(key, code);
    let medium = format!("The user asks for the code for {key}. The notes say: {sentence}");
    let analysis = match effort {
        Effort::Low => format!("For {key}: {code}."),
        Effort::High => format!(
            "{medium} Check: {key} has the code {code}. No other note gives a code for {key}. \
             So I answer {code}."
        ),
        _ => medium,
    };
    Turn { analysis, reply: Reply::Final(sentence) }
}

/// What the model says where it is not.
fn missing(key: &str, effort: Effort) -> Turn {
    let medium = format!("The user asks for the code for {key}. The notes give no code for {key}.");
    let analysis = match effort {
        Effort::Low => format!("For {key}: no code."),
        Effort::High => format!(
            "{medium} Check: {key} has no code. No note gives a code for {key}. \
             So I say that the notes do not give it."
        ),
        _ => medium,
    };
    Turn { analysis, reply: Reply::Final(format!("The notes do not give a code for {key}.")) }
}
