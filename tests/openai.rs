//! Answers in the shapes of OpenAI's chat API.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;

use gpt_oss_puzzle::chat::openai::Envelope;
use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, ChatResponse, Model};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{AssistantMessage, Item, ToolCall, ToolKind};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::cell::Cell;

fn speaking() -> Model {
    let dir = tempfile::tempdir().unwrap();
    bigram::write_bigram_checkpoint(dir.path());
    Model::builder(dir.path()).threads(1).context(1024).load().unwrap()
}

fn envelope() -> Envelope {
    Envelope::new("chatcmpl-1", 1_767_312_000, "gpt-oss-puzzle-88B")
}

/// Deltas as OpenAI's own clients accumulate them: strings and lists go on, list elements with an
/// index go on with the one of that index, nulls give way, all else replaces.
fn accumulate(all: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (key, new) in delta {
        match (all.get_mut(key), new) {
            (None | Some(Value::Null), new) if !new.is_array() => {
                all.insert(key.clone(), new.clone());
            }
            (_, Value::Null) => {}
            (Some(Value::String(text)), Value::String(new)) if key != "id" && key != "type" => {
                text.push_str(new);
            }
            (Some(Value::Object(old)), Value::Object(new)) => accumulate(old, new),
            (_, Value::Array(new)) => {
                let list = all.entry(key.clone()).or_insert(json!([]));
                if list.is_null() {
                    *list = json!([]);
                }
                let list = list.as_array_mut().unwrap();
                for element in new {
                    let same = |old: &&mut Value| {
                        element.get("index").is_some() && old["index"] == element["index"]
                    };
                    match (list.iter_mut().find(same), element) {
                        (Some(Value::Object(old)), Value::Object(new)) => accumulate(old, new),
                        _ => list.push(element.clone()),
                    }
                }
            }
            (_, new) => {
                all.insert(key.clone(), new.clone());
            }
        }
    }
}

/// The completion that a client makes of chunks.
fn accumulated(chunks: &[Value]) -> Value {
    let mut message = Map::new();
    let (mut logprobs, mut finish) = (Map::new(), Value::Null);
    let mut all = Map::new();
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for key in ["id", "created", "model"] {
            let old = all.insert(key.to_owned(), chunk[key].clone());
            assert!(old.is_none_or(|old| old == chunk[key]));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| !usage.is_null()) {
            all.insert("usage".into(), usage.clone());
        }
        let Some(choice) = chunk["choices"].get(0) else { continue };
        assert_eq!((&choice["index"], &finish), (&json!(0), &Value::Null));
        accumulate(&mut message, choice["delta"].as_object().unwrap());
        if let Some(new) = choice["logprobs"].as_object() {
            accumulate(&mut logprobs, new);
        }
        finish = choice["finish_reason"].clone();
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for (number, call) in calls.iter_mut().enumerate() {
            assert_eq!(call.as_object_mut().unwrap().shift_remove("index"), Some(json!(number)));
        }
    }
    let logprobs = if logprobs.is_empty() { Value::Null } else { logprobs.into() };
    all.insert("object".into(), "chat.completion".into());
    all.insert(
        "choices".into(),
        json!([{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}]),
    );
    all.into()
}

fn answer(model: &Model, request: &ChatRequest) -> (Vec<ChatEvent>, ChatResponse) {
    let mut stream = model.chat_stream(request).unwrap();
    let events = stream.by_ref().map(Result::unwrap).collect();
    (events, stream.finish().unwrap())
}

fn chunks_of(events: &[ChatEvent], usage: bool) -> Vec<Value> {
    let chunks = envelope().chunks();
    let mut chunks = if usage { chunks.include_usage() } else { chunks };
    events.iter().flat_map(|event| chunks.push(event)).collect()
}

