//! Answers that follow a format, from models that would not: one of random weights, which says anything
//! that it may, and one that speaks harmony.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(unreachable_pub)]
#[path = "common/speaking.rs"]
mod speaking;
#[allow(unreachable_pub)]
#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::chat::{
    AnswerError, ChatEvent, ChatRequest, ChatResponse, Format, Model, Reasoning, ReasoningCut,
};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{Mode, Parser, Primed, Tool, ToolChoice};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::{Checkpoint, tiny_config};
use gpt_oss_puzzle::{EngineOptions, ErrorKind};
use serde::Deserialize;
use serde_json::{Value, json};
use speaking::{ENDLESS, biased, events, speaking, tiny};
use std::error::Error as _;
use std::time::Duration;

/// A turn at temperature 1 that thinks a little.
fn request(seed: u64, format: Format) -> ChatRequest {
    ChatRequest::user("Go on")
        .date("2026-01-02")
        .sampling(SamplingParams::default().temperature(1.0).seed(seed))
        .reasoning(Reasoning::default().max_tokens(6))
        .max_tokens(1500)
        .format(format)
}

/// The turn is well-formed to the letter.
fn assert_strict(model: &Model, request: &ChatRequest, response: &ChatResponse) {
    assert!(response.repairs.is_empty(), "{:?}", response.repairs);
    let tokenizer = model.tokenizer().clone();
    let mut parser = Parser::new(tokenizer, Primed::Role, Mode::Strict)
        .unwrap()
        .tools(request.tools.iter().map(|tool| tool.name.clone()))
        .builtin_tools(request.builtin_tools.iter().copied());
    for id in &response.tokens {
        assert!(!parser.is_done());
        parser.push(*id).unwrap();
    }
    parser.finish().unwrap();
}

fn table() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "kind": {"enum": ["spoon", "fork", "knife"]},
            "count": {"type": "integer", "minimum": -3, "maximum": 250},
            "parts": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"$ref": "#/$defs/part"}},
            "note": {"anyOf": [{"type": "string", "maxLength": 8}, {"type": "null"}]},
        },
        "required": ["name", "kind", "count", "parts", "note"],
        "additionalProperties": false,
        "$defs": {"part": {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "minimum": 1, "maximum": 99},
                "tags": {"type": "array", "maxItems": 2, "items": {"type": "string", "maxLength": 4}},
                "rare": {"type": "boolean"},
            },
            "required": ["id", "tags", "rare"],
            "additionalProperties": false,
        }},
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    kind: Kind,
    count: i64,
    parts: Vec<Part>,
    #[serde(deserialize_with = "Option::deserialize")]
    note: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Spoon,
    Fork,
    Knife,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    id: i64,
    tags: Vec<String>,
    rare: bool,
}

fn assert_follows(table: &Table) {
    let length = |text: &str| text.chars().count();
    assert!((1..=12).contains(&length(&table.name)), "{table:?}");
    assert!((-3..=250).contains(&table.count) && (1..=3).contains(&table.parts.len()), "{table:?}");
    assert!(table.note.as_deref().is_none_or(|note| length(note) <= 8), "{table:?}");
    for part in &table.parts {
        assert!((1..=99).contains(&part.id) && part.tags.len() <= 2, "{table:?}");
        assert!(part.tags.iter().all(|tag| length(tag) <= 4), "{table:?}");
    }
}

#[test]
fn json_follows_its_schema_100_times_in_100() {
    let model = tiny();
    let (mut kinds, mut thoughts, mut rare, mut notes) = (Vec::new(), 0, 0, 0);
    for seed in 0..100 {
        let request = request(seed, Format::json_schema(table()));
        let response = model.chat(&request).unwrap();
        assert_eq!(response.finish_reason, FinishReason::Stop, "{seed}: {}", response.text());
        let table: Table = response.parse().unwrap_or_else(|e| panic!("{seed}: {e}"));
        assert_follows(&table);
        assert_strict(&model, &request, &response);
        if !kinds.contains(&table.kind) {
            kinds.push(table.kind);
        }
        thoughts += usize::from(response.usage.reasoning_tokens > 0);
        rare += table.parts.iter().filter(|part| part.rare).count();
        notes += usize::from(table.note.is_some());
    }
    // What is open is the model's to choose.
    assert_eq!(kinds.len(), 3);
    assert!(thoughts > 20 && rare > 10 && (10..90).contains(&notes), "{thoughts} {rare} {notes}");
}

