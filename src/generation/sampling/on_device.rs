//! Drawing tokens where the logits are: on the model's device.

use super::{Sampler, TokenSet};
use crate::Result;
use crate::generation::step::Forward;
use crate::model::{Draw, Tensor};

/// Who draws from one row of a step's logits, and from what.
pub(in crate::generation) struct DrawRow<'a> {
    pub(in crate::generation) sampler: &'a mut Sampler,
    /// The tokens there is a choice of, if not of all.
    pub(in crate::generation) allowed: Option<&'a TokenSet>,
    /// Tokens that are not to be drawn.
    pub(in crate::generation) forbidden: &'a [u32],
}

/// As [`Sampler::sample_from`], a token of each row of the `logits: [R, V]` of a `model` on a device, where
/// they stay: all rows go there and come back together. The steps are the same, the draw is another: one
/// number decides among all candidates. `None` where there is no token to be drawn, and where nobody draws.
pub(in crate::generation) fn draw_rows(
    model: &dyn Forward,
    logits: &Tensor,
    rows: &mut [Option<DrawRow<'_>>],
) -> Result<Vec<Option<u32>>> {
    let vocab_size = logits.dim(1)?;
    let prepared = rows.iter_mut().map(|row| match row {
        Some(row) => Prepared::new(row, vocab_size).map(Some),
        None => Ok(None),
    });
    let prepared = prepared.collect::<Result<Vec<_>>>()?;
    let draws = rows.iter().zip(&prepared).map(|(row, lists)| match (row, lists) {
        (Some(row), Some(lists)) => lists.draw(row.sampler),
        _ => NOBODYS,
    });
    let mut ids = model.draw(logits, &draws.collect::<Vec<_>>())?;
    for (row, id) in rows.iter_mut().zip(&mut ids) {
        match row {
            Some(row) => {
                row.sampler.ahead = None;
                id.iter().for_each(|&id| row.sampler.note(id));
            }
            None => *id = None,
        }
    }
    Ok(ids)
}

/// Of a row that is drawn from elsewhere: the cheapest there is.
const NOBODYS: Draw<'static> = Draw {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seen: &[],
    bias: &[],
    allowed: None,
    uniform: 0.0,
};

/// What a [`Draw`] borrows, and its number.
struct Prepared {
    seen: Vec<(u32, u32)>,
    bias: Vec<(u32, f32)>,
    mask: Option<Vec<u32>>,
    uniform: f64,
}

impl Prepared {
    fn new(row: &mut DrawRow<'_>, vocab_size: usize) -> Result<Prepared> {
        let sampler = &mut *row.sampler;
        let uniform = match sampler.params.temperature {
            Some(0.0) => 0.0,
            _ => match sampler.ahead {
                Some(uniform) => uniform,
                None => sampler.uniform()?,
            },
        };
        sampler.ahead = Some(uniform);
        let seen = match sampler.penalties() {
            Some(_) => sampler.seen.iter().map(|(&id, &count)| (id, count)).collect(),
            None => Vec::new(),
        };
        let bias = sampler.params.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
        let mask = (row.allowed.is_some() || !row.forbidden.is_empty()).then(|| {
            let mut mask = match row.allowed {
                Some(allowed) => allowed.words().to_vec(),
                None => vec![u32::MAX; vocab_size.div_ceil(32)],
            };
            for id in row.forbidden {
                if let Some(word) = mask.get_mut(*id as usize / 32) {
                    *word &= !(1 << (id % 32));
                }
            }
            mask
        });
        Ok(Prepared { seen, bias, mask, uniform })
    }

    fn draw(&self, sampler: &Sampler) -> Draw<'_> {
        let params = &sampler.params;
        let [repetition_penalty, presence_penalty, frequency_penalty] =
            sampler.penalties().unwrap_or([1.0, 0.0, 0.0]);
        Draw {
            temperature: params.temperature.unwrap_or(1.0),
            top_k: params.top_k.unwrap_or(0),
            top_p: params.top_p.unwrap_or(1.0),
            min_p: params.min_p.unwrap_or(0.0),
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seen: &self.seen,
            bias: &self.bias,
            allowed: self.mask.as_deref(),
            uniform: self.uniform,
        }
    }
}

impl Sampler {
    /// A number in 0..1 of 50 bits.
    fn uniform(&mut self) -> Result<f64> {
        const BITS: usize = 10;
        (0..5).try_fold(0.0, |number, _| {
            let bits = self.draw_index(&[0.0; 1 << BITS])? as f64;
            Ok((number + bits) / (1 << BITS) as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Sequence;
    use crate::generation::SamplingParams;
    use crate::model::{Batch, Device};
    use crate::{Error, ErrorKind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Fails at one of its draws, and draws the thousandth that it is told to.
    struct FailsAt(usize, AtomicUsize);

    impl Forward for FailsAt {
        fn forward(&self, _: &Batch, _: &mut [&mut Sequence]) -> Result<Tensor> {
            unreachable!("logits are given")
        }

        fn draw(&self, _: &Tensor, draws: &[Draw<'_>]) -> Result<Vec<Option<u32>>> {
            match self.1.fetch_add(1, Ordering::Relaxed) == self.0 {
                true => Err(Error::new(ErrorKind::Device, "planned")),
                false => Ok(draws.iter().map(|d| Some((d.uniform * 1000.0) as u32)).collect()),
            }
        }
    }

    /// A seed's tokens are the same where a step is made again.
    #[test]
    fn a_draw_that_failed_is_the_next() {
        let logits = Tensor::new(&[[0f32; 1000]], &Device::Cpu).unwrap();
        let drawn = |fails_at: usize| {
            let params = SamplingParams::default().seed(3);
            let mut sampler = Sampler::new(params, &[], 1000).unwrap();
            let model = FailsAt(fails_at, AtomicUsize::new(0));
            let draw = || {
                let row = DrawRow { sampler: &mut sampler, allowed: None, forbidden: &[] };
                draw_rows(&model, &logits, &mut [Some(row)])
            };
            let ids = std::iter::repeat_with(draw).filter_map(Result::ok).flatten().flatten();
            ids.take(8).collect::<Vec<u32>>()
        };
        assert_eq!(drawn(3), drawn(usize::MAX));
    }
}
