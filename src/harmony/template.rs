//! The template renderer.

use crate::Result;
use std::path::Path;

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct Template {}

impl Template {
    /// Compiles a template's source.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Template`] with the line when it does not compile.
    pub fn new(source: &str) -> Result<Template> {
        let _ = source;
        unimplemented!()
    }

    /// The template a checkpoint directory ships: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`; `None` when it has neither.
    ///
    /// # Errors
    /// As [`Template::new`], and [`crate::ErrorKind::Io`] when a file cannot be read.
    pub fn from_checkpoint(dir: &Path) -> Result<Option<Template>> {
        let _ = dir;
        unimplemented!()
    }

    /// This crate's own template, written to agree with the one the checkpoints ship.
    pub fn embedded() -> Template {
        unimplemented!()
    }
}
