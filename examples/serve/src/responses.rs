//! `/v1/responses`: the API that the openai client's newest helpers and its agents call.
//!
//! A request becomes a [`gpt_oss_puzzle::ChatRequest`]: what the model said is taken up again with the
//! chain of thought that led to its calls, whether the client sends the items back or names the response
//! it goes on from. An answer becomes items: `reasoning` with the chain of thought as `reasoning_text`,
//! `message` with `output_text`, and `function_call`.
//!
//! | Asked for | What happens |
//! |---|---|
//! | tools `web_search`, `web_search_preview`, `file_search`, `code_interpreter`, `computer`, `computer_use_preview`, `mcp`, `image_generation`, `shell`, `local_shell`, `apply_patch`, `tool_search`, `namespace`, `custom` | refused by name, and so are their items: only functions, which the client runs |
//! | `background`, `conversation`, `prompt`, `context_management`, `moderation`, `image` | refused by name |
//! | `truncation` other than `disabled`, `text.verbosity` other than `medium`, `reasoning.mode` other than `standard`, `reasoning.context` `all_turns`, `reasoning.effort` other than `low`, `medium`, `high` | refused by name |
//! | parts `input_image`, `input_file`, `input_audio`; a reasoning item that has `encrypted_content` alone | refused by name |
//! | fields of Chat Completions such as `messages` or `max_tokens` | refused, with the name that they have here |
//! | `previous_response_id`, `item_reference`, `store` | the newest responses are kept in memory; an unknown response is 404, an unknown item 400 |
//! | `include` | `message.output_text.logprobs` is given; the others ask for what is there in the clear or never occurs |
//! | `reasoning.summary` | none is written: the chain of thought itself is there |
//! | `parallel_tool_calls`, `max_tool_calls`, a tool's `strict`, `service_tier`, `user`, `safety_identifier`, `prompt_cache_key`, `stream_options` and unknown fields | ignored |

mod events;
mod input;
mod request;
mod store;
#[cfg(test)]
mod tests;

pub use store::Store;

use crate::answers::{Answers, Happened};
use crate::request::{self as body, Body};
use crate::sse::{self, Writer};
use crate::state::now;
use crate::{ApiError, App, Json};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use events::Events;
use gpt_oss_puzzle::harmony::{Item, Message};
use gpt_oss_puzzle::{ChatEvent, ChatResponse};
use request::Request;
use serde_json::{Value, json};
use store::Stored;

/// `POST /v1/responses`: answers a conversation.
///
/// # Errors
/// 400 for a request that is wrong or asks for what cannot be done, 404 for another model and for an
/// unknown `previous_response_id`, 429 when too many wait, 503 when nothing can be answered.
pub async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, ApiError> {
    app.engine()?;
    let model = body::model(&app, &body)?;
    let streamed = body::stream(&body)?.is_some();
    let before = match body::read::<String>(&body, "previous_response_id", "a response's id")? {
        None => None,
        Some(id) => Some(app.responses().get(&id).ok_or_else(|| ApiError {
            param: Some("previous_response_id".into()),
            ..unknown(&id).code("previous_response_not_found")
        })?),
    };
    let id = app.id("resp").replacen('-', "_", 1);
    let (created, keeper) = (now(), app.clone());
    let made = app.blocking(move |engine| {
        let before = before.as_deref().map_or(&[][..], |stored| &stored.conversation);
        let Request { chat, instructions, store, echo } =
            Request::read(&body, before, &|id| keeper.responses().item(id))?;
        let conversation = store.then(|| (keeper, chat.messages[instructions..].to_vec()));
        let call = body::call(&body, chat)?;
        let answer = engine.chat(call).map_err(|error| ApiError::about(&body, error))?;
        Ok((answer, ResponseWriter::new(Events::new(&id, created, &model, echo), conversation)))
    });
    let (answer, mut writer) = made.await?;
    let mut answers = Answers::new(vec![answer]);
    if streamed {
        return sse::respond(answers, writer, app.options().keep_alive).await;
    }
    while let Some(happened) = answers.next().await {
        match happened? {
            (_, Happened::Event(event)) => drop(writer.push(event)),
            (_, Happened::Whole(whole)) => drop(writer.finish(whole)),
        }
    }
    Ok(Json(writer.events.response()).into_response())
}

