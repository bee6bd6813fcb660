//! What a client sees.

use crate::responses::events::Events;
use gpt_oss_puzzle::ChatEvent;
use gpt_oss_puzzle::chat::TokenLogprob;
use gpt_oss_puzzle::generation::{FinishReason, Timings, Usage};
use gpt_oss_puzzle::harmony::ToolKind;
use serde_json::{Map, Value, json};

/// The events of an answer, checked for what holds of all: numbered without a gap, items begun and ended
/// in order, deltas that add up to their items, the items those of the response.
fn stream(events: &[ChatEvent]) -> Vec<Value> {
    let mut writer = Events::new("resp_1", 5, "tiny", Map::new());
    let mut all = writer.begin();
    events.iter().for_each(|event| all.extend(writer.push(event)));
    let mut done: Vec<Value> = Vec::new();
    let mut deltas = String::new();
    for (number, event) in all.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
        match event["type"].as_str().expect("a type") {
            "response.output_item.added" => {
                assert_eq!(event["output_index"], done.len(), "{event}");
                assert_eq!(event["item"]["status"], "in_progress");
                deltas.clear();
            }
            kind if kind.ends_with(".delta") => deltas += event["delta"].as_str().expect("a text"),
            "response.output_item.done" => {
                let item = &event["item"];
                let text = item["arguments"].as_str().or(item["content"][0]["text"].as_str());
                assert_eq!(text, Some(deltas.as_str()), "{item}");
                done.push(item.clone());
            }
            kind if kind.ends_with(".done") => {
                let fields = [&event["text"], &event["arguments"], &event["part"]["text"]];
                assert!(fields.iter().any(|text| **text == deltas.as_str()), "{event}");
            }
            _ => {}
        }
    }
    assert_eq!(all.last().expect("an end")["response"], *writer.response());
    assert_eq!(writer.response()["output"], json!(done));
    all
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str().expect("a type"));
    types.map(|kind| kind.strip_prefix("response.").unwrap_or(kind)).collect()
}

fn finish(reason: FinishReason) -> ChatEvent {
    let mut usage = Usage::default();
    (usage.prompt_tokens, usage.cached_tokens) = (10, 4);
    (usage.completion_tokens, usage.reasoning_tokens) = (7, 3);
    ChatEvent::Finish { reason, usage, timings: Timings::default() }
}

fn call_start(index: usize) -> ChatEvent {
    let kind = ToolKind::Function;
    ChatEvent::ToolCallStart { index, id: format!("call_{index}"), name: "weather".into(), kind }
}

fn arguments(index: usize, arguments: &str) -> ChatEvent {
    ChatEvent::ToolCallDelta { index, arguments: arguments.into() }
}

