//! From a header's text, cut at its markers, to a [`Header`], and what had to be repaired on the way.
//!
//! Cutting at token level is what makes this safe: no marker can end up in a name.

use super::draft::{Draft, ROLES, Word, strip_repeats, words};
use super::event::{Channel, Header, Mode, RepairKind};
use super::offer::{Offer, TYPES};
use std::borrow::Cow;

/// Tokens, and bytes, of text after which a header that has come to no marker is not one. Both,
/// because in a vocabulary of single bytes every header has many tokens.
const PATIENCE: (usize, usize) = (16, 48);
/// The same for one that names a recipient, whose name may be long.
const LONG_PATIENCE: usize = 256;

/// How a header came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// By `<|start|>`.
    Start,
    /// By the prompt, which ended in `<|start|>assistant`.
    Primed,
    /// By text or a marker where `<|start|>` belongs.
    Implicit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Role,
    Channel,
    Constrain,
}

/// A header as it arrives.
#[derive(Debug)]
pub(super) struct RawHeader {
    opened: Opened,
    /// Text after each marker; the first is what comes before any.
    parts: Vec<(Marker, Vec<u8>)>,
    /// Tokens since the last marker.
    tokens: usize,
}

/// A header understood.
pub(super) struct Resolved {
    pub(super) header: Header,
    pub(super) repairs: Vec<RepairKind>,
}

impl Resolved {
    /// The header of an answer that came without one.
    pub(super) fn answer() -> Resolved {
        Resolved {
            header: Header::assistant(Channel::Final),
            repairs: vec![RepairKind::MissingHeader],
        }
    }
}

impl RawHeader {
    pub(super) fn new(opened: Opened) -> RawHeader {
        RawHeader { opened, parts: vec![(Marker::Role, Vec::new())], tokens: 0 }
    }

    pub(super) fn marker(&mut self, marker: Marker) {
        self.parts.push((marker, Vec::new()));
        self.tokens = 0;
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if let Some((_, last)) = self.parts.last_mut() {
            last.extend_from_slice(bytes);
        }
        self.tokens += 1;
    }

    /// Whether so much text has come without a marker that this may be content.
    pub(super) fn is_overdue(&self) -> bool {
        let text = self.last_part();
        let is_long = self.tokens >= PATIENCE.0 && text.len() >= PATIENCE.1;
        self.is_hopeless() || is_long && !text.windows(3).any(|w| w == b"to=")
    }

    /// Whether even the longest name would be over.
    pub(super) fn is_hopeless(&self) -> bool {
        self.tokens >= LONG_PATIENCE
    }

    /// Whether only a role, or nothing, has come so far.
    pub(super) fn is_bare(&self) -> bool {
        self.parts.len() == 1
            && self.text().split_whitespace().all(|w| strip_repeats(w, "assistant").is_some())
    }

    /// The bytes of its last part.
    pub(super) fn last_part(&self) -> &[u8] {
        self.parts.last().map_or(&[], |(_, bytes)| bytes)
    }

    /// All its text, without markers.
    pub(super) fn text(&self) -> String {
        let parts: Vec<_> =
            self.parts.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
        parts.join(" ").trim().to_owned()
    }

    /// Understands a header that `<|message|>` ended.
    pub(super) fn resolve(&self, offer: &Offer, mode: Mode) -> Resolved {
        let mut draft = Draft::new(offer, mode);
        for (marker, bytes) in &self.parts {
            let text = String::from_utf8_lossy(bytes);
            if let Cow::Owned(_) = text {
                draft.repairs.push(RepairKind::UnexpectedText);
            }
            let mut words = words(&text);
            let first = words.iter().position(|w| matches!(w, Word::Plain(_)));
            draft.is_addressed = first.is_some_and(|at| at > 0);
            match (marker, first.map(|at| words.remove(at))) {
                (Marker::Role, Some(Word::Plain(word))) => self.role(&mut draft, word),
                (Marker::Channel, Some(Word::Plain(word))) => draft.channel(word),
                (Marker::Channel, _) => draft.repairs.push(RepairKind::EmptyChannel),
                (Marker::Constrain, Some(Word::Plain(word))) if is_known_channel(word) => {
                    draft.repairs.push(RepairKind::UnexpectedMarker);
                    draft.leftover(word);
                }
                (Marker::Constrain, Some(Word::Plain(word))) => {
                    if draft.content_type.replace(word.to_owned()).is_some_and(|old| old != word) {
                        draft.repairs.push(RepairKind::UnexpectedText);
                    }
                    draft.constrained = true;
                }
                (Marker::Constrain, _) => draft.repairs.push(RepairKind::UnexpectedMarker),
                (Marker::Role, _) => {}
            }
            for word in words {
                match word {
                    Word::To("") => draft.repairs.push(RepairKind::UnexpectedText),
                    Word::To(recipient) => draft.recipients.push(recipient.to_owned()),
                    Word::Plain(word) => draft.leftover(word),
                }
            }
        }
        draft.finish(self.opened)
    }

