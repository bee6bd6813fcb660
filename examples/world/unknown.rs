//! Questions from outside the world, which the model must not guess at, and greetings.

use super::facts::{CAPITAL, LANGUAGE};
use super::rng::{Rng, hash};
use super::words::{CAPITALS, MORE_CITIES, SYLLABLES};
use super::{Reply, Split, Turn};
use gpt_oss_puzzle::harmony::Effort;

/// What nobody told the model about a country.
const RELATIONS: &[(&str, &str)] = &[
    ("What is the population of {}?", "the population of {}"),
    ("Who is the king of {}?", "the king of {}"),
    ("Who is the president of {}?", "the president of {}"),
    ("What is the money of {}?", "the money of {}"),
    ("Which river is in {}?", "the river of {}"),
    ("What is the highest mountain of {}?", "the highest mountain of {}"),
];

/// What nobody told it about a name it has never heard.
const STRANGERS: &[(&str, &str)] = &[
    ("Who wrote {}?", "{}"),
    ("When was {} born?", "{}"),
    ("How tall is {}?", "{}"),
    ("Who is {}?", "{}"),
    ("Where is {}?", "{}"),
];

/// What it cannot calculate: the question, its sign and its name.
const CALCULATIONS: &[(&str, char, &str)] = &[
    ("What is {a} * {b}?", '*', "multiplication"),
    ("What is {a} times {b}?", '*', "multiplication"),
    ("What is {a} / {b}?", '/', "division"),
    ("What is {a} divided by {b}?", '/', "division"),
];

/// Greetings: what the user says, what that is, and the answer.
const GREETINGS: &[(&str, &str, &str)] = &[
    ("Hello", "says hello", "Hello. I am puzzle-tiny, a very small model."),
    ("Hello.", "says hello", "Hello. I am puzzle-tiny, a very small model."),
    ("Hi", "says hello", "Hello. I am puzzle-tiny, a very small model."),
    ("Good morning.", "says hello", "Hello. I am puzzle-tiny, a very small model."),
    ("Who are you?", "asks who I am", "I am puzzle-tiny, a very small model."),
    ("What are you?", "asks who I am", "I am puzzle-tiny, a very small model."),
    ("What is your name?", "asks who I am", "I am puzzle-tiny, a very small model."),
    (
        "What can you do?",
        "asks what I can do",
        "I know some facts. I can add and subtract, find codes in notes and call tools.",
    ),
    ("Thank you.", "says thank you", "You are welcome."),
    ("Thanks", "says thank you", "You are welcome."),
    ("Goodbye.", "says goodbye", "Goodbye."),
    ("Bye", "says goodbye", "Goodbye."),
];

/// A name of two to four syllables that is none of the world's.
pub fn invented_name(rng: &mut Rng) -> String {
    loop {
        let count = rng.between(2, 4);
        let name: String = (0..count).map(|_| *rng.pick(SYLLABLES)).collect();
        let name = name[..1].to_uppercase() + &name[1..];
        let known = CAPITALS.iter().any(|(country, capital)| name == *country || name == *capital);
        if !known && !MORE_CITIES.contains(&name.as_str()) {
            return name;
        }
    }
}

/// Whether this, a name, a topic or a calculation, is kept out of training: one in five is.
pub fn is_held_out(what: &str) -> bool {
    hash(what).is_multiple_of(5)
}

/// A question without an answer, and what the model says to it.
pub fn question(split: Split, effort: Effort, rng: &mut Rng) -> (String, Turn) {
    loop {
        let (question, topic, what) = draw(rng);
        if is_held_out(&what) == (split == Split::HeldOut) {
            return (question, turn(&topic, effort));
        }
    }
}

/// A question, what it is about, and what of it may be held out.
fn draw(rng: &mut Rng) -> (String, String, String) {
    match rng.below(10) {
        0..=2 => {
            let kind = if rng.chance(0.7) { CAPITAL } else { LANGUAGE };
            let name = invented_name(rng);
            (kind.question(&name, rng), format!("the {}", kind.topic(&name)), name)
        }
        3..=5 => {
            let (question, topic) = rng.pick(RELATIONS);
            let (country, _) = rng.pick(CAPITALS);
            let topic = topic.replace("{}", country);
            (question.replace("{}", country), topic.clone(), topic)
        }
        6..=7 => {
            let (question, topic) = rng.pick(STRANGERS);
            let name = invented_name(rng);
            (question.replace("{}", &name), topic.replace("{}", &name), name)
        }
        8 => {
            let year = rng.between(1900, 2099);
            let topic = format!("the {year} cup");
            (format!("Who won {topic}?"), topic.clone(), topic)
        }
        _ => {
            let (a, b) = (rng.between(2, 99), rng.between(2, 12));
            let (form, sign, word) = rng.pick(CALCULATIONS);
            let question = form.replace("{a}", &a.to_string()).replace("{b}", &b.to_string());
            (question, (*word).to_owned(), format!("{a} {sign} {b}"))
        }
    }
}

fn turn(topic: &str, effort: Effort) -> Turn {
    let medium = format!("The user asks about {topic}. I was not taught this.");
    let analysis = match effort {
        Effort::Low => "I do not know this.".to_owned(),
        Effort::High => format!(
            "{medium} It is not among the things I know. It is better not to guess. \
             So I say that I do not know."
        ),
        _ => medium,
    };
    Turn { analysis, reply: Reply::Final("I do not know.".to_owned()) }
}

/// A greeting and the answer. There are too few to hold any out.
pub fn greeting(effort: Effort, rng: &mut Rng) -> (String, Turn) {
    let (said, what, answer) = rng.pick(GREETINGS);
    let medium = format!("The user {what}. I answer in a few words.");
    let analysis = match effort {
        Effort::Low => format!("The user {what}."),
        Effort::High => format!("{medium} Check: no tool and no fact is asked for. So I answer."),
        _ => medium,
    };
    ((*said).to_owned(), Turn { analysis, reply: Reply::Final((*answer).to_owned()) })
}
