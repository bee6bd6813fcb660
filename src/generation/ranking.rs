//! Orders scores: the largest, the k largest by key, the nucleus. Knows nothing of parameters.

/// The id of the largest score, the lowest among equals.
pub(super) fn argmax(scores: &[f32]) -> u32 {
    let larger = |best: u32, (id, &score): (u32, &f32)| match score > scores[best as usize] {
        true => id,
        false => best,
    };
    (0..).zip(scores).fold(0, larger)
}

/// Probability relative to the most probable token's.
pub(super) fn weight(score: f32, max: f32, temperature: f64) -> f64 {
    ((f64::from(score) - f64::from(max)) / temperature).exp()
}

/// A number that is larger for a larger score, and for a lower id among equal scores.
pub(super) fn key(score: f32, id: u32) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 becomes 0, which it is equal to
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The id in a [`key`].
pub(super) fn id_of(key: u64) -> u32 {
    !(key as u32)
}

/// The smallest key of the nucleus: of the fewest largest keys whose weights add up to `p` of all.
///
/// Bisects by selection: each round halves the range that holds the end of the nucleus.
pub(super) fn nucleus(keys: &mut [u64], p: f64, weight: impl Fn(u64) -> f64) -> u64 {
    let sum = |keys: &[u64]| keys.iter().map(|&key| weight(key)).sum::<f64>();
    let mut missing = p * sum(keys);
    let mut range = keys;
    while range.len() > 1 {
        let middle = range.len() / 2;
        range.select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let (larger, smaller) = range.split_at_mut(middle);
        let mass = sum(larger);
        range = if mass >= missing {
            larger
        } else {
            missing -= mass;
            smaller
        };
    }
    range.first().copied().unwrap_or(0)
}
