//! A chat request from a Chat Completions request: [`ChatRequest::from_openai`].

use crate::chat::{ChatRequest, Format};
use crate::generation::SamplingParams;
use crate::harmony::ToolChoice;
use crate::harmony::openai::{Request, StringArguments};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

impl ChatRequest {
    /// Reads a request to OpenAI's chat API.
    ///
    /// Messages and tools as [`Request::from_json`], with `reasoning_effort`, `builtin_tools`,
    /// `model_identity` and `date`; then the sampling parameters, `max_completion_tokens` or
    /// `max_tokens`, `logprobs` with `top_logprobs`, `stop`, `tool_choice`, and with the feature
    /// `structured` `response_format`. What would change the answer and cannot be done is refused; fields that do not concern it (`model`, `stream`, `user`) are
    /// ignored, and so is `parallel_tool_calls`, because the model makes one call at a time.
    ///
    /// ```
    /// use gpt_oss_puzzle::ChatRequest;
    ///
    /// let request = ChatRequest::from_openai(&serde_json::json!({
    ///     "model": "gpt-oss-20b",
    ///     "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    ///     "temperature": 0.5,
    ///     "max_completion_tokens": 100,
    /// }))?;
    /// assert_eq!(request.sampling.temperature, Some(0.5));
    /// assert_eq!(request.max_tokens, Some(100));
    /// # Ok::<(), gpt_oss_puzzle::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Request::from_json`]; `InvalidRequest` for a field of another type and for what cannot be
    /// done: a `tool_choice` of several named tools, several choices (`n`), the old `functions`, and a
    /// conversation that is not to be gone on with; without the feature `structured` a
    /// `response_format` other than text.
    pub fn from_openai(request: &Value) -> Result<ChatRequest> {
        let request = Request::from_json(request, StringArguments::Parse)?;
        let fields = Fields(&request.variables);
        if !request.add_generation_prompt {
            return Err(invalid("add_generation_prompt is false, expected true"));
        }
        fields.expect("n", "1", |n| *n == 1)?;
        fields.expect("functions", "tools", |_| false)?;
        fields.expect("function_call", "tool_choice", |_| false)?;
        let sampling: Map<String, Value> = (SamplingParams::FIELDS.iter())
            .filter_map(|name| Some((name.to_string(), fields.get(name)?.clone())))
            .collect();
        let sampling: SamplingParams = serde_json::from_value(sampling.into()).map_err(|e| {
            invalid(format!("the sampling parameters are invalid: {e}")).with_source(e)
        })?;
        let max_tokens = match fields.read("max_completion_tokens", "a number of tokens")? {
            Some(tokens) => Some(tokens),
            None => fields.read("max_tokens", "a number of tokens")?,
        };
        let top = fields.read("top_logprobs", "a number of tokens")?;
        let logprobs = match (fields.read("logprobs", "true or false")?.unwrap_or(false), top) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(top)) => {
                return Err(invalid(format!("top_logprobs is {top}, but logprobs is not true")));
            }
        };
        let stop = match fields.get("stop") {
            Some(Value::String(stop)) => vec![stop.clone()],
            _ => fields.read("stop", "a text or a list of texts")?.unwrap_or_default(),
        };
        Ok(ChatRequest {
            messages: request.messages,
            tools: request.tools,
            builtin_tools: request.builtin_tools,
            tool_choice: fields.tool_choice()?,
            effort: request.effort,
            identity: request.identity,
            date: request.date,
            sampling,
            max_tokens,
            logprobs,
            stop,
            format: fields.format()?,
            ..ChatRequest::default()
        })
    }
}

/// The request's other fields; null is as good as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn read<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let read = |value: &Value| {
            T::deserialize(value).map_err(|e| {
                invalid(format!("{name} is {value}, expected {expected}")).with_source(e)
            })
        };
        self.get(name).map(read).transpose()
    }

    fn tool_choice(&self) -> Result<ToolChoice> {
        let Some(choice) = self.get("tool_choice") else { return Ok(ToolChoice::Auto) };
        let name = choice["function"]["name"].as_str();
        match (choice.as_str(), choice["type"].as_str(), name) {
            (Some("auto"), ..) => Ok(ToolChoice::Auto),
            (Some("none"), ..) => Ok(ToolChoice::None),
            (Some("required"), ..) => Ok(ToolChoice::Required),
            (_, Some("function"), Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
            _ => Err(invalid(format!(
                "tool_choice is {choice}, expected \"auto\", \"none\", \"required\" or a function"
            ))),
        }
    }

    fn format(&self) -> Result<Option<Format>> {
        let Some(format) = self.get("response_format") else { return Ok(None) };
        let schema = format["json_schema"].get("schema");
        let expected = match (cfg!(feature = "structured"), format["type"].as_str(), schema) {
            (_, Some("text"), _) => return Ok(None),
            (false, ..) => "{\"type\":\"text\"} in a build without the feature `structured`",
            (true, Some("json_object"), _) => return Ok(Some(Format::json_object())),
            (true, Some("json_schema"), Some(schema)) => {
                return Ok(Some(Format::json_schema(schema.clone())));
            }
            (true, ..) => "a type of text, json_object or json_schema, the last with its schema",
        };
        Err(invalid(format!("response_format is {format}, expected {expected}")))
    }

    fn expect(&self, name: &str, expected: &str, ok: impl Fn(&Value) -> bool) -> Result<()> {
        match self.get(name) {
            Some(value) if !ok(value) => {
                Err(invalid(format!("{name} is {value}, expected {expected}")))
            }
            _ => Ok(()),
        }
    }
}

#[cold]
fn invalid(message: impl Into<String>) -> Error {
    Error::invalid_request(message)
}
