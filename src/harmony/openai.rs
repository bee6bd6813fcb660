//! Requests in the shape of OpenAI's chat API, as clients send and store them, to typed
//! conversations. Lenient where the shape is loose in practice (nulls, content parts, three names
//! for reasoning), strict where guessing would lose something.

use super::message::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolKind, ToolOutput,
};
use super::python_json;
use super::render::RenderRequest;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// A request, owned; [`Request::as_render`] lends it to a renderer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// `messages`.
    pub messages: Vec<Message>,
    /// `tools`.
    pub tools: Vec<Tool>,
    /// `builtin_tools`, an addition of the gpt-oss chat template.
    pub builtin_tools: Vec<BuiltinTool>,
    /// `reasoning_effort`.
    pub effort: Effort,
    /// `model_identity`.
    pub identity: Option<String>,
    /// `date`.
    pub date: Option<String>,
    /// `add_generation_prompt`, true when absent.
    pub add_generation_prompt: bool,
    /// All other fields; a template may read them.
    pub variables: Map<String, Value>,
}

/// What to do with tool-call arguments given as a string, which is how OpenAI's API gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StringArguments {
    /// The string is the arguments' JSON text: what a conversation means.
    #[default]
    Parse,
    /// The string is the arguments: transformers takes it so, and renders it escaped once more.
    Verbatim,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] or [`ErrorKind::InvalidMessage`], naming the field or the
    /// message's index and what was found.
    pub fn from_json(request: &Value, arguments: StringArguments) -> Result<Request> {
        let Value::Object(fields) = request else {
            return Err(invalid(format!(
                "the request is {}, expected an object",
                kind_of(request)
            )));
        };
        let mut fields = fields.clone();
        let mut take = |name: &str| fields.shift_remove(name).filter(|v| !v.is_null());
        let text = |name: &str, value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(invalid(format!("{name} is {}, expected a string", kind_of(&other)))),
        };
        let effort = match take("reasoning_effort") {
            Some(effort) => text("reasoning_effort", effort)?.parse()?,
            None => Effort::default(),
        };
        let add_generation_prompt = match take("add_generation_prompt") {
            None => true,
            Some(Value::Bool(add)) => add,
            Some(other) => {
                return Err(invalid(format!(
                    "add_generation_prompt is {}, expected true or false",
                    kind_of(&other)
                )));
            }
        };
        let builtin_tools = match take("builtin_tools") {
            None => Vec::new(),
            Some(tools) => serde_json::from_value(tools.clone()).map_err(|e| {
                invalid(format!(
                    "builtin_tools is {tools}, expected a list of \"browser\" and \"python\""
                ))
                .with_source(e)
            })?,
        };
        let tools = match take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => {
                tools.iter().enumerate().map(|(i, t)| tool(i, t)).collect::<Result<_>>()?
            }
            Some(other) => {
                return Err(invalid(format!("tools is {}, expected a list", kind_of(&other))));
            }
        };
        let messages = match take("messages") {
            Some(Value::Array(list)) => messages(&list, &builtin_tools, arguments)?,
            Some(other) => {
                return Err(invalid(format!("messages is {}, expected a list", kind_of(&other))));
            }
            None => return Err(invalid("the request has no messages")),
        };
        let identity = take("model_identity").map(|v| text("model_identity", v)).transpose()?;
        let date = take("date").map(|v| text("date", v)).transpose()?;
        Ok(Request {
            messages,
            tools,
            builtin_tools,
            effort,
            identity,
            date,
            add_generation_prompt,
            variables: fields,
        })
    }

    /// The same, borrowed, for [`super::Renderer::render`].
    pub fn as_render(&self) -> RenderRequest<'_> {
        RenderRequest {
            messages: &self.messages,
            tools: &self.tools,
            builtin_tools: &self.builtin_tools,
            effort: self.effort,
            identity: self.identity.as_deref(),
            date: self.date.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            variables: Some(&self.variables),
            ..RenderRequest::default()
        }
    }
}

fn messages(
    list: &[Value],
    builtin: &[BuiltinTool],
    arguments: StringArguments,
) -> Result<Vec<Message>> {
    let mut messages: Vec<Message> = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let reader = Reader { index, value };
        let message = match reader.role()? {
            "system" => Message::system(reader.content()?),
            "developer" => Message::developer(reader.content()?),
            "user" => Message::user(reader.content()?),
            "assistant" => Message::Assistant(reader.assistant(builtin, arguments)?),
            "tool" => Message::Tool(reader.tool(&messages)?),
            other => {
                let expected = "expected system, developer, user, assistant or tool";
                return Err(reader.error(format!("has role {other:?}, {expected}")));
            }
        };
        messages.push(message);
    }
    Ok(messages)
}

/// One message of the request and where it stands.
struct Reader<'a> {
    index: usize,
    value: &'a Value,
}

