//! Responses that can be asked for again, or gone on from: the newest ones, in memory.

use gpt_oss_puzzle::harmony::Message;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A response that is kept.
#[derive(Debug)]
pub(super) struct Stored {
    /// The response object.
    pub response: Value,
    /// The conversation up to its end, without instructions.
    pub conversation: Vec<Message>,
}

/// The newest responses, as many as there is room for.
#[derive(Debug)]
pub struct Store {
    most: usize,
    most_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    responses: HashMap<String, (Arc<Stored>, usize)>,
    /// Their ids, oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Store {
    /// Room for `most` responses that take up `most_bytes` together, with their conversations, as JSON.
    pub fn new(most: usize, most_bytes: usize) -> Store {
        Store { most, most_bytes, kept: Mutex::default() }
    }

    /// The response of this id.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Stored>> {
        self.lock().responses.get(id).map(|(stored, _)| stored.clone())
    }

    /// The item of this id, in which its response's id and its place there are.
    pub(super) fn item(&self, id: &str) -> Option<Value> {
        let (_, rest) = id.split_once('_')?;
        let (response, index) = rest.rsplit_once('_')?;
        let stored = self.get(&format!("resp_{response}"))?;
        let item = stored.response["output"].get(index.parse::<usize>().ok()?)?;
        (item["id"] == id).then(|| item.clone())
    }

    /// Keeps a response, for which the oldest make room. One that is larger than all the room is not kept.
    pub(super) fn put(&self, stored: Stored) {
        let id = stored.response["id"].as_str().unwrap_or_default().to_owned();
        let bytes = json_len(&stored.response) + json_len(&stored.conversation);
        if bytes > self.most_bytes || self.most == 0 {
            return;
        }
        let mut kept = self.lock();
        while kept.responses.len() >= self.most || kept.bytes + bytes > self.most_bytes {
            let Some(oldest) = kept.order.front().cloned() else { break };
            kept.delete(&oldest);
        }
        kept.bytes += bytes;
        kept.order.push_back(id.clone());
        kept.responses.insert(id, (Arc::new(stored), bytes));
    }

    /// Forgets a response; false if there is none.
    pub(super) fn delete(&self, id: &str) -> bool {
        self.lock().delete(id)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Store {
    /// Room for 1,000 responses and 64 MiB.
    fn default() -> Store {
        Store::new(1000, 64 << 20)
    }
}

impl Kept {
    fn delete(&mut self, id: &str) -> bool {
        let Some((_, bytes)) = self.responses.remove(id) else { return false };
        self.bytes -= bytes;
        self.order.retain(|kept| kept != id);
        true
    }
}

/// The length of a value's JSON, for which no text is made.
fn json_len(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither counting nor these values can fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(id: &str, text: &str) -> Stored {
        Stored { response: json!({"id": id}), conversation: vec![Message::user(text)] }
    }

    #[test]
    fn the_newest_are_kept() {
        let store = Store::new(2, 10_000);
        ["a", "b", "c"].iter().for_each(|id| store.put(stored(id, "hello")));
        assert!(store.get("a").is_none());
        assert_eq!(store.get("b").expect("kept").response["id"], "b");
        assert!(store.delete("b") && !store.delete("b"));
        store.put(stored("d", "hello"));
        assert!(store.get("c").is_some() && store.get("d").is_some(), "the place of b is free");
    }

    #[test]
    fn long_conversations_take_more_room() {
        let store = Store::new(1000, 1000);
        (0..20).for_each(|i| store.put(stored(&i.to_string(), &"x".repeat(250))));
        let kept = (0..20).filter(|i| store.get(&i.to_string()).is_some()).count();
        assert_eq!(kept, 3, "each takes up about 300 bytes of 1,000");
        // What can never fit drives out nothing.
        store.put(stored("large", &"x".repeat(2000)));
        assert!(store.get("large").is_none() && store.get("19").is_some());
        store.delete("19");
        store.delete("18");
        store.delete("17");
        assert_eq!(store.lock().bytes, 0);
    }
}
