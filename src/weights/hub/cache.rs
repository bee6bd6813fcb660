//! The hub's cache directory: blobs by their content, snapshots that link to them, refs that name
//! commits.

use super::failure::Context;
use crate::weights::{json, safetensors, shards, shown};
use crate::{Error, ErrorKind, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Whether a revision is a full commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file of the repository: what names its content, and its length.
pub(super) struct Remote {
    etag: String,
    pub size: u64,
}

impl Remote {
    /// Refuses an `etag` that could not be a file name: it comes from the server.
    pub(super) fn new(etag: String, size: u64, context: &Context) -> Result<Remote> {
        if etag.len() >= 32 && etag.len() <= 128 && etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Remote { etag, size });
        }
        Err(context.error(&format!("listed a file with the content hash {}", shown(&etag))))
    }
}

/// A file being written, locked against other processes.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Partial {
    /// Bytes there.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(super) fn new(cache_dir: &Path, owner: &str, name: &str) -> Cache {
        Cache { root: cache_dir.join(format!("models--{owner}--{name}")) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn blob(&self, remote: &Remote) -> PathBuf {
        self.root.join("blobs").join(&remote.etag)
    }

    /// The snapshot of `revision` when everything
    /// [`Checkpoint::open`](crate::weights::Checkpoint::open) reads is in it. Files beside the
    /// weights are fetched before them, so they are there as well.
    pub(super) fn complete_snapshot(&self, revision: &str) -> Option<PathBuf> {
        let dir = match is_commit(revision) {
            true => self.snapshot(revision),
            false => {
                let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
                self.snapshot(Some(commit.trim()).filter(|commit| is_commit(commit))?)
            }
        };
        let there = |name: &str| dir.join(name).is_file();
        let index = dir.join(shards::INDEX);
        let weights = match index.exists() {
            true => shards::read_index(&index)
                .ok()?
                .into_values()
                .all(|shard| safetensors::bare(&dir, &shard).is_ok() && there(&shard)),
            false => there("model.safetensors"),
        };
        (weights && there("config.json")).then_some(dir)
    }

    /// Starts or goes on with a file; `None` when the snapshot has it already.
    pub(super) fn begin(
        &self,
        commit: &str,
        name: &str,
        remote: &Remote,
    ) -> Result<Option<Partial>> {
        let link = self.snapshot(commit).join(name);
        let complete = |path: &Path| path.metadata().is_ok_and(|meta| meta.len() == remote.size);
        if complete(&link) {
            return Ok(None);
        }
        let blob = self.blob(remote);
        let path = blob.with_extension("incomplete");
        fs::create_dir_all(self.root.join("blobs"))
            .map_err(|e| Error::io("create", &self.root, e))?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        // Another process may be at it; when it is done, so are we.
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            tracing::info!("waiting for another download of {name}");
            file.lock().map_err(|e| Error::io("lock", &path, e))?;
        }
        if complete(&blob) {
            // Nobody appends to this name any more unless it is a leftover.
            let _ = fs::remove_file(&path);
            self.link(commit, name, remote)?;
            return Ok(None);
        }
        let len = file.metadata().map_err(|e| Error::io("read", &path, e))?.len();
        if len > remote.size {
            file.set_len(0).map_err(|e| Error::io("truncate", &path, e))?;
        }
        Ok(Some(Partial { len: if len > remote.size { 0 } else { len }, path, file }))
    }

    /// Gives a complete file its names; the path in the snapshot.
    pub(super) fn finish(
        &self,
        partial: Partial,
        commit: &str,
        name: &str,
        remote: &Remote,
    ) -> Result<PathBuf> {
        let Partial { path, file, .. } = partial;
        file.sync_all().map_err(|e| Error::io("write", &path, e))?;
        let len = file.metadata().map_err(|e| Error::io("read", &path, e))?.len();
        if len != remote.size {
            // Only where the file system knows no locks.
            let _ = fs::remove_file(&path);
            return Err(Error::new(
                ErrorKind::Download,
                format!(
                    "{}: {len} bytes, expected {}: two downloads wrote to it; removed, try again",
                    path.display(),
                    remote.size
                ),
            ));
        }
        let blob = self.blob(remote);
        fs::rename(&path, &blob).map_err(|e| Error::io("rename", &path, e))?;
        self.link(commit, name, remote)
    }

    /// Links `name` of the snapshot to its blob.
    fn link(&self, commit: &str, name: &str, remote: &Remote) -> Result<PathBuf> {
        let dir = self.snapshot(commit);
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let link = dir.join(name);
        let temporary = json::temporary(&link);
        #[cfg(unix)]
        let made = {
            let blob = Path::new("../../blobs").join(&remote.etag);
            std::os::unix::fs::symlink(blob, &temporary)
        };
        // Links need privileges elsewhere; the second name of one file does not.
        #[cfg(not(unix))]
        let made = fs::hard_link(self.blob(remote), &temporary);
        made.and_then(|()| fs::rename(&temporary, &link))
            .map_err(|e| Error::io("link", &link, e))?;
        Ok(link)
    }

    /// Remembers the commit of a branch or tag.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        json::write(&path, commit)
    }
}
