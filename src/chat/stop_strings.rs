//! [`StopStrings`]: ends an answer before a given text.

use crate::{Error, Result};

/// Looks for stop strings in a text that arrives in pieces. What may still become one is held back.
///
/// Chats have one of their own, see [`super::ChatRequest::stop`]; this is for texts of raw prompts.
///
/// ```
/// use gpt_oss_puzzle::chat::StopStrings;
///
/// let mut watch = StopStrings::new(&["END".into()])?;
/// assert_eq!(watch.push("one E"), "one ");
/// assert_eq!(watch.push("ND two"), "");
/// assert_eq!(watch.found(), Some("END"));
/// # Ok::<(), gpt_oss_puzzle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text not passed on yet: it may be the beginning of a stop string.
    held: String,
    found: Option<String>,
}

impl StopStrings {
    /// Looks for these.
    ///
    /// # Errors
    /// `InvalidRequest` for an empty stop string, which would end every answer at once.
    pub fn new(stops: &[String]) -> Result<StopStrings> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::invalid_request(format!(
                "stop string {index} of {} is empty (\"\"), expected at least one character",
                stops.len()
            )));
        }
        Ok(StopStrings { stops: stops.to_vec(), held: String::new(), found: None })
    }

    /// Takes the next piece and gives the text that belongs to the answer for certain.
    ///
    /// The stop string that is complete first counts, and of several the longest: so that the pieces
    /// the text comes in do not matter.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let ends = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = ends.min() {
            self.found = Some(stop.clone());
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let may_begin = |at: &usize| {
            let rest = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(rest))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = (from..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(may_begin)
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of a message: what was held back is text after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that came up.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::StopStrings;

    /// The answer and the stop string, for the text in pieces of these lengths in characters.
    fn cut(text: &str, stops: &[&str], pieces: &[usize]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).into()).collect();
        let mut watch = StopStrings::new(&stops).unwrap();
        let mut chars = text.chars();
        let mut out = String::new();
        for &length in pieces.iter().chain(&[usize::MAX]) {
            let piece: String = chars.by_ref().take(length).collect();
            out += &watch.push(&piece);
        }
        if watch.found().is_none() {
            out += &watch.flush();
        }
        (out, watch.found().map(Into::into))
    }

    #[test]
    fn pieces_do_not_matter() {
        let cases: [(&str, &[&str], &str, Option<&str>); 9] = [
            ("one END two", &["END"], "one ", Some("END")),
            ("one EN two", &["END"], "one EN two", None),
            ("aaab", &["aab"], "a", Some("aab")),
            ("xabcx", &["abcd", "b"], "xa", Some("b")),
            ("xabx", &["b", "ab"], "x", Some("ab")),
            ("日本🌧語", &["🌧"], "日本", Some("🌧")),
            ("日本🌧語", &["本🌧x", "語"], "日本🌧", Some("語")),
            ("ends in EN", &["END", "EN?"], "ends in EN", None),
            ("END", &["END"], "", Some("END")),
        ];
        for (text, stops, answer, stop) in cases {
            let length = text.chars().count();
            for pieces in 0..1 << (length - 1) {
                // Each bit is a place to cut at.
                let mut lengths = vec![1];
                for at in 0..length - 1 {
                    match pieces >> at & 1 {
                        1 => lengths.push(1),
                        _ => *lengths.last_mut().unwrap() += 1,
                    }
                }
                let found = cut(text, stops, &lengths);
                assert_eq!(found, (answer.into(), stop.map(Into::into)), "{text} {lengths:?}");
            }
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut watch = StopStrings::new(&["abc".into()]).unwrap();
        assert_eq!(watch.push("xab"), "x");
        assert_eq!(watch.push("a"), "ab");
        assert_eq!(watch.push("q"), "aq");
        let mut none = StopStrings::new(&[]).unwrap();
        assert_eq!(none.push("xab"), "xab");
    }
}
