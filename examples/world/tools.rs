//! Two tools, when to call them, and what to say to their results.

use super::rng::{Rng, hash};
use super::unknown::invented_name;
use super::words::{CAPITALS, KEYS, MORE_CITIES};
use super::{Reply, Split, Turn, arithmetic, facts};
use arithmetic::Op;
use gpt_oss_puzzle::harmony::{AssistantMessage, Effort, Item, Message, Tool, ToolCall};
use serde_json::json;

/// A point in a conversation in which tools play a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStage {
    /// The user asks for the weather: call `get_weather`.
    WeatherCall,
    /// `get_weather` has answered: say so.
    WeatherAnswer,
    /// The user asks for a sum and `add` is declared: call it.
    AddCall,
    /// `add` has answered: say so.
    AddAnswer,
    /// A fact is asked for: no tool helps, answer directly.
    Fact,
    /// The user asks for the weather and nothing declared can tell.
    NoWeather,
    /// A sum with only `get_weather` declared, or a difference: work it out.
    WorkedOut,
}

impl ToolStage {
    /// All stages.
    pub const ALL: [ToolStage; 7] = [
        ToolStage::WeatherCall,
        ToolStage::WeatherAnswer,
        ToolStage::AddCall,
        ToolStage::AddAnswer,
        ToolStage::Fact,
        ToolStage::NoWeather,
        ToolStage::WorkedOut,
    ];

    /// A random stage; calls and their answers are most.
    pub fn draw(rng: &mut Rng) -> ToolStage {
        let shares = [28, 20, 17, 12, 9, 7, 7];
        let mut drawn = rng.below(shares.iter().sum());
        for (stage, share) in ToolStage::ALL.into_iter().zip(shares) {
            if drawn < share {
                return stage;
            }
            drawn -= share;
        }
        ToolStage::WeatherCall
    }
}

/// What an exercise with tools is made of.
pub struct ToolExercise {
    /// The conversation, beginning with the user's question.
    pub messages: Vec<Message>,
    /// The tools on offer.
    pub tools: Vec<Tool>,
    /// What the model says.
    pub turn: Turn,
}

const SKIES: &[&str] = &["sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear"];

const WEATHER: &[&str] = &[
    "What is the weather in {}?",
    "Tell me the weather in {}.",
    "weather in {}",
    "How is the weather in {}?",
    "Weather in {} today?",
];

/// `get_weather` and `add`.
pub fn tools() -> Vec<Tool> {
    vec![get_weather(), add()]
}

fn get_weather() -> Tool {
    let properties = json!({ "city": { "type": "string" } });
    let parameters = json!({ "type": "object", "properties": properties, "required": ["city"] });
    Tool::new("get_weather", "The weather in a city.", parameters)
}

fn add() -> Tool {
    let properties = json!({ "a": { "type": "integer" }, "b": { "type": "integer" } });
    let parameters = json!({ "type": "object", "properties": properties, "required": ["a", "b"] });
    Tool::new("add", "The sum of two numbers.", parameters)
}

/// Every real city.
pub fn cities() -> Vec<&'static str> {
    CAPITALS.iter().map(|(_, capital)| *capital).chain(MORE_CITIES.iter().copied()).collect()
}

/// Whether training never asks for the weather there: about one real city in seven.
pub fn is_held_out(city: &str) -> bool {
    hash(city).is_multiple_of(7)
}

/// A city to ask the weather of. Training also invents some, so that names are copied, not known.
fn city(split: Split, rng: &mut Rng) -> String {
    if split == Split::Train && rng.chance(0.4) {
        return invented_name(rng);
    }
    let mut cities = cities();
    cities.retain(|city| is_held_out(city) == (split == Split::HeldOut));
    (*rng.pick(&cities)).to_owned()
}

/// An exercise of `stage`.
pub fn tool_exercise(
    stage: ToolStage,
    split: Split,
    effort: Effort,
    rng: &mut Rng,
) -> ToolExercise {
    let both = !rng.chance(0.2);
    let offer = |one: Tool| if both { tools() } else { vec![one] };
    match stage {
        ToolStage::WeatherCall | ToolStage::WeatherAnswer => {
            let city = city(split, rng);
            weather_exercise(stage, &city, offer(get_weather()), effort, rng)
        }
        ToolStage::AddCall | ToolStage::AddAnswer => {
            let digits = *rng.pick(&[1, 2, 2, 3, 3]);
            let digits = if split == Split::HeldOut { digits.max(2) } else { digits };
            let (a, b) = arithmetic::pair(Op::Add, digits, split, false, rng);
            let question = arithmetic::ask(Op::Add, a, b, rng);
            let call = add_call(a, b, effort);
            let (messages, turn) = if stage == ToolStage::AddCall {
                (vec![Message::user(question)], call)
            } else {
                let result = json!({ "sum": a + b }).to_string();
                (answered(question, &call, result), add_answer(a, b, effort))
            };
            ToolExercise { messages, tools: offer(add()), turn }
        }
        ToolStage::Fact => {
            let (question, turn) = facts::question(split, effort, rng);
            let tools = offer(get_weather());
            ToolExercise { messages: vec![Message::user(question)], tools, turn }
        }
        ToolStage::NoWeather => {
            let city = city(split, rng);
            let question = rng.pick(WEATHER).replace("{}", &city);
            let tools = if both { vec![add()] } else { vec![] };
            let turn = no_weather(&city, effort);
            ToolExercise { messages: vec![Message::user(question)], tools, turn }
        }
        ToolStage::WorkedOut => {
            let digits = rng.between(2, 3);
            let sum = rng.chance(0.5);
            let (op, tools) =
                if sum { (Op::Add, vec![get_weather()]) } else { (Op::Subtract, tools()) };
            let (question, turn) = arithmetic::question(op, digits, split, effort, rng);
            ToolExercise { messages: vec![Message::user(question)], tools, turn }
        }
    }
}

