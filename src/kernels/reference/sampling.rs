//! From logits to a token.

use crate::kernels::Draw;

/// What [`sample`] draws from, and what it draws.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Tokens that may be drawn, the most probable first, the lower id first among equals; each with its
    /// probability. A single one at temperature 0.
    pub candidates: Vec<(u32, f64)>,
    /// The one that was drawn.
    pub token: u32,
    /// Natural logarithm of its probability under the logits as they came.
    pub logprob: f64,
}

/// The steps in their order; `None` when a logit is not finite or the mask leaves nothing.
pub fn sample(logits: &[f32], draw: &Draw) -> Option<Sample> {
    if !logits.iter().all(|l| l.is_finite()) {
        return None;
    }
    let mut scores = logits.to_vec();
    // Single precision, rounded after every operation: that is part of what is specified.
    for &(id, count) in draw.seen {
        let score = &mut scores[id as usize];
        *score = if *score > 0.0 {
            *score / draw.repetition_penalty
        } else {
            *score * draw.repetition_penalty
        };
        if count > 0 {
            let frequency = draw.frequency_penalty * count as f32;
            *score -= draw.presence_penalty + frequency;
        }
    }
    for &(id, bias) in draw.bias {
        scores[id as usize] += bias;
    }
    for (id, score) in scores.iter_mut().enumerate() {
        *score = score.clamp(f32::MIN, f32::MAX);
        let word = |mask: &[u32]| mask.get(id / 32).copied().unwrap_or(0);
        if draw.allowed.is_some_and(|mask| word(mask) >> (id % 32) & 1 == 0) {
            *score = f32::NEG_INFINITY;
        }
    }
    let mut ids: Vec<usize> = (0..scores.len()).collect();
    // A stable sort keeps the lower id first among equals.
    ids.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("no NaN"));
    let max = f64::from(scores[*ids.first()?]);
    if max == f64::NEG_INFINITY {
        return None;
    }
    let weight = |id: usize| ((f64::from(scores[id]) - max) / draw.temperature).exp();
    let mass = |ids: &[usize]| ids.iter().map(|&id| weight(id)).sum::<f64>();
    if draw.temperature == 0.0 {
        ids.truncate(1);
    } else {
        if draw.top_k > 0 {
            ids.truncate(draw.top_k);
        }
        if draw.top_p < 1.0 {
            let wanted = draw.top_p * mass(&ids);
            let mut running = 0.0;
            let last = ids.iter().position(|&id| {
                running += weight(id);
                running >= wanted
            });
            ids.truncate(last.map_or(ids.len(), |last| last + 1));
        }
        ids.retain(|&id| scores[id] > f32::NEG_INFINITY && weight(id) >= draw.min_p);
    }
    let total = if draw.temperature == 0.0 { 1.0 } else { mass(&ids) };
    let share = |id: usize| if draw.temperature == 0.0 { 1.0 } else { weight(id) / total };
    let candidates: Vec<(u32, f64)> = ids.iter().map(|&id| (id as u32, share(id))).collect();
    let mut running = 0.0;
    let drawn = candidates.iter().find(|(_, probability)| {
        running += probability;
        running > draw.uniform
    });
    let token = drawn.unwrap_or(&candidates[0]).0;
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(largest)).exp()).sum();
    let logprob = f64::from(logits[token as usize]) - f64::from(largest) - sum.ln();
    Some(Sample { candidates, token, logprob })
}
