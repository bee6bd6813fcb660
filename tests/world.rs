//! The tiny model's world: its exercises are right, and training never holds what is held out.

#[path = "../examples/world/mod.rs"]
mod world;

use gpt_oss_puzzle::harmony::{Effort, Message};
use serde_json::Value;
use std::collections::HashSet;
use world::arithmetic::{self, Op};
use world::*;

const TASKS: [Task; 14] = [
    Task::Facts,
    Task::Addition { digits: 1 },
    Task::Addition { digits: 2 },
    Task::Addition { digits: 3 },
    Task::Subtraction { digits: 1 },
    Task::Subtraction { digits: 2 },
    Task::Subtraction { digits: 3 },
    Task::Needle { tokens: 80 },
    Task::Needle { tokens: 400 },
    Task::Tools,
    Task::Json,
    Task::Names,
    Task::Unknown,
    Task::Greeting,
];

/// What the user says last.
fn question(exercise: &Exercise) -> &str {
    let said = exercise.messages.iter().rev().find_map(|message| match message {
        Message::User { content } => Some(content.as_str()),
        _ => None,
    });
    said.expect("a user message")
}

/// Everything in an exercise that could teach something.
fn texts(exercise: &Exercise) -> Vec<String> {
    let mut texts = vec![exercise.turn.analysis.clone(), exercise.turn.reply_text().to_owned()];
    for message in &exercise.messages {
        match message {
            Message::User { content } | Message::System { content } => texts.push(content.clone()),
            Message::Assistant(turn) => {
                texts.extend([turn.text(), turn.reasoning()]);
                texts.extend(turn.tool_calls().map(|call| call.arguments.clone()));
            }
            Message::Tool(output) => texts.push(output.content.clone()),
            other => panic!("no exercise has {other:?}"),
        }
    }
    texts
}

/// Every pair of numbers that `text` adds or subtracts, in words, signs or JSON.
fn calculations(text: &str) -> Vec<(Op, usize, usize)> {
    let spaced: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "+-=".contains(c) { c } else { ' ' })
        .collect();
    // A first word for those that begin with a number.
    let words: Vec<&str> = std::iter::once("").chain(spaced.split_whitespace()).collect();
    let found = words.windows(4).filter_map(|w| {
        let op = match (w[0], w[2]) {
            (_, "+" | "plus") | ("Add", "and") | ("a", "b") => Op::Add,
            (_, "-" | "minus") | ("Subtract", "from") => Op::Subtract,
            _ => return None,
        };
        Some((op, w[1].parse().ok()?, w[3].parse().ok()?))
    });
    found.collect()
}

#[test]
fn training_never_holds_what_is_held_out() {
    let mut rng = Rng::new(1);
    let facts: HashSet<String> =
        held_out_facts().iter().map(|fact| question(fact).to_owned()).collect();
    assert_eq!(facts.len(), facts::facts().len());
    let mut held_out = HashSet::new();
    for task in TASKS {
        // Nothing is held out of greetings, strange names and tables of one digit.
        let open = matches!(
            task,
            Task::Greeting | Task::Json | Task::Names | Task::Addition { digits: 1 }
        ) || task == (Task::Subtraction { digits: 1 });
        for _ in 0..if open { 0 } else { 1000 } {
            let exercise = exercise(task, Split::HeldOut, &mut rng);
            held_out.insert(question(&exercise).to_owned());
        }
    }
    let countries: HashSet<&str> = words::CAPITALS.iter().map(|(country, _)| *country).collect();
    let mut counted = 0;
    for round in 0..20_000 {
        let task = TASKS[round % TASKS.len()];
        let exercise = exercise(task, Split::Train, &mut rng);
        assert!(!held_out.contains(question(&exercise)), "{}", question(&exercise));
        for text in texts(&exercise) {
            let asked = text.strip_suffix(" Answer in JSON.").unwrap_or(&text);
            assert!(!facts.contains(asked), "{text}");
            for (op, a, b) in calculations(&text) {
                assert!(!arithmetic::is_held_out(op, a, b), "{a} {op:?} {b} in {text}");
                counted += 1;
            }
            for told in text.split("The code for ").skip(1) {
                let mut words = told.split([' ', '.', '?']);
                if let (Some(key), Some("is"), Some(code)) =
                    (words.next(), words.next(), words.next())
                {
                    assert!(!needle::is_held_out(key, code), "{key} {code}");
                    counted += 1;
                }
            }
            if let Some((_, city)) = text.split_once("eather in ") {
                let city = city.split([' ', '?', '.']).next().unwrap_or_default();
                let real = tools::cities().contains(&city);
                assert!(!(real && tools::is_held_out(city)), "{text}");
                counted += 1;
            }
        }
        if task == Task::Unknown {
            let question = question(&exercise);
            let words = question.split([' ', '?', '.', ':']);
            for name in words.filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase())) {
                let verb = ["What", "Who", "When", "How", "Where", "Which", "Name", "Tell"];
                if !verb.contains(&name) && !countries.contains(name) {
                    assert!(!unknown::is_held_out(name), "{question}");
                    counted += 1;
                }
            }
            if let Some((_, about)) = exercise.turn.analysis.split_once("asks about ") {
                let topic = about.split('.').next().unwrap_or_default();
                let last = topic.split(' ').next_back().unwrap_or_default();
                if countries.contains(last) || last == "cup" {
                    assert!(!unknown::is_held_out(topic), "{topic}");
                    counted += 1;
                }
            }
        }
    }
    assert!(counted > 100_000, "{counted}");
}

