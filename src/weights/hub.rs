//! Checkpoints by name from the Hugging Face hub. The only network code of the crate.
//!
//! Files land where every other tool of the hub expects them: `models--owner--name/blobs/<etag>`,
//! linked from `snapshots/<commit>/<file>`. hf-hub does the talking (endpoint, token, redirects,
//! ranges); the files are written here, because hf-hub 1.0 starts a dropped file over from its
//! first byte and neither checks the length nor the status of what it stores. Half a file is only
//! ever called `blobs/<etag>.incomplete`, and the next call goes on from its end.
//!
//! This module knows which files a checkpoint has, not what is in them.

mod cache;
mod failure;

use super::{safetensors, shards, shown};
use crate::{Error, ErrorKind, Result};
use cache::{Cache, Remote};
use failure::{Context, Failure};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFRepositorySync};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Read beside the weights where the repository has them, in this order. `original/` and `metal/`
/// hold the same weights again and are left alone.
const SMALL: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Most bytes asked for at once: a dropped connection costs at most this much.
const CHUNK: u64 = 32 << 20;
/// Fewest bytes asked for at once, on a connection that keeps dropping.
const MIN_CHUNK: u64 = 1 << 20;

/// A download of checkpoints from the Hugging Face hub.
///
/// What is not set comes from the environment, as in every tool of the hub: `HF_ENDPOINT`,
/// `HF_TOKEN` (or the token of `hf auth login`), `HF_HUB_CACHE` or `HF_HOME`, `HF_HUB_OFFLINE`.
///
/// ```no_run
/// use gpt_oss_puzzle::weights::{Checkpoint, Hub};
///
/// let dir = Hub::new().download("openai/gpt-oss-20b", "main", |p| {
///     eprint!("\r{} of {} bytes", p.bytes_done, p.bytes_total);
/// })?;
/// let checkpoint = Checkpoint::open(&dir)?;
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Hub {
    endpoint: Option<String>,
    token: Option<String>,
    cache_dir: Option<PathBuf>,
    offline: bool,
}

/// How far a download is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadProgress {
    /// The file in transfer.
    pub file: String,
    /// Bytes there, of all files and including those found in the cache; never decreases.
    pub bytes_done: u64,
    /// Bytes of all files; the same in every report.
    pub bytes_total: u64,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token_set", &self.token.is_some())
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish()
    }
}

impl Hub {
    /// A hub with the settings of the environment.
    pub fn new() -> Hub {
        let set = |v: String| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str());
        Hub { offline: std::env::var("HF_HUB_OFFLINE").is_ok_and(set), ..Hub::default() }
    }

    /// The server, instead of `HF_ENDPOINT` or `https://huggingface.co`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Hub {
        self.endpoint = Some(url.into());
        self
    }

    /// The access token, instead of `HF_TOKEN` or the stored one.
    pub fn token(mut self, token: impl Into<String>) -> Hub {
        self.token = Some(token.into());
        self
    }

    /// The cache directory (what holds `models--owner--name`), instead of `HF_HUB_CACHE` or
    /// `HF_HOME/hub`.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Hub {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Whether to use the cache alone and never the network.
    pub fn offline(mut self, offline: bool) -> Hub {
        self.offline = offline;
        self
    }

    /// Downloads what this crate reads of the model repository `repo` (`owner/name`) at `revision`
    /// (a branch, a tag, or a commit) and returns the directory to open.
    ///
    /// A commit that is in the cache is returned without touching the network; a branch or tag is
    /// asked for its commit first, and taken from the cache when the hub cannot be reached. An
    /// interrupted download goes on where it stopped, in this call after a dropped connection and
    /// in the next one after a crash. `progress` is called from another thread.
    ///
    /// # Errors
    /// `Download` with repository, revision, file and what to do about it; `InvalidRequest` for a
    /// name that is no repository; `Io` when the cache cannot be written.
    pub fn download(
        &self,
        repo: &str,
        revision: &str,
        progress: impl Fn(&DownloadProgress) + Send + Sync + 'static,
    ) -> Result<PathBuf> {
        let (owner, name) = parse(repo, revision)?;
        let mut builder = HFClient::builder().retry_max_attempts(1);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &self.token {
            builder = builder.token(token);
        }
        if let Some(dir) = &self.cache_dir {
            builder = builder.cache_dir(dir);
        }
        let client = builder.build().map_err(|e| {
            Error::new(ErrorKind::Download, format!("cannot use the hub: {e}")).with_source(e)
        })?;
        let cache = Cache::new(client.cache_dir(), owner, name);
        let context = Context::new(client.endpoint(), repo, revision);
        let cached = cache.complete_snapshot(revision);
        if let Some(dir) = cached.as_ref().filter(|_| self.offline || cache::is_commit(revision)) {
            return Ok(dir.clone());
        }
        if self.offline {
            return Err(context.error("is not in the cache, and the network is not to be used"));
        }
        let client = HFClientSync::from_inner(client).map_err(|e| context.failure(None, e))?;
        let remote = client.model(owner, name);
        // With an answer in the cache there is no point in waiting for the hub.
        let attempts = if cached.is_some() { 1 } else { failure::ATTEMPTS };
        let commit =
            context.retry(attempts, || remote.info().revision(revision.to_string()).send());
        let commit = match (commit, cached) {
            (Ok(info), _) => info.sha.filter(|sha| cache::is_commit(sha)),
            (Err(failure), Some(dir)) if failure.is_unreachable() => {
                tracing::warn!("{}; using the cached {}", failure.into_error(), dir.display());
                return Ok(dir);
            }
            (Err(failure), _) => return Err(failure.into_error()),
        };
        let commit = commit.ok_or_else(|| context.error("answered without a commit"))?;
        let transfer = Transfer { remote, context, cache, commit };
        let dir = transfer.run(progress)?;
        transfer.cache.write_ref(revision, &transfer.commit)?;
        Ok(dir)
    }
}

