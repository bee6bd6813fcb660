//! Drawing a token where the logits are: on the model's device.

use super::{Sampler, TokenSet};
use crate::Result;
use crate::model::{Draw, GptOss, Tensor};

impl Sampler {
    /// As [`sample_from`](Self::sample_from), of the `logits: [1, V]` of a `model` on a device, where they
    /// stay. The steps are the same, the draw is another: one number decides among all candidates. `None`
    /// where there is no token to be drawn.
    pub(in crate::generation) fn sample_on(
        &mut self,
        model: &GptOss,
        logits: &Tensor,
        allowed: Option<&TokenSet>,
        forbidden: &[u32],
    ) -> Result<Option<u32>> {
        let params = &self.params;
        let penalties = self.penalties();
        let [repetition_penalty, presence_penalty, frequency_penalty] =
            penalties.unwrap_or([1.0, 0.0, 0.0]);
        let seen: Vec<(u32, u32)> = match penalties {
            Some(_) => self.seen.iter().map(|(&id, &count)| (id, count)).collect(),
            None => Vec::new(),
        };
        let bias: Vec<(u32, f32)> =
            params.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect();
        let mask = (allowed.is_some() || !forbidden.is_empty()).then(|| {
            let mut mask = match allowed {
                Some(allowed) => allowed.words().to_vec(),
                None => vec![u32::MAX; model.config().vocab_size.div_ceil(32)],
            };
            for id in forbidden {
                if let Some(word) = mask.get_mut(*id as usize / 32) {
                    *word &= !(1 << (id % 32));
                }
            }
            mask
        });
        let temperature = params.temperature.unwrap_or(1.0);
        let (top_k, top_p) = (params.top_k.unwrap_or(0), params.top_p.unwrap_or(1.0));
        let min_p = params.min_p.unwrap_or(0.0);
        let uniform = if temperature == 0.0 { 0.0 } else { self.uniform()? };
        let draw = Draw {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seen: &seen,
            bias: &bias,
            allowed: mask.as_deref(),
            uniform,
        };
        let id = model.draw(logits, &draw)?;
        id.into_iter().for_each(|id| self.note(id));
        Ok(id)
    }

    /// A number in 0..1 of 50 bits.
    fn uniform(&mut self) -> Result<f64> {
        const BITS: usize = 10;
        (0..5).try_fold(0.0, |number, _| {
            let bits = self.draw_index(&[0.0; 1 << BITS])? as f64;
            Ok((number + bits) / (1 << BITS) as f64)
        })
    }
}
