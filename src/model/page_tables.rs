//! [`PageTables`]: the page tables of the sequences a model on a device runs on, which stay there. A step
//! brings what changed: a page for every 64 tokens of a sequence in each layer, instead of all of them.

use crate::Result;
use crate::cache::Sequence;
use crate::ops::DeviceTables;
use candle_core::Device;
use std::collections::HashMap;

/// Sequences, and pages of each, that tables have room for at first. Both are doubled when a step needs
/// more, which sends everything anew and leaves recorded steps behind.
const SEQUENCES: usize = 8;
const PAGES: usize = 16;

/// Whose table is where on the device, and how new it is. Sequences may be of several caches, come and go
/// in any order; the ones that were not run for longest make room.
///
/// Entries of pages that a window has left are not kept up to date, because nobody reads them.
pub(super) struct PageTables {
    device: Device,
    layers: usize,
    tables: Option<DeviceTables>,
    holders: Vec<Option<Holder>>,
    /// Numbers of holders by their id.
    numbers: HashMap<u64, usize>,
    /// Counts steps.
    step: u64,
    changes: Vec<u32>,
}

/// A sequence whose table is on the device.
struct Holder {
    id: u64,
    /// Of the sequence, when the table was last brought up to date.
    edits: u64,
    pages: usize,
    last_step: u64,
}

impl PageTables {
    /// For a model of so many layers on `device`.
    pub(super) fn new(device: &Device, layers: usize) -> PageTables {
        PageTables {
            device: device.clone(),
            layers,
            tables: None,
            holders: Vec::new(),
            numbers: HashMap::new(),
            step: 0,
            changes: Vec::new(),
        }
    }

    /// Finds a place for each of `sequences`, and what is to be changed on the device before they are run.
    /// That must happen before the next call, or [`PageTables::forget`].
    pub(super) fn update(&mut self, sequences: &[&Sequence]) -> Result<Update<'_>> {
        self.make_room(sequences)?;
        self.step += 1;
        self.changes.clear();
        // First, so that no newcomer takes the place of one of these.
        for sequence in sequences {
            if let Some(number) = self.numbers.get(&sequence.id()) {
                self.holders[*number].as_mut().expect("one that has a number").last_step =
                    self.step;
            }
        }
        let mut numbers = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let number = match self.numbers.get(&sequence.id()) {
                Some(number) => *number,
                None => self.admit(sequence.id()),
            };
            self.bring_up_to_date(sequence, number);
            numbers.push(number as u32);
        }
        let tables = self.tables.as_ref().expect("there is room");
        Ok(Update { tables, numbers, changes: &self.changes })
    }

    /// What was told of the device is not so: a step failed.
    pub(super) fn forget(&mut self) {
        self.holders.iter_mut().for_each(|holder| *holder = None);
        self.numbers.clear();
    }

    fn make_room(&mut self, sequences: &[&Sequence]) -> Result<()> {
        let pages = sequences.iter().map(|s| s.table_len()).max().unwrap_or(0);
        let (have, stride) =
            self.tables.as_ref().map_or((SEQUENCES, PAGES), |t| (t.sequences(), t.stride()));
        if self.tables.is_some() && sequences.len() <= have && pages <= stride {
            return Ok(());
        }
        let (have, stride) =
            (have.max(sequences.len().next_power_of_two()), stride.max(pages.next_power_of_two()));
        self.forget();
        self.tables = None;
        self.tables = Some(DeviceTables::new(&self.device, self.layers, have, stride)?);
        self.holders.resize_with(have, || None);
        Ok(())
    }

    /// A number for a newcomer: nobody's, or that of whoever was not run for longest.
    fn admit(&mut self, id: u64) -> usize {
        let age = |holder: &Option<Holder>| holder.as_ref().map_or(0, |h| h.last_step);
        let oldest = self.holders.iter().enumerate().min_by_key(|(_, holder)| age(holder));
        let (number, _) = oldest.expect("there is room");
        if let Some(gone) = &self.holders[number] {
            self.numbers.remove(&gone.id);
        }
        self.holders[number] = Some(Holder { id, edits: 0, pages: 0, last_step: self.step });
        self.numbers.insert(id, number);
        number
    }

    fn bring_up_to_date(&mut self, sequence: &Sequence, number: usize) {
        let holder = self.holders[number].as_mut().expect("one that has a number");
        let edited = sequence.first_page_edited_since(holder.edits);
        let from = holder.pages.min(edited.unwrap_or(usize::MAX));
        (holder.pages, holder.edits) = (sequence.table_len(), sequence.edits());
        if from >= holder.pages {
            return;
        }
        let tables = self.tables.as_ref().expect("there is room");
        for layer in 0..self.layers {
            let (from, pages) = sequence.pages_from(layer, from);
            let first = tables.index(layer, number, from);
            self.changes.extend((first..).zip(pages).flat_map(|(index, page)| [index, *page]));
        }
    }
}