#[test]
fn held_out_exercises_are_held_out() {
    let mut rng = Rng::new(2);
    for digits in [2, 3] {
        for (op, task) in
            [(Op::Add, Task::Addition { digits }), (Op::Subtract, Task::Subtraction { digits })]
        {
            for _ in 0..500 {
                let exercise = exercise(task, Split::HeldOut, &mut rng);
                let (_, a, b) = calculations(exercise.turn.reply_text())[0];
                assert!(arithmetic::is_held_out(op, a, b), "{a} {b}");
                assert_eq!(a.max(b).to_string().len(), digits);
            }
        }
    }
    for _ in 0..500 {
        let exercise = tool_exercise(ToolStage::WeatherCall, Split::HeldOut, Effort::Low, &mut rng);
        let arguments: Value =
            serde_json::from_str(exercise.turn.reply_text()).expect("valid JSON");
        let city = arguments["city"].as_str().expect("a city");
        assert!(tools::cities().contains(&city) && tools::is_held_out(city), "{city}");
    }
}

/// Checks every `x op y op z = r` of `text`, and returns the digits told to be written, as a number.
fn check_work(text: &str) -> i64 {
    let (mut written, mut place) = (0, 1);
    for part in text.split([',', '.', ':']).map(str::trim) {
        let part = part.trim_start_matches("So ");
        for equation in part.split(" and ") {
            let Some((left, right)) = equation.split_once(" = ") else { continue };
            let mut value = 0;
            let mut sign = 1;
            for word in left.split(' ') {
                match word {
                    "+" => sign = 1,
                    "-" => sign = -1,
                    number => value += sign * number.parse::<i64>().expect("a number"),
                }
            }
            assert_eq!(value, right.parse::<i64>().expect("a number"), "{equation} in {text}");
        }
        if let Some(digit) = part.strip_prefix("write ") {
            written += place * digit.parse::<i64>().expect("a digit");
            place *= 10;
        }
    }
    written
}

#[test]
fn worked_arithmetic_is_right() {
    let mut rng = Rng::new(3);
    for digits in 1..=3 {
        for op in [Op::Add, Op::Subtract] {
            for effort in [Effort::Low, Effort::Medium, Effort::High] {
                for _ in 0..700 {
                    let (a, b) = arithmetic::pair(op, digits, Split::Train, false, &mut rng);
                    let turn = arithmetic::turn(op, a, b, effort);
                    let (sign, result) = match op {
                        Op::Add => ('+', (a + b) as i64),
                        Op::Subtract => ('-', a as i64 - b as i64),
                    };
                    let answer = format!("{a} {sign} {b} = {result}");
                    assert_eq!(turn.reply, Reply::Final(format!("{answer}.")));
                    let mut parts = turn.analysis.split("Check: ");
                    let work = parts.next().unwrap_or_default();
                    let written = check_work(work);
                    if effort == Effort::Low {
                        assert!(work.ends_with(&format!(" {result}.")), "{work}");
                    } else {
                        assert_eq!(written, result.abs(), "{work}");
                        assert!(work.trim_end().ends_with(&format!("{answer}.")), "{work}");
                    }
                    match parts.next() {
                        Some(check) => {
                            let back = if op == Op::Add { a } else { a.max(b) };
                            assert_eq!(check_work(check), back as i64, "{check}");
                        }
                        None => assert!(effort != Effort::High),
                    }
                }
            }
        }
    }
}

