//! Downloads, against a server of our own that speaks the hub's protocol and drops, lies and
//! refuses when told to.
#![cfg(feature = "hub")]

#[path = "common/hub.rs"]
mod common;

use common::{COMMIT, REPO, Request, Server, Trouble, etag};
use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::weights::{Checkpoint, DownloadProgress, Hub, write_tiny_checkpoint};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

type Files = BTreeMap<String, Vec<u8>>;

const MIB: usize = 1 << 20;

/// A complete small checkpoint, with the folders that are not to be downloaded.
fn tiny() -> Files {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 1).unwrap();
    let mut files = Files::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        files.insert(name, fs::read(path).unwrap());
    }
    files.insert("chat_template.jinja".into(), b"{{ messages }}".to_vec());
    for other in ["README.md", "original/model.safetensors", "metal/model.bin", "LICENSE"] {
        files.insert(other.into(), b"not to be downloaded".to_vec());
    }
    files
}

/// A checkpoint of one large file whose bytes tell their place. Downloading does not look inside.
fn large(size: usize) -> Files {
    let bytes = (0..size).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
    Files::from([("config.json".into(), b"{}".to_vec()), ("model.safetensors".into(), bytes)])
}

struct Fixture {
    server: Server,
    cache: tempfile::TempDir,
    reports: Arc<Mutex<Vec<DownloadProgress>>>,
}

impl Fixture {
    fn new(files: Files) -> Fixture {
        let cache = tempfile::tempdir().unwrap();
        Fixture { server: Server::new(files), cache, reports: Arc::default() }
    }

    fn hub(&self) -> Hub {
        Hub::new().endpoint(&self.server.url).cache_dir(self.cache.path()).offline(false)
    }

    fn download(&self, revision: &str) -> gpt_oss_puzzle::Result<PathBuf> {
        let reports = self.reports.clone();
        self.hub().download(REPO, revision, move |p| reports.lock().unwrap().push(p.clone()))
    }

    fn fails(&self, revision: &str, parts: &[&str]) {
        let error = self.download(revision).expect_err("a failure");
        assert_eq!(error.kind(), ErrorKind::Download, "{error}");
        for part in [&[REPO, revision][..], parts].concat() {
            assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
        }
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--acme--puzzle")
    }
}