#[test]
fn chunks_accumulate_to_the_completion() {
    let model = speaking();
    let counts: [Cell<usize>; 5] = Default::default();
    let config = ProptestConfig { cases: 300, ..ProptestConfig::default() };
    proptest!(config, |(seed: u64, max_tokens in 1usize..90, top in prop::option::of(0usize..4))| {
        let mut request = ChatRequest::user("Hello").date("2026-01-02").max_tokens(max_tokens);
        request.sampling = SamplingParams::default().seed(seed);
        request.logprobs = top;
        let (events, response) = answer(&model, &request);
        let whole = envelope().completion(&response);
        let chunks = chunks_of(&events, true);
        prop_assert_eq!(accumulated(&chunks), whole.clone());
        let first = json!({"role": "assistant", "content": null, "refusal": null});
        prop_assert_eq!(&chunks[0]["choices"][0]["delta"], &first);
        for (i, chunk) in chunks.iter().enumerate() {
            let is_last = i + 1 == chunks.len();
            prop_assert_eq!(chunk["choices"].as_array().unwrap().is_empty(), is_last);
            prop_assert_eq!(chunk["usage"].is_null(), !is_last);
            let finished = !chunk["choices"][0]["finish_reason"].is_null();
            prop_assert_eq!(finished, i + 2 == chunks.len());
        }
        // The same without the last chunk and the usage fields.
        let mut without = chunks_of(&events, false);
        without.iter_mut().for_each(|chunk| chunk["usage"] = Value::Null);
        prop_assert_eq!(&without[..], &chunks[..chunks.len() - 1]);
        // And the parts of the answer are where they should be, whatever joins them.
        let message = &whole["choices"][0]["message"];
        let flat = |text: &str| text.replace('\n', "");
        let expect = |field: &str, is: fn(&Item) -> Option<&str>| {
            let items: String = response.message.items.iter().filter_map(is).collect();
            let found = message.get(field).and_then(Value::as_str).map(flat);
            assert_eq!(found.unwrap_or_default(), items);
        };
        expect("content", |item| match item {
            Item::Preamble { text } | Item::Text { text } => Some(text),
            _ => None,
        });
        expect("reasoning_content", |item| match item {
            Item::Reasoning { text } => Some(text),
            _ => None,
        });
        let calls: Vec<Value> = response.tool_calls().map(|call| json!({
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        })).collect();
        prop_assert_eq!(message.get("tool_calls").cloned().unwrap_or(json!([])), Value::from(calls));
        let tokens = whole["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len);
        // Tokens nobody drew have no probability.
        let drawn = response.tokens.len() - response.forced.len();
        prop_assert_eq!(tokens, if top.is_some() { drawn } else { 0 });
        let shapes = [
            message["content"].is_string(),
            message["content"].is_null(),
            response.tool_calls().count() > 1,
            response.tool_calls().any(|call| call.incomplete),
            message["content"].as_str().is_some_and(|text| text.contains("\n\n")),
        ];
        for (count, shape) in counts.iter().zip(shapes) {
            count.set(count.get() + usize::from(shape));
        }
    });
    assert!(counts.iter().all(|count| count.get() > 0), "{counts:?}");
}

/// A finished answer of the given items: through serde, as nothing else can make one.
fn response(items: Vec<Item>, reason: &str) -> ChatResponse {
    serde_json::from_value(json!({
        "message": AssistantMessage { items },
        "finish_reason": reason,
        "usage": {
            "prompt_tokens": 70, "cached_tokens": 64, "completion_tokens": 30, "reasoning_tokens": 12,
        },
        "timings": {
            "prefill": {"secs": 1, "nanos": 0},
            "first_token": {"secs": 1, "nanos": 0},
            "decode": {"secs": 1, "nanos": 0},
        },
        "logprobs": [
            {"id": 5, "bytes": [240, 159], "logprob": -0.5, "top": [
                {"id": 5, "bytes": [240, 159], "logprob": -0.5},
                {"id": 6, "bytes": [65], "logprob": -1.5},
            ]},
            {"id": 7, "bytes": [], "logprob": -2.0, "top": []},
        ],
        "tokens": [5, 7],
        "seed": 1,
    }))
    .unwrap()
}

#[test]
fn a_completion_is_as_openai_writes_it() {
    let items = vec![
        Item::reasoning("Sum."),
        Item::preamble("I add."),
        Item::reasoning("Go."),
        Item::ToolCall(ToolCall::function("call_0", "add", r#"{"a":1}"#)),
    ];
    let response = response(items, "tool_calls");
    assert_eq!(
        envelope().completion(&response),
        json!({
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_767_312_000,
            "model": "gpt-oss-puzzle-88B",
            "choices": [{
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "I add.",
                    "reasoning_content": "Sum.\nGo.",
                    "tool_calls": [{
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "add", "arguments": "{\"a\":1}"},
                    }],
                    "refusal": null,
                },
                "logprobs": {
                    "content": [
                        {
                            "token": "\u{fffd}", "logprob": -0.5, "bytes": [240, 159],
                            "top_logprobs": [
                                {"token": "\u{fffd}", "logprob": -0.5, "bytes": [240, 159]},
                                {"token": "A", "logprob": -1.5, "bytes": [65]},
                            ],
                        },
                        {"token": "", "logprob": -2.0, "bytes": null, "top_logprobs": []},
                    ],
                    "refusal": null,
                },
                "finish_reason": "tool_calls",
            }],
            "usage": {
                "prompt_tokens": 70,
                "completion_tokens": 30,
                "total_tokens": 100,
                "prompt_tokens_details": {"cached_tokens": 64},
                "completion_tokens_details": {"reasoning_tokens": 12},
            },
        })
    );
}

#[test]
fn every_way_to_finish_and_every_number_has_a_name() {
    for (reason, expected) in [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("cancelled", "length"),
        ("deadline", "length"),
    ] {
        let mut response = response(vec![Item::text("Hi")], reason);
        response.logprobs[0].logprob = f32::NEG_INFINITY;
        response.logprobs.truncate(1);
        let completion = envelope().completion(&response);
        let choice = &completion["choices"][0];
        assert_eq!(choice["finish_reason"], expected);
        assert_eq!(choice["logprobs"]["content"][0]["logprob"], -9999.0);
        assert_eq!(choice["message"]["content"], "Hi");
        assert!(choice["message"].get("tool_calls").is_none());
        assert!(choice["message"].get("reasoning_content").is_none());
    }
    let empty = envelope().completion(&response(vec![], "length"));
    assert_eq!(empty["choices"][0]["message"]["content"], Value::Null);
}

#[test]
fn chunks_are_as_openai_writes_them() {
    let events = [
        ChatEvent::Reasoning("Su".into()),
        ChatEvent::Reasoning("m.".into()),
        ChatEvent::Preamble("I add.".into()),
        ChatEvent::ToolCallStart {
            index: 0,
            id: "call_3".into(),
            name: "add".into(),
            kind: ToolKind::Function,
        },
        ChatEvent::ToolCallDelta { index: 0, arguments: "{\"a\"".into() },
        ChatEvent::ToolCallDelta { index: 0, arguments: ":1}".into() },
        ChatEvent::ToolCallDone { index: 0 },
        ChatEvent::Text("Done".into()),
    ];
    let deltas: Vec<Value> =
        (chunks_of(&events, false).into_iter()).map(|c| c["choices"][0]["delta"].clone()).collect();
    let call = |call: Value| json!({"tool_calls": [call]});
    let expected = [
        json!({"role": "assistant", "content": null, "refusal": null}),
        json!({"reasoning_content": "Su"}),
        json!({"reasoning_content": "m."}),
        json!({"content": "I add."}),
        call(json!({
            "index": 0, "id": "call_3", "type": "function",
            "function": {"name": "add", "arguments": ""},
        })),
        call(json!({"index": 0, "function": {"arguments": "{\"a\""}})),
        call(json!({"index": 0, "function": {"arguments": ":1}"}})),
        json!({"content": "\n\nDone"}),
    ];
    assert_eq!(deltas, expected);
    let first = chunks_of(&events, false).swap_remove(0);
    let choice = json!([{
        "index": 0, "delta": expected[0], "logprobs": null, "finish_reason": null,
    }]);
    assert_eq!(
        first,
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_767_312_000,
            "model": "gpt-oss-puzzle-88B", "choices": choice,
        })
    );
}

