//! A server that speaks the part of the hub's protocol hf-hub uses, on the loopback interface, and
//! that can be told to misbehave.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a request asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<(u64, u64)>,
    pub token: Option<String>,
}

/// What the server does instead of answering.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// Answers with this status and hub error code.
    Status(u16, &'static str),
    /// Closes the connection after this many bytes of the body.
    Drop(usize),
    /// Sends this many bytes fewer, and says so.
    Short(usize),
    /// Sends the whole file whatever the range.
    NoRanges,
}

/// Decides for each request what goes wrong with it, if anything.
pub type Mischief = dyn FnMut(&Request) -> Option<Trouble> + Send;

#[derive(Default)]
pub struct State {
    /// Files by commit and path.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub main: String,
    pub log: Vec<Request>,
    /// Asked for each request: trouble, if any.
    pub trouble: Option<Box<Mischief>>,
    /// Replaces a listing.
    pub listing: Option<Value>,
}

pub struct Server {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

pub const REPO: &str = "acme/puzzle";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Server {
    /// Serves these files as the main branch.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            commits: BTreeMap::from([(COMMIT.to_string(), files)]),
            main: COMMIT.to_string(),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                // A client that hangs up is part of the test.
                std::thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Server { url, state }
    }

    pub fn trouble(&self, trouble: impl FnMut(&Request) -> Option<Trouble> + Send + 'static) {
        self.state.lock().unwrap().trouble = Some(Box::new(trouble));
    }

    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

/// A stand-in for the content hash: FNV-1a, written twice as long as the hub's.
pub fn etag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}{:016x}00000000", !hash)
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = path.split('?').next().unwrap_or("").replace("%2F", "/");
    let mut request = Request { method: method.into(), path, ..Request::default() };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        let (name, value) = header.trim().split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => {
                let (start, end) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                request.range = Some((start.parse().unwrap(), end.parse::<u64>().unwrap() + 1));
            }
            "authorization" => request.token = Some(value.to_string()),
            _ => {}
        }
    }
    let (trouble, reply) = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let trouble = state.trouble.as_mut().and_then(|trouble| trouble(&request));
        (trouble, reply(&state, &request))
    };
    send(stream, &request, trouble, reply)
}

enum Reply {
    Json(Value),
    File(Vec<u8>),
    /// As the hub does with large files.
    Redirect(String),
    NotFound(&'static str),
}

fn reply(state: &State, request: &Request) -> Reply {
    let commit = |name: &str| match name {
        "main" => state.main.clone(),
        name => name.to_string(),
    };
    let resolve = |rest: &str| {
        let (revision, file) = rest.split_once('/')?;
        state.commits.get(&commit(revision))?.get(file).cloned()
    };
    let path = request.path.as_str();
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        let sha = commit(revision);
        return match state.commits.contains_key(&sha) {
            true => Reply::Json(json!({ "id": REPO, "sha": sha })),
            false => Reply::NotFound("RevisionNotFound"),
        };
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/tree/")) {
        let files = state.commits.get(revision).into_iter().flatten();
        let entry = |(path, bytes): (&String, &Vec<u8>)| match path.split_once('/') {
            Some((folder, _)) => {
                json!({ "type": "directory", "oid": etag(b"x"), "path": folder, "size": 0 })
            }
            None => {
                json!({ "type": "file", "oid": etag(bytes), "size": bytes.len(), "path": path })
            }
        };
        let listing = state.listing.clone();
        return Reply::Json(listing.unwrap_or_else(|| files.map(entry).collect()));
    }
    if let Some(rest) = path.strip_prefix("/cdn/") {
        return resolve(rest).map_or(Reply::NotFound("EntryNotFound"), Reply::File);
    }
    match path.strip_prefix(&format!("/{REPO}/resolve/")) {
        Some(rest) if rest.ends_with(".safetensors") => Reply::Redirect(format!("/cdn/{rest}")),
        Some(rest) => resolve(rest).map_or(Reply::NotFound("EntryNotFound"), Reply::File),
        None => Reply::NotFound("RepoNotFound"),
    }
}

fn send(
    mut stream: TcpStream,
    request: &Request,
    trouble: Option<Trouble>,
    reply: Reply,
) -> std::io::Result<()> {
    let head = |status: &str, length: usize, more: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nX-Repo-Commit: {COMMIT}\r\n{more}\
             Connection: close\r\n\r\n"
        )
    };
    let status = |status: u16, code: &str| {
        let body = "{\"error\":\"as told\"}";
        let more = format!("X-Error-Code: {code}\r\nContent-Type: application/json\r\n");
        head(&format!("{status} As Told"), body.len(), &more) + body
    };
    if let Some(Trouble::Status(number, code)) = trouble {
        return stream.write_all(status(number, code).as_bytes());
    }
    match reply {
        Reply::NotFound(code) => stream.write_all(status(404, code).as_bytes()),
        Reply::Redirect(to) => {
            stream.write_all(head("302 Found", 0, &format!("Location: {to}\r\n")).as_bytes())
        }
        Reply::Json(value) => {
            let body = value.to_string();
            let more = "Content-Type: application/json\r\n";
            stream.write_all((head("200 OK", body.len(), more) + &body).as_bytes())
        }
        Reply::File(bytes) => {
            let size = bytes.len();
            let range = request.range.filter(|_| !matches!(trouble, Some(Trouble::NoRanges)));
            let (start, end) =
                range.map_or((0, size), |(start, end)| (start as usize, size.min(end as usize)));
            let mut body = &bytes[start.min(end)..end];
            let mut more = format!("ETag: \"{}\"\r\n", etag(&bytes));
            if let Some(Trouble::Short(missing)) = trouble {
                body = &body[..body.len().saturating_sub(missing)];
            }
            let code = match range {
                Some(_) => {
                    more += &format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1);
                    "206 Partial Content"
                }
                None => "200 OK",
            };
            stream.write_all(head(code, body.len(), &more).as_bytes())?;
            if let Some(Trouble::Drop(after)) = trouble {
                body = &body[..body.len().min(after)];
            }
            if request.method != "HEAD" {
                stream.write_all(body)?;
            }
            stream.flush()
        }
    }
}
