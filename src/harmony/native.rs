//! The typed renderer.

/// Where harmony's renderers differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dialect {}

impl Dialect {
    /// What OpenAI's harmony library writes.
    pub fn harmony() -> Dialect {
        Dialect {}
    }

    /// What the checkpoints' own chat template writes.
    pub fn template() -> Dialect {
        Dialect {}
    }
}
