//! An answer's events as events of the Responses API, and the response object they add up to.

use gpt_oss_puzzle::ChatEvent;
use gpt_oss_puzzle::chat::TokenLogprob;
use gpt_oss_puzzle::generation::{FinishReason, Usage};
use serde_json::{Map, Value, json};

/// One response while it is made. Whole answers go the same way, with nobody listening.
#[derive(Clone, Debug)]
pub(super) struct Events {
    /// The response object, its items those that are done.
    response: Value,
    /// Ends the ids of this response's items.
    id: String,
    sequence_number: u64,
    open: Option<Open>,
    /// Of tokens that have completed no text yet.
    logprobs: Vec<Value>,
}

/// The item that is being said.
#[derive(Clone, Debug)]
struct Open {
    kind: Kind,
    item: Value,
    text: String,
    logprobs: Vec<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    /// Words before a call.
    Commentary,
    Answer,
    /// Which call of the answer.
    Call(usize),
}

impl Events {
    /// A response that begins, with an id such as `resp_5f0c…` and the fields that repeat the request.
    pub fn new(id: &str, created: u64, model: &str, echo: Map<String, Value>) -> Events {
        let mut response = json!({
            "id": id,
            "object": "response",
            "created_at": created,
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "model": model,
            "output": [],
            "usage": null,
        });
        echo.into_iter().for_each(|(name, value)| response[name] = value);
        let id = id.strip_prefix("resp_").unwrap_or(id).to_owned();
        Events { response, id, sequence_number: 0, open: None, logprobs: Vec::new() }
    }

    /// The response as it is by now; whole after [`ChatEvent::Finish`] or [`Events::fail`].
    pub fn response(&self) -> &Value {
        &self.response
    }

    /// What comes before the first token.
    pub fn begin(&mut self) -> Vec<Value> {
        vec![self.lifecycle("response.created"), self.lifecycle("response.in_progress")]
    }

    /// The events that are due after the answer's next one.
    pub fn push(&mut self, event: &ChatEvent) -> Vec<Value> {
        let mut due = Vec::new();
        match event {
            ChatEvent::Reasoning(text) => self.say(Kind::Reasoning, text, &mut due),
            ChatEvent::Preamble(text) => self.say(Kind::Commentary, text, &mut due),
            ChatEvent::Text(text) => self.say(Kind::Answer, text, &mut due),
            ChatEvent::ToolCallStart { index, id, name, .. } => {
                let call = json!({"call_id": id, "name": name});
                self.begin_item(Kind::Call(*index), call, &mut due);
            }
            ChatEvent::ToolCallDelta { index, arguments } => {
                self.more(Kind::Call(*index), arguments, &mut due);
            }
            ChatEvent::ToolCallDone { .. } => self.end_item("completed", &mut due),
            ChatEvent::Logprob(token) => {
                // What comes before the last of these is the message's header.
                match token.bytes.as_slice() {
                    b"<|message|>" => self.logprobs.clear(),
                    _ => self.logprobs.push(logprob(token)),
                }
            }
            ChatEvent::Finish { reason, usage, .. } => self.finish(reason, usage, &mut due),
            _ => {}
        }
        due
    }

    /// The events of an answer that failed.
    pub fn fail(&mut self, message: &str) -> Vec<Value> {
        let mut due = Vec::new();
        self.end_item("incomplete", &mut due);
        self.response["status"] = "failed".into();
        self.response["error"] = json!({"code": "server_error", "message": message});
        due.push(self.lifecycle("response.failed"));
        due
    }

    fn finish(&mut self, reason: &FinishReason, usage: &Usage, due: &mut Vec<Value>) {
        self.response["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        match reason {
            FinishReason::Stop | FinishReason::ToolCalls | FinishReason::StopSequence(_) => {
                self.end_item("completed", due);
                self.response["status"] = "completed".into();
                due.push(self.lifecycle("response.completed"));
            }
            FinishReason::Length => {
                self.end_item("incomplete", due);
                self.response["status"] = "incomplete".into();
                self.response["incomplete_details"] = json!({"reason": "max_output_tokens"});
                due.push(self.lifecycle("response.incomplete"));
            }
            FinishReason::Cancelled => due.extend(self.fail("the answer was cancelled")),
            _ => due.extend(self.fail("the answer was not complete in time")),
        }
    }

