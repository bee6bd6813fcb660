//! The world of the tiny model: exercises made from seeds, each a conversation and the turn with
//! which a model should go on.
//!
//! Everything the tiny model is taught and examined on comes from here. It is closed (a few hundred
//! words), regular (a few phrasings for each thing), and split by content: [`Split::Train`] never
//! holds what [`Split::HeldOut`] asks for.
//!
//! | module | what |
//! |---|---|
//! | `rng` | random numbers, and the hash that decides what is held out |
//! | `words` | the tables: countries, animals, keys, ... |
//! | `facts` | facts in several phrasings |
//! | `arithmetic` | sums and differences, worked out by hand |
//! | `needle` | codes to find in long texts |
//! | `tools` | when to call a tool, and what to say to its result |
//! | `unknown` | what the model does not know, and greetings |
//! | `corpus` | all of it as text, to learn a vocabulary from |
//!
//! It knows of conversations, not of tokens, models or training.

// Each program that includes this module uses its own part of it.
#![allow(dead_code, unused_imports)]

pub mod arithmetic;
pub mod corpus;
pub mod facts;
pub mod needle;
pub mod rng;
pub mod tools;
pub mod unknown;
pub mod words;

use arithmetic::Op;
use gpt_oss_puzzle::harmony::{Effort, Message, RenderRequest, Tool};
use serde_json::{Value, json};

pub use corpus::{corpus, draw_task};
pub use rng::Rng;
pub use tools::{ToolExercise, ToolStage, tools};

/// Which side of the fence an exercise is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What it is examined on: content that training never holds.
    HeldOut,
}

/// What an exercise is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// A fact of the closed world.
    Facts,
    /// A sum.
    Addition {
        /// How many digits the longer number has, 1 to 3.
        digits: usize,
    },
    /// A difference.
    Subtraction {
        /// How many digits the longer number has, 1 to 3.
        digits: usize,
    },
    /// A code to find in a text.
    Needle {
        /// About how long the text is, by [`estimate_tokens`].
        tokens: usize,
    },
    /// Tools to call, or not to.
    Tools,
    /// The weather in a place whose name no one has heard.
    Names,
    /// A fact, a sum or a difference, to be answered in JSON.
    Json,
    /// A question to which the model must say that it does not know.
    Unknown,
    /// A greeting.
    Greeting,
}

/// A conversation and how the model should go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Exercise {
    /// The conversation; what comes next is the assistant's.
    pub messages: Vec<Message>,
    /// The tools on offer.
    pub tools: Vec<Tool>,
    /// How much to think.
    pub effort: Effort,
    /// The day of the conversation as `YYYY-MM-DD`.
    pub date: String,
    /// What the model should write.
    pub turn: Turn,
}

impl Exercise {
    /// What its prompt is rendered from.
    pub fn render_request(&self) -> RenderRequest<'_> {
        RenderRequest {
            messages: &self.messages,
            tools: &self.tools,
            effort: self.effort,
            date: Some(&self.date),
            ..Default::default()
        }
    }
}

/// What the model writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its chain of thought.
    pub analysis: String,
    /// What comes of it.
    pub reply: Reply,
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With an answer to the user.
    Final(String),
    /// With a call of a function tool.
    Call {
        /// The tool.
        name: String,
        /// Its arguments as compact JSON.
        arguments: String,
    },
}

impl Turn {
    /// All the model writes after the prompt's `<|start|>assistant`, control tokens as text.
    pub fn text(&self) -> String {
        let analysis = format!("<|channel|>analysis<|message|>{}<|end|>", self.analysis);
        match &self.reply {
            Reply::Final(text) => {
                format!("{analysis}<|start|>assistant<|channel|>final<|message|>{text}<|return|>")
            }
            Reply::Call { name, arguments } => format!(
                "{analysis}<|start|>assistant<|channel|>commentary to=functions.{name} \
                 <|constrain|>json<|message|>{arguments}<|call|>"
            ),
        }
    }

    /// The answer, or a call's arguments.
    pub fn reply_text(&self) -> &str {
        match &self.reply {
            Reply::Final(text) => text,
            Reply::Call { arguments, .. } => arguments,
        }
    }
}

/// An exercise of `task` at a random effort.
pub fn exercise(task: Task, split: Split, rng: &mut Rng) -> Exercise {
    let effort = match rng.below(100) {
        0..30 => Effort::Low,
        30..75 => Effort::Medium,
        _ => Effort::High,
    };
    exercise_with(task, split, effort, rng)
}