#[test]
fn text_follows_an_expression_100_times_in_100() {
    let model = tiny();
    let pattern = r"(no|yes, [a-zäöü]{2,9}(-\p{Lu}\d{3}){1,3})[.!]?";
    let mut yes = 0;
    for seed in 0..100 {
        let request = request(seed, Format::regex(pattern));
        let response = model.chat(&request).unwrap();
        assert_eq!(response.finish_reason, FinishReason::Stop);
        assert_strict(&model, &request, &response);
        let text = response.text();
        yes += usize::from(text.starts_with("yes"));
        let body = text.strip_suffix(['.', '!']).unwrap_or(&text);
        let follows = body == "no"
            || body.strip_prefix("yes, ").is_some_and(|rest| {
                let mut parts = rest.split('-');
                let word = parts.next().unwrap();
                let parts: Vec<&str> = parts.collect();
                (2..=9).contains(&word.chars().count())
                    && word.chars().all(|c| c.is_ascii_lowercase() || "äöü".contains(c))
                    && (1..=3).contains(&parts.len())
                    && parts.iter().all(|part| {
                        let mut chars = part.chars();
                        chars.next().is_some_and(char::is_uppercase)
                            && part.chars().count() == 4
                            && chars.all(char::is_numeric)
                    })
            });
        assert!(follows, "{text:?}");
    }
    assert!((5..95).contains(&yes), "{yes}");
}

/// The value of a sum, if it is one.
fn sum(text: &str) -> Option<i64> {
    let (value, rest) = term(text)?;
    match rest {
        "" => Some(value),
        _ => None,
    }
}

