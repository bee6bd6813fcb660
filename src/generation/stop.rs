//! [`StopTokens`]: the tokens that end an answer.

/// The tokens that end an answer, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopTokens(Vec<u32>);

impl StopTokens {
    /// The tokens `always` together with those that generation_config.json has `stated`, but none of
    /// `never`.
    ///
    /// The file alone cannot be trusted: that of nvidia/gpt-oss-puzzle-88B leaves `<|call|>` out, so
    /// that a model would run on past its own tool calls; and a file that lists `<|end|>` would cut
    /// the answer off after the analysis.
    ///
    /// ```
    /// use gpt_oss_puzzle::generation::StopTokens;
    ///
    /// let stop = StopTokens::new(&[200002, 199999, 200012], &[200002, 199999, 200007], &[200007]);
    /// assert_eq!(stop.ids(), [199999, 200002, 200012]);
    /// ```
    pub fn new(always: &[u32], stated: &[u32], never: &[u32]) -> StopTokens {
        let mut ids = [always, stated].concat();
        ids.retain(|id| !never.contains(id));
        ids.sort_unstable();
        ids.dedup();
        StopTokens(ids)
    }

    /// The ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// True when `id` ends the answer.
    pub fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}
