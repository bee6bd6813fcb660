//! Fields of requests that would change the answer and cannot be honoured: refused by name. What is in no
//! table and read by nobody is ignored.

use crate::ApiError;
use serde_json::Value;

/// A field that is refused, the values of it that ask for nothing, and what to do instead.
pub struct Refused {
    /// Its name.
    pub name: &'static str,
    /// Whether a value asks for nothing.
    pub is_neutral: fn(&Value) -> bool,
    /// What there is instead, or why there is nothing.
    pub instead: &'static str,
}

/// What `/v1/chat/completions` refuses.
pub const CHAT: &[Refused] = &[];

/// Refuses what a table has.
///
/// # Errors
/// 400 for the first field of it that asks for something.
pub fn check(body: &Value, table: &[Refused]) -> Result<(), ApiError> {
    for Refused { name, is_neutral, instead } in table {
        if let Some(value) = body.get(name).filter(|value| !value.is_null() && !is_neutral(value)) {
            let message = format!("{name} is {value}, which is not supported: {instead}");
            return Err(ApiError::invalid(name, message).code("unsupported_parameter"));
        }
    }
    Ok(())
}
