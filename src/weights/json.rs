//! JSON of files that are not trusted: maps whose names are unique, lists of bounded length, texts
//! of bounded size.

use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads a text file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    if !meta.is_file() || meta.len() > limit {
        return Err(Error::checkpoint(format!(
            "{}: expected a file of at most {limit} bytes, found {} bytes",
            path.display(),
            meta.len()
        )));
    }
    std::fs::read(path).map_err(|e| Error::io("read", path, e))
}

/// Writes a text file through a temporary one beside it, so that no reader meets half of it.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = temporary(path);
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| Error::io("write", path, e))
}

/// A name beside `path` that no other writer uses, in this process or another.
pub(super) fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{process}.{count}.tmp"))
}

/// A JSON object whose keys are unique. What `__metadata__` holds, where safetensors allows free
/// text, is skipped.
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique(PhantomData)).map(UniqueMap)
    }
}

struct Unique<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
    // A tree of small nodes: no allocation grows with a hostile file.
    type Value = BTreeMap<String, V>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            if key == "__metadata__" {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            let named = |e| A::Error::custom(format_args!("{}: {e}", super::shown(&key)));
            let value = access.next_value::<V>().map_err(named)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{} twice", super::shown(&key))));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// At most `N` numbers.
pub(super) struct Short<const N: usize> {
    values: [usize; N],
    len: usize,
}

impl<const N: usize> Short<N> {
    pub(super) fn as_slice(&self) -> &[usize] {
        &self.values[..self.len]
    }
}

impl<'de, const N: usize> Deserialize<'de> for Short<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Numbers<N> {
            type Value = Short<N>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {N} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Short<N>, A::Error> {
                let mut short = Short { values: [0; N], len: 0 };
                while let Some(value) = access.next_element()? {
                    *(short.values.get_mut(short.len))
                        .ok_or_else(|| A::Error::invalid_length(N + 1, &self))? = value;
                    short.len += 1;
                }
                Ok(short)
            }
        }
        deserializer.deserialize_seq(Numbers)
    }
}
