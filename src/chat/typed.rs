//! Answers as values of Rust types: [`ChatResponse::parse`], and with the features `structured` and
//! `schemars` `Model::chat_as`, which has the model answer so that it parses.

use super::ChatResponse;
use crate::generation::FinishReason;
use crate::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use std::fmt;

/// An answer that is not what the caller asked for: the cause behind an error of kind
/// [`ErrorKind::Answer`], for `error.source().downcast_ref::<AnswerError>()`.
#[derive(Debug)]
#[non_exhaustive]
pub struct AnswerError {
    /// The answer's text as the model wrote it.
    pub text: String,
    /// Why the answer ended. What did not end in [`FinishReason::Stop`] is not parsed: part of a number
    /// is a number, too.
    pub finish_reason: FinishReason,
    /// What is wrong with it and where, if it is whole.
    pub error: Option<serde_json::Error>,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.error, &self.finish_reason) {
            (Some(error), _) => error.fmt(f),
            (None, FinishReason::ToolCalls) => f.write_str("the model called a tool instead"),
            (None, FinishReason::Length) => f.write_str("it was cut off, there was no room left"),
            (None, FinishReason::Cancelled) => f.write_str("it was cancelled"),
            (None, FinishReason::Deadline) => f.write_str("it was cut off, its time was over"),
            (None, FinishReason::StopSequence(stop)) => write!(f, "it was cut off before {stop:?}"),
            (None, FinishReason::Stop) => f.write_str("it is empty"),
        }
    }
}

impl std::error::Error for AnswerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.as_ref().map(|error| error as _)
    }
}

impl ChatResponse {
    /// The answer's text, which is JSON, as a typed value.
    ///
    /// # Errors
    /// [`ErrorKind::Answer`] when it was cut off, is a call of a tool instead, or is not JSON of that
    /// shape; its source is an [`AnswerError`] with the raw text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let text = self.text();
        let error = match self.finish_reason {
            FinishReason::Stop => match serde_json::from_str(&text) {
                Ok(value) => return Ok(value),
                Err(error) => Some(error),
            },
            _ => None,
        };
        let cause = AnswerError { text, finish_reason: self.finish_reason.clone(), error };
        let message = format!("the answer does not parse: {cause}, found {:?}", cause.text);
        Err(Error::new(ErrorKind::Answer, message).with_source(cause))
    }
}

#[cfg(all(feature = "structured", feature = "schemars"))]
mod schema {
    use crate::Result;
    use crate::chat::{ChatRequest, Format, Model};
    use schemars::transform::{RecursiveTransform, Transform};
    use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    impl Model {
        /// Answers a request with a value of `T`: the answer's [`Format`] is [`Format::of`] it, in place
        /// of any that the request has.
        ///
        /// ```no_run
        /// use gpt_oss_puzzle::{ChatRequest, Model};
        ///
        /// #[derive(schemars::JsonSchema, serde::Deserialize)]
        /// struct City {
        ///     name: String,
        ///     inhabitants: u32,
        /// }
        ///
        /// let model = Model::load("gpt-oss-20b")?;
        /// let question = "What is the largest city of France? Answer in JSON: its name and inhabitants.";
        /// let city: City = model.chat_as(&ChatRequest::user(question))?;
        /// println!("{} has {} inhabitants", city.name, city.inhabitants);
        /// # Ok::<(), gpt_oss_puzzle::Error>(())
        /// ```
        ///
        /// # Errors
        /// As [`Model::chat`] and [`crate::ChatResponse::parse`]. An answer can still fail to parse when
        /// it was cut off or the model called a tool, and where the type asks for more than its schema
        /// says, such as a number that fits.
        pub fn chat_as<T: JsonSchema + DeserializeOwned>(
            &self,
            request: &ChatRequest,
        ) -> Result<T> {
            self.chat(&request.clone().format(Format::of::<T>()))?.parse()
        }
    }

    impl Format {
        /// JSON of a type. For use with [`crate::ChatResponse::parse`] where [`Model::chat_as`] does not
        /// fit, as in a session.
        ///
        /// Integers are kept within what their type holds, and within 2^53 - 1, up to which JSON's
        /// readers agree on them (RFC 8259). Structs have no fields but their own, unless the type is put
        /// together with `#[serde(flatten)]` or tags.
        pub fn of<T: JsonSchema>() -> Format {
            let settings = SchemaSettings::draft2020_12().with(|s| s.meta_schema = None);
            let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
            RecursiveTransform(bound).transform(&mut schema);
            if !is_composed(schema.as_value()) {
                RecursiveTransform(close).transform(&mut schema);
            }
            // The cases of an enum exclude one another, but not always in a way that can be shown.
            schema.insert("x-guidance".into(), json!({"coerce_one_of": true}));
            Format::JsonSchema(schema.to_value())
        }
    }

    /// Keeps integers to what their type holds: schemars says so only of the smaller ones.
    fn bound(schema: &mut Schema) {
        const SAFE: i64 = (1 << 53) - 1;
        let (min, max) = match schema.get("format").and_then(Value::as_str) {
            Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
            Some("uint32") => (0, i64::from(u32::MAX)),
            Some("int64" | "int" | "int128") => (-SAFE, SAFE),
            Some("uint64" | "uint" | "uint128") => (0, SAFE),
            _ => return,
        };
        for (keyword, value) in [("minimum", min), ("maximum", max)] {
            if schema.get(keyword).is_none() {
                schema.insert(keyword.into(), value.into());
            }
        }
    }

    /// Whether an object's properties are spread over several schemas, none of which knows them all.
    fn is_composed(value: &Value) -> bool {
        match value {
            Value::Object(map) => {
                let parts = ["$ref", "allOf", "anyOf", "oneOf"];
                let here = map.contains_key("properties")
                    && parts.iter().any(|part| map.contains_key(*part));
                here || map.values().any(is_composed)
            }
            Value::Array(values) => values.iter().any(is_composed),
            _ => false,
        }
    }

    /// Leaves out properties that nobody asked for.
    fn close(schema: &mut Schema) {
        if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
            schema.insert("additionalProperties".into(), false.into());
        }
    }
}
