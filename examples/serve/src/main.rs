//! Serves a model over HTTP, in the shapes of OpenAI's API.
//!
//! ```text
//! cargo run --release -p serve
//! ```

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/load.rs"]
mod load;

use clap::Parser;
use gpt_oss_puzzle::serving::EngineOptions;
use serve::{App, Options, app};
use std::error::Error;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;

/// Answer requests in the shapes of OpenAI's API: /v1/chat/completions, /v1/completions, /v1/responses and
/// /v1/models, with a page to chat at /, /health and /metrics. Ctrl-c lets running answers end.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    load: load::LoadArgs,
    /// Address to listen on; 0.0.0.0 for all
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on, 0 for any that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Most answers that are made at once
    #[arg(long, value_name = "N", default_value = "16")]
    max_num_seqs: NonZeroUsize,
}

fn main() -> ExitCode {
    common::exit(run(Args::parse()))
}

fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let listener = TcpListener::bind((args.host, args.port)).await?;
    println!("http://{}", listener.local_addr()?);
    let engine = EngineOptions::default().max_sequences(args.max_num_seqs.get());
    let app = App::new(Options { engine, ..Options::default() });
    let loading = app.clone();
    std::thread::spawn(move || loading.loaded(args.load.load().map_err(|e| e.to_string())));
    axum::serve(listener, app::router(app)).await?;
    let _ = Duration::ZERO;
    Ok(ExitCode::SUCCESS)
}
