//! How long a conversation may be: what weights and cache take of the memory there is.

use crate::cache::{KvCache, KvDtype, PAGE_TOKENS};
use crate::model::{DeviceMemory, DeviceName, workspace};
use crate::{Error, ErrorKind, ModelConfig, Result};

/// Marks that the cache has room for beside a conversation, see [`crate::cache`]: places of it that others, or its
/// own next turn, can go on from.
const MARKS: usize = 4;

/// The context below which memory is not looked at.
const SMALL_CONTEXT: usize = 4096;

/// What cache pages conversations take.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) dtype: KvDtype,
    pub(super) chunk: usize,
    pub(super) sequences: usize,
}

impl Room<'_> {
    /// Pages of all conversations, of `context` tokens and with [`MARKS`] each.
    pub(super) fn pages(&self, context: usize) -> usize {
        let one = KvCache::pages_for(self.config, context, self.chunk);
        let marks = MARKS.saturating_mul(pages_of_a_mark(self.config, context, self.chunk));
        self.sequences.saturating_mul(one.saturating_add(marks))
    }

    fn bytes(&self, context: usize) -> u64 {
        let page = KvCache::page_bytes(self.config, self.dtype);
        self.pages(context).saturating_mul(page) as u64
    }

    /// The context in host memory: what was asked for, else the model's limit, or less where the cache
    /// would take more than half of the memory that is left beside `weights` bytes in mapped files.
    pub(super) fn context_on_host(&self, asked: Option<usize>, weights: u64) -> usize {
        asked.unwrap_or_else(|| match available_memory() {
            None => self.config.max_position_embeddings,
            // Weights in mapped files count as available until they are read.
            Some(available) => self.context_within(available.saturating_sub(weights) / 2),
        })
    }

    /// The context of one conversation in host memory, and the pages of as many as there is memory for.
    pub(super) fn filled_on_host(&self, asked: Option<usize>, weights: u64) -> (usize, usize) {
        let one = Room { sequences: 1, ..*self };
        let context = one.context_on_host(asked, weights);
        let fits = available_memory()
            .map_or(usize::MAX, |available| self.pages_in(available.saturating_sub(weights) / 2));
        (context, self.pages(context).min(fits).max(one.pages(context)))
    }

    /// The context of one conversation on a device, and all the pages that a `share` of its memory has room for.
    pub(super) fn filled_on_device(
        &self,
        asked: Option<usize>,
        weights: u64,
        memory: DeviceMemory,
        share: f64,
        device: DeviceName,
    ) -> Result<(usize, usize)> {
        let others = memory.total.saturating_sub(memory.free);
        let ours = ((memory.total as f64 * share) as u64).saturating_sub(others);
        // What more sequences take in a step, as if it were weights.
        let step = |sequences| workspace(self.config, self.chunk.max(sequences), sequences);
        let fixed = weights.saturating_add(step(self.sequences).saturating_sub(step(1)));
        let one = Room { sequences: 1, ..*self };
        let context = one.context_on_device(asked, fixed, ours, device)?;
        let left = ours.saturating_sub(fixed).saturating_sub(step(1));
        Ok((context, self.pages_in(left).max(one.pages(context))))
    }

    /// How many pages take so many bytes.
    fn pages_in(&self, bytes: u64) -> usize {
        let pages = bytes / KvCache::page_bytes(self.config, self.dtype) as u64;
        // Page numbers have 32 bits.
        pages.min(u64::from(u32::MAX - 1)) as usize
    }

    /// The context on a device with `free` bytes, `weights` of which the weights take: what was asked
    /// for, else the model's limit or what fits.
    pub(super) fn context_on_device(
        &self,
        asked: Option<usize>,
        weights: u64,
        free: u64,
        device: DeviceName,
    ) -> Result<usize> {
        let workspace = workspace(self.config, self.chunk.max(self.sequences), self.sequences);
        let fixed = weights.saturating_add(workspace);
        let for_cache = free.saturating_sub(fixed);
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let have = format!(
            "{device} has {:.2} GB free; the weights take {:.2} GB, a step {:.2} GB",
            gigabytes(free),
            gigabytes(weights),
            gigabytes(workspace)
        );
        // What fits is known to a page, so that one is left.
        let longest = self.longest_within(for_cache, 0);
        if fixed > free || longest == 0 {
            return Err(Error::new(ErrorKind::Device, format!("{have}, which leaves no context")));
        }
        match asked {
            Some(context) if self.bytes(context) > for_cache => {
                Err(Error::invalid_request(format!(
                    "{have}, and the cache of {} of {context} tokens {:.2} GB; a context of {longest} fits",
                    match self.sequences {
                        1 => "a conversation".into(),
                        n => format!("{n} conversations"),
                    },
                    gigabytes(self.bytes(context))
                )))
            }
            Some(context) => Ok(context),
            None => Ok(longest),
        }
    }

    /// The longest context whose cache takes at most `bytes`, between [`SMALL_CONTEXT`] and the
    /// model's limit.
    fn context_within(&self, bytes: u64) -> usize {
        self.longest_within(bytes, SMALL_CONTEXT.min(self.config.max_position_embeddings))
    }

    /// The same, between `least` and the model's limit.
    fn longest_within(&self, bytes: u64, least: usize) -> usize {
        let fits = |context: usize| self.bytes(context) <= bytes;
        let limit = self.config.max_position_embeddings;
        let mut fitting = least;
        let mut beyond = limit + 1;
        while beyond - fitting > PAGE_TOKENS {
            let middle = fitting + (beyond - fitting) / 2;
            if fits(middle) { fitting = middle } else { beyond = middle }
        }
        if fits(limit) { limit } else { fitting }
    }
}