/// The weather in `city`: the call, or what is said to its result.
fn weather_exercise(
    stage: ToolStage,
    city: &str,
    tools: Vec<Tool>,
    effort: Effort,
    rng: &mut Rng,
) -> ToolExercise {
    let question = rng.pick(WEATHER).replace("{}", city);
    let call = weather_call(city, effort);
    let (messages, turn) = if stage == ToolStage::WeatherCall {
        (vec![Message::user(question)], call)
    } else {
        let degrees = rng.between(0, 44) as i64 - 9;
        let sky = rng.pick(SKIES);
        let result = json!({ "temperature": degrees, "sky": sky }).to_string();
        let answer = weather_answer(city, degrees, sky, effort);
        (answered(question, &call, result), answer)
    };
    ToolExercise { messages, tools, turn }
}

/// The weather in a place whose name is put together from pieces of words, so that any piece of a name can
/// be copied: the call, or what is said to its result.
pub fn strange_name(effort: Effort, rng: &mut Rng) -> ToolExercise {
    let stage = *rng.pick(&[ToolStage::WeatherCall, ToolStage::WeatherAnswer]);
    weather_exercise(stage, &pieced_name(rng), tools(), effort, rng)
}

/// Two or three pieces of one to four letters, the first one capitalised; no real city.
fn pieced_name(rng: &mut Rng) -> String {
    loop {
        let mut name = String::new();
        for _ in 0..rng.between(2, 3) {
            let word = match rng.below(3) {
                0 => rng.pick(KEYS),
                1 => rng.pick(MORE_CITIES),
                _ => &rng.pick(CAPITALS).1,
            };
            let start = rng.below(word.len());
            let end = word.len().min(start + rng.between(1, 4));
            name += &word[start..end].to_lowercase();
        }
        let name = name[..1].to_uppercase() + &name[1..];
        if !cities().contains(&name.as_str()) {
            return name;
        }
    }
}

/// The conversation up to the result of `call`.
fn answered(question: String, turn: &Turn, result: String) -> Vec<Message> {
    let mut messages = vec![Message::user(question)];
    if let Reply::Call { name, arguments } = &turn.reply {
        let call = ToolCall::function("call_0", name, arguments);
        let items = vec![Item::reasoning(&turn.analysis), Item::ToolCall(call.clone())];
        messages.push(AssistantMessage { items }.into());
        messages.push(Message::tool(&call, result));
    }
    messages
}

fn weather_call(city: &str, effort: Effort) -> Turn {
    let analysis = match effort {
        Effort::Low => format!("Weather in {city}: get_weather."),
        Effort::High => format!(
            "The user asks for the weather in {city}. The tool get_weather takes a city. \
             The city is {city}. So I call get_weather with the city {city}."
        ),
        _ => format!("The user asks for the weather in {city}. I call get_weather."),
    };
    let arguments = json!({ "city": city }).to_string();
    Turn { analysis, reply: Reply::Call { name: "get_weather".to_owned(), arguments } }
}

fn weather_answer(city: &str, degrees: i64, sky: &str, effort: Effort) -> Turn {
    let medium = format!("The tool says {degrees} and {sky}.");
    let analysis = match effort {
        Effort::Low => format!("{degrees}, {sky}."),
        Effort::High => {
            format!(
                "{medium} The user asks for the weather in {city}. So I answer {degrees} and {sky}."
            )
        }
        _ => medium,
    };
    Turn { analysis, reply: Reply::Final(format!("It is {degrees} degrees and {sky} in {city}.")) }
}

fn add_call(a: usize, b: usize, effort: Effort) -> Turn {
    let analysis = match effort {
        Effort::Low => format!("{a} + {b}: add."),
        Effort::High => format!(
            "The user asks for {a} + {b}. The tool add takes a and b. Here a is {a} and b is {b}. \
             So I call add with {a} and {b}."
        ),
        _ => format!("The user asks for {a} + {b}. I call add."),
    };
    let arguments = json!({ "a": a, "b": b }).to_string();
    Turn { analysis, reply: Reply::Call { name: "add".to_owned(), arguments } }
}

fn add_answer(a: usize, b: usize, effort: Effort) -> Turn {
    let sum = a + b;
    let analysis = match effort {
        Effort::Low => format!("{sum}."),
        Effort::High => {
            format!("The tool says {sum}. The user asks for {a} + {b}. So I answer {sum}.")
        }
        _ => format!("The tool says {sum}."),
    };
    Turn { analysis, reply: Reply::Final(format!("{a} + {b} = {sum}.")) }
}

fn no_weather(city: &str, effort: Effort) -> Turn {
    let medium =
        format!("The user asks for the weather in {city}. There is no tool for the weather.");
    let analysis = match effort {
        Effort::Low => format!("Weather in {city}: no tool."),
        Effort::High => format!(
            "{medium} Check: no tool takes a city. So I say that I cannot look up the weather."
        ),
        _ => medium,
    };
    Turn { analysis, reply: Reply::Final("I cannot look up the weather.".to_owned()) }
}
