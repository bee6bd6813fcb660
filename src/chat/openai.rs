//! Answers in the shapes of OpenAI's chat API, and requests from them: plain JSON, for a server to
//! send or a program to store. Nothing here knows of HTTP; clocks and ids are the caller's.
//!
//! What the API has no place for: several texts of one kind are joined, words before a tool call are
//! part of the `content`, chain of thought is `reasoning_content` as with other open models, and
//! repairs are left out.

mod request;

use super::{ChatEvent, ChatResponse, TokenLogprob};
use crate::generation::{FinishReason, Usage};
use crate::harmony::{AssistantMessage, Item, Message};
use serde_json::{Map, Value, json};

/// What every object of a response carries.
///
/// ```no_run
/// use gpt_oss_puzzle::chat::openai::Envelope;
/// use gpt_oss_puzzle::{ChatRequest, Model};
///
/// let request = serde_json::json!({"messages": [{"role": "user", "content": "Hello"}]});
/// let request = ChatRequest::from_openai(&request)?;
/// let model = Model::load("gpt-oss-20b")?;
/// let mut chunks = Envelope::new("chatcmpl-1", 1767312000, "gpt-oss-20b").chunks();
/// for event in model.chat_stream(&request)? {
///     for chunk in chunks.push(&event?) {
///         print!("data: {chunk}\n\n");
///     }
/// }
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// Identifies the completion.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What the model is called.
    pub model: String,
}

impl Envelope {
    /// An envelope.
    pub fn new(id: impl Into<String>, created: u64, model: impl Into<String>) -> Envelope {
        Envelope { id: id.into(), created, model: model.into() }
    }

    /// A whole answer: a `chat.completion` object.
    ///
    /// Its `finish_reason` is `stop`, `tool_calls`, or `length`, also for an answer that was cancelled or
    /// whose deadline passed: clients take `stop` for a whole answer. A tool call that was cut off is among
    /// the `tool_calls`, as with OpenAI: beside `length` the last one's arguments need not be whole.
    /// `logprobs` are those of every generated token, control tokens and chain of thought included.
    pub fn completion(&self, response: &ChatResponse) -> Value {
        self.completion_of(std::slice::from_ref(response))
    }

    /// Several answers to one request, its choices. The prompt's tokens are counted once.
    pub fn completion_of(&self, responses: &[ChatResponse]) -> Value {
        let choice = |(index, response): (usize, &ChatResponse)| {
            let mut message = assistant(&response.message);
            message.insert("refusal".into(), Value::Null);
            json!({
                "index": index,
                "message": message,
                "logprobs": logprobs(response.logprobs.iter().map(logprob).collect()),
                "finish_reason": finish_reason(&response.finish_reason),
            })
        };
        let choices = responses.iter().enumerate().map(choice).collect();
        let usage = usage_of(responses.iter().map(|response| &response.usage));
        self.object("chat.completion", choices, [("usage", usage)])
    }

    /// The same as a stream of `chat.completion.chunk` objects.
    pub fn chunks(&self) -> Chunks {
        Chunks { envelope: self.clone(), include_usage: false, choices: vec![Choice::default()] }
    }

    fn object<const N: usize>(
        &self,
        object: &str,
        choices: Vec<Value>,
        more: [(&str, Value); N],
    ) -> Value {
        let Envelope { id, created, model } = self;
        let mut value = json!({
            "id": id, "object": object, "created": created, "model": model, "choices": choices,
        });
        more.into_iter().for_each(|(name, field)| value[name] = field);
        value
    }
}

/// Turns the events of an answer into chunks. What a client accumulates from them is what
/// [`Envelope::completion`] gives for the whole answer.
#[derive(Clone, Debug)]
pub struct Chunks {
    envelope: Envelope,
    include_usage: bool,
    choices: Vec<Choice>,
}

/// What has become of one of the answers.
#[derive(Clone, Debug, Default)]
struct Choice {
    started: bool,
    joiner: Joiner,
    /// Of tokens that have completed no text yet.
    logprobs: Vec<Value>,
    /// Once it has ended.
    usage: Option<Usage>,
}

impl Chunks {
    /// Ends in a chunk with the token counts, as `stream_options.include_usage` asks.
    pub fn include_usage(self) -> Self {
        Self { include_usage: true, ..self }
    }

    /// Chunks of `n` answers to one request, for [`Chunks::push_to`]; what a client accumulates is then
    /// what [`Envelope::completion_of`] gives. Token counts come after all have ended.
    pub fn choices(self, n: usize) -> Self {
        Self { choices: vec![Choice::default(); n], ..self }
    }

    /// The chunks that are due after the answer's next event, most often one.
    pub fn push(&mut self, event: &ChatEvent) -> Vec<Value> {
        self.push_to(0, event)
    }

