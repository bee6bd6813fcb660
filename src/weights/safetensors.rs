//! The mapped shards: headers parsed and checked, tensors as slices of the mapping. The only mmap
//! of the crate.
//!
//! A file is hostile until checked. The header is parsed here, over the record types of the
//! [safetensors format](https://github.com/huggingface/safetensors), because the library's own
//! reader names neither file nor tensor and lets the second of two equal names win. Nothing is
//! allocated in proportion to a number found in a file: only in proportion to bytes that are there.
//! This module knows nothing of models.

use super::{json, shown};
use crate::{Error, Result};
use half::bf16;
use memmap2::Mmap;
use safetensors::Dtype;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian and are used in place");

/// Longest header accepted; those of the published models are below 200 KB.
const MAX_HEADER: u64 = 1 << 24;
/// Most dimensions accepted; this family uses four.
const MAX_RANK: usize = 8;

/// Where the bytes of a tensor live.
enum Data {
    Mapped(Mmap),
    /// Eight-byte words, so that every element type is aligned.
    Owned(Vec<u64>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            // SAFETY: the pointer and length are those of an initialised Vec<u64>, which lives as
            // long as the borrow of self; u8 has no alignment and every bit pattern is a u8.
            Data::Owned(words) => unsafe {
                std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), words.len() * 8)
            },
        }
    }
}

/// A tensor as stored: a slice of a mapped shard, or owned bytes; cheap to clone.
///
/// The mapping stays alive as long as any tensor of it. Truncating a shard while it is mapped ends
/// the process with a bus error, as with every memory-mapped file.
#[derive(Clone)]
pub struct StoredTensor {
    data: Arc<Data>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
    file: Arc<Path>,
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredTensor({} {:?} in {})", self.dtype, self.shape, self.file.display())
    }
}

impl StoredTensor {
    /// A tensor of owned bytes, filled eight bytes at a time. `words` may end in unused bytes.
    pub(super) fn from_words(words: Vec<u64>, dtype: Dtype, shape: &[usize]) -> StoredTensor {
        let bytes =
            bytes_of(dtype, shape).filter(|b| *b <= words.len() * 8).expect("filled to the shape");
        StoredTensor {
            data: Arc::new(Data::Owned(words)),
            range: 0..bytes,
            dtype,
            shape: shape.to_vec(),
            file: Path::new("(memory)").into(),
        }
    }

    /// A tensor of `shape` and of this one's dtype whose bytes begin `start` bytes into it.
    pub(super) fn piece(&self, start: usize, shape: &[usize]) -> StoredTensor {
        let start = self.range.start + start;
        let end = bytes_of(self.dtype, shape).map(|bytes| start + bytes);
        let end = end.filter(|end| *end <= self.range.end).expect("within the tensor");
        StoredTensor { range: start..end, shape: shape.to_vec(), ..self.clone() }
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shard this tensor lives in.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes as stored, row-major, little-endian. Mapped bytes may start at any address.
    pub fn bytes(&self) -> &[u8] {
        &self.data.bytes()[self.range.clone()]
    }

    /// The elements of a BF16 tensor.
    ///
    /// # Panics
    /// When the tensor is not BF16. [`Checkpoint::bf16`](super::Checkpoint::bf16) and
    /// [`ExpertTensors::Bf16`](super::ExpertTensors::Bf16) only give BF16 tensors; blocks and
    /// scales are bytes.
    pub fn bf16(&self) -> &[bf16] {
        assert!(self.dtype == Dtype::BF16, "a {} tensor read as BF16", self.dtype);
        // SAFETY: bf16 is a transparent u16, for which every bit pattern is valid; align_to itself
        // respects alignment, and leaves both ends empty for what `aligned` has returned.
        let (before, elements, after) = unsafe { self.bytes().align_to::<bf16>() };
        assert!(before.is_empty() && after.is_empty(), "a BF16 tensor at an odd address");
        elements
    }

    /// Rows `range` of the outermost dimension, without copying.
    ///
    /// # Panics
    /// When the range is decreasing or ends after the last row, or the tensor has no dimensions.
    pub fn rows(&self, range: Range<usize>) -> StoredTensor {
        let rows = self.shape[0];
        assert!(range.start <= range.end && range.end <= rows, "rows {range:?} of {rows}");
        // rows == 0 leaves only the empty range.
        let row_bytes = self.range.len().checked_div(rows).unwrap_or(0);
        let mut view = self.clone();
        view.shape[0] = range.len();
        view.range =
            self.range.start + range.start * row_bytes..self.range.start + range.end * row_bytes;
        view
    }

    /// Itself, or, when its elements start at an odd address, an aligned copy.
    ///
    /// The format does not promise alignment: a header of odd length shifts every tensor behind it.
    /// Writers pad the header, so this copies nothing for the published files.
    pub(super) fn aligned(self) -> StoredTensor {
        let bytes = self.bytes();
        if !bytes.as_ptr().addr().is_multiple_of(align_of::<bf16>()) {
            let words = bytes.chunks(8).map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            });
            let copy = StoredTensor::from_words(words.collect(), self.dtype, &self.shape);
            return StoredTensor { file: self.file, ..copy };
        }
        self
    }
}

