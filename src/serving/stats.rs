//! [`Stats`]: what an engine has done and has to do, to be watched.

use std::time::Duration;

/// What an [`super::Engine`] has done since it started, and has to do now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that wait for their turn, also those that have given their pages back and go on later.
    pub waiting: usize,
    /// Answers that are being made.
    pub running: usize,
    /// Those of them that pause because nobody reads them.
    pub paused: usize,
    /// Requests that were answered.
    pub finished: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Requests that were cancelled, or whose answer was dropped.
    pub cancelled: u64,
    /// How often an answer gave its pages back to go on later.
    pub preempted: u64,
    /// Tokens of the prompts that were begun.
    pub prompt_tokens: u64,
    /// Those of them that were in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub completion_tokens: u64,
    /// Prompts whose beginning was in the prefix cache.
    pub prefix_hits: u64,
    /// Prompts that were read from their first token on.
    pub prefix_misses: u64,
    /// Pages of the key-value cache that are the engine's.
    pub pages: usize,
    /// Those that nothing holds.
    pub free_pages: usize,
    /// Those that the prefix cache holds; free in all but name where no answer needs them too.
    pub cached_pages: usize,
    /// Steps of the model.
    pub steps: u64,
    /// Tokens that went through it.
    pub step_tokens: u64,
    /// The time that the model took.
    pub in_model: Duration,
    /// The time of steps that went elsewhere: to planning, grammars, draws and parsing.
    pub outside_model: Duration,
    /// From a call to the first token of its answer, in seconds.
    pub first_token: Histogram,
    /// From each token of an answer to the next, in seconds.
    pub between_tokens: Histogram,
}

/// How often times were how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The first for at most [`Histogram::FIRST`], each other for at most [`Histogram::RATIO`] of the one before,
    /// the last for all above.
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    /// Upper bound of the first bucket in seconds.
    const FIRST: f64 = 1e-4;
    /// A bound to the one below: ten to a decade.
    const RATIO: f64 = 1.258_925_411_794_167_2;
    /// Buckets with a bound, up to a thousand seconds.
    const BOUNDS: usize = 71;

    fn bound(bucket: usize) -> f64 {
        Histogram::FIRST * Histogram::RATIO.powi(bucket as i32)
    }

    pub(super) fn add(&mut self, time: Duration) {
        self.counts.resize(Histogram::BOUNDS + 1, 0);
        let decades = (time.as_secs_f64() / Histogram::FIRST).log10();
        let bucket = (10.0 * decades - 1e-9).ceil().clamp(0.0, Histogram::BOUNDS as f64);
        self.counts[bucket as usize] += 1;
        self.sum += time;
    }

    /// How many times there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    /// Upper bounds in seconds, ascending, each with how many times were at most that; what is above the last
    /// is counted by [`Histogram::count`] alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let counts = (0..Histogram::BOUNDS).map(|bucket| self.counts.get(bucket).unwrap_or(&0));
        let bounds = (0..).map(Histogram::bound);
        bounds.zip(counts.scan(0, |below, count| {
            *below += count;
            Some(*below)
        }))
    }

    /// A time in seconds that a share `q` of all is at most, to a tenth of a decade; `None` before the first.
    ///
    /// ```
    /// # use gpt_oss_puzzle::serving::Histogram;
    /// assert_eq!(Histogram::default().quantile(0.99), None);
    /// ```
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let wanted = (q.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let found = self.buckets().find(|(_, below)| *below >= wanted).map(|(bound, _)| bound);
        (count > 0).then(|| found.unwrap_or(f64::INFINITY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_where_they_belong() {
        let mut times = Histogram::default();
        assert_eq!((times.count(), times.quantile(0.5)), (0, None));
        for millis in 1..=100 {
            times.add(Duration::from_millis(millis));
        }
        times.add(Duration::from_secs(5000));
        times.add(Duration::ZERO);
        assert_eq!(times.count(), 102);
        assert!((times.sum() - 5005.05).abs() < 1e-9);
        let (p50, p90) = (times.quantile(0.5).unwrap(), times.quantile(0.9).unwrap());
        assert!((0.05..0.064).contains(&p50) && (0.09..0.115).contains(&p90), "{p50} {p90}");
        assert_eq!(times.quantile(1.0), Some(f64::INFINITY));
        let buckets: Vec<_> = times.buckets().collect();
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        for (bound, below) in buckets {
            let want = 1
                + (1..=100)
                    .filter(|millis| f64::from(*millis) / 1e3 <= bound * (1.0 + 1e-9))
                    .count();
            assert_eq!(below, want as u64, "at most {bound} s");
        }
    }
}