/// What a step on a device must know of page tables.
pub(super) struct Update<'a> {
    pub(super) tables: &'a DeviceTables,
    /// The number of each sequence in them.
    pub(super) numbers: Vec<u32>,
    /// See [`DeviceTables`].
    pub(super) changes: &'a [u32],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::cache::{KvCache, KvCacheConfig, KvDtype, PAGE_TOKENS};
    use crate::kernels::NO_PAGE;
    use std::time::Instant;

    /// Small pages, windows of Puzzle.
    fn cache(layers: usize, pages: usize) -> KvCache {
        let mut config = ModelConfig::puzzle_88b();
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (1, 1, 16);
        config.block_configs.truncate(layers);
        config.block_configs[1].sliding_window = Some(128);
        let config = (&config, &KvCacheConfig { dtype: KvDtype::Bf16, pages, scales: None });
        KvCache::new(config.0, config.1, &Device::Cpu).unwrap()
    }

    /// What the device would hold: changes are made as the kernel makes them.
    struct Mirror {
        words: HashMap<u32, u32>,
        sent: usize,
    }

    impl Mirror {
        fn step(&mut self, tables: &mut PageTables, layers: usize, sequences: &[&Sequence]) {
            let Update { tables, numbers, changes } = tables.update(sequences).unwrap();
            let indices: std::collections::HashSet<u32> =
                changes.iter().step_by(2).copied().collect();
            assert_eq!(indices.len(), changes.len() / 2, "an entry twice");
            self.words.extend(changes.as_chunks().0.iter().map(|[index, page]| (*index, *page)));
            self.sent += changes.len() / 2;
            for (sequence, number) in sequences.iter().zip(numbers) {
                for layer in 0..layers {
                    for (page, entry) in sequence.page_table(layer).iter().enumerate() {
                        let there = self.words.get(&tables.index(layer, number as usize, page));
                        assert!(*entry == NO_PAGE || there == Some(entry), "{layer} {page}");
                    }
                }
            }
        }
    }

    /// Against whole tables: sequences of two caches that join, leave, fork, go back, start over, are run in
    /// any order or not at all, and steps that fail.
    #[test]
    fn tables_on_a_device_are_those_of_the_sequences() {
        const LAYERS: usize = 3;
        let caches = [cache(LAYERS, 4000), cache(LAYERS, 4000)];
        let mut tables = PageTables::new(&Device::Cpu, LAYERS);
        let mut mirror = Mirror { words: HashMap::new(), sent: 0 };
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        let mut sequences: Vec<Sequence> = Vec::new();
        let mut whole = 0;
        for round in 0..3000 {
            match below(30) {
                0..=2 if sequences.len() < 20 => {
                    let mut new = caches[below(2)].sequence();
                    new.extend_unwritten(below(400)).unwrap();
                    sequences.push(new);
                }
                3 if !sequences.is_empty() && sequences.len() < 20 => {
                    sequences.push(sequences[below(sequences.len())].fork());
                }
                4 | 5 if sequences.len() > 10 => {
                    drop(sequences.swap_remove(below(sequences.len())))
                }
                6 if sequences.len() > 1 => sequences.swap(0, 1),
                7..=9 if !sequences.is_empty() => {
                    let at = below(sequences.len());
                    let back = below(150).min(sequences[at].len());
                    let len = sequences[at].len() - back;
                    // A window may have passed.
                    let _ = sequences[at].truncate(len);
                }
                10 if !sequences.is_empty() => sequences[0].clear(),
                11 => tables.forget(),
                _ => {}
            }
            if round == 1500 {
                // More than there was room for, then few again.
                sequences.truncate(2);
                if let Some(first) = sequences.first_mut() {
                    first.extend_unwritten(64 * 40).unwrap();
                }
            }
            let mut step: Vec<usize> = (0..sequences.len()).filter(|_| below(3) > 0).collect();
            let by = round % step.len().max(1);
            step.rotate_left(by);
            for &at in &step {
                sequences[at].extend_unwritten(1 + 63 * usize::from(below(8) == 0)).unwrap();
            }
            let step: Vec<&Sequence> = step.into_iter().map(|at| &sequences[at]).collect();
            whole += step.iter().map(|s| LAYERS * s.table_len()).sum::<usize>();
            mirror.step(&mut tables, LAYERS, &step);
        }
        assert!(mirror.sent * 4 < whole, "{} of {whole} entries were sent", mirror.sent);
    }

    /// 64 sequences in 36 layers: what changes is what is looked at. Prints what a step costs the host.
    #[test]
    fn a_step_of_64_sends_its_new_pages() {
        let (layers, depth) = (36, 4096);
        let cache = cache(layers, 64 * layers * (depth / PAGE_TOKENS + 2));
        let mut tables = PageTables::new(&Device::Cpu, layers);
        let mut sequences: Vec<Sequence> = (0..64).map(|_| cache.sequence()).collect();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            sequence.extend_unwritten(depth - 128 + i).unwrap();
        }
        let mut sent = Vec::new();
        let mut time = std::time::Duration::ZERO;
        for _ in 0..65 {
            sequences.iter_mut().for_each(|s| s.extend_unwritten(1).unwrap());
            let step: Vec<&Sequence> = sequences.iter().collect();
            let start = Instant::now();
            sent.push(tables.update(&step).unwrap().changes.len() / 2);
            time += start.elapsed();
        }
        println!("page tables of 64 sequences in {layers} layers: {:?} a step", time / 65);
        assert!(sent[0] > 64 * layers, "all of them, at first: {}", sent[0]);
        assert!(sent[1..].iter().all(|pages| *pages == layers), "{sent:?}");
    }
}
