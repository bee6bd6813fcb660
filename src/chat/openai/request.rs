//! A chat request from a Chat Completions request: [`ChatRequest::from_openai`].

use crate::chat::ChatRequest;
use crate::generation::SamplingParams;
use crate::harmony::ToolChoice;
use crate::harmony::openai::{Request, StringArguments};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that [`SamplingParams`] has under the same name; some are additions of other servers.
const SAMPLING: [&str; 9] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
];

impl ChatRequest {
    /// Reads a request to OpenAI's chat API.
    ///
    /// Messages and tools as [`Request::from_json`], with `reasoning_effort`, `builtin_tools`,
    /// `model_identity` and `date`; then the sampling parameters, `max_completion_tokens` or
    /// `max_tokens`, `logprobs` with `top_logprobs`, and `tool_choice`. What would change the answer
    /// and cannot be done is refused; fields that do not concern it (`model`, `stream`, `user`) are
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
    /// done: a `tool_choice` other than `auto` and `none`, `stop`, a `response_format` other than text,
    /// several choices (`n`), the old `functions`, and a conversation that is not to be gone on with.
    pub fn from_openai(request: &Value) -> Result<ChatRequest> {
        let request = Request::from_json(request, StringArguments::Parse)?;
        let fields = Fields(&request.variables);
        if !request.add_generation_prompt {
            return Err(invalid("add_generation_prompt is false, expected true"));
        }
        fields.expect("n", "1", |n| *n == 1)?;
        fields.expect("response_format", "{\"type\":\"text\"}", |f| f["type"] == "text")?;
        fields.expect("stop", "none", |stop| stop.as_array().is_some_and(Vec::is_empty))?;
        fields.expect("functions", "tools", |_| false)?;
        fields.expect("function_call", "tool_choice", |_| false)?;
        let sampling: Map<String, Value> = (SAMPLING.iter())
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
        let tool_choice = match fields.get("tool_choice") {
            None => ToolChoice::Auto,
            Some(choice) => match choice.as_str() {
                Some("auto") => ToolChoice::Auto,
                Some("none") => ToolChoice::None,
                _ => {
                    return Err(invalid(format!(
                        "tool_choice is {choice}, expected \"auto\" or \"none\": a call cannot be \
                         forced"
                    )));
                }
            },
        };
        Ok(ChatRequest {
            messages: request.messages,
            tools: request.tools,
            builtin_tools: request.builtin_tools,
            tool_choice,
            effort: request.effort,
            identity: request.identity,
            date: request.date,
            sampling,
            max_tokens,
            logprobs,
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
