//! What `input` holds, as messages of a conversation.

use super::invalid;
use crate::ApiError;
use crate::fields::short;
use gpt_oss_puzzle::harmony::{AssistantMessage, Item, Message, ToolCall, ToolOutput};
use serde_json::Value;

/// Adds what `input` says to the conversation so far.
///
/// Items that the model said one after another are one message: the chain of thought that led to a
/// call stays beside it, where the model needs it once the result is there.
///
/// `kept` are items that can be named by their ids.
///
/// # Errors
/// For an item or a part of one that is no text and no function call, by its name and place.
pub(super) fn read(
    input: &Value,
    conversation: &mut Vec<Message>,
    kept: &dyn Fn(&str) -> Option<Value>,
) -> Result<(), ApiError> {
    match input {
        Value::String(text) => conversation.push(Message::user(text)),
        Value::Array(items) => {
            let mut goes_on = false;
            for (index, value) in items.iter().enumerate() {
                let reader = Reader { index, value };
                goes_on = match reader.reference()? {
                    None => reader.read(conversation, goes_on)?,
                    Some(id) => {
                        let value = &kept(id).ok_or_else(|| {
                            reader.error(format!(
                                "refers to {id:?}, which no response that is kept has: send the item"
                            ))
                        })?;
                        Reader { index, value }.read(conversation, goes_on)?
                    }
                };
            }
        }
        _ => return Err(invalid("input", "is no text and no list of items")),
    }
    Ok(())
}

/// One item of the input and where it stands.
struct Reader<'a> {
    index: usize,
    value: &'a Value,
}

impl<'a> Reader<'a> {
    /// Whether what the model says next belongs to the same message is the answer.
    fn read(&self, conversation: &mut Vec<Message>, goes_on: bool) -> Result<bool, ApiError> {
        let kind = match self.value["type"].as_str() {
            Some(kind) => kind,
            // The short form of a message leaves it out.
            None if self.value.get("role").is_some() => "message",
            None => return Err(self.error("has no type")),
        };
        let said = match kind {
            "message" => match self.text("role")? {
                "assistant" => {
                    let text = self.content("content")?;
                    match self.value["phase"].as_str() {
                        Some("commentary") => Item::preamble(text),
                        _ => Item::text(text),
                    }
                }
                role => {
                    let content = self.content("content")?;
                    conversation.push(match role {
                        "user" => Message::user(content),
                        "system" => Message::system(content),
                        "developer" => Message::developer(content),
                        other => {
                            let expected = "expected user, assistant, system or developer";
                            return Err(self.error(format!("has role {other:?}, {expected}")));
                        }
                    });
                    return Ok(false);
                }
            },
            "reasoning" => match self.reasoning()? {
                Some(text) => Item::reasoning(text),
                None => return Ok(goes_on),
            },
            "function_call" => {
                let [id, name, arguments] = ["call_id", "name", "arguments"];
                let (id, name) = (self.text(id)?, self.text(name)?);
                Item::ToolCall(ToolCall::function(id, name, self.text(arguments)?))
            }
            "function_call_output" => {
                let output = self.output(conversation)?;
                conversation.push(Message::Tool(output));
                return Ok(false);
            }
            other => {
                return Err(self.error(format!(
                    "is of type {other:?}, expected message, reasoning, function_call or \
                     function_call_output"
                )));
            }
        };
        // An answer ends the turn, unless nothing tells it from words before a call.
        let ends = matches!(self.value["phase"].as_str(), Some("final_answer"));
        match conversation.last_mut() {
            Some(Message::Assistant(message)) if goes_on => message.items.push(said),
            _ => conversation.push(AssistantMessage { items: vec![said] }.into()),
        }
        Ok(!ends)
    }

    /// The id of the item that this one stands for, if it is no item itself.
    fn reference(&self) -> Result<Option<&'a str>, ApiError> {
        let has = |name: &str| self.value.get(name).is_some();
        match self.value["type"].as_str() {
            Some("item_reference") => self.text("id").map(Some),
            None if has("id") && !has("role") => self.text("id").map(Some),
            _ => Ok(None),
        }
    }

    #[cold]
    fn error(&self, what: impl std::fmt::Display) -> ApiError {
        invalid(&format!("input[{}]", self.index), what)
    }

    fn text(&self, name: &str) -> Result<&'a str, ApiError> {
        match &self.value[name] {
            Value::String(text) => Ok(text),
            Value::Null => Err(self.error(format!("has no {name}"))),
            other => Err(self.error(format!("has {} as {name}, expected a string", short(other)))),
        }
    }

    /// A text, or parts joined.
    fn content(&self, name: &str) -> Result<String, ApiError> {
        let Value::Array(parts) = &self.value[name] else {
            return Ok(self.text(name)?.to_owned());
        };
        let mut content = String::new();
        for (i, part) in parts.iter().enumerate() {
            let kind = part["type"].as_str().unwrap_or("without a type");
            let text = match kind {
                "input_text" | "output_text" | "text" => part["text"].as_str(),
                "refusal" => part["refusal"].as_str(),
                _ => None,
            };
            content += text.ok_or_else(|| {
                self.error(format!("has {name} part {i} {kind}, but only text is supported"))
            })?;
        }
        Ok(content)
    }

    /// The chain of thought; `None` for an item without any.
    fn reasoning(&self) -> Result<Option<String>, ApiError> {
        let texts: Vec<&str> = (self.value["content"].as_array().into_iter().flatten())
            .filter_map(|part| part["text"].as_str())
            .collect();
        match (texts.as_slice(), &self.value["encrypted_content"]) {
            ([], Value::Null) => Ok(None),
            ([], _) => Err(self.error(
                "has encrypted_content alone, which only the server that made it can read: leave \
                 the item out",
            )),
            (texts, _) => Ok(Some(texts.join("\n"))),
        }
    }

    fn output(&self, before: &[Message]) -> Result<ToolOutput, ApiError> {
        let id = self.text("call_id")?;
        let mut calls = before.iter().rev().filter_map(|message| match message {
            Message::Assistant(message) => message.tool_calls().find(|call| call.id == id),
            _ => None,
        });
        let call = calls.next().ok_or_else(|| {
            self.error(format!("is the output of call {id:?}, which no item before it makes"))
        })?;
        match Message::tool(call, self.content("output")?) {
            Message::Tool(output) => Ok(output),
            _ => unreachable!("a tool's result is one"),
        }
    }
}
