//! A request to the Responses API: what of it the engine is asked, and what of it the response repeats.

use super::{input, invalid};
use crate::ApiError;
use crate::fields::{self, short};
use crate::request::{any_top_k, field, read};
use gpt_oss_puzzle::ChatRequest;
use gpt_oss_puzzle::chat::Format;
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::harmony::{Message, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What may be asked to be included. Items of hosted tools and images never occur, and a reasoning item
/// has its text in the clear: all of these but log-probabilities ask for nothing more.
const INCLUDE: [&str; 8] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    LOGPROBS,
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];

const LOGPROBS: &str = "message.output_text.logprobs";

/// A request that was read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// What the engine is asked.
    pub chat: ChatRequest,
    /// How many of its messages are instructions, which the next response does not take over.
    pub instructions: usize,
    /// Whether the response is kept.
    pub store: bool,
    /// The fields of the response object that repeat the request.
    pub echo: Map<String, Value>,
}

impl Request {
    /// Reads a request that goes on from `before` and names `kept` items.
    ///
    /// # Errors
    /// 400 for a field of another type, and for what would change the answer and cannot be honoured, by
    /// name.
    pub fn read(
        body: &Value,
        before: &[Message],
        kept: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<Request, ApiError> {
        fields::check(body, &[fields::RESPONSES, fields::ANYWHERE])?;
        let instructions: Option<String> = read(body, "instructions", "a string")?;
        let mut messages: Vec<Message> = instructions.iter().map(Message::developer).collect();
        let instructions = messages.len();
        messages.extend_from_slice(before);
        input::read(&body["input"], &mut messages, kept)?;

        let mut chat = ChatRequest::new(messages);
        (chat.tools, chat.tool_choice) = tools(body)?;
        if let Some(effort) = reasoning(body)? {
            chat.effort = effort.parse().map_err(|_| {
                invalid("reasoning.effort", format!("is {effort:?}, expected low, medium or high"))
            })?;
        }
        chat.sampling = sampling(body)?;
        chat.max_tokens = read(body, "max_output_tokens", "a number of tokens")?;
        if chat.max_tokens == Some(0) {
            return Err(invalid("max_output_tokens", "is 0, expected at least 1"));
        }
        chat.logprobs = logprobs(body)?;
        // Additions of the chat template and of vLLM.
        chat.date = read(body, "date", "a date such as 2026-01-02")?;
        chat.identity = read(body, "model_identity", "a sentence")?;
        chat.reasoning.max_tokens = read(body, "thinking_token_budget", "a number of tokens")?;
        chat.format = format(body)?;
        let store = read(body, "store", "true or false")?.unwrap_or(true);
        let echo = echo(body, chat.effort.as_str(), store)?;
        Ok(Request { chat, instructions, store, echo })
    }
}

fn tools(body: &Value) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
    let declared: Vec<Value> = read(body, "tools", "a list of tools")?.unwrap_or_default();
    let mut tools = Vec::with_capacity(declared.len());
    for (index, tool) in declared.iter().enumerate() {
        let error = |what: String| invalid(&format!("tools[{index}]"), what);
        match (tool["type"].as_str(), tool["name"].as_str()) {
            (Some("function"), Some(name)) => tools.push(Tool {
                name: name.to_owned(),
                description: tool["description"].as_str().unwrap_or_default().to_owned(),
                parameters: field(tool, "parameters").cloned(),
            }),
            (Some("function"), None) => return Err(error("has no name".into())),
            (kind, _) => {
                let message = format!(
                    "is of type {}, expected function: this server runs no tools itself, declare a \
                     function and run it where the request comes from",
                    kind.unwrap_or("none")
                );
                return Err(error(message).code("unsupported_parameter"));
            }
        }
    }
    let choice = tool_choice(body, &mut tools)?;
    if let ToolChoice::Named(name) = &choice
        && !tools.iter().any(|tool| tool.name == *name)
    {
        return Err(invalid("tool_choice", format!("is {name:?}, which is not among the tools")));
    }
    Ok((tools, choice))
}

/// What `tool_choice` asks; of `tools` those stay that it allows.
fn tool_choice(body: &Value, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    let Some(choice) = field(body, "tool_choice") else { return Ok(ToolChoice::Auto) };
    let mode = |mode: &Value| match mode.as_str() {
        Some("auto") => Some(ToolChoice::Auto),
        Some("none") => Some(ToolChoice::None),
        Some("required") => Some(ToolChoice::Required),
        _ => None,
    };
    let known = match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("function"), Some(name)) => Some(ToolChoice::Named(name.to_owned())),
        (Some("allowed_tools"), _) => {
            let allowed: Vec<&str> = (choice["tools"].as_array().into_iter().flatten())
                .filter_map(|tool| tool["name"].as_str())
                .collect();
            tools.retain(|tool| allowed.contains(&tool.name.as_str()));
            mode(&choice["mode"])
        }
        _ => mode(choice),
    };
    known.ok_or_else(|| {
        let expected = "expected auto, none, required, a function or allowed_tools";
        invalid("tool_choice", format!("is {}, {expected}", short(choice)))
    })
}

