//! The program: its flags, what it prints, and how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

fn serve(args: &[&str]) -> Command {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_serve"));
    serve.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    serve
}

fn output(args: &[&str]) -> Output {
    serve(args).output().expect("starts and ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server that is ended with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All of the response to `head`.
fn ask(address: &str, head: &str) -> String {
    let mut connection = TcpStream::connect(address).expect("listens");
    write!(connection, "{head}\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn flags_are_those_of_the_field_and_wrong_ones_are_refused() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    for flag in [
        "--model",
        "--device",
        "--max-model-len",
        "--host",
        "--port",
        "--api-key",
        "--served-model-name",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--gpu-memory-utilization",
        "--stream-interval",
        "--no-enable-prefix-caching",
        "--max-queue",
        "--request-timeout",
        "--shutdown-timeout",
        "--body-limit",
        "--allowed-origins",
    ] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
    for wrong in [
        &["--no-such-flag"][..],
        &["--port", "70000"],
        &["--host", "nowhere"],
        &["--max-num-seqs", "0"],
        &["--request-timeout", "0"],
        &["--request-timeout", "nan"],
        &["--body-limit", "0"],
        &["--api-key", ""],
        &["--allowed-origins", "example.org"],
        &["--allowed-origins", "https://example.org/page"],
    ] {
        let refused = output(wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn a_model_or_a_port_that_is_not_to_be_had_ends_it() {
    let missing = output(&["--port", "0", "--model", "./no/such/place"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no/such/place"), "{}", text(&missing.stderr));
    let few = output(&["--port", "0", "--max-num-seqs", "20", "--max-num-batched-tokens", "10"]);
    assert_eq!(few.status.code(), Some(1));
    assert!(
        text(&few.stderr).contains("expected at least a token for each"),
        "{}",
        text(&few.stderr)
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = output(&["--port", &port]);
    assert_eq!(refused.status.code(), Some(1));
    let expected = format!("cannot listen on 127.0.0.1:{port}");
    assert!(text(&refused.stderr).contains(&expected), "{}", text(&refused.stderr));
}

/// The first minute: it says where it listens, what to ask, and ends well.
#[cfg(unix)]
#[test]
fn it_prints_what_to_do_and_ends_on_a_signal() {
    for signal in ["-INT", "-TERM"] {
        let args = [
            "--port",
            "0",
            "--threads",
            "1",
            "--served-model-name",
            "a",
            "org/b",
            "--api-key",
            "k1",
        ];
        let mut running = Running(serve(&args).env("SERVE_API_KEY", "k2").spawn().expect("starts"));
        let mut lines =
            BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = lines.next().expect("a line");
        let url = first.strip_prefix("listening on ").expect("the address").to_owned();
        let address = url.strip_prefix("http://127.0.0.1:").expect("an IPv4 address");
        let address = format!("127.0.0.1:{address}");
        assert_eq!(lines.next(), Some(format!("a page to chat: {url}/")));
        let curl: Vec<String> = lines.by_ref().skip(1).take(4).collect();
        assert_eq!(curl[0], format!("curl {url}/v1/chat/completions \\"));
        assert!(curl[1].contains("Authorization: Bearer KEY"), "{curl:?}");
        assert!(ask(&address, "GET /health HTTP/1.1").starts_with("HTTP/1.1 200"));
        for (key, status) in [("k1", "200"), ("k2", "200"), ("k3", "401")] {
            let head = format!("GET /v1/models HTTP/1.1\r\nauthorization: Bearer {key}");
            let reply = ask(&address, &head);
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{reply}");
            assert_eq!(reply.contains("\"id\":\"org/b\""), status == "200");
        }
        let head = "GET /v1/models/org/b HTTP/1.1\r\nauthorization: Bearer k1";
        assert!(ask(&address, head).starts_with("HTTP/1.1 200"));
        let kill = Command::new("kill").args([signal, &running.0.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        assert_eq!(running.0.wait().expect("ends").code(), Some(0), "{signal}");
    }
}