fn term(text: &str) -> Option<(i64, &str)> {
    if let Some(rest) = text.strip_prefix('(') {
        let (left, rest) = term(rest)?;
        let (right, rest) = term(rest.strip_prefix('+')?)?;
        return Some((left.checked_add(right)?, rest.strip_prefix(')')?));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

#[test]
fn text_follows_a_grammar_100_times_in_100() {
    let model = tiny();
    let grammar = "start: sum\nsum: NUMBER | \"(\" sum \"+\" sum \")\"\nNUMBER: /[0-9]{1,4}/\n";
    let mut nested = 0;
    for seed in 0..100 {
        let mut request = request(seed, Format::lark(grammar));
        let open = model.tokenizer().encode("(").unwrap()[0];
        request.sampling = request.sampling.logit_bias(open, 2.0);
        let response = model.chat(&request).unwrap();
        let text = response.text();
        assert_strict(&model, &request, &response);
        if response.finish_reason == FinishReason::Length {
            // Brackets open faster than they close now and then; then the beginning is right.
            assert!(text.chars().all(|c| "()+0123456789".contains(c)) && text.starts_with('('));
            continue;
        }
        assert_eq!(response.finish_reason, FinishReason::Stop);
        assert!(sum(&text).is_some(), "{text:?}");
        nested += usize::from(text.contains('('));
    }
    assert!(nested > 10, "{nested}");
}

#[test]
fn a_json_object_is_one() {
    let model = tiny();
    let mut long = 0;
    for seed in 0..20 {
        let mut request = request(seed, Format::json_object());
        // Out of strings, lists and maps.
        for text in ["\"", "}", "]"] {
            let id = model.tokenizer().encode(text).unwrap()[0];
            request.sampling = request.sampling.logit_bias(id, 3.0);
        }
        let response = model.chat(&request).unwrap();
        assert_eq!(response.finish_reason, FinishReason::Stop, "{}", response.text());
        let value: Value = serde_json::from_str(&response.text()).unwrap();
        assert!(value.is_object());
        long += usize::from(response.text().len() > 10);
    }
    assert!(long > 3, "{long}");
}

#[test]
fn what_has_no_alternative_is_not_drawn() {
    let model = tiny();
    let schema = json!({"type": "object", "required": ["temperature"], "additionalProperties": false,
                        "properties": {"temperature": {"type": "integer", "minimum": 0, "maximum": 9}}});
    for seed in 0..20 {
        let request = request(seed, Format::json_schema(schema.clone())).logprobs(0);
        let response = model.chat(&request).unwrap();
        let text = |ids: &[u32]| model.tokenizer().decode_with_special(ids).unwrap();
        let forced: Vec<u32> = response.forced.iter().map(|at| response.tokens[*at]).collect();
        for part in ["<|message|>", "temperature"] {
            assert!(text(&forced).contains(part), "{}", text(&forced));
        }
        assert!(text(&response.tokens).ends_with("}<|return|>"));
        assert_eq!(forced.last(), response.tokens.last(), "nothing follows the last bracket");
        // The digit and little else is the model's.
        let final_at = text(&response.tokens).rfind("final").unwrap();
        assert!(final_at > 0 && response.logprobs.len() + forced.len() == response.tokens.len());
        let value: Value = response.parse().unwrap();
        assert!((0..=9).contains(&value["temperature"].as_i64().unwrap()));
    }
    // Where all is said, nothing is drawn of the answer.
    let one = request(0, Format::regex("Yes!")).reasoning(skipping());
    let response = model.chat(&one).unwrap();
    assert_eq!((response.text().as_str(), response.forced.len()), ("Yes!", response.tokens.len()));
    let none = model.chat(&request(0, Format::regex(""))).unwrap();
    assert_eq!((none.text(), none.finish_reason), (String::new(), FinishReason::Stop));
}

fn skipping() -> Reasoning {
    Reasoning::default().max_tokens(0).allow_skipping()
}

#[test]
fn a_thought_of_any_length_comes_first() {
    let model = speaking();
    let schema = Format::json_schema(table());
    let mut reserved = 0;
    for seed in 0..30 {
        let request = biased(&model, seed, ENDLESS).max_tokens(800).format(schema.clone());
        let budget = request.clone().reasoning(Reasoning::default().max_tokens(20));
        let response = model.chat(&budget).unwrap();
        assert_eq!(response.reasoning_cut, Some(ReasoningCut::Budget));
        assert!((20..=20 + Reasoning::GRACE).contains(&response.usage.reasoning_tokens));
        assert_follows(&response.parse().unwrap());
        assert_strict(&model, &budget, &response);
        // Without a budget the reserve ends it, and without a thought there is only the answer.
        let response = model.chat(&request).unwrap();
        assert!(matches!(response.reasoning_cut, Some(ReasoningCut::Reserve | ReasoningCut::Loop)));
        reserved += usize::from(response.parse::<Table>().is_ok());
        let response = model.chat(&request.reasoning(skipping())).unwrap();
        assert_eq!(response.usage.reasoning_tokens, 0);
        assert_follows(&response.parse().unwrap());
    }
    assert!(reserved > 20, "{reserved}");
}

#[test]
fn an_answer_that_is_cut_off_says_so() {
    let model = tiny();
    let format = Format::json_schema(json!({"type": "integer", "minimum": 1000, "maximum": 9999}));
    let whole = model.chat(&request(1, format.clone())).unwrap();
    let digits: String = whole.text();
    assert_eq!(digits.len(), 4);
    let cut = |request: ChatRequest, text: &str, reason: FinishReason, what: &str| {
        let response = model.chat(&request).unwrap();
        assert_eq!((response.text().as_str(), &response.finish_reason), (text, &reason));
        let error = response.parse::<i64>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Answer);
        let message = format!("the answer does not parse: {what}, found {text:?}");
        assert_eq!(error.to_string(), message);
        let cause = error.source().and_then(|e| e.downcast_ref::<AnswerError>()).unwrap();
        assert_eq!((cause.text.as_str(), &cause.finish_reason), (text, &reason));
        assert!(cause.error.is_none());
    };
    let (used, room) = (whole.tokens.len(), "it was cut off, there was no room left");
    // Thinking as before: the reserve is the only thing that depends on the room.
    let free = Reasoning::default().max_tokens(6).min_answer_tokens(0);
    let request = request(1, format).reasoning(free);
    cut(request.clone().max_tokens(used - 2), &digits[..3], FinishReason::Length, room);
    cut(request.clone().max_tokens(used - 1), &digits, FinishReason::Length, room);
    assert_eq!(model.chat(&request.clone().max_tokens(used)).unwrap().parse::<i64>().unwrap(), {
        digits.parse::<i64>().unwrap()
    });
    let stop = &digits[2..];
    let at = digits.find(stop).unwrap();
    let what = format!("it was cut off before {stop:?}");
    let reason = FinishReason::StopSequence(stop.to_owned());
    cut(request.clone().stop([stop]), &digits[..at], reason, &what);
    // Whole, but of another shape.
    let error = model.chat(&request).unwrap().parse::<String>().unwrap_err();
    let cause = error.source().and_then(|e| e.downcast_ref::<AnswerError>()).unwrap();
    assert!(
        cause.error.is_some() && error.to_string().contains("invalid type: integer"),
        "{error}"
    );
}

#[test]
fn formats_that_cannot_be_followed_are_refused() {
    let model = tiny();
    let deep =
        |levels| (0..levels).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
    // As deep as may be, on the small stack of a test.
    drop(model.chat_stream(&request(0, Format::json_schema(deep(127)))).unwrap());
    for (format, expected) in [
        (
            Format::json_schema(json!({"not": {}})),
            "the JSON schema of the answer cannot be followed",
        ),
        (Format::json_schema(json!({"not": {}})), "\"not\""),
        (Format::json_schema(json!({"type": "colour"})), "colour"),
        (Format::json_schema(json!({"$ref": "#/$defs/x"})), "#/$defs/x"),
        (Format::json_schema(json!({"type": "integer", "minimum": 5, "maximum": 4})), "minimum"),
        (Format::json_schema(json!(false)), "the JSON schema of the answer"),
        (Format::json_schema(json!({"oneOf": [{"minimum": 1}, {"maximum": 5}]})), "oneOf"),
        (Format::json_schema(json!("text")), "the JSON schema of the answer"),
        (Format::json_schema(deep(2000)), "nested more than 128 levels deep"),
        (Format::lark(format!("start: {}", "(".repeat(5000))), "nested more than 128 levels deep"),
        (Format::regex("(".repeat(5000)), "nested more than 128 levels deep"),
        (Format::regex("a("), "the regular expression of the answer cannot be followed"),
        (Format::regex("(?=a)b"), "the regular expression of the answer"),
        (Format::lark("start: noun"), "the grammar of the answer cannot be followed"),
        (Format::lark("start: noun"), "noun"),
        (Format::lark(""), "the grammar of the answer"),
        (Format::lark("start: start \"a\""), "the grammar of the answer"),
    ] {
        let request = request(0, format.clone());
        let error = model.chat_stream(&request).map(drop).expect_err(&format!("{format:?}"));
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        let message = error.to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message:?}");
        assert!(!message.contains("backtrace") && !message.contains("panic"), "{message:?}");
        // The conversation is as it was.
        let mut session = model.session(request);
        assert!(session.send("And?").is_err());
        assert_eq!(session.messages().len(), 1);
    }
}

