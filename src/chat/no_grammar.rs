//! What stands in for grammar.rs in builds without the feature `structured`: there are no grammars.

use super::Format;
use crate::generation::TokenSet;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::sync::Arc;

pub(super) struct Grammars;

pub(super) enum Grammar {}

impl Grammars {
    pub(super) fn new(_: &Arc<Tokenizer>) -> Result<Grammars> {
        Ok(Grammars)
    }

    /// # Errors
    /// `InvalidRequest`.
    pub(super) fn compile(&self, _: &Format, of: &str) -> Result<Grammar> {
        Err(Error::invalid_request(format!(
            "{of} is to follow a format, which takes the feature `structured`: this build is without"
        )))
    }
}

impl Grammar {
    pub(super) fn take(&mut self, _: u32) -> Result<()> {
        match *self {}
    }

    pub(super) fn forced(&mut self) -> Vec<u32> {
        match *self {}
    }

    pub(super) fn next(&mut self) -> Result<(TokenSet, bool)> {
        match *self {}
    }
}
