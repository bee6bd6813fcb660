//! [`Activations`] by name.

use crate::kernels::Activations;
use crate::{Error, Result};

impl std::str::FromStr for Activations {
    type Err = Error;

    fn from_str(s: &str) -> Result<Activations> {
        match s {
            "exact" => Ok(Activations::Exact),
            "bf16" => Ok(Activations::Bf16),
            _ => Err(Error::invalid_request(format!(
                "activations are {s:?}, expected \"exact\" or \"bf16\""
            ))),
        }
    }
}
