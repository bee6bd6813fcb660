//! [`GenerationConfig`]: the checkpoint's own defaults, from generation_config.json.

use super::SamplingParams;
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What generation_config.json states.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Tokens that end an answer, as the file has them; see [`super::StopTokens::new`].
    pub eos_token_id: Vec<u32>,
    /// Sampling parameters the file sets; `do_sample: false` is temperature 0.
    ///
    /// What the file leaves open stays open: transformers' own fallbacks (greedy, or a top-k of 50)
    /// are not taken, because these models are meant to be sampled at temperature 1 from everything.
    pub sampling: SamplingParams,
}

#[derive(Deserialize)]
struct Raw {
    eos_token_id: Option<Ids>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id is neither a token id nor a list of them")]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// Reads `generation_config.json` in the checkpoint directory `dir`; the defaults when there is
    /// none.
    ///
    /// # Errors
    /// `Io` when the file exists but cannot be read, `Config` when it is not what it should be.
    pub fn from_checkpoint(dir: &Path) -> Result<GenerationConfig> {
        let path = dir.join("generation_config.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(GenerationConfig::default());
            }
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        GenerationConfig::parse(&text)
            .map_err(|e| Error::config(format!("{}: {e}", path.display())).with_source(e))
    }

    /// Parses the text of a generation_config.json. Unknown fields are ignored.
    ///
    /// # Errors
    /// `Config` for text that is not JSON, or a value of the wrong type or out of its range.
    pub fn parse(json: &str) -> Result<GenerationConfig> {
        let raw: Raw = serde_json::from_str(json)
            .map_err(|e| Error::config(format!("generation configuration: {e}")).with_source(e))?;
        let temperature = match raw.do_sample {
            Some(false) => Some(0.0),
            _ => raw.temperature,
        };
        let sampling = SamplingParams {
            temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
            repetition_penalty: raw.repetition_penalty,
            ..SamplingParams::default()
        };
        sampling
            .validate(usize::MAX)
            .map_err(|e| Error::new(ErrorKind::Config, e.to_string()).with_source(e))?;
        let eos_token_id = match raw.eos_token_id {
            None => Vec::new(),
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Many(ids)) => ids,
        };
        Ok(GenerationConfig { eos_token_id, sampling })
    }
}
