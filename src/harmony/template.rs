//! The template renderer: a checkpoint's Jinja chat template, applied as transformers would.
//!
//! Knows nothing of tokens: its result is a [`Prompt`], in which the template's own markers are told
//! from marker text inside the conversation. A template is untrusted: it sees only the
//! request, and runs with bounded fuel. That bounds its time; the memory it builds strings and lists in
//! is not bounded.

use super::builtin::{BROWSER, PYTHON};
use super::jinja;
use super::message::{AssistantMessage, Item, Message, Tool, ToolKind};
use super::native::arguments_value;
use super::python_json;
use super::render::{History, Prompt, RenderRequest};
use crate::{Error, ErrorKind, Result};
use minijinja::value::{Serde, Value as JinjaValue};
use minijinja::{Environment, context};
use serde_json::{Map, Value, json};
use std::path::Path;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Clone)]
pub struct Template {
    environment: Environment<'static>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles a template's source, in the environment transformers gives templates: trimmed
    /// blocks, Python's methods on strings, lists and dictionaries, `tojson`, `strftime_now`,
    /// `raise_exception`.
    ///
    /// # Errors
    /// [`ErrorKind::Template`] with the line when it does not compile.
    pub fn new(source: impl Into<String>) -> Result<Template> {
        let mut environment = jinja::environment()?;
        environment
            .add_template_owned(NAME, source.into())
            .map_err(|e| jinja::error("does not compile", e))?;
        Ok(Template { environment })
    }

    /// The template a checkpoint directory ships: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (a string, or the one named `default`); `None` when it has neither.
    ///
    /// # Errors
    /// As [`Template::new`], [`ErrorKind::Io`] when a file cannot be read, and
    /// [`ErrorKind::Template`] when tokenizer_config.json is not JSON.
    pub fn from_checkpoint(dir: &Path) -> Result<Option<Template>> {
        let read = |name: &str| {
            let path = dir.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io("read", &path, e)),
            }
        };
        if let Some(source) = read("chat_template.jinja")? {
            return Template::new(source).map(Some);
        }
        let Some(config) = read("tokenizer_config.json")? else { return Ok(None) };
        let config: Value = serde_json::from_str(&config)
            .map_err(|e| error(format!("tokenizer_config.json is not JSON: {e}")).with_source(e))?;
        let source = match config.get("chat_template") {
            Some(Value::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").is_some_and(|n| n == "default"));
                default.and_then(|t| t.get("template"))
            }
            other => other,
        };
        source.and_then(Value::as_str).map(Template::new).transpose()
    }

    /// This crate's own template. It renders what the template of the released checkpoints renders,
    /// byte for byte, for conversations [`super::Renderer`] hands to a template.
    ///
    /// # Errors
    /// None in practice; see [`Template::new`].
    pub fn embedded() -> Result<Template> {
        Template::new(include_str!("template.jinja"))
    }

    /// Whether the template of the released checkpoints can render this conversation without losing
    /// or moving anything. It takes instructions from the first message only, one call of a function
    /// per message and nothing after it, either analysis or text beside a call, and names a result's
    /// tool by the last call.
    pub(super) fn can_express(request: &RenderRequest<'_>) -> bool {
        let mut last_call = None;
        request.messages.iter().enumerate().all(|(index, message)| match message {
            Message::System { .. } | Message::Developer { .. } => index == 0,
            Message::User { .. } => true,
            Message::Tool(output) => {
                output.kind == ToolKind::Function && last_call == Some(output.name.as_str())
            }
            Message::Assistant(message) => {
                let keep = History::Template.keeps(request, index);
                let (reasoning, rest) = split_reasoning(message);
                let call = match rest {
                    [Item::Text { .. }] => None,
                    [Item::ToolCall(call)] => Some(call),
                    [Item::Text { text }, Item::ToolCall(call)]
                        if text.is_empty() || reasoning.is_empty() || !keep =>
                    {
                        Some(call)
                    }
                    _ => return false,
                };
                last_call = call.map(|c| c.name.as_str());
                (reasoning.len() <= 1 || !keep) && call.is_none_or(|c| c.kind == ToolKind::Function)
            }
        })
    }

    /// Applies the template. The date must be set.
    pub(super) fn render(&self, request: &RenderRequest<'_>) -> Result<Prompt> {
        let mut context = self::context(request);
        let guard = Guard::for_text(&Value::Object(context.clone()).to_string())?;
        context = context.into_iter().map(|(key, value)| (key, guard.hide_in(value))).collect();
        guard.show_constrain(&mut context);
        let date = guard.hide(request.date.unwrap_or_default());
        let strftime_now =
            JinjaValue::from_function(move |format: &str| jinja::strftime(&date, format));
        for (key, value) in [
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|return|>"),
            ("pad_token", "<|endoftext|>"),
            ("browser_tool", BROWSER),
            ("python_tool", PYTHON),
        ] {
            context.insert(key.into(), value.into());
        }
        let template =
            self.environment.get_template(NAME).map_err(|e| jinja::error("is lost", e))?;
        let marked = template
            .render(context! { strftime_now, ..JinjaValue::from(Serde(&context)) })
            .map_err(|e| jinja::error("refuses the conversation", e))?;
        Ok(guard.split(&marked))
    }
}

/// The reasoning a message begins with, and the other items.
fn split_reasoning(message: &AssistantMessage) -> (&[Item], &[Item]) {
    let is_reasoning = |i: &Item| matches!(i, Item::Reasoning { .. });
    let end = message.items.iter().position(|i| !is_reasoning(i)).unwrap_or(message.items.len());
    message.items.split_at(end)
}