/// What a server makes of `n`: choices whose chunks come in any order.
#[test]
fn chunks_of_several_answers_accumulate_to_their_completion() {
    let model = speaking();
    let config = ProptestConfig { cases: 100, ..ProptestConfig::default() };
    proptest!(config, |(seed: u64, n in 1usize..5, order: Vec<usize>, max_tokens in 1usize..60)| {
        let mut request = ChatRequest::user("Hello").date("2026-01-02").max_tokens(max_tokens);
        let (mut events, mut responses) = (Vec::new(), Vec::new());
        for choice in 0..n as u64 {
            request.sampling = SamplingParams::default().seed(seed.wrapping_add(choice));
            let (happened, response) = answer(&model, &request);
            events.push(std::collections::VecDeque::from(happened));
            responses.push(response);
        }
        let mut chunks = envelope().chunks().choices(n).include_usage();
        let mut made: Vec<Value> = Vec::new();
        let mut order = order.into_iter().chain(0..);
        while events.iter().any(|events| !events.is_empty()) {
            let index = order.next().expect("endless") % n;
            if let Some(event) = events[index].pop_front() {
                made.extend(chunks.push_to(index, &event));
            }
        }
        let whole = envelope().completion_of(&responses);
        let usage = made.pop().expect("token counts");
        prop_assert_eq!(&usage["usage"], &whole["usage"]);
        prop_assert!(made.iter().all(|chunk| chunk["usage"].is_null()), "once, and at the end");
        for (index, response) in responses.iter().enumerate() {
            let of = |chunk: &&Value| chunk["choices"][0]["index"] == index;
            let mut own: Vec<Value> = made.iter().filter(of).cloned().collect();
            own.iter_mut().for_each(|chunk| chunk["choices"][0]["index"] = json!(0));
            let mut expected = envelope().completion(response);
            prop_assert_eq!(&accumulated(&own)["choices"], &expected["choices"]);
            expected["choices"][0]["index"] = json!(index);
            prop_assert_eq!(&whole["choices"][index], &expected["choices"][0]);
        }
        let sum: usize = responses.iter().map(|response| response.usage.completion_tokens).sum();
        prop_assert_eq!(&whole["usage"]["completion_tokens"], sum);
        prop_assert_eq!(&whole["usage"]["prompt_tokens"], responses[0].usage.prompt_tokens);
        // No answer of that number: nothing is said.
        prop_assert!(chunks.push_to(n, &ChatEvent::Text("x".into())).is_empty());
    });
}

#[test]
fn finish_reasons_come_from_the_model() {
    let model = speaking();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let sampling = SamplingParams::default().seed(seed);
        let request = ChatRequest::user("Hello").date("2026-01-02").max_tokens(40);
        let response = model.chat(&request.sampling(sampling)).unwrap();
        let completion = envelope().completion(&response);
        let reason = completion["choices"][0]["finish_reason"].as_str().unwrap().to_owned();
        let expected = match response.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::ToolCalls => "tool_calls",
            FinishReason::Length => "length",
            reason => panic!("{reason:?}"),
        };
        assert_eq!(reason, expected);
        seen.insert(reason);
    }
    assert_eq!(seen.len(), 3);
}