/// The effort. Summaries are not written, the chain of thought is there as it is; which of it a later
/// turn sees is what the model was trained with.
fn reasoning(body: &Value) -> Result<Option<&str>, ApiError> {
    let Some(reasoning) = field(body, "reasoning") else { return Ok(None) };
    one_of(reasoning, "reasoning.context", &["auto", "current_turn"])?;
    one_of(reasoning, "reasoning.mode", &["standard"])?;
    match field(reasoning, "effort") {
        None => Ok(None),
        Some(Value::String(effort)) => Ok(Some(effort)),
        Some(other) => {
            let message = format!("is {}, expected low, medium or high", short(other));
            Err(invalid("reasoning.effort", message))
        }
    }
}

/// Refuses other values of the field of `parent` that `path` ends in.
fn one_of(parent: &Value, path: &str, values: &[&str]) -> Result<(), ApiError> {
    let name = path.rsplit('.').next().unwrap_or(path);
    match field(parent, name) {
        Some(value) if !value.as_str().is_some_and(|value| values.contains(&value)) => {
            let expected = values.join(" or ");
            let error = invalid(path, format!("is {}, but can only be {expected}", short(value)));
            Err(error.code("unsupported_value"))
        }
        _ => Ok(()),
    }
}

fn sampling(body: &Value) -> Result<SamplingParams, ApiError> {
    let mut given = Map::new();
    let mut sampling = SamplingParams::default();
    for name in SamplingParams::FIELDS {
        let Some(value) = field(body, name) else { continue };
        given.insert(name.into(), value.clone());
        any_top_k(&mut given);
        // After each, so that the error names the field.
        sampling = SamplingParams::deserialize(&Value::Object(given.clone()))
            .map_err(|error| invalid(name, format!("is {}: {error}", short(value))))?;
    }
    Ok(sampling)
}

fn logprobs(body: &Value) -> Result<Option<usize>, ApiError> {
    let include: Vec<String> = read(body, "include", "a list of strings")?.unwrap_or_default();
    if let Some(unknown) = include.iter().find(|name| !INCLUDE.contains(&name.as_str())) {
        let known = INCLUDE.join(", ");
        return Err(invalid("include", format!("has {unknown:?}, expected some of {known}")));
    }
    let top: Option<usize> = read(body, "top_logprobs", "a number of tokens")?;
    let asked = include.iter().any(|name| name == LOGPROBS);
    Ok(top.filter(|top| asked || *top > 0).or(asked.then_some(0)))
}

fn format(body: &Value) -> Result<Option<Format>, ApiError> {
    let Some(text) = field(body, "text") else { return Ok(None) };
    // How much is said is for the instructions to say.
    one_of(text, "text.verbosity", &["medium"])?;
    let Some(format) = field(text, "format") else { return Ok(None) };
    match (format["type"].as_str(), field(format, "schema")) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), _) => Ok(Some(Format::json_object())),
        (Some("json_schema"), Some(schema)) => Ok(Some(Format::json_schema(schema.clone()))),
        _ => {
            let expected = "a type of text, json_object or json_schema, the last with its schema";
            Err(invalid("text.format", format!("is {}, expected {expected}", short(format))))
        }
    }
}

/// What the response repeats.
fn echo(body: &Value, effort: &str, store: bool) -> Result<Map<String, Value>, ApiError> {
    let or = |name: &str, absent: Value| field(body, name).cloned().unwrap_or(absent);
    let format = field(body, "text").and_then(|text| field(text, "format")).cloned();
    let metadata: Map<String, Value> =
        read(body, "metadata", "an object of strings")?.unwrap_or_default();
    let parallel: Option<bool> = read(body, "parallel_tool_calls", "true or false")?;
    let fields = [
        ("background", false.into()),
        ("instructions", or("instructions", Value::Null)),
        ("max_output_tokens", or("max_output_tokens", Value::Null)),
        ("max_tool_calls", or("max_tool_calls", Value::Null)),
        ("metadata", metadata.into()),
        ("parallel_tool_calls", parallel.unwrap_or(true).into()),
        ("previous_response_id", or("previous_response_id", Value::Null)),
        ("prompt_cache_key", or("prompt_cache_key", Value::Null)),
        ("reasoning", json!({"effort": effort, "summary": null})),
        ("safety_identifier", or("safety_identifier", Value::Null)),
        ("service_tier", "default".into()),
        ("store", store.into()),
        ("temperature", or("temperature", Value::Null)),
        (
            "text",
            json!({"format": format.unwrap_or(json!({"type": "text"})), "verbosity": "medium"}),
        ),
        ("tool_choice", or("tool_choice", "auto".into())),
        ("tools", or("tools", json!([]))),
        ("top_logprobs", or("top_logprobs", 0.into())),
        ("top_p", or("top_p", Value::Null)),
        ("truncation", "disabled".into()),
        ("user", or("user", Value::Null)),
    ];
    Ok(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