/// Every file and link below `dir`, by its path from there.
fn below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        match path.is_dir() {
            true => found.extend(below(&path).into_iter().map(|rest| format!("{name}/{rest}"))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

fn files_of(log: &[Request]) -> Vec<&str> {
    log.iter().filter_map(|r| r.path.split_once("/resolve/")).map(|(_, file)| file).collect()
}

#[test]
fn a_download_is_complete_and_opens() {
    let files = tiny();
    let fixture = Fixture::new(files.clone());
    let dir = fixture.download("main").unwrap();
    assert!(dir.ends_with(format!("models--acme--puzzle/snapshots/{COMMIT}")), "{}", dir.display());
    Checkpoint::open(&dir).unwrap();
    let wanted: Vec<_> =
        files.keys().filter(|n| !n.contains('/') && *n != "README.md" && *n != "LICENSE").collect();
    assert_eq!(below(&dir).iter().collect::<Vec<_>>(), wanted);
    for name in wanted {
        assert_eq!(fs::read(dir.join(name)).unwrap(), files[name], "{name}");
    }
    let repo = below(&fixture.repo());
    let odd = |n: &&String| n.contains("incomplete") || n.contains("/.") || n.starts_with('.');
    assert_eq!(repo.iter().filter(odd).count(), 0, "{repo:?}");
    assert!(repo.contains(&"refs/main".to_string()), "{repo:?}");
}

#[test]
fn progress_never_falls_and_ends_at_the_total() {
    let fixture = Fixture::new(large(5 * MIB));
    // A dropped chunk is asked for again, which must not count twice.
    let mut drops = 2;
    fixture.server.trouble(move |r| {
        let drop = r.method == "GET" && r.path.starts_with("/cdn/") && drops > 0;
        drops -= i32::from(drop);
        drop.then_some(Trouble::Drop(MIB / 2))
    });
    fixture.download("main").unwrap();
    let reports = fixture.reports.lock().unwrap();
    assert!(reports.len() > 5, "{} reports", reports.len());
    let total = (5 * MIB + 2) as u64;
    assert!(reports.iter().all(|r| r.bytes_total == total), "{:?}", reports[0]);
    assert!(reports.windows(2).all(|w| w[0].bytes_done < w[1].bytes_done));
    assert_eq!(reports[0].file, "config.json");
    let last = reports.last().unwrap();
    assert_eq!((last.bytes_done, last.file.as_str()), (total, "model.safetensors"));
}

#[test]
fn a_dropped_connection_is_taken_up_where_it_broke() {
    let files = large(8 * MIB);
    let fixture = Fixture::new(files.clone());
    let mut seen = 0;
    fixture.server.trouble(move |r| {
        if r.method != "GET" || !r.path.starts_with("/cdn/") {
            return None;
        }
        seen += 1;
        // The whole file, then its third piece.
        matches!(seen, 1 | 4).then_some(Trouble::Drop(MIB / 2))
    });
    let dir = fixture.download("main").unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == files["model.safetensors"]);
    let log = fixture.server.take_log();
    let ranges: Vec<_> = log
        .iter()
        .filter(|r| r.method == "GET" && r.path.starts_with("/cdn/"))
        .map(|r| r.range)
        .collect();
    let mib = |range: Option<(u64, u64)>| range.map(|(a, b)| (a >> 20, b >> 20));
    assert_eq!(
        ranges.into_iter().map(mib).collect::<Vec<_>>(),
        [None, Some((0, 1)), Some((1, 3)), Some((3, 7)), Some((3, 4)), Some((4, 6)), Some((6, 8))],
    );
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_call() {
    let files = large(8 * MIB);
    let fixture = Fixture::new(files.clone());
    let mut seen = 0;
    fixture.server.trouble(move |r| {
        seen += usize::from(r.method == "GET" && r.path.starts_with("/cdn/"));
        match seen {
            0 => None,
            1 => Some(Trouble::Drop(MIB / 2)),
            2 | 3 => None,
            _ => Some(Trouble::Status(403, "GatedRepo")),
        }
    });
    fixture.fails("main", &["`model.safetensors`", "403", "accept its conditions"]);
    // Half a file has no final name, and nothing says that the snapshot is complete.
    let blob = etag(&files["model.safetensors"]);
    let left = below(&fixture.repo());
    assert_eq!(
        left,
        [
            format!("blobs/{}", etag(b"{}")),
            format!("blobs/{blob}.incomplete"),
            format!("snapshots/{COMMIT}/config.json")
        ]
    );
    let kept = fs::metadata(fixture.repo().join(format!("blobs/{blob}.incomplete"))).unwrap().len();
    assert_eq!(kept, 3 * MIB as u64);
    fixture.server.trouble(|_| None);
    fixture.server.take_log();
    let dir = fixture.download("main").unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == files["model.safetensors"]);
    let log = fixture.server.take_log();
    let ranges: Vec<_> = log.iter().filter_map(|r| r.range).collect();
    assert!(ranges.iter().all(|(start, _)| *start >= kept) && !ranges.is_empty(), "{ranges:?}");
    assert!(!files_of(&log).iter().any(|f| f.contains("config.json")), "{log:?}");
}

#[test]
fn a_leftover_longer_than_the_file_starts_over() {
    let files = large(MIB / 2);
    let fixture = Fixture::new(files.clone());
    let partial =
        fixture.repo().join(format!("blobs/{}.incomplete", etag(&files["model.safetensors"])));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![7; MIB]).unwrap();
    let dir = fixture.download("main").unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == files["model.safetensors"]);
}

#[test]
fn a_pinned_revision_is_what_arrives_and_needs_no_network_again() {
    let fixture = Fixture::new(tiny());
    let pinned = "f".repeat(40);
    let mut old = tiny();
    old.insert("generation_config.json".into(), b"{\"old\":true}".to_vec());
    fixture.server.state.lock().unwrap().commits.insert(pinned.clone(), old);
    let dir = fixture.download(&pinned).unwrap();
    assert!(dir.ends_with(&pinned));
    assert_eq!(fs::read(dir.join("generation_config.json")).unwrap(), b"{\"old\":true}");
    let log = fixture.server.take_log();
    assert!(log.iter().all(|r| r.path.contains(&pinned) && !r.path.contains("main")), "{log:?}");
    assert_eq!(fixture.download(&pinned).unwrap(), dir);
    assert_eq!(fixture.server.take_log(), []);
    // The same content under another commit is linked, not fetched.
    let main = fixture.download("main").unwrap();
    assert_eq!(
        files_of(&fixture.server.take_log()).len(),
        2,
        "HEAD and GET of the one file that differs"
    );
    assert!(main.ends_with(COMMIT));
}

