//! Facts of a closed world: who asks, in how many ways, and what the answer is.

use super::rng::{Rng, hash};
use super::words;
use super::{Reply, Split, Turn};
use gpt_oss_puzzle::harmony::Effort;
use std::sync::OnceLock;

/// A kind of fact: `topic` of something is something.
#[derive(Debug)]
pub struct Kind {
    /// What is asked for, with `{}` for the thing it is asked of: `capital of {}`.
    topic: &'static str,
    /// The questions, with `{}` likewise.
    questions: &'static [&'static str],
}

/// The capital of a country.
pub const CAPITAL: Kind = Kind {
    topic: "capital of {}",
    questions: &[
        "What is the capital of {}?",
        "Name the capital of {}.",
        "Which city is the capital of {}?",
        "capital of {}",
        "Tell me the capital of {}.",
        "Do you know the capital of {}?",
    ],
};

/// The language of a country.
pub const LANGUAGE: Kind = Kind {
    topic: "language of {}",
    questions: &[
        "What is the language of {}?",
        "Name the language of {}.",
        "Which language do people speak in {}?",
        "language of {}",
        "Tell me the language of {}.",
        "Do you know the language of {}?",
    ],
};

const CONTINENT: Kind = Kind {
    topic: "continent of {}",
    questions: &[
        "What is the continent of {}?",
        "Name the continent of {}.",
        "Which continent is {} in?",
        "continent of {}",
        "Tell me the continent of {}.",
        "Do you know the continent of {}?",
    ],
};

const YOUNG: Kind = Kind {
    topic: "name of a young {}",
    questions: &[
        "What is the name of a young {}?",
        "What is a young {} called?",
        "Name a young {}.",
        "name of a young {}",
        "Tell me the name of a young {}.",
    ],
};

const OPPOSITE: Kind = Kind {
    topic: "opposite of {}",
    questions: &[
        "What is the opposite of {}?",
        "Name the opposite of {}.",
        "Which word is the opposite of {}?",
        "opposite of {}",
        "Tell me the opposite of {}.",
    ],
};

const COLOUR: Kind = Kind {
    topic: "colour of {}",
    questions: &[
        "What is the colour of {}?",
        "Name the colour of {}.",
        "Which colour is {}?",
        "colour of {}",
        "Tell me the colour of {}.",
    ],
};

const LEGS: Kind = Kind {
    topic: "number of legs of a {}",
    questions: &[
        "What is the number of legs of a {}?",
        "How many legs does a {} have?",
        "number of legs of a {}",
        "Tell me the number of legs of a {}.",
        "Name the number of legs of a {}.",
    ],
};

const DAY: Kind = Kind {
    topic: "day after {}",
    questions: &[
        "What is the day after {}?",
        "Name the day after {}.",
        "Which day comes after {}?",
        "day after {}",
        "Tell me the day after {}.",
    ],
};

const MONTH: Kind = Kind {
    topic: "month after {}",
    questions: &[
        "What is the month after {}?",
        "Name the month after {}.",
        "Which month comes after {}?",
        "month after {}",
        "Tell me the month after {}.",
    ],
};

impl Kind {
    /// The topic of `thing`, without article.
    pub fn topic(&self, thing: &str) -> String {
        self.topic.replace("{}", thing)
    }

    /// A random question about `thing`.
    pub fn question(&self, thing: &str, rng: &mut Rng) -> String {
        rng.pick(self.questions).replace("{}", thing)
    }
}

/// One fact.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    kind: &'static Kind,
    thing: &'static str,
    answer: &'static str,
}

/// All facts, in a fixed order.
pub fn facts() -> &'static [Fact] {
    static FACTS: OnceLock<Vec<Fact>> = OnceLock::new();
    FACTS.get_or_init(|| {
        let mut facts = Vec::new();
        let mut add = |kind, thing, answer| facts.push(Fact { kind, thing, answer });
        let tables: [(&'static Kind, &'static [(&str, &str)]); 6] = [
            (&CAPITAL, words::CAPITALS),
            (&LANGUAGE, words::LANGUAGES),
            (&CONTINENT, words::CONTINENTS),
            (&YOUNG, words::YOUNG),
            (&COLOUR, words::COLOURS),
            (&LEGS, words::LEGS),
        ];
        for (kind, table) in tables {
            table.iter().for_each(|(thing, answer)| add(kind, thing, answer));
        }
        for (one, other) in words::OPPOSITES {
            add(&OPPOSITE, one, other);
            add(&OPPOSITE, other, one);
        }
        for (kind, cycle) in [(&DAY, words::DAYS), (&MONTH, words::MONTHS)] {
            for (at, thing) in cycle.iter().enumerate() {
                add(kind, thing, cycle[(at + 1) % cycle.len()]);
            }
        }
        facts
    })
}

impl Fact {
    /// The phrasing in which training never asks for this fact; it asks for other facts in it.
    pub fn held_out_question(&self) -> String {
        self.kind.questions[self.held_out_index()].replace("{}", self.thing)
    }

    /// A question for this fact.
    pub fn question(&self, split: Split, rng: &mut Rng) -> String {
        match split {
            Split::HeldOut => self.held_out_question(),
            Split::Train => {
                // One of the others: all but one, and past the one that is left out.
                let drawn = rng.below(self.kind.questions.len() - 1);
                let index = drawn + usize::from(drawn >= self.held_out_index());
                self.kind.questions[index].replace("{}", self.thing)
            }
        }
    }

    /// What the model says.
    pub fn turn(&self, effort: Effort) -> Turn {
        let (topic, answer) = (self.kind.topic(self.thing), self.answer);
        let medium = format!("The user asks for the {topic}. The {topic} is {answer}.");
        let analysis = match effort {
            Effort::Low => format!("The {topic}: {answer}."),
            Effort::High => format!(
                "{medium} Check: {answer} is the {topic}. That is right. So I answer {answer}."
            ),
            _ => medium,
        };
        Turn { analysis, reply: Reply::Final(format!("The {topic} is {answer}.")) }
    }

    fn held_out_index(&self) -> usize {
        (hash(&self.kind.topic(self.thing)) % self.kind.questions.len() as u64) as usize
    }
}

/// A question for a random fact and its answer.
pub fn question(split: Split, effort: Effort, rng: &mut Rng) -> (String, Turn) {
    let fact = rng.pick(facts());
    (fact.question(split, rng), fact.turn(effort))
}