/// The variables transformers would set. What is absent stays undefined: templates ask
/// `is defined`, and fail on null.
fn context(request: &RenderRequest<'_>) -> Map<String, Value> {
    let mut context = request.variables.cloned().unwrap_or_default();
    let messages: Vec<Value> = request.messages.iter().map(message).collect();
    context.insert("messages".into(), messages.into());
    context.insert("add_generation_prompt".into(), request.add_generation_prompt.into());
    context.insert("reasoning_effort".into(), request.effort.as_str().into());
    if let Some(identity) = request.identity {
        context.insert("model_identity".into(), identity.into());
    }
    if !request.tools.is_empty() {
        context.insert("tools".into(), request.tools.iter().map(tool).collect::<Vec<_>>().into());
    }
    if !request.builtin_tools.is_empty() {
        context.insert("builtin_tools".into(), json!(request.builtin_tools));
    }
    context
}

fn message(message: &Message) -> Value {
    match message {
        Message::System { content } => json!({"role": "system", "content": content}),
        Message::Developer { content } => json!({"role": "developer", "content": content}),
        Message::User { content } => json!({"role": "user", "content": content}),
        Message::Tool(output) => {
            let mut value = json!({"role": "tool", "name": output.name, "content": output.content});
            if let Some(id) = &output.call_id {
                value["tool_call_id"] = id.as_str().into();
            }
            value
        }
        Message::Assistant(message) => {
            let (reasoning, rest) = split_reasoning(message);
            let text = rest
                .iter()
                .find_map(|i| if let Item::Text { text } = i { Some(text.as_str()) } else { None });
            let mut value = json!({"role": "assistant", "content": text.unwrap_or_default()});
            let call = message.tool_calls().next();
            // Beside a call the template refuses analysis and text together, even to drop them both.
            let refused = call.is_some() && text.is_some_and(|t| !t.is_empty());
            if let (Some(Item::Reasoning { text }), false) = (reasoning.first(), refused) {
                value["thinking"] = text.as_str().into();
            }
            if let Some(call) = call {
                let mut function =
                    json!({"name": call.name, "arguments": arguments_value(&call.arguments)});
                if let Some(content_type) = &call.content_type {
                    function["content_type"] = content_type.as_str().into();
                }
                value["tool_calls"] =
                    json!([{"type": "function", "id": call.id, "function": function}]);
            }
            value
        }
    }
}

/// A function in OpenAI's shape. The template concatenates the default of an enum or union, which
/// therefore has to be a string.
fn tool(tool: &Tool) -> Value {
    let mut function = json!({"name": tool.name, "description": tool.description});
    if let Some(parameters) = &tool.parameters {
        let mut parameters = parameters.clone();
        let properties = parameters.get_mut("properties").and_then(Value::as_object_mut);
        for property in properties.into_iter().flat_map(Map::values_mut) {
            let is_filled =
                |key| property.get(key).and_then(Value::as_array).is_some_and(|l| !l.is_empty());
            let choice = is_filled("enum") || is_filled("oneOf");
            if let Some(default) = property.get_mut("default").filter(|d| choice && !d.is_string())
            {
                *default = python_json::to_string(default).into();
            }
        }
        function["parameters"] = parameters;
    }
    json!({"type": "function", "function": function})
}

/// Keeps control tokens in the conversation's text inert: each `<` that could begin one is hidden
/// behind a private-use character that the conversation does not contain, so that every marker in
/// the template's output is the template's own. One character for one: templates measure lengths.
struct Guard(char);

impl Guard {
    fn for_text(text: &str) -> Result<Guard> {
        let mut free = ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}');
        // Only private-use characters are collected, so an ordinary conversation costs one pass.
        let used: std::collections::HashSet<char> =
            text.chars().filter(|c| *c >= '\u{e000}').collect();
        free.find(|c| !used.contains(c))
            .map(Guard)
            .ok_or_else(|| error("the conversation uses every private-use character"))
    }

    fn hide(&self, text: &str) -> String {
        let hidden = text.replace("<|", &format!("{}|", self.0));
        match hidden.strip_suffix('<') {
            Some(head) => format!("{head}{}", self.0),
            None => hidden,
        }
    }

    fn hide_in(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.hide(&text)),
            Value::Array(list) => list.into_iter().map(|v| self.hide_in(v)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(key, v)| (self.hide(&key), self.hide_in(v))).collect()
            }
            other => other,
        }
    }

    /// The content type of a call is the one place where a control token is meant.
    fn show_constrain(&self, context: &mut Map<String, Value>) {
        let (shown, hidden) = ("<|constrain|>", self.hide("<|constrain|>"));
        let messages = context.get_mut("messages").and_then(Value::as_array_mut);
        for message in messages.into_iter().flatten() {
            if let Some(Value::String(text)) =
                message.pointer_mut("/tool_calls/0/function/content_type")
                && text.starts_with(&hidden)
            {
                text.replace_range(..hidden.len(), shown);
            }
        }
    }

    fn show(&self, text: &str) -> String {
        text.replace(self.0, "<")
    }

    /// Tells the template's markers from its text.
    fn split(&self, marked: &str) -> Prompt {
        let mut prompt = Prompt::default();
        let mut rest = marked;
        while let Some((text, name, after)) = next_marker(rest) {
            if !text.is_empty() {
                prompt.text(&self.show(text));
            }
            prompt.control(name);
            rest = after;
        }
        if !rest.is_empty() {
            prompt.text(&self.show(rest));
        }
        prompt
    }
}

/// The text before the first `<|name|>`, that marker, and what follows it.
fn next_marker(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let open = from + text[from..].find("<|")?;
        let close =
            open + 2 + text[open + 2..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        if close > open + 2 && text[close..].starts_with("|>") {
            return Some((&text[..open], &text[open..close + 2], &text[close + 2..]));
        }
        from = open + 2;
    }
}

#[cold]
fn error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Template, message)
}