/// `GET /v1/responses/{id}`: a response that is kept.
///
/// # Errors
/// 404 for an unknown id, 400 for one that is to be streamed again.
pub async fn retrieve(
    State(app): State<App>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    if query.is_some_and(|query| query.split('&').any(|field| field == "stream=true")) {
        return Err(invalid("stream", "is true, but a response is streamed while it is made only"));
    }
    let stored = app.responses().get(&id).ok_or_else(|| unknown(&id))?;
    Ok(Json(&stored.response).into_response())
}

/// `DELETE /v1/responses/{id}`: forgets a response.
///
/// # Errors
/// 404 for an unknown id.
pub async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match app.responses().delete(&id) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(unknown(&id)),
    }
}

fn unknown(id: &str) -> ApiError {
    let message = format!(
        "there is no response {id:?}: the newest ones are kept, unless `store` is false, until the \
         server ends"
    );
    ApiError::new(StatusCode::NOT_FOUND, message)
}

/// A request that is wrong in `param`, by `what`.
fn invalid(param: &str, what: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(param, format!("{param} {what}"))
}

/// Writes one response, and keeps it once it is whole.
struct ResponseWriter {
    events: Events,
    begun: bool,
    /// The last event, until the response is kept: a client that has seen the end may go on from it.
    last: Option<ChatEvent>,
    /// Where to keep it, and the conversation before it.
    keep: Option<(App, Vec<Message>)>,
}

impl ResponseWriter {
    fn new(events: Events, keep: Option<(App, Vec<Message>)>) -> ResponseWriter {
        ResponseWriter { events, begun: false, last: None, keep }
    }

    fn begin(&mut self) -> Vec<Value> {
        match std::mem::replace(&mut self.begun, true) {
            true => Vec::new(),
            false => self.events.begin(),
        }
    }

    fn push(&mut self, event: ChatEvent) -> Vec<Value> {
        let mut due = self.begin();
        match event {
            ChatEvent::Finish { .. } => self.last = Some(event),
            event => due.extend(self.events.push(&event)),
        }
        due
    }

    fn finish(&mut self, whole: ChatResponse) -> Vec<Value> {
        let due = self.last.take().map_or(Vec::new(), |last| self.events.push(&last));
        let response = self.events.response();
        if let Some((app, mut conversation)) = self.keep.take()
            && response["status"] != "failed"
        {
            let mut message = whole.message;
            // A call that was cut off is not run, so it has no result to go on from.
            message.items.retain(|item| !matches!(item, Item::ToolCall(call) if call.incomplete));
            conversation.push(message.into());
            app.responses().put(Stored { response: response.clone(), conversation });
        }
        due
    }
}

impl Writer<ChatEvent> for ResponseWriter {
    fn event(&mut self, _index: usize, event: ChatEvent) -> Vec<Event> {
        self.push(event).iter().map(named).collect()
    }

    fn whole(&mut self, _index: usize, whole: ChatResponse) -> Vec<Event> {
        self.finish(whole).iter().map(named).collect()
    }

    fn end(&mut self, error: Option<ApiError>) -> Vec<Event> {
        let Some(error) = error else { return Vec::new() };
        let mut due = self.begin();
        due.extend(self.events.fail(&error.message));
        due.iter().map(named).collect()
    }
}

/// An event of the stream, which is called what its type is.
fn named(event: &Value) -> Event {
    Event::default().event(event["type"].as_str().unwrap_or_default()).data(event.to_string())
}
