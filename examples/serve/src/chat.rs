//! `POST /v1/chat/completions`.

use crate::answers::Answers;
use crate::request::{self, Body};
use crate::sse::{self, Writer};
use crate::state::now;
use crate::{ApiError, App, fields};
use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use gpt_oss_puzzle::chat::openai::{Chunks, Envelope};
use gpt_oss_puzzle::{ChatEvent, ChatRequest, ChatResponse};
use serde_json::Value;

/// Answers a conversation.
///
/// # Errors
/// 400 for a request that is wrong or asks for what cannot be done, 404 for another model, 429 when too
/// many wait, 503 when nothing can be answered.
pub async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, ApiError> {
    app.engine()?;
    let envelope = Envelope::new(app.id("chatcmpl"), now(), request::model(&app, &body)?);
    let n = request::choices(&app, &body)?;
    let (stream, usage) = request::stream(&body)?;
    let answers = app.blocking(move |engine| {
        let call = request::call(&body, chat_request(&body)?)?;
        engine.chat_choices(call, n).map_err(|error| ApiError::about(&body, error))
    });
    let answers = Answers::new(answers.await?);
    if stream {
        let chunks = envelope.chunks().choices(n);
        let chunks = if usage { chunks.include_usage() } else { chunks };
        return sse::respond(answers, ChunkWriter(chunks), app.options().keep_alive).await;
    }
    let responses = answers.wholes().await?;
    Ok(Json(envelope.completion_of(&responses)).into_response())
}

/// The conversation of a request, of which `n` is the server's.
fn chat_request(body: &Value) -> Result<ChatRequest, ApiError> {
    fields::check(body, fields::CHAT)?;
    let mut fields = body.clone();
    if let Some(fields) = fields.as_object_mut() {
        fields.shift_remove("n");
    }
    ChatRequest::from_openai(&fields).map_err(|error| ApiError::about(body, error))
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