impl<'a> Reader<'a> {
    #[cold]
    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidMessage, format!("message {} {what}", self.index))
    }

    fn field(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|v| !v.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.field(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(self.error(format!("has {} as {name}, expected a string", kind_of(other))))
            }
        }
    }

    fn role(&self) -> Result<&'a str> {
        self.text("role")?.ok_or_else(|| self.error("has no role"))
    }

    /// The content, its parts joined, nothing for null.
    fn content(&self) -> Result<String> {
        let parts = match self.field("content") {
            Some(Value::Array(parts)) => parts,
            _ => return Ok(self.text("content")?.unwrap_or_default().to_owned()),
        };
        let mut content = String::new();
        for (i, part) in parts.iter().enumerate() {
            match (
                part.get("type").and_then(Value::as_str),
                part.get("text").and_then(Value::as_str),
            ) {
                (Some("text" | "input_text" | "output_text") | None, Some(text)) => content += text,
                (kind, _) => {
                    let kind = kind.unwrap_or("without a type");
                    return Err(self.error(format!(
                        "has content part {i} {kind}, but only text is supported"
                    )));
                }
            }
        }
        Ok(content)
    }

    fn assistant(
        &self,
        builtin: &[BuiltinTool],
        arguments: StringArguments,
    ) -> Result<AssistantMessage> {
        let mut items = Vec::new();
        for name in ["thinking", "reasoning_content", "reasoning"] {
            if let Some(text) = self.text(name)?.filter(|t| !t.is_empty()) {
                items.push(Item::reasoning(text));
                break;
            }
        }
        let content = self.content()?;
        let calls = match self.field("tool_calls") {
            None => &[],
            Some(Value::Array(calls)) => calls.as_slice(),
            Some(other) => {
                return Err(
                    self.error(format!("has {} as tool_calls, expected a list", kind_of(other)))
                );
            }
        };
        if calls.is_empty() || !content.is_empty() {
            items.push(Item::text(content));
        }
        for (i, call) in calls.iter().enumerate() {
            items.push(Item::ToolCall(self.tool_call(i, call, builtin, arguments)?));
        }
        Ok(AssistantMessage { items })
    }

    fn tool_call(
        &self,
        i: usize,
        call: &Value,
        builtin: &[BuiltinTool],
        arguments: StringArguments,
    ) -> Result<ToolCall> {
        let function = call.get("function").filter(|f| f.is_object()).unwrap_or(call);
        let text =
            |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let name = text(function, "name")
            .ok_or_else(|| self.error(format!("has tool call {i} without a name")))?;
        let is_builtin = BuiltinTool::of(&name).is_some_and(|tool| builtin.contains(&tool));
        let arguments = match (function.get("arguments").unwrap_or(&Value::Null), arguments) {
            (Value::Null, _) => "{}".to_owned(),
            (Value::String(text), StringArguments::Parse) => text.clone(),
            (value, _) => python_json::to_string(value),
        };
        Ok(ToolCall {
            id: text(call, "id").unwrap_or_else(|| format!("call_{}_{i}", self.index)),
            name,
            arguments,
            kind: if is_builtin { ToolKind::Builtin } else { ToolKind::Function },
            content_type: text(function, "content_type"),
            incomplete: false,
        })
    }

    /// A result names its tool by the id of the call, by a name, or by following the call.
    fn tool(&self, before: &[Message]) -> Result<ToolOutput> {
        let content = match self.field("content") {
            Some(value @ Value::Object(_)) => python_json::to_string(value),
            _ => self.content()?,
        };
        let call_id = self.text("tool_call_id")?;
        let mut calls = before
            .iter()
            .rev()
            .filter_map(|m| if let Message::Assistant(a) = m { Some(a) } else { None })
            .flat_map(|a| a.tool_calls().collect::<Vec<_>>().into_iter().rev());
        let call = match call_id {
            Some(id) => calls.find(|c| c.id == id),
            None => calls.next(),
        };
        let named = self.text("name")?.map(|n| n.strip_prefix("functions.").unwrap_or(n));
        match (call, named, call_id) {
            (Some(call), _, _) => Ok(ToolOutput {
                name: call.name.clone(),
                kind: call.kind,
                call_id: Some(call.id.clone()),
                content,
            }),
            (None, Some(name), id) => Ok(ToolOutput {
                name: name.into(),
                kind: ToolKind::Function,
                call_id: id.map(str::to_owned),
                content,
            }),
            (None, None, Some(id)) => Err(self.error(format!(
                "is the result of tool call {id:?}, which no message before it makes"
            ))),
            (None, None, None) => {
                Err(self.error("is a tool result, but no message before it calls a tool"))
            }
        }
    }
}

fn tool(index: usize, value: &Value) -> Result<Tool> {
    if let Some(kind) = value.get("type").and_then(Value::as_str).filter(|kind| *kind != "function")
    {
        return Err(invalid(format!("tool {index} is of type {kind:?}, expected \"function\"")));
    }
    let function = value.get("function").unwrap_or(value);
    let name = function.get("name").and_then(Value::as_str);
    let description = match function.get("description") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(other) => {
            return Err(invalid(format!(
                "tool {index} has {} as description, expected a string",
                kind_of(other)
            )));
        }
    };
    Ok(Tool {
        name: name.ok_or_else(|| invalid(format!("tool {index} has no name")))?.into(),
        description: description.into(),
        parameters: function.get("parameters").filter(|p| !p.is_null()).cloned(),
    })
}

#[cold]
fn invalid(message: impl Into<String>) -> Error {
    Error::invalid_request(message)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
