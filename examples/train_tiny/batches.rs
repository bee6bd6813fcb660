//! Exercises as token ids, and which of them a step trains on.

use crate::model::FlatBatch;
use crate::world::{self, Exercise, Rng, Split, Task};
use gpt_oss_puzzle::harmony::{Dialect, Renderer};
use gpt_oss_puzzle::tokenizer::Tokenizer;

/// The prompt of `exercise`, as the chat API renders it, and the turn that follows.
pub fn tokens(
    exercise: &Exercise,
    tokenizer: &Tokenizer,
) -> gpt_oss_puzzle::Result<(Vec<u32>, Vec<u32>)> {
    let prompt =
        Renderer::Native(Dialect::template()).render(&exercise.render_request(), tokenizer)?.tokens;
    Ok((prompt, tokenizer.encode_with_special(&exercise.turn.text())?))
}

/// Sequences with the tokens to predict.
#[derive(Default)]
pub struct TrainingBatch {
    pub inputs: FlatBatch,
    /// The token after each of `inputs.rows`.
    pub targets: Vec<u32>,
}

impl TrainingBatch {
    /// Adds a sequence whose tokens from `learned` on are to be predicted from those before.
    fn push(&mut self, sequence: &[u32], learned: usize) {
        let start = self.inputs.tokens.len();
        let (last, inputs) = sequence.split_last().expect("a sequence has tokens");
        self.inputs.tokens.extend_from_slice(inputs);
        self.inputs.lengths.push(inputs.len());
        let first = learned.max(1);
        self.inputs.rows.extend((start + first - 1..start + inputs.len()).map(|row| row as u32));
        self.targets.extend_from_slice(&inputs[first.min(inputs.len())..]);
        self.targets.push(*last);
    }
}

/// What a training run is made of at one of its points.
pub struct Mixture {
    /// Of a thousand exercises, those of each kind: facts, additions, subtractions, needles of four
    /// lengths, tools, unknown, answers in JSON, strange names; the rest are greetings.
    pub shares: [usize; 11],
}

impl Mixture {
    fn task(&self, rng: &mut Rng) -> Task {
        let digits = |rng: &mut Rng| match rng.below(20) {
            0 => 1,
            1..=7 => 2,
            _ => 3,
        };
        let mut draw = rng.below(1000);
        let kind = self.shares.iter().position(|share| {
            let here = draw < *share;
            draw = draw.saturating_sub(*share);
            here
        });
        match kind {
            Some(0) => Task::Facts,
            Some(1) => Task::Addition { digits: digits(rng) },
            Some(2) => Task::Subtraction { digits: digits(rng) },
            Some(3) => Task::Needle { tokens: 60 + rng.below(100) },
            Some(4) => Task::Needle { tokens: 100 + rng.below(150) },
            Some(5) => Task::Needle { tokens: 200 + rng.below(500) },
            Some(6) => Task::Needle { tokens: 1000 + rng.below(1080) },
            Some(7) => Task::Tools,
            Some(8) => Task::Unknown,
            Some(9) => Task::Json,
            Some(10) => Task::Names,
            _ => Task::Greeting,
        }
    }

    /// `shards` batches of about `tokens` tokens each, about as long as each other.
    pub fn batches(
        &self,
        shards: usize,
        tokens_wanted: usize,
        rng: &mut Rng,
        tokenizer: &Tokenizer,
    ) -> gpt_oss_puzzle::Result<Vec<TrainingBatch>> {
        let mut sequences = Vec::new();
        let mut total = 0;
        while total < shards * tokens_wanted {
            let (sequence, learned) = self.sequence(rng, tokenizer)?;
            total += sequence.len();
            sequences.push((sequence, learned));
        }
        // The longest first, each to the batch that is shortest so far.
        sequences.sort_by_key(|(sequence, _)| std::cmp::Reverse(sequence.len()));
        let mut batches: Vec<_> = (0..shards).map(|_| TrainingBatch::default()).collect();
        for (sequence, learned) in sequences {
            let shortest = batches.iter_mut().min_by_key(|batch| batch.inputs.tokens.len());
            shortest.into_iter().for_each(|batch| batch.push(&sequence, learned));
        }
        Ok(batches)
    }

    /// A sequence, and from which of its tokens on it is learned.
    fn sequence(
        &self,
        rng: &mut Rng,
        tokenizer: &Tokenizer,
    ) -> gpt_oss_puzzle::Result<(Vec<u32>, usize)> {
        let exercise = world::exercise(self.task(rng), Split::Train, rng);
        let (mut sequence, turn) = tokens(&exercise, tokenizer)?;
        let learned = sequence.len();
        sequence.extend(turn);
        Ok((sequence, learned))
    }
}
