//! Streaming detokenisation.

/// Turns a stream of token bytes into text, never splitting a character: bytes that may still become
/// one are held back (three at most), bytes that cannot become U+FFFD, one for each maximal invalid
/// part, exactly as decoding the whole at once would.
///
/// ```
/// # use gpt_oss_puzzle::tokenizer::TextStream;
/// let mut stream = TextStream::default();
/// assert_eq!(stream.push(b"\xf0\x9f"), "");
/// assert_eq!(stream.push(b"\x8c\xa7!"), "🌧!");
/// assert_eq!(stream.push(b"\xe6\x97"), "");
/// assert_eq!(stream.finish(), "\u{fffd}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `bytes` complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // Without a length the bytes are a character's beginning: wait for the others.
                    let Some(len) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let keep = self.pending.len() - rest.len();
        self.pending.drain(..keep);
        text
    }

    /// The end of the stream: U+FFFD if it ended inside a character. The stream is then as new.
    pub fn finish(&mut self) -> String {
        let cut = !self.pending.is_empty();
        self.pending.clear();
        if cut { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}
