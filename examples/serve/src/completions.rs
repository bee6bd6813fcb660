//! `POST /v1/completions`: raw prompts, gone on with.

mod choice;

use crate::answers::{Answers, Happened};
use crate::request::{self, Body, field, read};
use crate::sse::{self, Writer};
use crate::state::now;
use crate::{ApiError, App, Json, fields};
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use choice::Choice;
use gpt_oss_puzzle::chat::StopStrings;
use gpt_oss_puzzle::generation::{GenerateOptions, GeneratedToken, SamplingParams, Usage};
use gpt_oss_puzzle::serving::Generated;
use gpt_oss_puzzle::{Answer, Engine};
use serde_json::{Map, Value, json};

/// What a request without `max_tokens` gets, as with OpenAI.
const MAX_TOKENS: usize = 16;

/// Continues a prompt, or several: a text in which control tokens are control tokens, or token ids.
///
/// # Errors
/// As [`crate::chat::create`].
pub async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, ApiError> {
    app.engine()?;
    let envelope = json!({
        "id": app.id("cmpl"), "object": "text_completion", "created": now(),
        "model": request::model(&app, &body)?,
    });
    let n = request::choices(&app, &body)?;
    let stream = request::stream(&body)?;
    let most = app.options().most_requests();
    let begin = app.blocking(move |engine| begin(engine, &body, n, most));
    let (answers, choices) = begin.await?;
    let include_usage = stream.as_ref().is_some_and(|stream| stream.include_usage);
    let mut completion = Completion { envelope, n, include_usage, choices };
    let mut answers = Answers::new(answers);
    if stream.is_some() {
        return sse::respond(answers, completion, app.options().keep_alive).await;
    }
    while let Some(happened) = answers.next().await {
        match happened? {
            (index, Happened::Event(token)) => {
                completion.choices[index].token(token);
                if completion.choices[index].is_stopped() {
                    answers.stop(index);
                }
            }
            (index, Happened::Whole(whole)) => completion.choices[index].whole(&whole),
        }
    }
    Ok(Json(completion.whole()).into_response())
}

/// Asks the engine, once for each prompt and choice, of which it takes `most`.
fn begin(
    engine: &Engine,
    body: &Value,
    n: usize,
    most: usize,
) -> Result<(Vec<Answer<GeneratedToken>>, Vec<Choice>), ApiError> {
    fields::check(body, &[fields::COMPLETIONS, fields::ANYWHERE])?;
    let options = options(body)?;
    let stop = match field(body, "stop") {
        Some(Value::String(stop)) => vec![stop.clone()],
        _ => read(body, "stop", "a text or a list of texts")?.unwrap_or_default(),
    };
    let stop = StopStrings::new(&stop).map_err(|error| ApiError::about(body, error))?;
    let skip = read(body, "skip_special_tokens", "true or false")?.unwrap_or(true);
    let tokenizer = engine.model().tokenizer();
    let (mut answers, mut choices) = (Vec::new(), Vec::new());
    let prompts = prompts(body)?;
    if prompts.len().saturating_mul(n) > most {
        let message = format!(
            "prompt has {} prompts with {n} answers each, expected at most {most} answers: as many as run and \
             wait at once",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    for prompt in prompts {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => tokenizer.encode_with_special(&text)?,
        };
        for choice in 0..n as u64 {
            let mut options = options.clone();
            let seed = &mut options.sampling.seed;
            *seed = seed.map(|seed| seed.wrapping_add(choice));
            let answer = engine.generate(&tokens, request::call(body, options)?);
            answers.push(answer.map_err(|error| ApiError::about(body, error))?);
            choices.push(Choice::new(tokenizer.clone(), stop.clone(), skip));
        }
    }
    Ok((answers, choices))
}

fn options(body: &Value) -> Result<GenerateOptions, ApiError> {
    let mut sampling: Map<String, Value> = (SamplingParams::FIELDS.iter())
        .filter_map(|name| Some((name.to_string(), field(body, name)?.clone())))
        .collect();
    request::any_top_k(&mut sampling);
    let sampling: SamplingParams = serde_json::from_value(sampling.into()).map_err(|error| {
        ApiError::new(
            axum::http::StatusCode::BAD_REQUEST,
            format!("the sampling parameters are invalid: {error}"),
        )
    })?;
    let tokens = "a number of tokens";
    let mut options = GenerateOptions::default()
        .sampling(sampling)
        .max_tokens(read(body, "max_tokens", tokens)?.unwrap_or(MAX_TOKENS))
        .stop_tokens(
            read::<Vec<u32>>(body, "stop_token_ids", "a list of ids")?.unwrap_or_default(),
        );
    options.logprobs = read(body, "logprobs", tokens)?;
    options.ignore_eos = read(body, "ignore_eos", "true or false")?.unwrap_or(false);
    Ok(options)
}

enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `prompt`: a text, token ids, or a list of either.
fn prompts(body: &Value) -> Result<Vec<Prompt>, ApiError> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(ids) => {
            let ids = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok());
            ids.collect::<Option<_>>().map(Prompt::Tokens)
        }
        _ => None,
    };
    let prompt = field(body, "prompt").unwrap_or(&Value::Null);
    let prompts = match prompt {
        Value::Array(list) if list.iter().any(|prompt| !prompt.is_number()) => {
            list.iter().map(one).collect()
        }
        one_alone => one(one_alone).map(|prompt| vec![prompt]),
    };
    prompts.ok_or_else(|| {
        let expected = "a text, token ids, or a list of texts or of lists of token ids";
        let message = format!("prompt is {}, expected {expected}", fields::short(prompt));
        ApiError::invalid("prompt", message)
    })
}