/// Pages that a mark holds beside those of the conversation that goes on from it: what the windows cover, and a
/// page per layer. Layers without a window share the rest for good.
fn pages_of_a_mark(config: &ModelConfig, context: usize, chunk: usize) -> usize {
    let full = config.block_configs.iter().filter(|b| b.sliding_window.is_none()).count();
    KvCache::pages_for(config, context, chunk) - full * context.div_ceil(PAGE_TOKENS)
        + config.num_hidden_layers()
}

/// Memory that can be had without swapping, in bytes, where the system says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn room(config: &ModelConfig) -> Room<'_> {
        Room { config, dtype: KvDtype::Fp8, chunk: 512, sequences: 1 }
    }

    #[test]
    fn a_device_gives_the_context_that_fits_beside_the_weights() {
        let config = ModelConfig::puzzle_88b();
        let (room, weights) = (room(&config), 50 * GB);
        let context =
            |asked, free| room.context_on_device(asked, weights, free, DeviceName::Cuda(0));
        assert_eq!(context(None, 80 * GB).unwrap(), 131_072);
        let less = context(None, 51 * GB + GB / 2).unwrap();
        assert!((4096..131_072).contains(&less), "{less}");
        assert_eq!(context(Some(less), 51 * GB + GB / 2).unwrap(), less, "as promised");
        assert_eq!(context(Some(100), 80 * GB).unwrap(), 100);
        let taken = room.bytes(less) + weights + workspace(&config, 512, 1);
        assert!(taken <= 51 * GB + GB / 2, "{taken}");

        let error = context(Some(131_072), 51 * GB + GB / 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let text = error.to_string();
        assert!(
            text.starts_with("cuda:0 has 51.50 GB free; the weights take 50.00 GB, a step"),
            "{text}"
        );
        assert!(text.ends_with(&format!("a context of {less} fits")), "{text}");

        for free in [49 * GB, 50 * GB + 1, 0] {
            let error = context(None, free).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device);
            assert!(error.to_string().ends_with("which leaves no context"), "{error}");
        }
    }

    #[test]
    fn an_engine_has_the_pages_that_its_share_of_a_device_has_room_for() {
        let config = ModelConfig::puzzle_88b();
        let room = Room { sequences: 64, ..room(&config) };
        let memory = DeviceMemory { free: 78 * GB, total: 80 * GB };
        let fill = |share| room.filled_on_device(None, 50 * GB, memory, share, DeviceName::Cuda(0));
        let page = KvCache::page_bytes(&config, KvDtype::Fp8) as u64;
        let (context, pages) = fill(0.9).unwrap();
        assert_eq!(context, 131_072);
        // 90 % of 80 GB, 2 of which are others'.
        let taken = 2 * GB + 50 * GB + workspace(&config, 512, 64) + pages as u64 * page;
        assert!((72 * GB - page..=72 * GB).contains(&taken), "{taken}");
        assert!(fill(1.0).unwrap().1 > pages);
        assert!(fill(0.66).unwrap().0 < 131_072, "less than one conversation of full length");
        assert_eq!(fill(0.6).unwrap_err().kind(), ErrorKind::Device);
    }

    #[test]
    fn the_host_is_asked_for_small_contexts_at_least() {
        let config = ModelConfig::puzzle_88b();
        let room = room(&config);
        assert_eq!(room.context_on_host(Some(77), 0), 77);
        assert_eq!(room.context_within(0), SMALL_CONTEXT);
        assert_eq!(room.context_within(u64::MAX), 131_072);
    }
}