    /// The first word of the part before any marker.
    fn role(&self, draft: &mut Draft<'_>, word: &str) {
        match (self.opened, strip_repeats(word, "assistant")) {
            (Opened::Start, Some(1)) => draft.role = Some("assistant".into()),
            (Opened::Start, None) => draft.role = Some(word.to_owned()),
            (Opened::Implicit, Some(1)) => {}
            (_, Some(_)) => {
                draft.role = Some("assistant".into());
                draft.repairs.push(RepairKind::RepeatedStart);
            }
            (_, None) => draft.leftover(word),
        }
    }

    /// Understands a header that ended without `<|message|>`: what it is, and what of its last part is
    /// content after all (as bytes, for it may end inside a character). `None` when there is none.
    pub(super) fn salvage(&self, offer: &Offer, mode: Mode) -> Option<(Resolved, Vec<u8>)> {
        let (marker, bytes) = self.parts.last()?;
        let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let known = |name: &&str| text.starts_with(*name);
        let (mut head, kind) = match marker {
            // The role, or nothing, and then the answer.
            Marker::Role if self.opened == Opened::Start => {
                (role_length(text), RepairKind::MissingHeader)
            }
            Marker::Role => (0, RepairKind::MissingHeader),
            Marker::Channel => {
                let name = Channel::KNOWN.into_iter().map(|(name, _)| name).find(known);
                // A lone word is a name, cut off or wrong; several without one are content.
                let lone = if text.trim().contains(char::is_whitespace) { 0 } else { text.len() };
                (name.map_or(lone, str::len), RepairKind::MissingMessage)
            }
            Marker::Constrain => {
                (TYPES.into_iter().find(known).map_or(0, str::len), RepairKind::MissingMessage)
            }
        };
        // A recipient belongs to the header, as far as its word goes, and so does a type after it.
        let rest = text[head..].trim_start();
        if rest.starts_with("to=") {
            head = text.len() - rest.len() + rest.find(char::is_whitespace).unwrap_or(rest.len());
            let after = text[head..].trim_start();
            if let Some(name) = TYPES.into_iter().find(|name| after.starts_with(name)) {
                head = text.len() - after.len() + name.len();
            }
        }
        let content = bytes[head..].to_vec();
        if content.trim_ascii().is_empty() {
            return None;
        }
        let mut parts = self.parts.clone();
        if let Some((_, last)) = parts.last_mut() {
            last.truncate(head);
        }
        let mut resolved = RawHeader { opened: self.opened, parts, tokens: 0 }.resolve(offer, mode);
        if *marker == Marker::Role
            && resolved.header.recipient.is_none()
            && resolved.header.role == "assistant"
        {
            resolved.header.channel = Some(Channel::Final);
        }
        resolved.repairs.push(kind);
        Some((resolved, content))
    }
}

fn is_known_channel(word: &str) -> bool {
    Channel::KNOWN.iter().any(|(name, _)| *name == word)
}

/// How much of the text after `<|start|>` is the role: the word for it, however often; another word
/// if it stands alone or addresses someone.
fn role_length(text: &str) -> usize {
    let (unit, word) = ("assistant", text.find(char::is_whitespace).unwrap_or(text.len()));
    let repeats = text.as_bytes().chunks(unit.len()).take_while(|c| *c == unit.as_bytes()).count();
    if repeats > 0 {
        return repeats * unit.len();
    }
    let alone = word == text.len() || text[word..].trim_start().starts_with("to=");
    if alone || text.starts_with("functions.") {
        return word;
    }
    ROLES.into_iter().find(|role| text.starts_with(role)).map_or(0, str::len)
}
