//! One step of the model for one answer or for many.

use super::GeneratedToken;
use super::drive::Drive;
use super::lane::Lane;
use super::options::{CancelHandle, FinishReason};
use super::sampling::draw_rows;
use crate::cache::Sequence;
use crate::model::{Batch, Draw, GptOss, LogitRows, Tensor};
use crate::{Error, ErrorKind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What gives logits for tokens.
pub(crate) trait Forward: Send + Sync {
    /// As [`GptOss::forward`].
    fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor>;

    /// Whether [`Forward::forward`] returns before the logits are computed, which are on a device.
    fn is_on_device(&self) -> bool {
        false
    }

    /// As [`GptOss::draw`].
    fn draw(&self, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>>;

    /// Calls `task` with every number below `count`, on as many threads as it has.
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(task);
    }

    /// Why logits may be no numbers.
    fn diagnose(&self) -> Option<String> {
        None
    }
}

impl Forward for GptOss {
    fn forward(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Result<Tensor> {
        GptOss::forward(self, batch, sequences)
    }

    fn is_on_device(&self) -> bool {
        !self.device().is_cpu()
    }

    fn draw(&self, logits: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
        GptOss::draw(self, logits, draws)
    }

    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        self.each_row(count, task);
    }
}

/// An answer's part in a step.
pub(crate) struct Feed<'a> {
    pub(crate) drive: &'a mut dyn Drive,
    pub(crate) sequence: &'a mut Sequence,
    /// Most of its tokens to feed, at least one.
    pub(crate) most: usize,
}

/// Feeds each answer's next tokens, all in one step, and draws a token for each whose last one was fed: `None`
/// for the others, an error where it concerns that answer alone.
///
/// # Errors
/// As [`GptOss::forward`]; sequences and answers are then as they were before.
pub(crate) fn step(
    model: &dyn Forward,
    feeds: &mut [Feed<'_>],
) -> Result<Vec<Result<Option<GeneratedToken>>>> {
    let began = Instant::now();
    let mut batch = Batch::new();
    let (mut sequences, mut drives, mut drawing) = (Vec::new(), Vec::new(), Vec::new());
    for (number, feed) in feeds.iter_mut().enumerate() {
        let cached = feed.sequence.len();
        let (tokens, rows) = feed.drive.lane_mut().next_tokens(cached, feed.most);
        batch.push(number, cached, tokens, rows);
        if rows == LogitRows::Last {
            let drive: &mut dyn Drive = feed.drive;
            drives.push(drive);
            drawing.push(number);
        }
        sequences.push(&mut *feed.sequence);
    }
    let mut outcomes: Vec<Result<Option<GeneratedToken>>> = Vec::new();
    outcomes.resize_with(sequences.len(), || Ok(None));

    let mut compute = || model.forward(&batch, &mut sequences);
    let has_mask = drives.iter().any(|drive| drive.has_mask());
    let (logits, masked) = if !has_mask {
        (compute()?, Vec::new())
    } else if model.is_on_device() {
        let logits = compute()?;
        (logits, masks(&mut drives))
    } else {
        // The CPU computes on this thread, too.
        let (logits, masked) = std::thread::scope(|scope| {
            let masked = scope.spawn(|| masks(&mut drives));
            (compute(), masked.join())
        });
        (logits?, masked.unwrap_or_default())
    };
    for (number, masked) in drawing.iter().zip(masked) {
        outcomes[*number] = masked.map(|()| None);
    }
    drives.iter_mut().for_each(|drive| drive.lane_mut().fed());
    let rows = drives.into_iter().zip(drawing).enumerate().filter_map(|(row, (drive, number))| {
        let lane = outcomes[number].is_ok().then(|| drive.lane_mut())?;
        Some(Row { row, number, lane, logits: None, token: None })
    });
    for row in draw(model, &logits, rows.collect(), began)? {
        outcomes[row.number] = row.token.transpose();
    }
    Ok(outcomes)
}

/// Takes an answer that is made alone to its next token, through a chunk of its prompt, or to its end.
///
/// # Errors
/// What [`step`] and the answer report; it has then failed.
pub(crate) fn advance(
    model: &dyn Forward,
    mut feed: Feed<'_>,
    cancel: &CancelHandle,
) -> Result<()> {
    if feed.drive.is_done() {
        return feed.drive.end();
    }
    if cancel.is_cancelled() {
        feed.drive.lane_mut().finish(FinishReason::Cancelled);
        return feed.drive.end();
    }
    let token = match feed.drive.lane_mut().take_forced() {
        Some(token) => Some(token),
        None => step(model, std::slice::from_mut(&mut feed))?.pop().transpose()?.flatten(),
    };
    token.map_or(Ok(()), |token| feed.drive.follow(token))
}

/// What each answer's grammar allows next.
fn masks(drives: &mut [&mut dyn Drive]) -> Vec<Result<()>> {
    drives.iter_mut().map(|drive| guarded(|| drive.mask())).collect()
}

/// A row of logits and who draws from it.
struct Row<'a> {
    row: usize,
    number: usize,
    lane: &'a mut Lane,
    /// The row itself, where it was on a device and has to come here.
    logits: Option<Vec<f32>>,
    token: Option<Result<GeneratedToken>>,
}

