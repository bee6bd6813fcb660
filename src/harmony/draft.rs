//! From the words of a header to its fields, and what had to be repaired on the way.

use super::event::{Channel, Content, Header, Mode, RepairKind};
use super::header::{Opened, Resolved};
use super::offer::{Offer, TYPES, UndeclaredTool};

/// The roles messages have; others are tools' names.
pub(super) const ROLES: [&str; 5] = ["assistant", "user", "system", "developer", "tool"];
/// Recipients that are not tools.
const PEOPLE: [&str; 3] = ["assistant", "user", "all"];

/// A word of a header.
pub(super) enum Word<'a> {
    To(&'a str),
    Plain(&'a str),
}

/// The words of a part; `to= name` is one, and a recipient glued to a channel is another.
pub(super) fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut source = text.split_whitespace();
    while let Some(word) = source.next() {
        let glued = word
            .find("to=")
            .filter(|at| *at > 0 && Channel::KNOWN.iter().any(|(n, _)| *n == &word[..*at]));
        let to = glued.map_or_else(|| word.strip_prefix("to="), |at| word.get(at + 3..));
        if let Some(at) = glued {
            words.push(Word::Plain(&word[..at]));
        }
        match to {
            Some("") => words.push(Word::To(source.next().unwrap_or_default())),
            Some(name) => words.push(Word::To(name)),
            None => words.push(Word::Plain(word)),
        }
    }
    words
}

/// How often `word` is `unit` repeated, if that is all it is.
pub(super) fn strip_repeats(word: &str, unit: &str) -> Option<usize> {
    let count = word.len() / unit.len();
    (count > 0 && word == unit.repeat(count)).then_some(count)
}

/// A header's fields, as far as they are found.
pub(super) struct Draft<'a> {
    offer: &'a Offer,
    mode: Mode,
    /// Whether a `to=` stands before the first word of this part.
    pub(super) is_addressed: bool,
    pub(super) role: Option<String>,
    channels: Vec<Channel>,
    pub(super) recipients: Vec<String>,
    pub(super) content_type: Option<String>,
    pub(super) constrained: bool,
    pub(super) repairs: Vec<RepairKind>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(offer: &'a Offer, mode: Mode) -> Draft<'a> {
        Draft {
            offer,
            mode,
            is_addressed: false,
            role: None,
            channels: Vec::new(),
            recipients: Vec::new(),
            content_type: None,
            constrained: false,
            repairs: Vec::new(),
        }
    }

    pub(super) fn channel(&mut self, word: &str) {
        let known = |test: &dyn Fn(&str) -> bool| {
            Channel::KNOWN.into_iter().find(|(n, _)| test(n)).map(|(_, c)| c)
        };
        if let Some(channel) = known(&|name| name == word) {
            return self.channels.push(channel);
        }
        let letters = word.trim_matches(|c: char| !c.is_alphabetic());
        let near = known(&|name| {
            letters.starts_with(name) || letters.len() >= 3 && name.starts_with(letters)
        });
        self.repairs.push(if near.is_some() {
            RepairKind::MisspelledChannel
        } else {
            RepairKind::UnknownChannel
        });
        self.channels.push(near.unwrap_or_else(|| Channel::Other(word.to_owned())));
    }

    /// A word whose place does not tell what it is.
    pub(super) fn leftover(&mut self, word: &str) {
        if let Some((_, channel)) = Channel::KNOWN.into_iter().find(|(name, _)| *name == word) {
            self.channels.push(channel);
            self.repairs.push(RepairKind::BareChannel);
        } else if strip_repeats(word, "assistant").is_some() {
            self.repairs.push(RepairKind::RepeatedStart);
        } else if self.recipients.is_empty() && self.offer.is_tool(word) {
            self.recipients.push(word.to_owned());
            self.repairs.push(RepairKind::BareRecipient);
        } else if self.content_type.is_none() && self.is_type(word) {
            self.content_type = Some(word.to_owned());
        } else {
            self.repairs.push(RepairKind::UnexpectedText);
        }
    }

    /// Whether a word can be a content type: any after a recipient, else one that is known for it.
    fn is_type(&self, word: &str) -> bool {
        let known = word == "text" || TYPES.contains(&word) || word.contains('/');
        (known || self.is_addressed || !self.recipients.is_empty())
            && word.starts_with(char::is_alphabetic)
            && !word.contains(|c: char| c.is_ascii_punctuation() && !"/+-._".contains(c))
    }

    pub(super) fn finish(mut self, opened: Opened) -> Resolved {
        if opened == Opened::Implicit {
            self.repairs.push(RepairKind::MissingStart);
        }
        if self.channels.len() > 1 {
            self.repairs.push(RepairKind::DuplicateChannel);
        }
        let last_known = self.channels.iter().rposition(|c| !matches!(c, Channel::Other(_)));
        let at = last_known.or(self.channels.len().checked_sub(1));
        let channel = at.map(|at| self.channels.swap_remove(at));
        let role = self.settle_role(opened);
        let recipient = self.settle_recipient(&role);
        let Draft { offer, content_type, constrained, repairs: found, .. } = self;
        let mut header = Header { role, channel, recipient, content_type, constrained };
        // Each kind once, for each repeats the header's text.
        let mut repairs = Vec::new();
        for kind in found {
            if !repairs.contains(&kind) {
                repairs.push(kind);
            }
        }
        let is_call = header.content() == Some(Content::ToolCall);
        if is_call && header.recipient.as_deref().is_some_and(|r| offer.is_undeclared(r)) {
            repairs.push(RepairKind::UndeclaredTool);
            if offer.undeclared == UndeclaredTool::AsText {
                header.recipient = None;
                header.channel = Some(Channel::Final);
            }
        }
        Resolved { header, repairs }
    }

    /// A role nobody has is a tool's when it addresses the assistant, else a mistake for the
    /// assistant's, meaning a call when it is the name of a tool on offer.
    fn settle_role(&mut self, opened: Opened) -> String {
        let assistant = || "assistant".to_owned();
        let Some(role) = self.role.take() else {
            if opened == Opened::Start {
                self.repairs.push(RepairKind::UnknownRole);
            }
            return assistant();
        };
        let base = role.split(':').next().unwrap_or_default();
        if ROLES.contains(&base)
            || self.recipients.iter().any(|r| r == "assistant")
            || role.starts_with("functions.")
        {
            return role;
        }
        self.repairs.push(RepairKind::UnknownRole);
        if self.recipients.is_empty() && self.offer.is_declared(&role) {
            self.recipients.push(role);
        }
        assistant()
    }

    fn settle_recipient(&mut self, role: &str) -> Option<String> {
        let first = self.recipients.first()?;
        let mut recipient = first.clone();
        if self.recipients.iter().any(|r| *r != recipient) {
            self.repairs.push(RepairKind::DuplicateRecipient);
            if let Some(declared) = self.recipients.iter().find(|r| self.offer.is_declared(r)) {
                recipient = declared.clone();
            }
        }
        if role != "assistant" || self.mode == Mode::Strict {
            return Some(recipient);
        }
        if PEOPLE.contains(&recipient.as_str()) {
            self.repairs.push(RepairKind::SelfRecipient);
            return None;
        }
        match self.offer.undecorated(&recipient) {
            Some(name) if name != recipient => {
                self.repairs.push(RepairKind::DecoratedName);
                Some(name)
            }
            _ => Some(recipient),
        }
    }
}
