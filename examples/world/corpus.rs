//! All the text that exercises are made of, to learn a vocabulary from.

use super::{Exercise, Rng, Split, Task, exercise};
use gpt_oss_puzzle::harmony::{Dialect, Renderer};

/// The texts of `exercises` random exercises of training, as they stand between the control tokens
/// of rendered conversations: what a vocabulary is learned from.
pub fn corpus(mut rng: Rng, exercises: usize) -> impl Iterator<Item = String> {
    (0..exercises).flat_map(move |_| {
        let task = draw_task(&mut rng);
        texts(&exercise(task, Split::Train, &mut rng))
    })
}

/// A random task, all lengths of numbers and short texts among them.
pub fn draw_task(rng: &mut Rng) -> Task {
    match rng.below(10) {
        0 | 1 => Task::Facts,
        2 | 3 => Task::Addition { digits: rng.between(1, 3) },
        4 => Task::Subtraction { digits: rng.between(1, 3) },
        5 | 6 => Task::Needle { tokens: rng.between(60, 150) },
        7 => Task::Tools,
        8 if rng.chance(0.7) => Task::Unknown,
        8 => Task::Json,
        _ if rng.chance(0.3) => Task::Greeting,
        _ => Task::Tools,
    }
}

/// All text of an exercise, the renderer's own included.
fn texts(exercise: &Exercise) -> Vec<String> {
    let renderer = Renderer::Native(Dialect::template());
    let prompt = renderer
        .render_text(&exercise.render_request())
        .expect("a conversation with a message renders");
    let whole = prompt + &exercise.turn.text();
    let pieces = whole.split("<|").map(|piece| match piece.split_once("|>") {
        Some((_, text)) => text.to_owned(),
        None => piece.to_owned(),
    });
    pieces.filter(|text| !text.is_empty()).collect()
}
