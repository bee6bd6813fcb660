//! Serves a model over HTTP, in the shapes of OpenAI's API.
//!
//! ```text
//! cargo run --release -p serve
//! cargo run --release -p serve -- --model openai/gpt-oss-20b --max-num-seqs 8 --api-key secret
//! ```

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::serving::EngineOptions;
use serve::{App, Options, server};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Answer requests in the shapes of OpenAI's API: /v1/chat/completions, /v1/completions, /v1/responses and
/// /v1/models, with a page to chat at /, and with /health and /metrics. Ctrl-c lets running answers end;
/// a second one does not. The exit code is 1 when the model could not be loaded or the port not be had, and 2
/// for wrong arguments.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    load: load::LoadArgs,
    /// Address to listen on; 0.0.0.0 for all of this machine's
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port to listen on; 0 picks one and prints it
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that requests below /v1 have to come with; may be given several times, and in SERVE_API_KEY, where
    /// others on this machine do not see it
    #[arg(long, value_name = "KEY")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// What the model is called, by default its directory; several names are one model
    #[arg(long, value_name = "NAME", num_args = 1..)]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    served_model_name: Vec<String>,
    /// Most answers that are made at once; others wait
    #[arg(long, value_name = "N", default_value = "16")]
    max_num_seqs: NonZeroUsize,
    /// Most tokens that go through the model at once: a long prompt holds others up for as many
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    max_num_batched_tokens: NonZeroUsize,
    /// Share of a GPU's memory to take, for weights, cache and steps
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    gpu_memory_utilization: f64,
    /// Tokens of an answer that are sent together
    #[arg(long, value_name = "TOKENS", default_value = "1")]
    stream_interval: NonZeroUsize,
    /// Keep nothing of what was read for later requests that begin the same
    #[arg(long)]
    no_enable_prefix_caching: bool,
    /// Most requests that wait; others are sent away with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// After so long an answer ends as it is, by default never
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    request_timeout: Option<Duration>,
    /// How long running answers may go on after ctrl-c
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    shutdown_timeout: Duration,
    /// Longest body of a request
    #[arg(long, value_name = "BYTES", default_value = "8388608")]
    body_limit: NonZeroUsize,
    /// Origins whose pages may ask, such as https://example.org; * for all
    #[arg(long, value_name = "ORIGIN", num_args = 1.., value_parser = origin)]
    allowed_origins: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or("expected seconds, more than 0".into())
}

fn origin(text: &str) -> Result<String, String> {
    let is_origin = text == "*"
        || text.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
    is_origin.then(|| text.to_owned()).ok_or("expected * or scheme://host[:port]".into())
}

impl Args {
    fn options(&self) -> Options {
        let mut engine = EngineOptions::default()
            .max_sequences(self.max_num_seqs.get())
            .max_step_tokens(self.max_num_batched_tokens.get())
            .stream_interval(self.stream_interval.get())
            .prefix_cache(if self.no_enable_prefix_caching { 0.0 } else { 1.0 })
            .queue(self.max_queue);
        engine.deadline = self.request_timeout;
        let mut names = self.served_model_name.clone();
        if names.is_empty() {
            names.push(match &self.load.model {
                None => "puzzle-tiny".into(),
                // A name of the hub is a name; of a directory its last part is.
                Some(model) if !Path::new(model).exists() => model.clone(),
                Some(model) => {
                    let dir = std::fs::canonicalize(model).unwrap_or_else(|_| model.into());
                    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
                    name.unwrap_or_else(|| model.clone())
                }
            });
        }
        Options {
            names,
            api_keys: self.api_key.clone(),
            allowed_origins: self.allowed_origins.clone(),
            body_limit: self.body_limit.get(),
            engine,
            ..Options::default()
        }
    }
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    args.api_key.extend(std::env::var("SERVE_API_KEY").ok().filter(|key| !key.is_empty()));
    common::exit(run(args))
}

fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    // The engine has the cores; what is left to do is to pass its answers on.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(args));
    // Not for threads that load a model which nobody waits for any more.
    runtime.shutdown_background();
    result
}

async fn serve(mut args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let url = url(listener.local_addr()?);
    println!("listening on {url}");
    let app = App::new(args.options());
    let (answers, tokens) = (args.max_num_seqs.get(), args.max_num_batched_tokens.get());
    args.load.serving = Some((answers, args.gpu_memory_utilization, tokens));
    let (failed, mut load_failed) = oneshot::channel();
    let (loading, within, has_key) = (app.clone(), args.shutdown_timeout, !args.api_key.is_empty());
    std::thread::spawn(move || {
        let model = args.load.load().map_err(|error| error.to_string());
        match loading.loaded(model) {
            Ok(()) => introduce(&url, has_key),
            // Nobody receives it only if the server has stopped already.
            Err(error) => drop(failed.send(error)),
        }
    });
    let stop = async move {
        if signal().await.is_err() {
            std::future::pending::<()>().await;
        }
        eprintln!("stopping; running answers have {within:?}");
        tokio::spawn(async {
            if signal().await.is_ok() {
                std::process::exit(130);
            }
        });
    };
    tokio::select! {
        ended = server::serve(listener, app, stop, within) => ended?,
        Ok(error) = &mut load_failed => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for ctrl-c, or on Unix for a request to terminate.
async fn signal() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupt = tokio::signal::ctrl_c() => interrupt,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

/// Where a browser on this machine finds the server.
fn url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

/// What to do first.
fn introduce(url: &str, has_key: bool) {
    let key = if has_key { " \\\n  -H 'Authorization: Bearer KEY'" } else { "" };
    println!(
        "a page to chat: {url}/\n\n\
         curl {url}/v1/chat/completions{key} \\\n  \
           -H 'Content-Type: application/json' \\\n  \
           -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'\n"
    );
}