#[test]
fn a_branch_is_taken_from_the_cache_when_the_hub_is_away() {
    let fixture = Fixture::new(tiny());
    let dir = fixture.download("main").unwrap();
    fixture.server.take_log();
    assert_eq!(fixture.download("main").unwrap(), dir);
    let log = fixture.server.take_log();
    assert_eq!(files_of(&log), Vec::<&str>::new(), "asks for the commit, not for files");
    let offline = |hub: Hub, revision: &str| hub.offline(true).download(REPO, revision, |_| {});
    assert_eq!(offline(fixture.hub(), "main").unwrap(), dir);
    assert_eq!(fixture.server.take_log(), []);
    let error = offline(fixture.hub(), "other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert!(error.to_string().contains("not in the cache"), "{error}");
    // A server that is down is as good a reason; one that says no is not.
    fixture.server.trouble(|_| Some(Trouble::Status(503, "")));
    assert_eq!(fixture.download("main").unwrap(), dir);
    fixture.server.trouble(|_| Some(Trouble::Status(401, "")));
    fixture.fails("main", &["401"]);
}

#[test]
fn an_incomplete_snapshot_is_not_mistaken_for_a_checkpoint() {
    let fixture = Fixture::new(tiny());
    let dir = fixture.download(COMMIT).unwrap();
    fs::remove_file(dir.join("model-00001-of-00003.safetensors")).unwrap();
    fixture.server.take_log();
    let error = fixture.hub().offline(true).download(REPO, COMMIT, |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Download);
    assert_eq!(fixture.download(COMMIT).unwrap(), dir);
    // Its blob was still there.
    assert_eq!(files_of(&fixture.server.take_log()), Vec::<&str>::new());
    // A blob cut short behind the cache's back is fetched again.
    let shard = dir.join("model-00000-of-00003.safetensors");
    let blob = shard.canonicalize().unwrap();
    let whole = fs::read(&blob).unwrap();
    fs::write(&blob, &whole[..100]).unwrap();
    fixture.download("main").unwrap();
    assert!(fs::read(&shard).unwrap() == whole);
}

#[test]
fn refusals_say_what_to_do() {
    for (trouble, parts) in [
        (Trouble::Status(401, "RepoNotFound"), &["401", "HF_TOKEN", "check the name"][..]),
        (Trouble::Status(403, "GatedRepo"), &["403", "accept its conditions at http://"]),
        (Trouble::Status(404, "RepoNotFound"), &["404", "no such repository"]),
        (Trouble::Status(404, "RevisionNotFound"), &["404", "no such revision"]),
        (Trouble::Status(418, ""), &["418", "as told"]),
    ] {
        let fixture = Fixture::new(tiny());
        let told = trouble.clone();
        fixture.server.trouble(move |_| Some(told.clone()));
        fixture.fails("main", parts);
        assert_eq!(fixture.server.take_log().len(), 1, "{trouble:?} is final");
        assert_eq!(below(fixture.cache.path()), Vec::<String>::new(), "{trouble:?}");
    }
    let fixture = Fixture::new(tiny());
    fixture.fails("v9", &["no such revision", "`v9`"]);
}

#[test]
fn a_busy_server_is_asked_again() {
    let fixture = Fixture::new(tiny());
    let mut requests = 0;
    fixture.server.trouble(move |_| {
        requests += 1;
        (requests == 1).then_some(Trouble::Status(503, ""))
    });
    fixture.download("main").unwrap();
}

#[test]
fn repositories_without_a_checkpoint_are_named() {
    let without = |names: &[&str]| {
        let mut files = tiny();
        files.retain(|name, _| !names.iter().any(|n| name.contains(n)));
        Fixture::new(files)
    };
    without(&["config.json"]).fails("main", &["has no config.json"]);
    without(&["safetensors"]).fails("main", &["no safetensors weights", "`README.md`"]);
    without(&["00001-of"]).fails("main", &["has no `model-00001-of-00003.safetensors`", "index"]);
}

#[test]
fn a_server_that_lies_leaves_nothing_behind() {
    let finals = |fixture: &Fixture| {
        let below = below(&fixture.repo());
        below.into_iter().filter(|n| n.contains("model.safetensors")).collect::<Vec<_>>()
    };
    // Fewer bytes than listed.
    let fixture = Fixture::new(large(MIB));
    fixture.server.trouble(|r| r.path.starts_with("/cdn/").then_some(Trouble::Short(3)));
    fixture.fails("main", &["sent 1048573 bytes", "expected 1048576", "`model.safetensors`"]);
    assert_eq!(finals(&fixture), Vec::<String>::new());
    // The whole file where a part was asked for, which is honest enough.
    let files = large(3 * MIB);
    let fixture = Fixture::new(files.clone());
    let mut first = true;
    fixture.server.trouble(move |r| {
        let get = r.method == "GET" && r.path.starts_with("/cdn/");
        let drop = get && std::mem::take(&mut first);
        get.then_some(if drop { Trouble::Drop(10) } else { Trouble::NoRanges })
    });
    let dir = fixture.download("main").unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == files["model.safetensors"]);
    // Names that leave the cache.
    for (etag, sha, part) in [
        ("../../../../escape", COMMIT, "content hash"),
        (&*etag(b"{}"), "../../escape", "without a commit"),
    ] {
        let fixture = Fixture::new(tiny());
        let mut state = fixture.server.state.lock().unwrap();
        state.listing =
            Some(json!([{ "type": "file", "oid": etag, "size": 2, "path": "config.json" }]));
        let files = state.commits[COMMIT].clone();
        state.commits.insert(sha.into(), files);
        state.main = sha.into();
        drop(state);
        fixture.fails("main", &[part]);
        assert_eq!(below(fixture.cache.path()), Vec::<String>::new());
    }
    let mut files = tiny();
    files.insert(
        "model.safetensors.index.json".into(),
        json!({ "weight_map": { "a": "../../../escape" } }).to_string().into_bytes(),
    );
    let error = Fixture::new(files).download("main").unwrap_err();
    assert!(error.to_string().contains("the index names `../../../escape`"), "{error}");
}

