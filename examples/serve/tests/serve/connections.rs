//! Real connections: clients that go away, servers that do, more than can be answered.

use crate::server::{COMPLETIONS, Reply, Server, endless, loading, server_with, with};
use axum::http::StatusCode;
use gpt_oss_puzzle::EngineOptions;
use serde_json::{Value, json};
use serve::{Options, server::serve};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server on a port.
struct Listening {
    server: Server,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

async fn listen(options: Options, within: Duration) -> Listening {
    let server = server_with(options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let stopped = async { drop(stopped.await) };
    let ended = tokio::spawn(serve(listener, server.app.clone(), stopped, within));
    Listening { server, address, stop, ended }
}

/// Sends a request, and leaves the connection open.
async fn ask(address: SocketAddr, body: &Value) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    connection.write_all(format!("{}{body}", head(&body)).as_bytes()).await.unwrap();
    connection
}

fn head(body: &str) -> String {
    format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
}

/// All that comes, until the server closes.
async fn rest(mut connection: TcpStream) -> String {
    let mut text = Vec::new();
    connection.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_answer() {
    let options = || Options {
        engine: EngineOptions::default().max_sequences(1).max_step_tokens(64),
        ..Options::default()
    };
    let listening = listen(options(), Duration::from_secs(10)).await;
    let server = &listening.server;
    let mut cancelled = 0;
    for stream in [true, false] {
        let body = with(endless(), json!({"stream": stream}));
        let mut running = ask(listening.address, &body).await;
        server.until("it runs", |stats| stats.running == 1).await;
        // One that waits its turn goes as well, and before it has begun.
        let waiting = ask(listening.address, &body).await;
        server.until("another waits", |stats| stats.waiting == 1).await;
        drop(waiting);
        cancelled += 1;
        server.until("it went", |s| s.cancelled == cancelled && s.waiting == 0).await;
        if stream {
            let mut some = [0; 4096];
            assert!(running.read(&mut some).await.unwrap() > 0);
        }
        drop(running);
        cancelled += 1;
        server.until("it ended", |s| s.cancelled == cancelled && s.running == 0).await;
    }
    let stats = server.stats();
    assert_eq!(stats.finished, 0);
    assert_eq!(stats.free_pages + stats.cached_pages, stats.pages, "every page is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_can_wait_are_sent_away_with_a_time() {
    let engine = EngineOptions::default().max_sequences(1).queue(1);
    let options = Options { engine, ..Options::default() };
    let listening = listen(options, Duration::from_secs(10)).await;
    let server = &listening.server;
    let running = ask(listening.address, &endless()).await;
    server.until("one runs", |stats| stats.running == 1).await;
    let waiting = ask(listening.address, &endless()).await;
    server.until("one waits", |stats| stats.waiting == 1).await;
    let refused: Reply = server.post(COMPLETIONS, endless()).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{}", refused.text);
    let error = refused.error();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("queue_full"))
    );
    let after: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(after >= 1);
    drop((running, waiting));
    server.until("both went", |stats| stats.cancelled == 2).await;
    let again = with(endless(), json!({"max_tokens": 5}));
    assert_eq!(server.post(COMPLETIONS, again).await.status, StatusCode::OK);
}

/// Of those that wait, the one that somebody waits for goes first.
#[tokio::test(flavor = "multi_thread")]
async fn priorities_are_kept_to() {
    let engine = EngineOptions::default().max_sequences(1);
    let options = Options { engine, ..Options::default() };
    let listening = listen(options, Duration::from_secs(10)).await;
    let server = &listening.server;
    let running = ask(listening.address, &endless()).await;
    server.until("one runs", |stats| stats.running == 1).await;
    let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (number, priority) in [json!("low"), json!(0), json!(-1)].into_iter().enumerate() {
        let fields = json!({"priority": priority, "max_tokens": 200});
        let asked = ask(listening.address, &with(endless(), fields)).await;
        server.until("it waits", |stats| stats.waiting == number + 1).await;
        let ended = ended.clone();
        tokio::spawn(async move {
            assert!(rest(asked).await.starts_with("HTTP/1.1 200"));
            ended.send(priority).unwrap();
        });
    }
    drop(running);
    for expected in [json!(-1), json!(0), json!("low")] {
        assert_eq!(order.recv().await, Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_its_time() {
    let engine = EngineOptions::default().max_sequences(1).deadline(Duration::from_millis(300));
    let listening = listen(Options { engine, ..Options::default() }, Duration::from_secs(10)).await;
    let running = tokio::spawn(rest(ask(listening.address, &endless()).await));
    listening.server.until("one runs", |stats| stats.running == 1).await;
    // What runs ends as it is; what did not begin is an error.
    let late = listening.server.post(COMPLETIONS, endless()).await;
    let text = running.await.unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("\"finish_reason\":\"length\""),
        "{text}"
    );
    if late.status != StatusCode::OK {
        assert_eq!(late.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(late.error()["code"], "deadline_exceeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_answers_end_before_the_server_does() {
    let listening = listen(Options::default(), Duration::from_secs(30)).await;
    let body = with(endless(), json!({"stream": true, "max_tokens": 600}));
    let running = tokio::spawn(rest(ask(listening.address, &body).await));
    listening.server.until("it runs", |stats| stats.completion_tokens > 3).await;
    listening.stop.send(()).unwrap();
    // Whoever asks from now on is refused: at the door, or with 503 on a connection that was open.
    listening
        .server
        .until("it refuses", |_| listening.server.app.engine().unwrap().check().is_err())
        .await;
    let refused = listening.server.post(COMPLETIONS, endless()).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.error()["code"], "shutting_down");
    assert_eq!(listening.server.get("/health").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let text = running.await.unwrap();
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"));
    listening.ended.await.unwrap().unwrap();
    assert_eq!(listening.server.stats().finished, 1);
    assert!(TcpStream::connect(listening.address).await.is_err());
}

/// Those that take too long are cut off, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_wait_for_ever() {
    let listening = listen(Options::default(), Duration::from_millis(50)).await;
    let body = with(endless(), json!({"stream": true}));
    let running = tokio::spawn(rest(ask(listening.address, &body).await));
    // A connection without a request, which nobody closes.
    let idle = TcpStream::connect(listening.address).await.unwrap();
    listening.server.until("it runs", |stats| stats.running == 1).await;
    listening.stop.send(()).unwrap();
    listening.ended.await.unwrap().unwrap();
    let text = running.await.unwrap();
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    drop(idle);
}

/// A client that neither reads nor goes away keeps the server for some seconds, not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_wait_for_a_silent_reader() {
    let listening = listen(Options::default(), Duration::from_millis(50)).await;
    // More than the system keeps for a connection.
    let body = with(endless(), json!({"stream": true, "n": 4, "logprobs": 100})).to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut silent = socket.connect(listening.address).await.unwrap();
    let head = head(&body);
    silent.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    listening.server.until("nobody reads", |stats| stats.paused > 0).await;
    listening.stop.send(()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), listening.ended);
    ended.await.expect("within some seconds").unwrap().unwrap();
    drop(silent);
}

/// A long prompt is read while comments keep the connection alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_says_that_it_lives() {
    let options = Options { keep_alive: Duration::from_millis(20), ..Options::default() };
    let engine = EngineOptions::default().max_sequences(1);
    let listening = listen(Options { engine, ..options }, Duration::from_secs(10)).await;
    let running = ask(listening.address, &endless()).await;
    listening.server.until("it runs", |stats| stats.running == 1).await;
    let body = with(endless(), json!({"stream": true, "max_tokens": 3}));
    let waiting = tokio::spawn(rest(ask(listening.address, &body).await));
    tokio::time::sleep(Duration::from_millis(150)).await;
    drop(running);
    let text = waiting.await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let (comment, data) =
        (text.find("\n:").expect("a comment"), text.find("data: ").expect("data"));
    assert!(comment < data, "{text}");
    assert!(text.contains("data: [DONE]"));
}

/// Nothing of a server that never had a model keeps it from ending.
#[tokio::test]
async fn a_server_ends_while_it_loads() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = loading(Options::default()).app;
    let ended = serve(listener, app, async {}, Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("at once").unwrap();
}