#[test]
fn no_control_token_is_part_of_an_answer() {
    let model = tiny();
    let end = model.tokenizer().special_id("<|call|>").unwrap();
    for grammar in ["start: \"a\" <|call|>".to_owned(), format!("start: \"a\" <[{end}]>")] {
        let error = model.chat(&request(0, Format::lark(grammar))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    }
    // Its characters are.
    let response = model.chat(&request(0, Format::regex(r"<\|call\|>"))).unwrap();
    assert_eq!(response.text(), "<|call|>");
    assert!(!response.tokens.contains(&end));
}

#[test]
fn streams_and_sessions_follow_it_too() {
    let model = tiny();
    let request = request(5, Format::json_schema(table()));
    let events = events(&model, &request);
    let text = |event: &ChatEvent| match event {
        ChatEvent::Text(text) => Some(text.clone()),
        _ => None,
    };
    let streamed: String = events.iter().filter_map(text).collect();
    assert_eq!(streamed, model.chat(&request).unwrap().text());
    let mut session = model.session(request);
    for turn in 0..6 {
        session.request_mut().sampling.seed = Some(turn);
        let response = session.send("And?").unwrap().finish().unwrap();
        assert_follows(&response.parse().unwrap());
        assert_eq!(response.usage.cached_tokens > 0, turn > 0);
        assert_eq!(session.messages().len(), 1 + 2 * (turn as usize + 1));
        // As without a session.
        let mut fresh = session.request().clone();
        fresh.messages.pop();
        assert_eq!(model.chat(&fresh).unwrap().tokens, response.tokens);
    }
}

#[test]
fn with_tools_the_model_answers_or_calls() {
    let model = tiny();
    let tool = |name: &str| Tool::new(name, "Looks.", json!({"type": "object"}));
    let (mut answers, mut calls, mut preambles, mut headers) = (0, 0, 0, Vec::new());
    for seed in 0..100 {
        let mut request = request(seed, Format::json_schema(table()))
            .tools([tool("weather"), tool("news")])
            .builtin_tools([gpt_oss_puzzle::harmony::BuiltinTool::Python]);
        // Calls, and words before them, come to their end.
        for text in ["<|call|>", "<|end|>"] {
            let id = model.tokenizer().special_id(text).unwrap();
            request.sampling = request.sampling.logit_bias(id, 4.0);
        }
        let response = model.chat(&request).unwrap();
        assert_strict(&model, &request, &response);
        preambles += response
            .message
            .items
            .iter()
            .filter(|item| matches!(item, gpt_oss_puzzle::harmony::Item::Preamble { .. }))
            .count();
        match &response.finish_reason {
            FinishReason::Stop => {
                assert_follows(&response.parse().unwrap());
                assert_eq!(response.tool_calls().count(), 0);
                answers += 1;
            }
            FinishReason::ToolCalls => {
                let call = response.tool_calls().next().unwrap();
                assert!(["weather", "news", "python"].contains(&call.name.as_str()), "{call:?}");
                assert_eq!(response.text(), "");
                let error = response.parse::<Table>().unwrap_err();
                assert!(error.to_string().contains("the model called a tool instead"), "{error}");
                let text = model.tokenizer().decode_with_special(&response.tokens).unwrap();
                let at = text.rfind("<|message|>").unwrap();
                let from = text[..at].rfind("<|start|>").unwrap_or(0);
                headers.push(text[from..at].trim_start_matches("<|start|>assistant").to_owned());
                calls += 1;
            }
            reason => panic!("{reason:?}"),
        }
    }
    headers.sort();
    headers.dedup();
    assert!(answers > 8 && calls > 20 && preambles > 0, "{answers} {calls} {preambles}");
    // Both places for the recipient, and several ways to name the type.
    assert!(headers.iter().any(|header| header.starts_with(" to=")), "{headers:?}");
    assert!(headers.iter().any(|header| header.starts_with("<|channel|>commentary to=")));
    assert!(headers.iter().any(|header| header.ends_with("<|constrain|>json")), "{headers:?}");
    // None are on offer: none is called.
    for seed in 0..20 {
        let request = request(seed, Format::json_schema(table()))
            .tools([tool("weather")])
            .tool_choice(ToolChoice::None);
        assert_follows(&model.chat(&request).unwrap().parse().unwrap());
    }
}

#[test]
fn bias_and_sampling_cannot_break_it() {
    let model = tiny();
    let space = model.tokenizer().encode(" ").unwrap()[0];
    let brackets = model.tokenizer().encode("{").unwrap()[0];
    let end = model.tokenizer().special_id("<|return|>").unwrap();
    for sampling in [
        SamplingParams::greedy(),
        SamplingParams::default().top_k(1).seed(0),
        SamplingParams::default().top_p(0.01).seed(0),
        SamplingParams::default().min_p(1.0).seed(0),
        SamplingParams::default().logit_bias(brackets, -1e9).logit_bias(end, 1e9).seed(0),
        // White space for ever, where it may be.
        SamplingParams::default().logit_bias(space, 60.0).seed(0),
        SamplingParams::default().repetition_penalty(1.5).temperature(2.0).seed(0),
    ] {
        let mut request = request(0, Format::json_schema(table()));
        request.sampling = sampling.clone();
        let table: Table = model.chat(&request).unwrap().parse().unwrap();
        assert_follows(&table);
    }
}

#[cfg(feature = "schemars")]
mod typed {
    use super::*;
    use schemars::JsonSchema;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    struct Report {
        city: City,
        sky: Vec<Sky>,
        measured: Option<Measured>,
        other: BTreeMap<String, u8>,
        next: Option<Box<Report>>,
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    struct City {
        inhabitants: u32,
        founded: i64,
        id: u64,
        small: i8,
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    enum Sky {
        Clear,
        Cloudy { tenths: u8 },
    }

    #[derive(Debug, PartialEq, JsonSchema, Deserialize)]
    #[serde(tag = "unit", rename_all = "lowercase")]
    enum Measured {
        Celsius { degrees: i16 },
        Kelvin { degrees: u16 },
    }

    #[test]
    fn an_answer_is_a_value_of_a_type() {
        let model = tiny();
        let id = |text: &str| model.tokenizer().encode(text).unwrap()[0];
        let (mut clear, mut cloudy, mut nested) = (0, 0, 0);
        for seed in 0..60 {
            let mut request = request(seed, Format::regex("replaced")).max_tokens(3000);
            // Out of lists, maps and names.
            for (text, bias) in [("\"", 3.0), ("}", 3.0), ("]", 2.0)] {
                request.sampling = request.sampling.logit_bias(id(text), bias);
            }
            let report: Report = model.chat_as(&request).unwrap();
            clear += report.sky.iter().filter(|sky| **sky == Sky::Clear).count();
            cloudy += report.sky.len();
            nested += usize::from(report.next.is_some());
        }
        assert!(clear > 3 && cloudy > clear + 3 && nested > 0, "{clear} {cloudy} {nested}");
        let error =
            model.chat_as::<Report>(&request(0, Format::json_object()).max_tokens(40)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Answer);
        let cause = error.source().and_then(|e| e.downcast_ref::<AnswerError>()).unwrap();
        assert_eq!(cause.finish_reason, FinishReason::Length);
        assert!(cause.text.starts_with('{'));
    }

    #[test]
    fn types_say_what_they_hold() {
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Inner {
            a: i32,
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        struct Outer {
            inner: Inner,
            n: Option<u64>,
        }
        #[derive(JsonSchema)]
        #[allow(dead_code)]
        #[serde(tag = "kind")]
        enum Tagged {
            Inner(Inner),
        }
        let Format::JsonSchema(schema) = Format::of::<Outer>() else { panic!("no schema") };
        assert_eq!(schema["additionalProperties"], json!(false));
        assert_eq!(schema["$defs"]["Inner"]["additionalProperties"], json!(false));
        let a = &schema["$defs"]["Inner"]["properties"]["a"];
        assert_eq!(
            (a["minimum"].as_i64(), a["maximum"].as_i64()),
            (Some(-1 << 31), Some(i32::MAX.into()))
        );
        let n = &schema["properties"]["n"];
        assert_eq!((n["minimum"].as_i64(), n["maximum"].as_i64()), (Some(0), Some((1 << 53) - 1)));
        // The tag is a property of its own.
        let Format::JsonSchema(schema) = Format::of::<Tagged>() else { panic!("no schema") };
        assert!(!schema.to_string().contains("\"additionalProperties\""), "{schema}");
    }
}

#[test]
fn masks_cost_little_over_the_real_vocabulary() {
    let tokenizer = Tokenizer::from_file(tokenizers::o200k_harmony_path()).unwrap();
    let mut config = tiny_config();
    config.vocab_size = 201_088;
    assert_eq!(tokenizer.vocab_size(), config.vocab_size);
    config.block_configs.truncate(1);
    let checkpoint = Checkpoint::random(&config, 0).unwrap();
    let model = Model::from_parts(checkpoint, tokenizer).context(4096).load().unwrap();
    // Open strings, numbers and lists, where the most tokens are possible.
    let schema = json!({
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 200, "maxLength": 400},
            "values": {"type": "array", "items": {"type": "number"}, "minItems": 20, "maxItems": 40},
            "free": {"type": "object", "minProperties": 3},
        },
        "required": ["title", "values", "free"],
        "additionalProperties": false,
    });
    let request = request(3, Format::json_schema(schema)).max_tokens(600);
    // The index of the vocabulary is made once.
    drop(model.chat_stream(&request).unwrap());
    let mut costs = Vec::new();
    let (mut tokens, mut cost) = (0, Duration::ZERO);
    let mut stream = model.chat_stream(&request).unwrap();
    while let Some(event) = stream.next() {
        event.unwrap();
        let (now, made) = (stream.timings().grammar, stream.usage().completion_tokens);
        if made > tokens {
            costs.push((now - cost) / (made - tokens) as u32);
        }
        (tokens, cost) = (made, now);
    }
    costs.sort_unstable();
    let (median, worst) = (costs[costs.len() / 2], costs[costs.len() - 1]);
    let mean = costs.iter().sum::<Duration>() / costs.len() as u32;
    let slow = costs.iter().filter(|cost| **cost > Duration::from_millis(1)).count();
    println!(
        "masks over 201,088 tokens: {}, mean {mean:?}, median {median:?}, worst {worst:?}, {slow} above 1 ms",
        costs.len()
    );
    assert!(costs.len() > 100, "{}", costs.len());
    assert!(median < Duration::from_millis(5), "{median:?}");
}

/// Masks are made while the model computes; each answer has its own.
#[test]
fn answers_follow_their_formats_in_company() {
    for (model, other) in [(tiny(), tiny()), (speaking(), speaking())] {
        let formats = [
            Format::json_schema(table()),
            Format::regex("[a-c]{3,9}!"),
            Format::json_schema(json!({"enum": ["only"]})),
        ];
        let request = |seed: u64| match formats.get(seed as usize % 4) {
            Some(format) => request(seed, format.clone()).max_tokens(250),
            None => {
                let mut free = request(seed, formats[0].clone()).max_tokens(40);
                free.format = None;
                free
            }
        };
        let engine = model.engine(EngineOptions::default()).unwrap();
        let answers: Vec<_> = (0..16).map(|seed| engine.chat(request(seed)).unwrap()).collect();
        for (answer, seed) in answers.into_iter().zip(0..) {
            let (answer, alone) = (answer.finish().unwrap(), other.chat(&request(seed)).unwrap());
            assert_eq!(answer.tokens, alone.tokens, "seed {seed}");
            assert_eq!((answer.forced, answer.message), (alone.forced, alone.message));
        }
    }
}
