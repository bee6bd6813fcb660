//! The tiny model's world: exercises are right, and training never holds what is held out.

#[path = "../examples/world/mod.rs"]
mod world;

use world::*;

const TASKS: [Task; 10] = [
    Task::Facts,
    Task::Addition { digits: 1 },
    Task::Addition { digits: 2 },
    Task::Addition { digits: 3 },
    Task::Subtraction { digits: 2 },
    Task::Subtraction { digits: 3 },
    Task::Needle { tokens: 100 },
    Task::Tools,
    Task::Unknown,
    Task::Greeting,
];

#[test]
fn the_same_seed_gives_the_same_exercises() {
    for task in TASKS {
        let draw = |seed| exercise(task, Split::Train, &mut Rng::new(seed));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
