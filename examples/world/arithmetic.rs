//! Addition and subtraction as done by hand, digit by digit from the right.

use super::rng::{Rng, hash};
use super::{Reply, Split, Turn};
use gpt_oss_puzzle::harmony::Effort;
use std::fmt::Write;

/// What is done with two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The sum.
    Add,
    /// The difference, which may be negative.
    Subtract,
}

impl Op {
    fn sign(self) -> char {
        match self {
            Op::Add => '+',
            Op::Subtract => '-',
        }
    }

    fn questions(self) -> &'static [&'static str] {
        match self {
            Op::Add => &[
                "What is {a} + {b}?",
                "{a} + {b}",
                "{a} + {b} = ?",
                "Add {a} and {b}.",
                "What is {a} plus {b}?",
                "Calculate {a} + {b}.",
            ],
            Op::Subtract => &[
                "What is {a} - {b}?",
                "{a} - {b}",
                "{a} - {b} = ?",
                "Subtract {b} from {a}.",
                "What is {a} minus {b}?",
                "Calculate {a} - {b}.",
            ],
        }
    }
}

const PLACES: [&str; 5] = ["Ones", "Tens", "Hundreds", "Thousands", "Places"];

/// Whether the pair is kept out of training, in either order and wherever a calculation is written.
/// One in eight pairs is, except those of a single place (`7 + 5`, `12 - 5`): they are the tables that
/// all else is made from.
pub fn is_held_out(op: Op, a: usize, b: usize) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    let table = low < 10 && high < 20;
    !table && hash(&format!("{low} {} {high}", op.sign())).is_multiple_of(8)
}

/// Two numbers of which the longer has `digits` digits; the other has as many four times in five.
/// Four differences in five and a bit more are not negative. `checked`: whether the analysis will
/// also write the inverse calculation, which training must not hold either if it is held out.
pub fn pair(op: Op, digits: usize, split: Split, checked: bool, rng: &mut Rng) -> (usize, usize) {
    let number = |digits: usize, rng: &mut Rng| {
        let low = if digits <= 1 { 0 } else { 10usize.pow(digits as u32 - 1) };
        rng.between(low, 10usize.pow(digits as u32) - 1)
    };
    loop {
        let long = number(digits, rng);
        let other = if rng.chance(0.8) { digits } else { rng.between(1, digits) };
        let short = number(other, rng);
        let (low, high) = (long.min(short), long.max(short));
        let (a, b) = match op {
            Op::Add if rng.chance(0.5) => (low, high),
            Op::Add => (high, low),
            Op::Subtract if rng.chance(0.15) => (low, high),
            Op::Subtract => (high, low),
        };
        let (inverse, c, d) = inverse(op, a, b);
        let fits = match split {
            Split::Train => !(is_held_out(op, a, b) || checked && is_held_out(inverse, c, d)),
            Split::HeldOut => digits <= 1 || is_held_out(op, a, b),
        };
        if fits {
            return (a, b);
        }
    }
}

/// A question for a random sum or difference, and its answer. With one digit nothing is held out.
pub fn question(
    op: Op,
    digits: usize,
    split: Split,
    effort: Effort,
    rng: &mut Rng,
) -> (String, Turn) {
    let (a, b) = pair(op, digits, split, effort == Effort::High, rng);
    (ask(op, a, b, rng), turn(op, a, b, effort))
}

/// A random question for `a op b`.
pub fn ask(op: Op, a: usize, b: usize, rng: &mut Rng) -> String {
    let question = rng.pick(op.questions());
    question.replace("{a}", &a.to_string()).replace("{b}", &b.to_string())
}