/// Draws each row's token, on the device where the logits are unless they have to come to the host.
fn draw<'a>(
    model: &dyn Forward,
    logits: &Tensor,
    mut rows: Vec<Row<'a>>,
    began: Instant,
) -> Result<Vec<Row<'a>>> {
    // What a device can refuse comes before anybody has taken a token.
    let on_device = |row: &Row<'_>| !row.lane.is_forcing() && !row.lane.draws_on_host();
    if model.is_on_device() {
        for row in rows.iter_mut().filter(|row| row.lane.draws_on_host()) {
            row.logits = Some(logits.get(row.row)?.to_vec1()?);
        }
    }
    if model.is_on_device() && rows.iter().any(on_device) {
        let mut draws: Vec<_> = (0..logits.dim(0)?).map(|_| None).collect();
        for row in rows.iter_mut().filter(|row| on_device(row)) {
            draws[row.row] = Some(row.lane.draw_row());
        }
        let ids = draw_rows(model, logits, &mut draws)?;
        for row in rows.iter_mut().filter(|row| on_device(row)) {
            // What cannot be drawn there says why here.
            row.token = ids[row.row].map(|id| Ok(row.lane.take(id, began)));
        }
    }
    let rows: Vec<_> = rows.into_iter().map(Mutex::new).collect();
    model.each(rows.len(), &|index| {
        let mut row = rows[index].lock().unwrap_or_else(PoisonError::into_inner);
        if row.token.is_none() {
            let (at, fetched) = (row.row, row.logits.take());
            let lane = &mut *row.lane;
            row.token = Some(guarded(|| {
                // A mask may have left no choice.
                if let Some(token) = lane.take_forced() {
                    return Ok(token);
                }
                let logits = match fetched {
                    Some(logits) => logits,
                    None => logits.get(at)?.to_vec1()?,
                };
                lane.draw_from(&logits, began).map_err(|e| match model.diagnose() {
                    Some(why) if e.kind() == ErrorKind::Numeric => {
                        Error::new(e.kind(), format!("{e}: {why}"))
                    }
                    _ => e,
                })
            }));
        }
    });
    Ok(rows
        .into_iter()
        .map(|row| row.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect())
}

/// What panics fails alone.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T>) -> Result<T> {
    // Whoever panicked is not used again.
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let said = (panic.downcast_ref::<&str>().copied())
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message = format!("the answer's code panicked: {}", said.unwrap_or("without a word"));
        Err(Error::new(ErrorKind::Panic, message))
    })
}
