//! The examination of the tiny model: held-out exercises of every kind, answered through the chat API
//! at temperature 0 and graded.

use crate::world::{
    self, Exercise, Reply, Rng, Split, Task, ToolStage, exercise_with, tool_exercise,
};
use gpt_oss_puzzle::chat::ChatResponse;
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::harmony::Effort;
use gpt_oss_puzzle::{ChatRequest, Model, Result};
use serde::Serialize;
use serde_json::Value;

/// Longest turn accepted, in tokens; the longest one taught has about 230.
const MAX_TOKENS: usize = 400;

/// Exercises of one kind, and the share of them to get right.
pub struct Line {
    pub name: &'static str,
    pub wanted: f64,
    pub exercises: Vec<Exercise>,
}

/// How it went.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    pub name: &'static str,
    pub right: usize,
    pub of: usize,
    /// The share to get right.
    pub wanted: f64,
    /// Means over the exercises.
    pub prompt_tokens: f64,
    pub reasoning_tokens: f64,
    /// What the model wrote, exercise by exercise, control tokens included.
    pub written: Vec<String>,
    pub mistakes: Vec<Mistake>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Mistake {
    pub asked: String,
    pub expected: String,
    pub got: String,
}

/// All lines, each of about `count` exercises; all facts are asked where `count` allows.
pub fn lines(count: usize, seed: u64) -> Vec<Line> {
    let mut rng = Rng::new(seed);
    let mut lines = Vec::new();
    let mut facts = world::held_out_facts();
    rng.shuffle(&mut facts);
    // Whatever else is left out, this one is the README's.
    let paris = |e: &Exercise| !e.turn.reply_text().contains("Paris");
    facts.sort_by_key(paris);
    facts.truncate(if count < 100 { count } else { facts.len() });
    lines.push(Line { name: "facts", wanted: 1.0, exercises: facts });
    let tasks = [
        ("addition, 2 digits", 0.97, Task::Addition { digits: 2 }),
        ("subtraction, 2 digits", 0.97, Task::Subtraction { digits: 2 }),
        ("addition, 3 digits", 0.90, Task::Addition { digits: 3 }),
        ("subtraction, 3 digits", 0.90, Task::Subtraction { digits: 3 }),
        ("needle, 50 tokens", 0.95, Task::Needle { tokens: 50 }),
        ("needle, 128 tokens", 0.95, Task::Needle { tokens: 128 }),
        ("needle, 512 tokens", 0.95, Task::Needle { tokens: 512 }),
        ("needle, 1024 tokens", 0.90, Task::Needle { tokens: 1024 }),
        ("needle, 2048 tokens", 0.90, Task::Needle { tokens: 2048 }),
        ("unknown", 0.95, Task::Unknown),
        ("answer in JSON", 0.95, Task::Json),
    ];
    for (name, wanted, task) in tasks {
        let mut exercise = |_| world::exercise(task, Split::HeldOut, &mut rng);
        let exercises = (0..count).map(&mut exercise).collect();
        lines.push(Line { name, wanted, exercises });
    }
    let stages = [
        ("tool call: weather", 1.0, ToolStage::WeatherCall),
        ("tool call: add", 1.0, ToolStage::AddCall),
        ("tool result: weather", 0.97, ToolStage::WeatherAnswer),
        ("tool result: add", 0.97, ToolStage::AddAnswer),
        ("fact beside tools", 0.97, ToolStage::Fact),
        ("sum without its tool", 0.90, ToolStage::WorkedOut),
        ("weather without its tool", 0.95, ToolStage::NoWeather),
    ];
    for (name, wanted, stage) in stages {
        let mut exercise = |i: usize| {
            let effort = [Effort::Low, Effort::Medium, Effort::High][i % 3];
            tool_exercise(stage, Split::HeldOut, effort, &mut rng)
        };
        let exercises = (0..count).map(&mut exercise).collect();
        lines.push(Line { name, wanted, exercises });
    }
    for (name, effort) in [
        ("effort low", Effort::Low),
        ("effort medium", Effort::Medium),
        ("effort high", Effort::High),
    ] {
        // The same questions at each effort.
        let mut rng = Rng::new(seed + 1);
        let mut exercise = |i: usize| {
            let task = match i % 4 {
                0 => Task::Facts,
                1 => Task::Addition { digits: 2 },
                2 => Task::Subtraction { digits: 3 },
                _ => Task::Needle { tokens: 100 },
            };
            exercise_with(task, Split::HeldOut, effort, &mut rng)
        };
        let exercises = (0..count).map(&mut exercise).collect();
        lines.push(Line { name, wanted: 0.9, exercises });
    }
    lines
}

/// The request that `exercise` is, at temperature 0.
pub fn request(exercise: &Exercise) -> ChatRequest {
    ChatRequest::new(exercise.messages.iter().cloned())
        .tools(exercise.tools.iter().cloned())
        .effort(exercise.effort)
        .date(&exercise.date)
        .sampling(SamplingParams::greedy())
        .max_tokens(MAX_TOKENS)
}

/// Answers and grades every exercise of `line`.
///
/// # Errors
/// As [`Model::chat`].
pub fn sit(model: &Model, line: &Line) -> Result<Mark> {
    let mut mark = Mark {
        name: line.name,
        right: 0,
        of: line.exercises.len(),
        wanted: line.wanted,
        prompt_tokens: 0.0,
        reasoning_tokens: 0.0,
        written: Vec::new(),
        mistakes: Vec::new(),
    };
    for exercise in &line.exercises {
        let response = model.chat(&request(exercise))?;
        mark.prompt_tokens += response.usage.prompt_tokens as f64 / mark.of as f64;
        mark.reasoning_tokens += response.usage.reasoning_tokens as f64 / mark.of as f64;
        let written = model.tokenizer().decode_with_special(&response.tokens)?;
        if right(exercise, &response) {
            mark.right += 1;
        } else {
            let asked = exercise.messages.last().map(|m| format!("{m:?}")).unwrap_or_default();
            let tail = asked.chars().count().saturating_sub(200);
            mark.mistakes.push(Mistake {
                asked: asked.chars().skip(tail).collect(),
                expected: exercise.turn.text(),
                got: written.clone(),
            });
        }
        mark.written.push(written);
    }
    Ok(mark)
}

/// Whether the answer is the expected one, or the call has the expected arguments, with nothing
/// malformed on the way.
fn right(exercise: &Exercise, response: &ChatResponse) -> bool {
    let calls: Vec<_> = response.tool_calls().collect();
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    let reply = match &exercise.turn.reply {
        Reply::Final(text) => calls.is_empty() && response.text() == *text,
        Reply::Call { name, arguments } => {
            let [call] = calls[..] else { return false };
            call.name == *name
                && json(&call.arguments).is_some_and(|got| Some(got) == json(arguments))
        }
    };
    reply && response.repairs.is_empty()
}
