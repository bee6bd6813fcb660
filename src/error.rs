//! The crate's one error type: what kind of thing went wrong, a message that names it and both
//! sides, and the underlying cause behind [`std::error::Error::source`].

use std::fmt;
use std::time::Duration;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can fail in this crate.
///
/// Opaque and one word wide: match on [`Error::kind`], print with `{}` (one line, names the thing and
/// both sides), and walk [`std::error::Error::source`] for the cause; nothing is lost on the way.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Repr>);

#[derive(thiserror::Error)]
#[error("{message}")]
struct Repr {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
    retry_after: Option<Duration>,
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// config.json is missing a field, contradicts itself, or describes a model this crate cannot run.
    Config,
    /// A checkpoint file is missing, malformed, truncated, or a tensor has the wrong dtype or shape.
    Checkpoint,
    /// Reading or writing a file failed.
    Io,
    /// A download failed, or the hub refused it.
    Download,
    /// tokenizer.json is unusable, or a text or token id cannot be converted.
    Tokenizer,
    /// The chat template cannot be parsed or refuses the conversation.
    Template,
    /// A message or tool of a conversation is invalid.
    InvalidMessage,
    /// A request's parameters are out of range or contradict each other.
    InvalidRequest,
    /// Prompt and answer do not fit the context.
    ContextOverflow,
    /// The key-value cache has no page left.
    CacheFull,
    /// The model produced a token stream that strict parsing rejects.
    Malformed,
    /// The arguments of a tool call are not what the caller asked to parse.
    ToolArguments,
    /// The answer is not what the caller asked to parse.
    Answer,
    /// A tool failed, and the caller asked that this ends the run.
    Tool,
    /// The numbers went wrong: logits that are not finite.
    Numeric,
    /// The tensor library or the device reported a failure.
    Device,
    /// An engine's queue is full; [`Error::retry_after`] says when to ask again.
    Busy,
    /// A request's deadline passed before its answer began.
    Deadline,
    /// The engine was shut down.
    Stopped,
    /// Code of one answer panicked: a fault of this crate, or of what a program does when it is woken up.
    Panic,
}

impl Error {
    #[cold]
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Repr { kind, message: message.into(), source: None, retry_after: None }))
    }

    /// Attaches the cause, kept behind `source()`.
    #[cold]
    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Says when to ask again.
    #[cold]
    pub(crate) fn with_retry_after(mut self, time: Duration) -> Error {
        self.0.retry_after = Some(time);
        self
    }

    #[cold]
    pub(crate) fn config(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, message)
    }

    #[cold]
    pub(crate) fn checkpoint(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Checkpoint, message)
    }

    #[cold]
    pub(crate) fn invalid_request(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidRequest, message)
    }

    /// A file operation that failed, with the path it failed on.
    #[cold]
    pub(crate) fn io(verb: &str, path: &std::path::Path, source: std::io::Error) -> Error {
        Error::new(ErrorKind::Io, format!("cannot {verb} {}: {source}", path.display()))
            .with_source(source)
    }

    /// In how long to ask again, of a request that was refused because others were before it
    /// ([`ErrorKind::Busy`]): an estimate from how fast those are answered.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Debug for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<candle_core::Error> for Error {
    #[cold]
    fn from(source: candle_core::Error) -> Error {
        Error::new(ErrorKind::Device, format!("tensor operation failed: {source}"))
            .with_source(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn one_word_wide_and_shareable() {
        fn shareable<T: Send + Sync + 'static>() {}
        shareable::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn message_kind_and_source_survive() {
        let cause = std::io::Error::other("disk on fire");
        let e = Error::io("read", std::path::Path::new("a/config.json"), cause);
        assert_eq!(e.kind(), ErrorKind::Io);
        assert_eq!(e.to_string(), "cannot read a/config.json: disk on fire");
        assert_eq!(e.source().expect("kept").to_string(), "disk on fire");
    }
}
