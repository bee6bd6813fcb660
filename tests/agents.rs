//! The shipped model in an agent's place: it calls tools, reads their results, and answers in JSON.
//!
//! The examples come from `cargo build --examples --features structured,schemars`.

#[path = "common/example.rs"]
mod example;

use example::example;
use gpt_oss_puzzle::chat::{Format, Reasoning};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{Message, Tool, ToolChoice};
use gpt_oss_puzzle::{ChatEvent, ChatRequest, Model};
use serde::Deserialize;
use serde_json::json;

fn model() -> Model {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");
    Model::load(dir).expect("the shipped model loads")
}

/// What an example that succeeds prints.
fn run(name: &str, args: &[&str]) -> (String, String) {
    let output = example(name).args(args).output().expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    (out, err)
}

#[test]
fn the_tools_example_calls_and_answers() {
    let (out, err) = run("tools", &[]);
    let call = r#"get_weather({"city":"Rome"}) = {"temperature":16,"sky":"clear"}"#;
    assert!(err.contains(call), "{err}");
    assert_eq!(out, "It is 16 degrees and clear in Rome.\n");
    let (out, err) = run("tools", &["What is 17 + 25?"]);
    assert!(err.contains(r#"add({"a":17,"b":25}) = {"sum":42}"#), "{err}");
    assert_eq!(out, "17 + 25 = 42.\n");
}

#[test]
fn the_structured_example_computes_with_the_answer() {
    let (out, err) = run("structured", &[]);
    assert_eq!(out, "42, and its half is 21\n", "{err}");
}

/// What the model does not show, it still knows when the tool has answered.
#[test]
fn a_hidden_thought_stays_in_an_open_tool_loop() {
    let model = model();
    let tool = || {
        let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        Tool::new("get_weather", "The weather in a city.", city)
    };
    let run = |reasoning: Reasoning| {
        let request = ChatRequest::default().date("2026-01-02").tools([tool()]);
        let request = request.sampling(SamplingParams::greedy()).reasoning(reasoning);
        let mut session = model.session(request);
        let mut stream = session.send("What is the weather in Oslo?").expect("starts");
        let events: Vec<ChatEvent> =
            stream.by_ref().map(|event| event.expect("an event")).collect();
        let response = stream.finish().expect("ends");
        let [call] =
            response.tool_calls().cloned().collect::<Vec<_>>().try_into().expect("one call");
        let kept = match session.messages().last() {
            Some(Message::Assistant(kept)) => kept.reasoning(),
            other => panic!("{other:?}"),
        };
        session.push(Message::tool(&call, r#"{"temperature":3,"sky":"rainy"}"#));
        let mut stream = session.respond().expect("starts");
        stream.by_ref().for_each(drop);
        let answer = stream.finish().expect("ends");
        (response.reasoning(), kept, events, answer.tokens)
    };
    let (shown, kept, _, answer) = run(Reasoning::default());
    assert!(shown.contains("Oslo") && kept == shown, "{shown} {kept}");
    let (hidden, kept, events, same) = run(Reasoning::default().hidden());
    assert_eq!((hidden.as_str(), kept, same), ("", shown, answer));
    assert!(!events.iter().any(|event| matches!(event, ChatEvent::Reasoning(_))), "{events:?}");
}

/// At temperature 1, with a thought of the model's own, over 100 seeds.
fn request(question: &str, seed: u64) -> ChatRequest {
    ChatRequest::user(question)
        .date("2026-01-02")
        .sampling(SamplingParams::default().temperature(1.0).seed(seed))
        .reasoning(Reasoning::default().max_tokens(40))
        .max_tokens(1000)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct City {
    answer: String,
    letters: u8,
    famous: bool,
}

#[test]
fn json_follows_a_schema_it_was_never_taught_100_times_in_100() {
    let model = model();
    let schema = json!({
        "type": "object",
        "properties": {
            "answer": {"type": "string", "minLength": 1, "maxLength": 20},
            "letters": {"type": "integer", "minimum": 1, "maximum": 20},
            "famous": {"type": "boolean"},
        },
        "required": ["answer", "letters", "famous"],
        "additionalProperties": false,
    });
    let (mut right, mut famous) = (0, 0);
    for seed in 0..100 {
        let request = request("What is the capital of France? Answer in JSON.", seed);
        let response =
            model.chat(&request.format(Format::json_schema(schema.clone()))).expect("runs");
        assert_eq!(response.finish_reason, FinishReason::Stop, "{seed}: {}", response.text());
        let city: City = response.parse().unwrap_or_else(|e| panic!("{seed}: {e}"));
        assert!((1..=20).contains(&city.answer.chars().count()), "{seed}: {city:?}");
        assert!((1..=20).contains(&city.letters), "{seed}: {city:?}");
        assert!(response.repairs.is_empty(), "{seed}: {:?}", response.repairs);
        right += usize::from(city.answer.starts_with("Paris"));
        famous += usize::from(city.famous);
    }
    // What is open is the model's to choose: it knows the city, and was never taught to go on behind it.
    assert!(right > 90 && (1..100).contains(&famous), "{right} {famous}");
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weather {
    city: String,
    days: u8,
}

#[test]
fn a_required_call_is_valid_100_times_in_100() {
    let model = model();
    let tool = Tool::new(
        "get_weather",
        "The weather in a city.",
        json!({
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 20},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
            "required": ["city", "days"],
            "additionalProperties": false,
        }),
    );
    for seed in 0..100 {
        let request =
            request("Hello", seed).tools([tool.clone()]).tool_choice(ToolChoice::Required);
        let response = model.chat(&request).expect("runs");
        let calls: Vec<_> = response.tool_calls().collect();
        let [call] = calls[..] else { panic!("{seed}: {calls:?}") };
        let weather: Weather = call.parse().unwrap_or_else(|e| panic!("{seed}: {e}"));
        assert!((1..=20).contains(&weather.city.chars().count()), "{seed}: {weather:?}");
        assert!((1..=14).contains(&weather.days), "{seed}: {weather:?}");
        assert!(response.repairs.is_empty(), "{seed}: {:?}", response.repairs);
    }
}