/// Bytes of a tensor, `None` when that overflows or is not a whole number.
fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, d| product.checked_mul(*d))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The record of one tensor in a header.
#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: json::Short<MAX_RANK>,
    data_offsets: (usize, usize),
}

/// Maps the shard at `path` and returns its tensors by name.
pub(super) fn open(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let fail = |message: String| Error::checkpoint(format!("{}: {message}", path.display()));
    // Asked before opening, because opening a pipe waits for its writer.
    if !path.metadata().map_err(|e| Error::io("open", path, e))?.is_file() {
        return Err(fail("not a regular file".into()));
    }
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    if size < 8 {
        return Err(fail(format!("expected a safetensors file, found {size} bytes")));
    }
    // SAFETY: the mapping is private and read-only. Another process may still write to or truncate
    // the file; no Rust value depends on the bytes staying what they are (lengths are checked once
    // and every bit pattern of u8 and bf16 is valid), and truncation is the documented limit of
    // StoredTensor.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
    let (length, rest) = map.split_first_chunk::<8>().ok_or_else(|| fail("file shrank".into()))?;
    let length = u64::from_le_bytes(*length);
    let limit = MAX_HEADER.min(rest.len() as u64);
    if length > limit {
        return Err(fail(format!(
            "header of {length} bytes, expected at most {limit} in a file of {size} bytes"
        )));
    }
    let (header, body) = rest.split_at(length as usize);
    let start = map.len() - body.len();
    let json::UniqueMap::<Entry>(entries) = serde_json::from_slice(header)
        .map_err(|e| fail(format!("invalid header: {e}")).with_source(e))?;
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, entry) in &entries {
        let Entry { dtype, shape, data_offsets: (begin, end) } = entry;
        let shape = shape.as_slice();
        let tensor = || format!("tensor {} of {dtype} {shape:?}", shown(name));
        let bytes =
            bytes_of(*dtype, shape).ok_or_else(|| fail(format!("{} overflows", tensor())))?;
        if end.checked_sub(*begin) != Some(bytes) {
            return Err(fail(format!(
                "{} takes {bytes} bytes, data_offsets say [{begin}, {end}]",
                tensor()
            )));
        }
        if *end > body.len() {
            return Err(fail(format!(
                "{} ends at byte {end} of the data, the file holds {} (truncated?)",
                tensor(),
                body.len()
            )));
        }
        ranges.push((*begin, *end, name));
    }
    // The tensors must tile the data: no overlap, no hole, nothing behind the last.
    ranges.sort_unstable();
    let mut covered = 0;
    for (begin, end, name) in &ranges {
        if *begin != covered {
            let what = if *begin < covered { "overlaps the one before" } else { "leaves a hole" };
            return Err(fail(format!(
                "tensor {} {what}: starts at byte {begin} of the data, expected {covered}",
                shown(name)
            )));
        }
        covered = *end;
    }
    if covered != body.len() {
        return Err(fail(format!(
            "{} bytes of data, but the header describes {covered}",
            body.len()
        )));
    }
    drop(ranges);
    let (data, file) = (Arc::new(Data::Mapped(map)), Arc::<Path>::from(path));
    let tensor = |(name, entry): (String, Entry)| {
        let Entry { dtype, shape, data_offsets: (begin, end) } = entry;
        let range = start + begin..start + end;
        let shape = shape.as_slice().to_vec();
        let (data, file) = (data.clone(), file.clone());
        (name, StoredTensor { data, range, dtype, shape, file })
    };
    Ok(entries.into_iter().map(tensor).collect())
}

/// Refuses the `name` of a file that an index gives unless it is a bare file name.
pub(super) fn bare(dir: &Path, name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(std::path::Component::Normal(part)), None) if part == name => Ok(()),
        _ => Err(Error::checkpoint(format!(
            "{}: the index names {}, expected a file in this directory",
            dir.display(),
            shown(name)
        ))),
    }
}

/// `name` inside `dir`, when it is a bare file name and leads nowhere else.
///
/// A name in an index is data of the checkpoint, so it must not reach other files: no directories,
/// no `..`, and no link out of `dir` except into the `blobs` of a Hugging Face cache
/// (`models--owner--name/snapshots/<revision>/x -> ../../blobs/<hash>`).
pub(super) fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    bare(dir, name)?;
    let path = dir.join(name);
    let target = path.canonicalize().map_err(|e| Error::io("open", &path, e))?;
    let home = dir.canonicalize().map_err(|e| Error::io("open", dir, e))?;
    let parent = target.parent().unwrap_or(&target);
    let in_blobs = parent.file_name().is_some_and(|n| n == "blobs")
        && parent
            .parent()
            .and_then(Path::file_name)
            .is_some_and(|repo| repo.as_encoded_bytes().starts_with(b"models--"));
    if parent != home && !in_blobs {
        return Err(Error::checkpoint(format!(
            "{} is a link to {}, expected a file in this directory or in a hub cache",
            path.display(),
            target.display()
        )));
    }
    Ok(path)
}
