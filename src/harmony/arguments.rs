//! The arguments of a tool call: to a typed value, and back to JSON where the model slipped.

use super::message::ToolCall;
use crate::{Error, ErrorKind, Result};
use serde::de::{DeserializeOwned, IgnoredAny};

/// Arguments that are not what the caller asked for: the cause behind an error of kind
/// [`ErrorKind::ToolArguments`], for `error.source().downcast_ref::<ArgumentsError>()`.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct ArgumentsError {
    /// The tool's name.
    pub tool: String,
    /// The arguments as the model wrote them.
    pub arguments: String,
    /// What is wrong with them, and where.
    pub error: serde_json::Error,
}

/// What [`ToolCall::repaired_arguments`] made of a call's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairedArguments {
    /// A JSON object, in the model's own words as far as they go.
    pub arguments: String,
    /// What was done, in order; empty when nothing had to be.
    pub repairs: Vec<ArgumentsRepair>,
}

/// A repair of a call's arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArgumentsRepair {
    /// This text after the end of the JSON was left out.
    StrippedTrailing(String),
    /// These brackets were missing at the end and were added.
    ClosedBrackets(String),
    /// The object was the one element of an array, and was taken out of it.
    UnwrappedArray,
}

impl ToolCall {
    /// The arguments as a typed value.
    ///
    /// # Errors
    /// [`ErrorKind::ToolArguments`] when they are not JSON of that shape; its source is an
    /// [`ArgumentsError`] with the raw text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.arguments).map_err(|error| {
            let message = format!(
                "arguments of tool call {} do not parse: {error}, found {:?}",
                self.name, self.arguments
            );
            let (tool, arguments) = (self.name.clone(), self.arguments.clone());
            let cause = ArgumentsError { tool, arguments, error };
            Error::new(ErrorKind::ToolArguments, message).with_source(cause)
        })
    }

    /// The arguments as a JSON object, after the repairs that models need most often: text after the
    /// object is left out, brackets missing at the end are added, and an object alone in an array is
    /// taken out of it. Nothing is made up inside a string or in place of a value.
    ///
    /// Opt-in, because a repaired call need not be the one that was meant:
    ///
    /// ```
    /// use gpt_oss_puzzle::harmony::{ArgumentsRepair, ToolCall};
    ///
    /// let mut call = ToolCall::function("call_0", "ls", r#"[{"path":"/tmp"}"#);
    /// let repaired = call.repaired_arguments()?;
    /// assert_eq!(repaired.arguments, r#"{"path":"/tmp"}"#);
    /// let done = [ArgumentsRepair::ClosedBrackets("]".into()), ArgumentsRepair::UnwrappedArray];
    /// assert_eq!(repaired.repairs, done);
    /// call.arguments = repaired.arguments;
    /// # Ok::<(), gpt_oss_puzzle::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::ToolArguments`] when that does not make them an object, and for an
    /// [incomplete](ToolCall::incomplete) call, whose missing part nobody knows.
    pub fn repaired_arguments(&self) -> Result<RepairedArguments> {
        let error = |what: &str| {
            let message =
                format!("arguments of tool call {} {what}, found {:?}", self.name, self.arguments);
            Error::new(ErrorKind::ToolArguments, message)
        };
        if self.incomplete {
            return Err(error("are cut off"));
        }
        let mut repairs = Vec::new();
        let mut text = self.arguments.trim().to_owned();
        if let Some(end) = end_of_value(&text) {
            if end < text.len() {
                let trailing = text.split_off(end);
                repairs.push(ArgumentsRepair::StrippedTrailing(trailing.trim_start().to_owned()));
            }
        } else if let Some(brackets) = open_brackets(&text) {
            text += &brackets;
            repairs.push(ArgumentsRepair::ClosedBrackets(brackets));
        }
        if let Ok([_]) = serde_json::from_str::<[IgnoredAny; 1]>(&text) {
            text = text[1..text.len() - 1].trim().to_owned();
            repairs.push(ArgumentsRepair::UnwrappedArray);
        }
        // Also tells whether closing brackets was enough.
        match serde_json::from_str::<IgnoredAny>(&text) {
            Ok(_) if text.starts_with('{') => Ok(RepairedArguments { arguments: text, repairs }),
            _ => Err(error("cannot be repaired to a JSON object")),
        }
    }
}

/// Where the JSON value that `text` begins with ends.
fn end_of_value(text: &str) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    matches!(values.next(), Some(Ok(_))).then(|| values.byte_offset())
}

/// The brackets that would close those open at the end of `text`; `None` inside a string and when
/// brackets do not match.
fn open_brackets(text: &str) -> Option<String> {
    let mut open = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' if open.pop() != Some(c) => return None,
            _ => {}
        }
    }
    (!in_string).then(|| open.into_iter().rev().collect())
}