#[test]
fn an_answer_streams_as_items() {
    let events = stream(&[
        ChatEvent::Reasoning("Hm".into()),
        ChatEvent::Reasoning(".".into()),
        ChatEvent::Text("Par".into()),
        ChatEvent::Text("is".into()),
        finish(FinishReason::Stop),
    ]);
    assert_eq!(
        types(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
    );
    let response = &events.last().expect("an end")["response"];
    assert_eq!(response["status"], "completed");
    assert_eq!(
        response["output"][0]["content"][0],
        json!({"type": "reasoning_text", "text": "Hm."})
    );
    assert_eq!(response["output"][1]["phase"], "final_answer");
    assert_eq!(
        response["usage"],
        json!({
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 17,
        })
    );
    let ids: Vec<&Value> = events.iter().filter_map(|event| event.get("item_id")).collect();
    assert!(ids.iter().all(|id| **id == "rs_1_0" || **id == "msg_1_1"), "{ids:?}");
}

#[test]
fn calls_stream_their_arguments() {
    let events = stream(&[
        ChatEvent::Reasoning("Hm.".into()),
        ChatEvent::Preamble("Let me see.".into()),
        call_start(0),
        arguments(0, "{\"city\":"),
        arguments(0, "\"Paris\"}"),
        ChatEvent::ToolCallDone { index: 0 },
        call_start(1),
        arguments(1, "{}"),
        ChatEvent::ToolCallDone { index: 1 },
        finish(FinishReason::ToolCalls),
    ]);
    let calls: Vec<&str> =
        types(&events).into_iter().filter(|kind| kind.starts_with("function")).collect();
    assert_eq!(
        calls,
        [
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "function_call_arguments.delta",
            "function_call_arguments.done",
        ]
    );
    let response = &events.last().expect("an end")["response"];
    assert_eq!(response["status"], "completed");
    let output = response["output"].as_array().expect("items");
    assert_eq!(output.len(), 4);
    assert_eq!(output[1]["phase"], "commentary");
    assert_eq!(output[2]["call_id"], "call_0");
    assert_eq!(output[2]["name"], "weather");
    assert_eq!(output[2]["arguments"], "{\"city\":\"Paris\"}");
    assert_eq!(output[3]["arguments"], "{}");
    assert!(output.iter().all(|item| item["status"] == "completed"));
}

#[test]
fn an_answer_that_was_cut_off_says_so() {
    let events = stream(&[ChatEvent::Text("Par".into()), finish(FinishReason::Length)]);
    let response = &events.last().expect("an end")["response"];
    assert_eq!(events.last().expect("an end")["type"], "response.incomplete");
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "incomplete");

    // Nobody may take half of the arguments for all of them.
    let events = stream(&[call_start(0), arguments(0, "{\"ci"), finish(FinishReason::Length)]);
    assert!(!types(&events).contains(&"function_call_arguments.done"));
    assert_eq!(events.last().expect("an end")["response"]["output"][0]["status"], "incomplete");
}

#[test]
fn an_answer_that_fails_says_why() {
    let mut writer = Events::new("resp_1", 5, "tiny", Map::new());
    let mut all = writer.begin();
    all.extend(writer.push(&ChatEvent::Text("Par".into())));
    all.extend(writer.fail("the device was lost"));
    assert_eq!(types(&all).last(), Some(&"failed"));
    let response = writer.response();
    assert_eq!(response["status"], "failed");
    assert_eq!(
        response["error"],
        json!({"code": "server_error", "message": "the device was lost"})
    );
    assert_eq!(response["output"][0]["content"][0]["text"], "Par");

    let events = stream(&[ChatEvent::Text("Par".into()), finish(FinishReason::Cancelled)]);
    assert_eq!(types(&events).last(), Some(&"failed"));
}

#[test]
fn logprobs_are_those_of_the_text() {
    let token = |text: &str| {
        let top = json!([{"id": 1, "bytes": text.as_bytes(), "logprob": -0.5}]);
        let token = json!({"id": 1, "bytes": text.as_bytes(), "logprob": -0.5, "top": top});
        ChatEvent::Logprob(serde_json::from_value::<TokenLogprob>(token).expect("a token"))
    };
    let events = stream(&[
        token("Hm"),
        ChatEvent::Reasoning("Hm".into()),
        token("<|end|>"),
        token("<|start|>"),
        token("assistant"),
        token("<|channel|>"),
        token("final"),
        token("<|message|>"),
        token("Par"),
        ChatEvent::Text("Par".into()),
        token("is"),
        ChatEvent::Text("is".into()),
        token("<|return|>"),
        finish(FinishReason::Stop),
    ]);
    let part = &events.last().expect("an end")["response"]["output"][1]["content"][0];
    let tokens = |logprobs: &Value| -> Vec<String> {
        let logprobs = logprobs.as_array().expect("a list").iter();
        logprobs.map(|token| token["token"].as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(tokens(&part["logprobs"]), ["Par", "is"]);
    assert_eq!(part["logprobs"][0]["top_logprobs"][0]["bytes"], json!(b"Par"));
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    assert_eq!(
        deltas.map(|event| tokens(&event["logprobs"])).collect::<Vec<_>>(),
        [["Par"], ["is"]]
    );
}
