//! Orders scores: the largest, the k largest by key, the nucleus. Knows nothing of parameters.

/// Scores that are looked at together. A whole vocabulary is, for every token of every answer.
const LANES: usize = 16;

/// The largest score; negative infinity of none.
pub(super) fn largest(scores: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        lanes = std::array::from_fn(|lane| larger(lanes[lane], chunk[lane]));
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// The id of the largest score, the lowest among equals.
pub(super) fn argmax(scores: &[f32]) -> u32 {
    let max = largest(scores);
    scores.iter().position(|score| *score == max).unwrap_or(0) as u32
}

/// Probability relative to the most probable token's.
pub(super) fn weight(score: f32, max: f32, temperature: f64) -> f64 {
    ((f64::from(score) - f64::from(max)) / temperature).exp()
}

/// The sum of the [`weight`]s of what has these finite scores, to 12 digits.
pub(super) fn mass<T: Copy>(
    all: &[T],
    score: impl Fn(T) -> f32,
    max: f32,
    temperature: f64,
) -> f64 {
    let rate = temperature.recip();
    let mut sums = [0.0; LANES];
    for some in all.chunks(8 * LANES) {
        // Loops without branches, which become those of vectors.
        let mut weights = [0.0; 8 * LANES];
        for (weight, one) in weights.iter_mut().zip(some) {
            *weight = exp((f64::from(score(*one)) - f64::from(max)) * rate);
        }
        for weights in weights.as_chunks::<LANES>().0 {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
        }
    }
    sums.into_iter().sum()
}

/// e^x of x <= 0; below -700 as if it were that.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Makes the sum with a small number a whole one, which its lowest bits are.
    const WHOLE: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    /// 1 / n!, from 11 down.
    const SERIES: [f64; 12] = {
        let (mut series, mut factorial, mut n) = ([1.0; 12], 1.0, 1);
        while n < 12 {
            factorial *= n as f64;
            series[11 - n] = 1.0 / factorial;
            n += 1;
        }
        series
    };
    let x = if x < -700.0 { -700.0 } else { x };
    let sum = x * std::f64::consts::LOG2_E + WHOLE;
    let r = x - (sum - WHOLE) * std::f64::consts::LN_2;
    let series = SERIES.iter().fold(0.0, |series, factor| series * r + factor);
    // The power of two goes to where its exponent is.
    f64::from_bits(series.to_bits().wrapping_add(sum.to_bits() << 52))
}

/// A number that is larger for a larger score, and for a lower id among equal scores.
pub(super) fn key(score: f32, id: u32) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 becomes 0, which it is equal to
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The score in a [`key`].
pub(super) fn score_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// The id in a [`key`].
pub(super) fn id_of(key: u64) -> u32 {
    !(key as u32)
}

/// The smallest key of the nucleus: of the fewest largest keys whose weights add up to `p` of all.
///
/// Bisects by selection: each round halves the range that holds the end of the nucleus.
pub(super) fn nucleus(keys: &mut [u64], p: f64, max: f32, temperature: f64) -> u64 {
    let sum = |keys: &[u64]| mass(keys, score_of, max, temperature);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_are_sums_of_weights() {
        for (count, scale) in [(1, 1.0), (127, 3.0), (128, 30.0), (1000, 0.01), (5000, 300.0)] {
            let score = |i: usize| scale * ((i * 7919 % 1000) as f32 / 1000.0 - 0.999);
            let scores: Vec<f32> = (0..count).map(score).collect();
            let max = largest(&scores);
            assert_eq!(max, scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(scores[argmax(&scores) as usize], max);
            for temperature in [0.1, 1.0, 7.0] {
                let want: f64 = scores.iter().map(|score| weight(*score, max, temperature)).sum();
                let got = mass(&scores, |score| score, max, temperature);
                assert!((got / want - 1.0).abs() < 1e-12, "{count} {scale}: {got} {want}");
                let keys: Vec<u64> = (0..).zip(&scores).map(|(id, s)| key(*s, id)).collect();
                assert_eq!(mass(&keys, score_of, max, temperature), got);
            }
        }
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
        for score in [-3.5, 0.0, 2.25, f32::MIN, f32::MAX] {
            assert_eq!((score_of(key(score, 7)), id_of(key(score, 7))), (score, 7));
        }
    }
}