/// Owner and name of a repository; every part is fit to be a file name.
fn parse<'a>(repo: &'a str, revision: &str) -> Result<(&'a str, &'a str)> {
    let fits = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.')
    };
    if revision.is_empty() || !revision.split('/').all(fits) {
        return Err(Error::invalid_request(format!(
            "revision {}: expected a branch, a tag or a commit",
            shown(revision)
        )));
    }
    (repo.split_once('/').filter(|(owner, name)| fits(owner) && fits(name))).ok_or_else(|| {
        Error::invalid_request(format!(
            "model {}: expected owner/name, as in openai/gpt-oss-20b, or a directory",
            shown(repo)
        ))
    })
}

/// One commit of one repository on its way into the cache.
struct Transfer<'a> {
    remote: HFRepositorySync<RepoTypeModel>,
    context: Context<'a>,
    cache: Cache,
    commit: String,
}

impl Transfer<'_> {
    fn run(&self, progress: impl Fn(&DownloadProgress) + Send + Sync + 'static) -> Result<PathBuf> {
        let listing = self.listing()?;
        let meter = Arc::new(Meter::new(progress));
        let find = |name: &str| listing.get(name).map(|remote| (name.to_string(), remote));
        let mut files: Vec<_> = SMALL.iter().filter_map(|name| find(name)).collect();
        if !listing.contains_key("config.json") {
            return Err(self.context.error("has no config.json"));
        }
        if let Some((name, remote)) = find(shards::INDEX) {
            // Needed to know what else there is, and so the total.
            let index = self.fetch(&name, remote, &meter)?;
            for shard in
                shards::read_index(&index)?.into_values().collect::<std::collections::BTreeSet<_>>()
            {
                safetensors::bare(&self.cache.snapshot(&self.commit), &shard)?;
                let Some(file) = find(&shard) else {
                    return Err(self
                        .context
                        .error(&format!("has no {}, which its index names", shown(&shard))));
                };
                files.push(file);
            }
            files.insert(0, (name, remote));
        } else if let Some(single) = find("model.safetensors") {
            files.push(single);
        } else {
            let found = listing.keys().take(8).map(|name| shown(name)).collect::<Vec<_>>();
            return Err(self.context.error(&format!(
                "has no safetensors weights, found {} files: {}",
                listing.len(),
                found.join(", ")
            )));
        }
        let total = files.iter().try_fold(0u64, |sum, (_, remote)| sum.checked_add(remote.size));
        meter.total.store(total.unwrap_or(u64::MAX), Ordering::Relaxed);
        for (name, remote) in &files {
            self.fetch(name, remote, &meter)?;
            meter.finish(name, remote.size);
        }
        Ok(self.cache.snapshot(&self.commit))
    }

    /// The files at the top of the repository.
    fn listing(&self) -> Result<BTreeMap<String, Remote>> {
        let entries = (self.context)
            .retry(failure::ATTEMPTS, || {
                self.remote.list_tree().revision(self.commit.clone()).send()
            })
            .map_err(Failure::into_error)?;
        let mut listing = BTreeMap::new();
        for entry in entries {
            if let RepoTreeEntry::File { oid, size, path, lfs, .. } = entry {
                let etag = lfs.and_then(|lfs| lfs.sha256).unwrap_or(oid);
                listing.insert(path, Remote::new(etag, size, &self.context)?);
            }
        }
        Ok(listing)
    }

    /// The path of `name` in the snapshot, once all of it is there.
    fn fetch(&self, name: &str, remote: &Remote, meter: &Arc<Meter>) -> Result<PathBuf> {
        let Some(mut partial) = self.cache.begin(&self.commit, name, remote)? else {
            return Ok(self.cache.snapshot(&self.commit).join(name));
        };
        let mut patience = self.context.patience(Some(name));
        let mut chunk = CHUNK;
        while partial.len() < remote.size {
            let (start, end) =
                (partial.len(), remote.size.min(partial.len().saturating_add(chunk)));
            // A file in one piece needs no range, which not every server has for small files.
            let range = (end - start < remote.size).then_some(start..end);
            meter.begin(name, start);
            let request = self.remote.download_file_to_bytes().filename(name);
            let request = request.revision(self.commit.clone()).progress(meter.clone());
            let bytes = match request.maybe_range(range.clone()).send() {
                Ok(bytes) => bytes,
                Err(error) => {
                    patience.after(error).map_err(Failure::into_error)?;
                    // Fewer bytes at stake on a connection that drops.
                    chunk = MIN_CHUNK;
                    continue;
                }
            };
            let found = bytes.len() as u64;
            let part = match found {
                // The whole file, from a server that does without ranges.
                _ if range.is_some() && found == remote.size => &bytes[start as usize..],
                _ if found == end - start => &bytes[..],
                _ => {
                    return Err(self.context.error(&format!(
                        "sent {found} bytes of {}, expected {}",
                        shown(name),
                        end - start
                    )));
                }
            };
            partial.append(part)?;
            patience.restore();
            chunk = CHUNK.min(chunk * 2);
        }
        self.cache.finish(partial, &self.commit, name, remote)
    }
}

