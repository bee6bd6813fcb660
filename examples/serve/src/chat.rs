//! `POST /v1/chat/completions`.

use crate::answers::Answers;
use crate::request::{self, Body, field, read};
use crate::sse::{self, Writer};
use crate::state::now;
use crate::{ApiError, App, Json, fields};
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use gpt_oss_puzzle::chat::Format;
use gpt_oss_puzzle::chat::openai::{Chunks, Envelope};
use gpt_oss_puzzle::{ChatEvent, ChatRequest, ChatResponse};
use serde_json::{Map, Value};

/// Answers a conversation.
///
/// # Errors
/// 400 for a request that is wrong or asks for what cannot be done, 404 for another model, 429 when too
/// many wait, 503 when nothing can be answered.
pub async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, ApiError> {
    app.engine()?;
    let envelope = Envelope::new(app.id("chatcmpl"), now(), request::model(&app, &body)?);
    let n = request::choices(&app, &body)?;
    let stream = request::stream(&body)?;
    let answers = app.blocking(move |engine| {
        let call = request::call(&body, chat_request(&body)?)?;
        engine.chat_choices(call, n).map_err(|error| ApiError::about(&body, error))
    });
    let answers = Answers::new(answers.await?);
    let Some(stream) = stream else {
        let responses = answers.wholes().await?;
        return Ok(Json(envelope.completion_of(&responses)).into_response());
    };
    let chunks = envelope.chunks().choices(n);
    let chunks = if stream.include_usage { chunks.include_usage() } else { chunks };
    sse::respond(answers, ChunkWriter(chunks), app.options().keep_alive).await
}

/// The conversation of a request, of which `n` is the server's.
fn chat_request(body: &Value) -> Result<ChatRequest, ApiError> {
    fields::check(body, &[fields::CHAT, fields::ANYWHERE])?;
    let mut fields = body.as_object().cloned().unwrap_or_default();
    fields.shift_remove("n");
    template_fields(&mut fields)?;
    request::any_top_k(&mut fields);
    let mut chat = ChatRequest::from_openai(&Value::Object(fields))
        .map_err(|error| ApiError::about(body, error))?;
    if let Some(format) = structured_outputs(body)? {
        if chat.format.is_some() {
            let message = "structured_outputs and response_format are both there, expected one";
            return Err(ApiError::invalid("structured_outputs", message));
        }
        chat.format = Some(format);
    }
    // Both as with vLLM.
    let budget = read(body, "thinking_token_budget", "a number of tokens")?;
    chat.reasoning.max_tokens = budget.or(chat.reasoning.max_tokens);
    chat.reasoning.hidden = !read(body, "include_reasoning", "true or false")?.unwrap_or(true);
    Ok(chat)
}

/// `chat_template_kwargs`, as vLLM and llama.cpp have them: what of the template is a field here too.
fn template_fields(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let arguments = match fields.shift_remove(NAME) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(arguments)) => arguments,
        Some(other) => {
            let message = format!("{NAME} is {}, expected an object", fields::short(&other));
            return Err(ApiError::invalid(NAME, message));
        }
    };
    for (name, value) in arguments {
        if !["reasoning_effort", "model_identity", "builtin_tools"].contains(&name.as_str()) {
            let message = format!(
                "{NAME}.{name} is {}, which is not supported: the template has reasoning_effort, \
                 model_identity and builtin_tools",
                fields::short(&value)
            );
            return Err(ApiError::invalid(NAME, message).code("unsupported_parameter"));
        }
        fields.entry(name).or_insert(value);
    }
    Ok(())
}

/// `structured_outputs`, as vLLM has it: what `response_format` has no place for.
fn structured_outputs(body: &Value) -> Result<Option<Format>, ApiError> {
    const NAME: &str = "structured_outputs";
    let Some(wanted) = field(body, NAME) else { return Ok(None) };
    let text = |name: &str| wanted.get(name).and_then(Value::as_str);
    let choices = wanted.get("choice").and_then(Value::as_array);
    let choices = choices.filter(|choices| choices.iter().all(Value::is_string));
    let format = match wanted.as_object().map_or(0, Map::len) {
        1 => match (wanted.get("json"), text("regex"), text("grammar"), choices) {
            // A JSON text is a literal of Lark's, too.
            (.., Some(choices)) if !choices.is_empty() => {
                let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
                Some(Format::lark(format!("start: {}", choices.join(" | "))))
            }
            (Some(schema @ Value::Object(_)), ..) => Some(Format::json_schema(schema.clone())),
            (_, Some(regex), ..) => Some(Format::regex(regex)),
            (_, _, Some(grammar), _) => Some(Format::lark(grammar)),
            _ => None,
        },
        _ => None,
    };
    format.map(Some).ok_or_else(|| {
        let expected =
            "one of json (a schema), regex, choice (a list of texts) and grammar (in Lark)";
        ApiError::invalid(NAME, format!("{NAME} is {}, expected {expected}", fields::short(wanted)))
    })
}

struct ChunkWriter(Chunks);

impl Writer<ChatEvent> for ChunkWriter {
    fn event(&mut self, index: usize, event: ChatEvent) -> Vec<Event> {
        self.0.push_to(index, &event).iter().map(sse::data).collect()
    }

    fn whole(&mut self, _index: usize, _whole: ChatResponse) -> Vec<Event> {
        Vec::new()
    }

    fn end(&mut self, error: Option<ApiError>) -> Vec<Event> {
        sse::done(error)
    }
}