#[test]
fn needles_stand_once_and_anywhere_in_texts_of_the_right_length() {
    let mut rng = Rng::new(4);
    for tokens in [60, 100, 150, 300, 512, 2000] {
        let (mut missing, mut early, mut late) = (0, 0, 0);
        for _ in 0..400 {
            let split = if rng.chance(0.5) { Split::Train } else { Split::HeldOut };
            let exercise = exercise(Task::Needle { tokens }, split, &mut rng);
            let (text, answer) = (question(&exercise), exercise.turn.reply_text());
            let length = estimate_tokens(text);
            assert!(length <= tokens && length + 16 >= tokens, "{length} of {tokens}: {text}");
            let key = answer.trim_end_matches('.').split(" for ").nth(1).unwrap_or_default();
            let key = key.split(' ').next().unwrap_or_default();
            let told = format!("The code for {key} is ");
            if answer.starts_with("The notes do not") {
                assert!(!text.contains(&told), "{text}");
                missing += 1;
            } else {
                assert_eq!(text.matches(&told).count(), 1, "{text}");
                assert_eq!(text.matches(answer).count(), 1, "{text}");
                let at = text.find(answer).unwrap_or_default() as f64 / text.len() as f64;
                early += usize::from(at < 1.0 / 3.0);
                late += usize::from(at > 2.0 / 3.0);
            }
        }
        assert_eq!(missing > 0, tokens <= 300, "{missing} missing at {tokens}");
        assert!(early > 40 && late > 40, "{early} early, {late} late at {tokens}");
    }
}

#[test]
fn answers_in_json_are_what_the_analysis_found() {
    let mut rng = Rng::new(9);
    for split in [Split::Train, Split::HeldOut] {
        for _ in 0..500 {
            let exercise = exercise(Task::Json, split, &mut rng);
            assert!(question(&exercise).ends_with(" Answer in JSON."), "{exercise:?}");
            let value: Value =
                serde_json::from_str(exercise.turn.reply_text()).expect("valid JSON");
            assert_eq!(value.as_object().map(|fields| fields.len()), Some(1), "{value}");
            let answer = match &value["answer"] {
                Value::String(word) => word.clone(),
                number => number.as_i64().expect("a whole number").to_string(),
            };
            assert!(exercise.turn.analysis.contains(&answer), "{exercise:?}");
        }
    }
}

#[test]
fn calls_fit_the_tools_that_are_declared() {
    let mut rng = Rng::new(5);
    let mut calls = 0;
    for round in 0..3000 {
        let split = if round % 2 == 0 { Split::Train } else { Split::HeldOut };
        let exercise = exercise(Task::Tools, split, &mut rng);
        let Reply::Call { name, arguments } = &exercise.turn.reply else { continue };
        let tool = exercise.tools.iter().find(|tool| tool.name == *name).expect("a declared tool");
        let schema = tool.parameters.as_ref().expect("a schema");
        let value: Value = serde_json::from_str(arguments).expect("valid JSON");
        assert_eq!(value.to_string(), *arguments, "compact");
        let given = value.as_object().expect("an object");
        let properties = schema["properties"].as_object().expect("properties");
        assert!(given.keys().eq(properties.keys()), "{arguments}");
        for (name, value) in given {
            match properties[name]["type"].as_str() {
                Some("string") => {
                    assert!(question(&exercise).contains(value.as_str().expect("text")))
                }
                Some("integer") => assert!(question(&exercise).contains(&value.to_string())),
                other => panic!("{other:?}"),
            }
        }
        calls += 1;
    }
    assert!(calls > 1000, "{calls}");
}

#[test]
fn more_effort_is_longer() {
    let mut rng = Rng::new(6);
    for task in TASKS {
        let mut length = |effort| {
            let drawn = (0..300).map(|_| exercise_with(task, Split::Train, effort, &mut rng));
            drawn.map(|exercise| estimate_tokens(&exercise.turn.analysis)).sum::<usize>()
        };
        let (low, medium, high) =
            (length(Effort::Low), length(Effort::Medium), length(Effort::High));
        assert!(
            low < medium && medium < high && high >= 2 * low,
            "{task:?}: {low}, {medium}, {high}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_exercises() {
    for task in TASKS {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..20).map(|_| exercise(task, Split::Train, &mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}

#[test]
fn the_vocabulary_is_small_and_ascii() {
    let mut seen = HashSet::new();
    for text in corpus(Rng::new(7), 20_000) {
        assert!(text.is_ascii() && !text.contains("<|"), "{text}");
        let words = text.split(|c: char| !c.is_ascii_alphabetic());
        seen.extend(words.filter(|word| !word.is_empty() && !invented(word)).map(str::to_owned));
    }
    assert!((500..900).contains(&seen.len()), "{} words", seen.len());
}

/// Whether `word` could be a name made of syllables.
fn invented(word: &str) -> bool {
    fn only_syllables(rest: &str) -> bool {
        let begins = |syllable: &&str| rest.strip_prefix(*syllable).is_some_and(only_syllables);
        rest.is_empty() || words::SYLLABLES.iter().any(begins)
    }
    word.starts_with(|c: char| c.is_ascii_uppercase()) && only_syllables(&word.to_lowercase())
}