    /// The chunks that are due after the next event of answer `index`; none when there is no such answer.
    pub fn push_to(&mut self, index: usize, event: &ChatEvent) -> Vec<Value> {
        let Some(choice) = self.choices.get_mut(index) else { return Vec::new() };
        let mut chunks = Vec::new();
        let mut chunk = |delta: Value, logprobs: Value, finish_reason: Value| {
            let choice = json!({
                "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
            });
            let mut chunk = self.envelope.object("chat.completion.chunk", vec![choice], []);
            if self.include_usage {
                chunk["usage"] = Value::Null;
            }
            chunks.push(chunk);
        };
        // The first chunk has a role alone: it comes before the first token.
        if !std::mem::replace(&mut choice.started, true) {
            let first = json!({"role": "assistant", "content": null, "refusal": null});
            chunk(first, Value::Null, Value::Null);
        }
        match event {
            ChatEvent::Logprob(token) => choice.logprobs.push(logprob(token)),
            ChatEvent::Finish { reason, usage, .. } => {
                chunk(json!({}), choice.take_logprobs(), finish_reason(reason).into());
                choice.usage = Some(*usage);
                let ended: Option<Vec<&Usage>> =
                    self.choices.iter().map(|choice| choice.usage.as_ref()).collect();
                if let Some(counts) = ended.filter(|_| self.include_usage) {
                    let fields = [("usage", usage_of(counts))];
                    chunks.push(self.envelope.object("chat.completion.chunk", vec![], fields));
                }
            }
            event => {
                if let Some(delta) = choice.delta(event) {
                    chunk(delta, choice.take_logprobs(), Value::Null);
                }
            }
        }
        chunks
    }
}

impl Choice {
    /// What an event adds to the message.
    fn delta(&mut self, event: &ChatEvent) -> Option<Value> {
        Some(match event {
            ChatEvent::Reasoning(text) => {
                json!({"reasoning_content": self.joiner.join(Part::Reasoning, text)})
            }
            ChatEvent::Preamble(text) => json!({"content": self.joiner.join(Part::Preamble, text)}),
            ChatEvent::Text(text) => json!({"content": self.joiner.join(Part::Text, text)}),
            ChatEvent::ToolCallStart { index, id, name, .. } => {
                self.joiner.last = Some(Part::ToolCall);
                let mut call = tool_call(id, name, "");
                call["index"] = json!(index);
                json!({"tool_calls": [call]})
            }
            ChatEvent::ToolCallDelta { index, arguments } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            }
            _ => return None,
        })
    }

    fn take_logprobs(&mut self) -> Value {
        logprobs(std::mem::take(&mut self.logprobs))
    }
}

/// A message as an element of `messages`, to be read back with
/// [`crate::harmony::openai::Request::from_json`].
///
/// What reads back the same: everything but a preamble, which comes back as text, several items of one
/// kind, which come back as one, and the content type and completeness of a call. A call of a builtin
/// tool is told from a function's by the request's `builtin_tools`.
pub fn message(message: &Message) -> Value {
    match message {
        Message::System { content } => json!({"role": "system", "content": content}),
        Message::Developer { content } => json!({"role": "developer", "content": content}),
        Message::User { content } => json!({"role": "user", "content": content}),
        Message::Assistant(message) => Value::Object(assistant(message)),
        Message::Tool(output) => {
            let (key, value) = match &output.call_id {
                Some(id) => ("tool_call_id", id),
                None => ("name", &output.name),
            };
            json!({"role": "tool", key: value, "content": output.content})
        }
    }
}

fn assistant(message: &AssistantMessage) -> Map<String, Value> {
    let mut joiner = Joiner::default();
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for item in &message.items {
        match item {
            Item::Reasoning { text } => reasoning += &joiner.join(Part::Reasoning, text),
            Item::Preamble { text } => content += &joiner.join(Part::Preamble, text),
            Item::Text { text } => content += &joiner.join(Part::Text, text),
            Item::ToolCall(call) => {
                joiner.last = Some(Part::ToolCall);
                calls.push(tool_call(&call.id, &call.name, &call.arguments));
            }
        }
    }
    let content = if content.is_empty() { Value::Null } else { content.into() };
    let mut value = Map::new();
    value.insert("role".into(), "assistant".into());
    value.insert("content".into(), content);
    if !reasoning.is_empty() {
        value.insert("reasoning_content".into(), reasoning.into());
    }
    if !calls.is_empty() {
        value.insert("tool_calls".into(), calls.into());
    }
    value
}

/// Joins texts of several messages that end up in one field: where another kind of text came between
/// them, a line break keeps them apart.
#[derive(Clone, Debug, Default)]
struct Joiner {
    last: Option<Part>,
    content: bool,
    reasoning: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Reasoning,
    Preamble,
    Text,
    ToolCall,
}

impl Joiner {
    /// `text` as it goes on with its field.
    fn join(&mut self, part: Part, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        let (has_text, line_break) = match part {
            Part::Reasoning => (&mut self.reasoning, "\n"),
            _ => (&mut self.content, "\n\n"),
        };
        let has_text = std::mem::replace(has_text, true);
        let goes_on = self.last.replace(part) == Some(part);
        let line_break = if has_text && !goes_on { line_break } else { "" };
        format!("{line_break}{text}")
    }
}

fn tool_call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Length | FinishReason::Cancelled | FinishReason::Deadline => "length",
        FinishReason::Stop | FinishReason::StopSequence(_) => "stop",
    }
}

/// Of answers to one prompt, which is counted once; what of it was cached when none had read it yet.
fn usage_of<'a>(answers: impl IntoIterator<Item = &'a Usage>) -> Value {
    let sum = |sum: Usage, usage: &Usage| {
        let mut sum = sum;
        sum.cached_tokens = sum.cached_tokens.min(usage.cached_tokens);
        sum.completion_tokens += usage.completion_tokens;
        sum.reasoning_tokens += usage.reasoning_tokens;
        sum
    };
    let mut answers = answers.into_iter();
    let first = answers.next().copied().unwrap_or_default();
    let usage = answers.fold(first, sum);
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

fn logprobs(content: Vec<Value>) -> Value {
    match content.as_slice() {
        [] => Value::Null,
        _ => json!({"content": content, "refusal": null}),
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
    let bytes_or_null = if bytes.is_empty() { Value::Null } else { json!(bytes) };
    json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes_or_null})
}