/// The answer to a request: its choices, `n` to each prompt.
struct Completion {
    envelope: Value,
    n: usize,
    include_usage: bool,
    choices: Vec<Choice>,
}

impl Completion {
    fn object(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = self.envelope.clone();
        object["choices"] = choices.into();
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    fn whole(&mut self) -> Value {
        let choices = self.choices.iter_mut().enumerate();
        let choices = choices.map(|(index, choice)| choice.take(index)).collect();
        self.object(choices, Some(self.usage()))
    }

    /// A prompt's tokens are counted once, and what of them was cached when none had read it yet.
    fn usage(&self) -> Value {
        let mut sum = Usage::default();
        for choices in self.choices.chunks(self.n) {
            let usages = choices.iter().map(|choice| choice.usage());
            sum.prompt_tokens += usages.clone().map(|usage| usage.prompt_tokens).max().unwrap_or(0);
            sum.cached_tokens += usages.clone().map(|usage| usage.cached_tokens).min().unwrap_or(0);
            sum.completion_tokens += usages.map(|usage| usage.completion_tokens).sum::<usize>();
        }
        json!({
            "prompt_tokens": sum.prompt_tokens,
            "completion_tokens": sum.completion_tokens,
            "total_tokens": sum.prompt_tokens + sum.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum.cached_tokens},
        })
    }

    fn chunk(&mut self, index: usize) -> Event {
        let choice = self.choices[index].take(index);
        sse::data(&self.object(vec![choice], self.include_usage.then_some(Value::Null)))
    }
}

impl Writer<GeneratedToken> for Completion {
    fn event(&mut self, index: usize, token: GeneratedToken) -> Vec<Event> {
        self.choices[index].token(token);
        match self.choices[index].has_text() {
            true => vec![self.chunk(index)],
            false => Vec::new(),
        }
    }

    fn whole(&mut self, index: usize, whole: Generated) -> Vec<Event> {
        let choice = &mut self.choices[index];
        choice.flush();
        // The chunk that says how it ended has no text.
        let rest = choice.has_text().then(|| self.chunk(index));
        self.choices[index].whole(&whole);
        rest.into_iter().chain([self.chunk(index)]).collect()
    }

    fn wants(&self, index: usize) -> bool {
        !self.choices[index].is_stopped()
    }

    fn end(&mut self, error: Option<ApiError>) -> Vec<Event> {
        let usage = (error.is_none() && self.include_usage)
            .then(|| sse::data(&self.object(Vec::new(), Some(self.usage()))));
        usage.into_iter().chain(sse::done(error)).collect()
    }
}