/// An exercise of `task` at this effort. Its question is of `split`; earlier turns that some
/// exercises have are always training's.
pub fn exercise_with(task: Task, split: Split, effort: Effort, rng: &mut Rng) -> Exercise {
    let (question, turn) = match task {
        Task::Facts => facts::question(split, effort, rng),
        Task::Addition { digits } => arithmetic::question(Op::Add, digits, split, effort, rng),
        Task::Subtraction { digits } => {
            arithmetic::question(Op::Subtract, digits, split, effort, rng)
        }
        Task::Needle { tokens } => needle::question(tokens, split, effort, rng),
        Task::Tools => return tool_exercise(ToolStage::draw(rng), split, effort, rng),
        Task::Names => {
            let ToolExercise { messages, tools, turn } = tools::strange_name(effort, rng);
            return Exercise { messages, tools, effort, date: date(rng), turn };
        }
        Task::Json => {
            let (question, turn) = match rng.below(4) {
                0 => arithmetic::question(Op::Add, rng.between(1, 3), split, effort, rng),
                1 => arithmetic::question(Op::Subtract, rng.between(1, 3), split, effort, rng),
                _ => facts::question(split, effort, rng),
            };
            in_json(question, turn)
        }
        Task::Unknown => unknown::question(split, effort, rng),
        Task::Greeting => unknown::greeting(effort, rng),
    };
    let messages = match task {
        Task::Needle { .. } => vec![Message::user(question)],
        _ => with_earlier_turns(vec![Message::user(question)], rng),
    };
    Exercise { messages, tools: Vec::new(), effort, date: date(rng), turn }
}

/// Asks for JSON: `turn` answers with its last word as the only field.
fn in_json(mut question: String, turn: Turn) -> (String, Turn) {
    if !question.ends_with(['?', '.']) {
        question.push('.');
    }
    let answer = turn.reply_text().trim_end_matches('.').rsplit(' ').next().unwrap_or_default();
    let answer = answer.parse::<i64>().map_or_else(|_| Value::from(answer), Value::from);
    let reply = Reply::Final(json!({ "answer": answer }).to_string());
    (format!("{question} Answer in JSON."), Turn { reply, ..turn })
}

/// An exercise of this point of a conversation with tools.
pub fn tool_exercise(stage: ToolStage, split: Split, effort: Effort, rng: &mut Rng) -> Exercise {
    let made = tools::tool_exercise(stage, split, effort, rng);
    let messages = match stage {
        ToolStage::WeatherAnswer | ToolStage::AddAnswer => made.messages,
        _ => with_earlier_turns(made.messages, rng),
    };
    Exercise { messages, tools: made.tools, effort, date: date(rng), turn: made.turn }
}

/// Every fact in the phrasing in which training does not ask for it, alone and at medium effort.
pub fn held_out_facts() -> Vec<Exercise> {
    let ask = |fact: &facts::Fact| Exercise {
        messages: vec![Message::user(fact.held_out_question())],
        tools: Vec::new(),
        effort: Effort::Medium,
        date: "2025-06-28".to_owned(),
        turn: fact.turn(Effort::Medium),
    };
    facts::facts().iter().map(ask).collect()
}

/// About how many tokens `text` is: one for each word, punctuation mark and digit.
pub fn estimate_tokens(text: &str) -> usize {
    let mut in_word = false;
    let mut count = 0;
    for byte in text.bytes() {
        let letter = byte.is_ascii_alphabetic();
        count += usize::from(!(byte.is_ascii_whitespace() || letter && in_word));
        in_word = letter;
    }
    count
}

/// Puts a system message (one time in ten) and one or two earlier turns (one time in four) before
/// `messages`.
fn with_earlier_turns(messages: Vec<Message>, rng: &mut Rng) -> Vec<Message> {
    let mut all = Vec::new();
    if rng.chance(0.1) {
        all.push(Message::system(*rng.pick(&["You are a helpful assistant.", "Answer briefly."])));
    }
    if rng.chance(0.25) {
        for _ in 0..rng.between(1, 2) {
            let (question, turn) = match rng.below(4) {
                0 => unknown::greeting(Effort::Low, rng),
                1 => {
                    let digits = rng.between(1, 2);
                    arithmetic::question(Op::Add, digits, Split::Train, Effort::Low, rng)
                }
                _ => facts::question(Split::Train, Effort::Low, rng),
            };
            all.push(Message::user(question));
            all.push(Message::assistant(turn.reply_text()));
        }
    }
    all.extend(messages);
    all
}

/// A random day of 2024 to 2035 that every month has.
fn date(rng: &mut Rng) -> String {
    let (year, month, day) = (rng.between(2024, 2035), rng.between(1, 12), rng.between(1, 28));
    format!("{year}-{month:02}-{day:02}")
}
