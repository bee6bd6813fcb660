//! Which files of a directory hold the weights, and all their tensors by name.

use super::safetensors::{self, StoredTensor};
use super::{json, shown};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Longest index accepted; those of the published models are below 100 KB.
const MAX_INDEX: u64 = 1 << 24;

/// The directory that holds weights: `dir` itself, or its `original/` folder.
pub(super) fn root(dir: &Path) -> Result<PathBuf> {
    if dir.is_file() {
        return Err(Error::checkpoint(format!(
            "{} is a file, expected a directory with config.json and safetensors weights",
            dir.display()
        )));
    }
    let names = names(dir)?;
    if has_weights(&names) {
        return Ok(dir.to_path_buf());
    }
    let original = dir.join("original");
    if original.is_dir() && has_weights(&self::names(&original)?) {
        return Ok(original);
    }
    let other = |n: &&String| {
        let end = Path::new(n).extension().and_then(|e| e.to_str());
        matches!(end, Some("gguf" | "bin" | "pt" | "pth" | "npz" | "safetensors"))
    };
    let found = match names.iter().filter(other).take(3).map(|n| shown(n)).collect::<Vec<_>>() {
        found if found.is_empty() => format!("{} files, none of them weights", names.len()),
        found => found.join(", "),
    };
    Err(Error::checkpoint(format!(
        "{}: expected {INDEX} or model*.safetensors, found {found}",
        dir.display()
    )))
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let read = |e| Error::io("open the checkpoint directory", dir, e);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        // A name that is not UTF-8 is none of ours.
        names.extend(entry.map_err(read)?.file_name().into_string().ok());
    }
    Ok(names)
}

fn has_weights(names: &BTreeSet<String>) -> bool {
    names.iter().any(|name| name == INDEX || is_shard(name))
}

fn is_shard(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// Maps the shards of `dir`: those its index names, or, without an index, every
/// `model*.safetensors`.
pub(super) fn open(dir: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, StoredTensor>)> {
    let names = names(dir)?;
    let index = if names.contains(INDEX) { Some(read_index(&dir.join(INDEX))?) } else { None };
    let shards: BTreeSet<&str> = match &index {
        Some(index) => index.values().map(String::as_str).collect(),
        None => names.iter().filter(|name| is_shard(name)).map(String::as_str).collect(),
    };
    let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
    for shard in &shards {
        let path = safetensors::inside(dir, shard)?;
        for (name, tensor) in safetensors::open(&path)? {
            if let Some(first) = tensors.insert(name.clone(), tensor) {
                return Err(Error::checkpoint(format!(
                    "tensor {} is in {} and again in {}",
                    shown(&name),
                    first.file().display(),
                    path.display()
                )));
            }
        }
        files.push(path);
    }
    for (name, shard) in index.iter().flatten() {
        let found = tensors.get(name).map(StoredTensor::file);
        if found.and_then(Path::file_name).is_none_or(|file| file != shard.as_str()) {
            return Err(Error::checkpoint(format!(
                "{}: tensor {} should be in {}, found {}",
                dir.join(INDEX).display(),
                shown(name),
                shown(shard),
                found.map_or("nowhere".into(), |file| file.display().to_string()),
            )));
        }
    }
    Ok((files, tensors))
}

/// `weight_map` of an index: the shard of each tensor.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let fail = |m: String| Error::checkpoint(format!("{}: {m}", path.display()));
    let text = json::read(path, MAX_INDEX)?;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: json::UniqueMap<String>,
    }
    let Index { weight_map: json::UniqueMap(map) } = serde_json::from_slice(&text)
        .map_err(|e| fail(format!("invalid index: {e}")).with_source(e))?;
    if map.is_empty() {
        return Err(fail("weight_map is empty".into()));
    }
    Ok(map)
}
