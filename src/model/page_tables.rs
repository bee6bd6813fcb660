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