#[test]
fn names_are_checked_before_the_network() {
    let fixture = Fixture::new(tiny());
    for (repo, revision) in [
        ("gpt2", "main"),
        ("", "main"),
        ("a/b/c", "main"),
        ("../x", "main"),
        ("a/..", "main"),
        ("a/b?c", "main"),
        ("acme/puzzle", ""),
        ("acme/puzzle", "../main"),
        ("acme/puzzle", "a//b"),
    ] {
        let error = fixture.hub().download(repo, revision, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{repo} {revision}: {error}");
    }
    assert_eq!(fixture.server.take_log(), []);
}

#[test]
fn the_token_goes_to_the_server_and_nowhere_else() {
    let fixture = Fixture::new(tiny());
    let hub = fixture.hub().token("hf_secret");
    hub.download(REPO, "main", |_| {}).unwrap();
    let log = fixture.server.take_log();
    assert!(log.iter().all(|r| r.token.as_deref() == Some("Bearer hf_secret")), "{log:?}");
    assert!(!format!("{hub:?}").contains("secret"), "{hub:?}");
    fixture.server.trouble(|_| Some(Trouble::Status(401, "")));
    let error = hub.download(REPO, "main", |_| {}).unwrap_err();
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[test]
fn two_downloads_at_once_share_the_work() {
    let files = large(4 * MIB);
    let fixture = Fixture::new(files.clone());
    let dirs = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| fixture.download("main").unwrap()));
        both.map(|thread| thread.join().unwrap())
    });
    assert_eq!(dirs[0], dirs[1]);
    assert!(fs::read(dirs[0].join("model.safetensors")).unwrap() == files["model.safetensors"]);
    let log = fixture.server.take_log();
    let gets = log.iter().filter(|r| r.method == "GET" && r.path.starts_with("/cdn/")).count();
    assert_eq!(gets, 1, "{log:?}");
}
