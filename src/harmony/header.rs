//! From a header's text, cut at its markers, to a [`Header`], and what had to be repaired on the way.
//!
//! Cutting at token level is what makes this safe: no marker can end up in a name.

use super::event::{Channel, Header, Mode, RepairKind};

/// The roles messages have; others are tools' names.
const ROLES: [&str; 5] = ["assistant", "user", "system", "developer", "tool"];
/// Recipients that are not tools.
const PEOPLE: [&str; 3] = ["assistant", "user", "all"];
/// Content types that models append to names.
const TYPES: [&str; 2] = ["json", "code"];
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

    /// Understands a header that `<|message|>` ended. `tools` are the names on offer.
    pub(super) fn resolve(&self, tools: &[String], mode: Mode) -> Resolved {
        let mut draft = Draft { tools, mode, ..Draft::default() };
        for (marker, bytes) in &self.parts {
            let text = String::from_utf8_lossy(bytes);
            let mut words = words(&text);
            let first = words.iter().position(|w| matches!(w, Word::Plain(_)));
            match (marker, first.map(|at| words.remove(at))) {
                (Marker::Role, Some(Word::Plain(word))) => self.role(&mut draft, word),
                (Marker::Channel, Some(Word::Plain(word))) => draft.channel(word),
                (Marker::Channel, _) => draft.repairs.push(RepairKind::EmptyChannel),
                (Marker::Constrain, Some(Word::Plain(word))) => {
                    if draft.content_type.replace(word.to_owned()).is_some_and(|old| old != word) {
                        draft.repairs.push(RepairKind::UnexpectedText);
                    }
                    draft.constrained = true;
                }
                (Marker::Constrain, _) => draft.constrained = true,
                (Marker::Role, _) => {}
            }
            for word in words {
                match word {
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
    pub(super) fn salvage(&self, tools: &[String], mode: Mode) -> Option<(Resolved, Vec<u8>)> {
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
        let mut resolved = RawHeader { opened: self.opened, parts, tokens: 0 }.resolve(tools, mode);
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

enum Word<'a> {
    To(&'a str),
    Plain(&'a str),
}

/// The words of a part; `to= name` is one, and a recipient glued to a channel is another.
fn words(text: &str) -> Vec<Word<'_>> {
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
            Some("") => words.extend(source.next().map(Word::To)),
            Some(name) => words.push(Word::To(name)),
            None => words.push(Word::Plain(word)),
        }
    }
    words
}

/// How often `word` is `unit` repeated, if that is all it is.
fn strip_repeats(word: &str, unit: &str) -> Option<usize> {
    let count = word.len() / unit.len();
    (count > 0 && word == unit.repeat(count)).then_some(count)
}

#[derive(Default)]
struct Draft<'a> {
    tools: &'a [String],
    mode: Mode,
    role: Option<String>,
    channels: Vec<Channel>,
    recipients: Vec<String>,
    content_type: Option<String>,
    constrained: bool,
    repairs: Vec<RepairKind>,
}

impl Draft<'_> {
    fn channel(&mut self, word: &str) {
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
    fn leftover(&mut self, word: &str) {
        let is_type = |w: &str| {
            w.starts_with(char::is_alphabetic)
                && !w.contains(|c: char| c.is_ascii_punctuation() && !"/+-._".contains(c))
        };
        if let Some((_, channel)) = Channel::KNOWN.into_iter().find(|(name, _)| *name == word) {
            self.channels.push(channel);
        } else if strip_repeats(word, "assistant").is_some() {
            self.repairs.push(RepairKind::RepeatedStart);
        } else if self.recipients.is_empty() && self.is_tool(word) {
            self.recipients.push(word.to_owned());
            self.repairs.push(RepairKind::BareRecipient);
        } else if self.content_type.is_none() && is_type(word) {
            self.content_type = Some(word.to_owned());
        } else {
            self.repairs.push(RepairKind::UnexpectedText);
        }
    }

    /// Whether a name addresses a tool on offer, or one the model knows.
    fn is_tool(&self, name: &str) -> bool {
        name == "python"
            || name.starts_with("browser.")
            || name.starts_with("functions.")
            || self.is_declared(name)
    }

    fn is_declared(&self, name: &str) -> bool {
        let name = name.strip_prefix("functions.").unwrap_or(name);
        self.tools.iter().any(|tool| tool == name)
    }

    /// The tool on offer that a decorated name means.
    fn undecorated(&self, name: &str) -> Option<String> {
        let bare = name.rsplit_once("functions.").map_or(name, |(_, bare)| bare);
        let names = [Some(bare), bare.strip_suffix("json"), bare.strip_suffix("code")];
        let tool = names
            .into_iter()
            .flatten()
            .map(|n| n.trim_end_matches('.'))
            .find(|n| self.is_declared(n))?;
        Some(format!("functions.{tool}"))
    }

    fn finish(mut self, opened: Opened) -> Resolved {
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
        let Draft { content_type, constrained, mut repairs, .. } = self;
        repairs.dedup();
        Resolved { header: Header { role, channel, recipient, content_type, constrained }, repairs }
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
        if self.recipients.is_empty() && self.is_declared(&role) {
            self.recipients.push(role);
        }
        assistant()
    }

    fn settle_recipient(&mut self, role: &str) -> Option<String> {
        let first = self.recipients.first()?;
        let mut recipient = first.clone();
        if self.recipients.iter().any(|r| *r != recipient) {
            self.repairs.push(RepairKind::DuplicateRecipient);
            if let Some(declared) = self.recipients.iter().find(|r| self.is_declared(r)) {
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
        match self.undecorated(&recipient) {
            Some(name) if name != recipient => {
                self.repairs.push(RepairKind::DecoratedName);
                Some(name)
            }
            _ => Some(recipient),
        }
    }
}
