//! `GET /metrics`, in Prometheus' text format. The names are vLLM's where they mean the same, after a
//! prefix of our own.

use crate::App;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use gpt_oss_puzzle::Stats;
use gpt_oss_puzzle::serving::Histogram;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, PoisonError};

/// How many requests each route has answered with which status.
#[derive(Default)]
pub struct Requests(Mutex<BTreeMap<(String, u16), u64>>);

/// Counts a request by its route, of which there are few, and gives it an id.
pub async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("other", |path| path.as_str()).to_owned();
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&app.id("req")) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    }
    let mut counts = app.requests().0.lock().unwrap_or_else(PoisonError::into_inner);
    *counts.entry((path, response.status().as_u16())).or_default() += 1;
    drop(counts);
    response
}

/// What there is to be watched.
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let mut text = Text::default();
    let requests = app.requests().0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let requests = requests
        .into_iter()
        .map(|((path, status), count)| (format!("path=\"{path}\",status=\"{status}\""), count));
    text.family("http_requests_total", "counter", "Requests by route and status.", requests);
    if let Ok(engine) = app.engine() {
        text.stats(&engine.stats());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0)
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn stats(&mut self, stats: &Stats) {
        let one = |value: u64| [(String::new(), value)];
        let size = |value: usize| [(String::new(), value as u64)];
        let outcomes = [
            ("finished", stats.finished),
            ("failed", stats.failed),
            ("cancelled", stats.cancelled),
        ];
        let outcomes = outcomes.map(|(name, count)| (format!("outcome=\"{name}\""), count));
        self.family("requests_total", "counter", "Answers that ended, by how.", outcomes);
        let used = stats.pages.saturating_sub(stats.free_pages + stats.cached_pages);
        let pages = [("free", stats.free_pages), ("cached", stats.cached_pages), ("used", used)];
        let pages = pages.map(|(name, count)| (format!("state=\"{name}\""), count as u64));
        self.family("kv_cache_pages", "gauge", "Pages of the key-value cache, by use.", pages);
        let usage = if stats.pages == 0 { 0.0 } else { used as f64 / stats.pages as f64 };
        let about = "Share of the pages that running answers hold.";
        self.family("kv_cache_usage_perc", "gauge", about, [(String::new(), usage)]);
        for (name, value, about) in [
            ("num_requests_waiting", stats.waiting, "Requests that wait for their turn."),
            ("num_requests_running", stats.running, "Answers that are being made."),
            ("num_requests_paused", stats.paused, "Running answers that nobody reads."),
        ] {
            self.family(name, "gauge", about, size(value));
        }
        for (name, value, about) in [
            ("num_preemptions_total", stats.preempted, "Answers that gave their pages back."),
            ("prompt_tokens_total", stats.prompt_tokens, "Tokens of prompts."),
            (
                "cached_prompt_tokens_total",
                stats.cached_tokens,
                "Prompt tokens found in the cache.",
            ),
            ("generation_tokens_total", stats.completion_tokens, "Tokens generated."),
            ("prefix_cache_hits_total", stats.prefix_hits, "Prompts begun from the cache."),
            ("prefix_cache_misses_total", stats.prefix_misses, "Prompts read from their start."),
            ("steps_total", stats.steps, "Steps of the model."),
            ("step_tokens_total", stats.step_tokens, "Tokens that went through it."),
        ] {
            self.family(name, "counter", about, one(value));
        }
        let seconds = [("in", stats.in_model), ("outside", stats.outside_model)];
        let seconds = seconds.map(|(name, t)| (format!("where=\"{name}\""), t.as_secs_f64()));
        let about = "Time of steps in the model and outside it.";
        self.family("step_seconds_total", "counter", about, seconds);
        let about = "From a request to its first token.";
        self.histogram("time_to_first_token_seconds", about, &stats.first_token);
        let about = "From a token to the next.";
        self.histogram("inter_token_latency_seconds", about, &stats.between_tokens);
    }

    fn family(
        &mut self,
        name: &str,
        kind: &str,
        about: &str,
        values: impl IntoIterator<Item = (String, impl Display)>,
    ) {
        self.head(name, kind, about);
        values.into_iter().for_each(|(labels, value)| self.line(name, &labels, value));
    }

    fn histogram(&mut self, name: &str, about: &str, times: &Histogram) {
        self.head(name, "histogram", about);
        let bucket = format!("{name}_bucket");
        for (bound, count) in times.buckets() {
            // Bounds are powers; to four digits they are the same wherever they are computed.
            self.line(&bucket, &format!("le=\"{}\"", rounded(bound)), count);
        }
        self.line(&bucket, "le=\"+Inf\"", times.count());
        self.line(&format!("{name}_sum"), "", times.sum());
        self.line(&format!("{name}_count"), "", times.count());
    }

    fn head(&mut self, name: &str, kind: &str, about: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP gpt_oss_puzzle:{name} {about}");
        let _ = writeln!(self.0, "# TYPE gpt_oss_puzzle:{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "gpt_oss_puzzle:{name} {value}"),
            labels => writeln!(self.0, "gpt_oss_puzzle:{name}{{{labels}}} {value}"),
        };
    }
}

/// To four digits.
fn rounded(bound: f64) -> f64 {
    format!("{bound:.3e}").parse().unwrap_or(bound)
}
