//! [`DenseDtype`]: how dense matrices are held.

use crate::{Error, Result};

/// How the dense matrices (the projections of attention and the head) are held; the embedding, the
/// routers and the experts are always as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenseDtype {
    /// As stored, in the mapped files.
    #[default]
    Bf16,
    /// In 8 bits with a scale for every 32 ([`crate::kernels::Dense::Q8`]), made when the model is
    /// loaded: 53 % of the bytes, which is what decoding reads, in memory of the process's own and
    /// from there on the device. The logits change a little; README says by how much.
    Q8,
}

impl std::str::FromStr for DenseDtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<DenseDtype> {
        match s {
            "bf16" => Ok(DenseDtype::Bf16),
            "q8" => Ok(DenseDtype::Q8),
            _ => Err(Error::invalid_request(format!(
                "dense dtype is {s:?}, expected \"bf16\" or \"q8\""
            ))),
        }
    }
}