/// What the model says.
pub fn turn(op: Op, a: usize, b: usize, effort: Effort) -> Turn {
    let sign = op.sign();
    let result = match op {
        Op::Add => (a + b).to_string(),
        Op::Subtract if a < b => format!("-{}", b - a),
        Op::Subtract => (a - b).to_string(),
    };
    let analysis = match effort {
        Effort::Low => match op {
            Op::Subtract if a < b => format!("{a} < {b}. {}. {result}.", terse(op, b, a)),
            _ => format!("{}. {result}.", terse(op, a, b)),
        },
        Effort::High => {
            let (inverse, c, d) = inverse(op, a, b);
            format!("{} Check: {} That is right.", worked(op, a, b), worked(inverse, c, d))
        }
        _ => worked(op, a, b),
    };
    Turn { analysis, reply: Reply::Final(format!("{a} {sign} {b} = {result}.")) }
}

/// The calculation that checks `a op b`: the result back to the greater operand.
fn inverse(op: Op, a: usize, b: usize) -> (Op, usize, usize) {
    match op {
        Op::Add => (Op::Subtract, a + b, b),
        Op::Subtract => (Op::Add, a.abs_diff(b), a.min(b)),
    }
}

/// The calculation in words.
fn worked(op: Op, a: usize, b: usize) -> String {
    if op == Op::Subtract && a < b {
        let positive = b - a;
        return format!(
            "{a} - {b}. {a} is less than {b}, so the answer is minus {b} - {a}. {} \
             So {b} - {a} = {positive} and {a} - {b} = -{positive}.",
            places(op, b, a)
        );
    }
    let sign = op.sign();
    let result = if op == Op::Add { a + b } else { a - b };
    format!("{a} {sign} {b}. {} So {a} {sign} {b} = {result}.", places(op, a, b))
}

/// One place of the calculation: both digits, what is carried or borrowed from the place before,
/// and the same for the next.
struct Step {
    a: usize,
    b: usize,
    before: usize,
    next: usize,
}

impl Step {
    /// What the place gives: up to 19 in a sum, 0 to 9 in a difference.
    fn value(&self, op: Op) -> usize {
        match op {
            Op::Add => self.a + self.b + self.before,
            Op::Subtract => self.a + 10 * self.next - self.b - self.before,
        }
    }
}

/// The places from the right; for a difference `a` must not be less than `b`.
fn steps(op: Op, mut a: usize, mut b: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut before = 0;
    while steps.is_empty() || a > 0 || b > 0 {
        let (x, y) = (a % 10, b % 10);
        let next = match op {
            Op::Add => (x + y + before) / 10,
            Op::Subtract => usize::from(x < y + before),
        };
        steps.push(Step { a: x, b: y, before, next });
        (a, b, before) = (a / 10, b / 10, next);
    }
    steps
}

/// The places in words.
fn places(op: Op, a: usize, b: usize) -> String {
    let steps = steps(op, a, b);
    let mut text = String::new();
    for (step, place) in steps.iter().zip(PLACES) {
        let Step { a, b, before, next } = step;
        let value = step.value(op);
        // Writing into a string cannot fail.
        let _ = match (op, next) {
            (Op::Add, _) => write!(
                text,
                "{place}: {a} + {b} + {before} = {value}, write {}, carry {next}. ",
                value % 10
            ),
            (Op::Subtract, 0) => {
                write!(text, "{place}: {a} - {b} - {before} = {value}, write {value}, borrow 0. ")
            }
            (Op::Subtract, _) => write!(
                text,
                "{place}: {a} - {b} - {before}, borrow 1, {} - {b} - {before} = {value}, \
                 write {value}. ",
                a + 10
            ),
        };
    }
    if op == Op::Add && steps.last().is_some_and(|step| step.next > 0) {
        let _ = write!(text, "{}: write 1.", PLACES[steps.len().min(PLACES.len() - 1)]);
    }
    text.trim_end().to_owned()
}

/// The places as bare calculations.
fn terse(op: Op, a: usize, b: usize) -> String {
    let sign = op.sign();
    let steps = steps(op, a, b);
    let borrowed = |step: &Step| if op == Op::Subtract { 10 * step.next } else { 0 };
    let parts: Vec<String> = steps
        .iter()
        .map(|step| {
            let a = step.a + borrowed(step);
            format!("{a} {sign} {} {sign} {} = {}", step.b, step.before, step.value(op))
        })
        .collect();
    parts.join(", ")
}