/// Adds up what has arrived and reports it.
struct Meter {
    /// Bytes of the files that are there.
    files: AtomicU64,
    /// Bytes of the current file before the current request.
    start: AtomicU64,
    /// The largest number reported.
    shown: AtomicU64,
    total: AtomicU64,
    file: Mutex<String>,
    report: Box<dyn Fn(&DownloadProgress) + Send + Sync>,
}

impl Meter {
    fn new(report: impl Fn(&DownloadProgress) + Send + Sync + 'static) -> Meter {
        let [files, start, shown, total] = [0; 4].map(AtomicU64::new);
        Meter { files, start, shown, total, file: Mutex::default(), report: Box::new(report) }
    }

    fn begin(&self, file: &str, start: u64) {
        *self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = file.to_string();
        self.start.store(start, Ordering::Relaxed);
    }

    fn finish(&self, file: &str, size: u64) {
        self.begin(file, 0);
        self.show(size);
        self.files.fetch_add(size, Ordering::Relaxed);
    }

    /// Reports `bytes` of the current request; a request that starts over reports nothing new at
    /// first.
    fn show(&self, bytes: u64) {
        let start = self.files.load(Ordering::Relaxed) + self.start.load(Ordering::Relaxed);
        let (done, total) = (start.saturating_add(bytes), self.total.load(Ordering::Relaxed));
        // Before the total is known there is nothing to compare with.
        if total > 0 && done <= total && self.shown.fetch_max(done, Ordering::Relaxed) < done {
            let file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
            (self.report)(&DownloadProgress { file, bytes_done: done, bytes_total: total });
        }
    }
}

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(DownloadEvent::Progress { files }) = event {
            files.iter().for_each(|file| self.show(file.bytes_completed));
        }
    }
}
