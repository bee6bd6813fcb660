//! What can go wrong between here and the hub: whether to try again, and what to tell the user.

use crate::weights::shown;
use crate::{Error, ErrorKind};
use hf_hub::{HFError, HFResult};
use std::time::Duration;

/// Attempts at one request before giving up.
pub(super) const ATTEMPTS: u32 = 6;
/// Wait before the second attempt; doubles with each further one, 7.75 seconds in all.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Decides after each failure in a row whether to wait and try again.
pub(super) struct Patience<'a> {
    context: &'a Context<'a>,
    file: Option<&'a str>,
    attempts: u32,
    failures: u32,
}

impl Patience<'_> {
    /// Waits, longer each time, or gives up.
    pub(super) fn after(&mut self, error: HFError) -> Result<(), Failure> {
        self.failures += 1;
        if self.failures == self.attempts || !is_transient(&error) {
            return Err(self.context.describe(self.file, error));
        }
        tracing::debug!(failures = self.failures, file = self.file, "retrying after {error}");
        let asked = match &error {
            HFError::RateLimited { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = FIRST_WAIT * (1 << (self.failures - 1));
        // A server may ask for patience, but not for ever.
        std::thread::sleep(wait.max(asked.min(Duration::from_secs(60))));
        Ok(())
    }

    /// Progress was made: the next failure is the first.
    pub(super) fn restore(&mut self) {
        self.failures = 0;
    }
}

/// What the messages name.
pub(super) struct Context<'a> {
    endpoint: String,
    repo: &'a str,
    revision: &'a str,
}

/// A request that did not work out.
pub(super) struct Failure {
    source: HFError,
    message: String,
}

impl Failure {
    /// Whether the server could not be reached or did not work, so that the cache is as good an
    /// answer as any.
    pub(super) fn is_unreachable(&self) -> bool {
        is_transient(&self.source)
    }

    pub(super) fn into_error(self) -> Error {
        Error::new(ErrorKind::Download, self.message).with_source(self.source)
    }
}

impl<'a> Context<'a> {
    pub(super) fn new(endpoint: &str, repo: &'a str, revision: &'a str) -> Context<'a> {
        Context { endpoint: endpoint.to_string(), repo, revision }
    }

    /// An error about the repository as such.
    pub(super) fn error(&self, what: &str) -> Error {
        let Context { endpoint, repo, revision } = self;
        let message = format!("{repo} at revision {} of {endpoint} {what}", shown(revision));
        Error::new(ErrorKind::Download, message)
    }

    /// A request that failed, as an error.
    pub(super) fn failure(&self, file: Option<&str>, source: HFError) -> Error {
        self.describe(file, source).into_error()
    }

    /// Runs a request up to `attempts` times while the connection is to blame.
    pub(super) fn retry<T>(
        &self,
        attempts: u32,
        mut request: impl FnMut() -> HFResult<T>,
    ) -> Result<T, Failure> {
        let mut patience = Patience { attempts, ..self.patience(None) };
        loop {
            match request() {
                Ok(value) => return Ok(value),
                Err(error) => patience.after(error)?,
            }
        }
    }

    /// Patience with requests about `file`.
    pub(super) fn patience(&self, file: Option<&'a str>) -> Patience<'_> {
        Patience { context: self, file, attempts: ATTEMPTS, failures: 0 }
    }

    fn describe(&self, file: Option<&str>, source: HFError) -> Failure {
        let Context { endpoint, repo, revision } = self;
        let file = file.map_or(String::new(), |file| format!("{} of ", shown(file)));
        let what =
            format!("cannot download {file}{repo} at revision {} from {endpoint}", shown(revision));
        let message = match (status(&source), code(&source)) {
            (Some(401), _) => format!(
                "{what}: no such repository, or one that needs a token (401): check the name, and set \
                 HF_TOKEN to a token that may read it"
            ),
            (Some(403), _) => format!(
                "{what}: access refused (403): accept its conditions at {endpoint}/{repo} with the account of \
                 your token"
            ),
            (Some(404), Some("RevisionNotFound")) => {
                format!("{what}: no such revision (404): check the branch, tag or commit")
            }
            (Some(404), Some("EntryNotFound")) => format!("{what}: no such file (404)"),
            (Some(404), _) => {
                format!("{what}: no such repository or revision (404): check the spelling")
            }
            _ => format!("{what}: {source}; what has arrived is kept, so try again to go on"),
        };
        Failure { source, message }
    }
}

/// Whether the connection or the server's load is to blame rather than the request.
fn is_transient(error: &HFError) -> bool {
    match error {
        // Nothing in a request depends on the caller beyond its URL, so whatever fails before or
        // within a response is the network's fault.
        HFError::Request { .. } | HFError::RateLimited { .. } | HFError::Xet { .. } => true,
        _ => matches!(status(error), Some(408 | 429 | 500..)),
    }
}

fn status(error: &HFError) -> Option<u16> {
    match error {
        HFError::AuthRequired { .. } => Some(401),
        HFError::Forbidden { .. } => Some(403),
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => Some(404),
        HFError::Http { context } => Some(context.status.as_u16()),
        _ => None,
    }
}

/// The hub's own word for the failure.
fn code(error: &HFError) -> Option<&str> {
    match error {
        HFError::RepoNotFound { context, .. }
        | HFError::RevisionNotFound { context, .. }
        | HFError::EntryNotFound { context, .. } => context.as_ref()?.error_code.as_deref(),
        HFError::Http { context } => context.error_code.as_deref(),
        _ => None,
    }
}