    fn say(&mut self, kind: Kind, text: &str, due: &mut Vec<Value>) {
        if text.is_empty() {
            return;
        }
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.begin_item(kind, json!({}), due);
        }
        self.more(kind, text, due);
    }

    /// Ends the item before and begins one.
    fn begin_item(&mut self, kind: Kind, more: Value, due: &mut Vec<Value>) {
        self.end_item("completed", due);
        let index = self.output_index();
        let (prefix, mut item) = match kind {
            Kind::Reasoning => ("rs", json!({"type": "reasoning", "summary": [], "content": []})),
            Kind::Commentary | Kind::Answer => {
                let phase = if kind == Kind::Answer { "final_answer" } else { "commentary" };
                let role = "assistant";
                ("msg", json!({"type": "message", "role": role, "phase": phase, "content": []}))
            }
            Kind::Call(_) => ("fc", json!({"type": "function_call", "arguments": ""})),
        };
        item["id"] = format!("{prefix}_{}_{index}", self.id).into();
        item["status"] = "in_progress".into();
        if let Value::Object(more) = more {
            more.into_iter().for_each(|(name, value)| item[name] = value);
        }
        due.push(self.event(
            "response.output_item.added",
            json!({"output_index": index, "item": item.clone()}),
        ));
        let open = Open { kind, item, text: String::new(), logprobs: Vec::new() };
        if let Some(part) = open.part() {
            due.push(self.of_part("response.content_part.added", &open, json!({"part": part})));
        }
        self.open = Some(open);
    }

    /// The open item goes on, if it is of this kind.
    fn more(&mut self, kind: Kind, text: &str, due: &mut Vec<Value>) {
        let Some(mut open) = self.open.take_if(|open| open.kind == kind) else { return };
        open.text += text;
        let logprobs = std::mem::take(&mut self.logprobs);
        due.push(match kind {
            Kind::Reasoning => {
                self.of_part("response.reasoning_text.delta", &open, json!({"delta": text}))
            }
            Kind::Commentary | Kind::Answer => {
                open.logprobs.extend_from_slice(&logprobs);
                let delta = json!({"delta": text, "logprobs": logprobs});
                self.of_part("response.output_text.delta", &open, delta)
            }
            Kind::Call(_) => {
                let event = "response.function_call_arguments.delta";
                self.of_item(event, &open, json!({"delta": text}))
            }
        });
        self.open = Some(open);
    }

    fn end_item(&mut self, status: &str, due: &mut Vec<Value>) {
        let Some(mut open) = self.open.take() else { return };
        let text = &open.text;
        match open.kind {
            Kind::Reasoning => {
                due.push(self.of_part("response.reasoning_text.done", &open, json!({"text": text})))
            }
            Kind::Commentary | Kind::Answer => due.push(self.of_part(
                "response.output_text.done",
                &open,
                json!({"text": text, "logprobs": open.logprobs}),
            )),
            // Arguments that were cut off are not done: nobody is to run the call.
            Kind::Call(_) if status == "incomplete" => {}
            Kind::Call(_) => due.push(self.of_item(
                "response.function_call_arguments.done",
                &open,
                json!({"name": open.item["name"], "arguments": text}),
            )),
        }
        match open.part() {
            Some(part) => {
                due.push(self.of_part("response.content_part.done", &open, json!({"part": part})));
                open.item["content"] = json!([part]);
            }
            None => open.item["arguments"] = std::mem::take(&mut open.text).into(),
        }
        open.item["status"] = status.into();
        let index = self.output_index();
        due.push(self.event(
            "response.output_item.done",
            json!({"output_index": index, "item": open.item.clone()}),
        ));
        if let Some(output) = self.response["output"].as_array_mut() {
            output.push(open.item);
        }
    }

    /// Where the open item will stand.
    fn output_index(&self) -> usize {
        self.response["output"].as_array().map_or(0, Vec::len)
    }

    /// An event that carries the whole response.
    fn lifecycle(&mut self, kind: &str) -> Value {
        let response = self.response.clone();
        self.event(kind, json!({"response": response}))
    }

    fn of_item(&mut self, kind: &str, open: &Open, fields: Value) -> Value {
        let mut event = self.event(kind, fields);
        event["item_id"] = open.item["id"].clone();
        event["output_index"] = self.output_index().into();
        event
    }

    /// Items have one part each.
    fn of_part(&mut self, kind: &str, open: &Open, fields: Value) -> Value {
        let mut event = self.of_item(kind, open, fields);
        event["content_index"] = 0.into();
        event
    }

    fn event(&mut self, kind: &str, fields: Value) -> Value {
        let mut event = json!({"type": kind, "sequence_number": self.sequence_number});
        self.sequence_number += 1;
        if let Value::Object(fields) = fields {
            fields.into_iter().for_each(|(name, value)| event[name] = value);
        }
        event
    }
}

impl Open {
    /// The item's content so far; calls have none.
    fn part(&self) -> Option<Value> {
        let Open { text, logprobs, .. } = self;
        match self.kind {
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": text})),
            Kind::Commentary | Kind::Answer => Some(json!({
                "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
            })),
            Kind::Call(_) => None,
        }
    }
}

fn logprob(token: &TokenLogprob) -> Value {
    let mut value = token_logprob(&token.bytes, token.logprob);
    let top = token.top.iter().map(|top| token_logprob(&top.bytes, top.logprob));
    value["top_logprobs"] = top.collect();
    value
}

/// `bytes` are exact, `token` is for people: half a character has no text.
fn token_logprob(bytes: &[u8], logprob: f32) -> Value {
    // JSON has no infinity; this is OpenAI's number for very unlikely.
    let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
    json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
}
