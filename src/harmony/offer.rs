//! The tools on offer, and what a name in a header means against them.

use super::message::BuiltinTool;

/// Content types that models append to names.
pub(super) const TYPES: [&str; 2] = ["json", "code"];

/// What the parser makes of a call of a tool that is not on offer. Each is reported as
/// [`super::RepairKind::UndeclaredTool`], in strict mode too, for the stream itself is well-formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UndeclaredTool {
    /// A tool call like any other.
    #[default]
    Emit,
    /// Text to the user: the message is put on the final channel, without a recipient.
    AsText,
    /// An error, [`crate::ErrorKind::Malformed`].
    Reject,
}

/// The tools on offer.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// Names without `functions.`; `None` where nobody has said what is on offer.
    pub(super) functions: Option<Vec<String>>,
    /// The same for tools the model knows by itself.
    pub(super) builtin: Option<Vec<BuiltinTool>>,
    pub(super) undeclared: UndeclaredTool,
}

impl Offer {
    /// Whether a name addresses a tool on offer, or one that a model may know.
    pub(super) fn is_tool(&self, name: &str) -> bool {
        builtin(name).is_some() || name.starts_with("functions.") || self.is_declared(name)
    }

    /// Whether a name, with or without `functions.`, is that of a function on offer.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        let name = name.strip_prefix("functions.").unwrap_or(name);
        self.functions.iter().flatten().any(|function| function == name)
    }

    /// Whether a recipient is known not to be on offer.
    pub(super) fn is_undeclared(&self, recipient: &str) -> bool {
        match builtin(recipient) {
            Some(tool) => self.builtin.as_ref().is_some_and(|known| !known.contains(&tool)),
            None => self.functions.is_some() && !self.is_declared(recipient),
        }
    }

    /// The function on offer that a decorated name means.
    pub(super) fn undecorated(&self, name: &str) -> Option<String> {
        let bare = name.rsplit_once("functions.").map_or(name, |(_, bare)| bare);
        let names = [bare].into_iter().chain(TYPES.iter().filter_map(|t| bare.strip_suffix(t)));
        let function = names.map(|n| n.trim_end_matches('.')).find(|n| self.is_declared(n))?;
        Some(format!("functions.{function}"))
    }
}

/// The builtin tool that a recipient addresses.
fn builtin(recipient: &str) -> Option<BuiltinTool> {
    match recipient {
        "python" => Some(BuiltinTool::Python),
        _ if recipient.starts_with("browser.") => Some(BuiltinTool::Browser),
        _ => None,
    }
}
