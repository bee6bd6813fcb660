//! Requests in, events out: what a client of the Responses API sends and sees.

use super::events::Events;
use super::request::Request;
use gpt_oss_puzzle::chat::{Format, TokenLogprob};
use gpt_oss_puzzle::generation::{FinishReason, Timings, Usage};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, Effort, Item, Message, ToolCall, ToolChoice, ToolKind,
};
use gpt_oss_puzzle::{ChatEvent, ChatRequest};
use serde_json::{Map, Value, json};

fn read(body: Value) -> ChatRequest {
    Request::read(&body, &[], &|_| None).expect("valid").chat
}

/// What a request is refused for: the field and the message.
fn refusal(body: Value) -> (String, String) {
    let error = Request::read(&body, &[], &|_| None).expect_err("refused");
    assert_eq!(error.status, 400);
    (error.param.expect("a field"), error.message)
}

fn said(items: impl IntoIterator<Item = Item>) -> Message {
    AssistantMessage { items: items.into_iter().collect() }.into()
}

#[test]
fn a_text_is_what_the_user_says() {
    let chat = read(json!({"input": "Hello", "instructions": "Be brief."}));
    assert_eq!(chat.messages, [Message::developer("Be brief."), Message::user("Hello")]);
}

#[test]
fn messages_come_in_the_short_form_and_in_parts() {
    let chat = read(json!({"input": [
        {"role": "system", "content": "One."},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Two."}]},
        {"role": "user", "content": [
            {"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"},
        ]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "Hi.", "annotations": []},
        ]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
    ]}));
    assert_eq!(
        chat.messages,
        [
            Message::system("One."),
            Message::developer("Two."),
            Message::user("Hello"),
            said([Item::text("Hi."), Item::text("No more.")]),
        ]
    );
}

/// The items of a round of tools, as the client got them, and the output of the call.
fn round(id: &str) -> [Value; 4] {
    [
        json!({"type": "reasoning", "id": "rs_1", "summary": [], "status": "completed",
            "content": [{"type": "reasoning_text", "text": "I need the weather."}]}),
        json!({"type": "message", "id": "msg_1", "role": "assistant", "phase": "commentary",
            "status": "completed", "content": [{"type": "output_text", "text": "Let me see."}]}),
        json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "weather",
            "arguments": "{\"city\":\"Paris\"}", "status": "completed"}),
        json!({"type": "function_call_output", "call_id": id, "output": "sunny"}),
    ]
}

#[test]
fn the_thought_that_led_to_a_call_stays_in_its_turn() {
    // Only beside its call does the template keep it, and only then does the model see it again.
    let mut input = vec![json!({"role": "user", "content": "And in Paris?"})];
    input.extend(round("call_1"));
    input.extend(round("call_2"));
    let chat = read(json!({"input": input}));
    let call = |id| ToolCall::function(id, "weather", "{\"city\":\"Paris\"}");
    let turn = |id| {
        let call = Item::ToolCall(call(id));
        said([Item::reasoning("I need the weather."), Item::preamble("Let me see."), call])
    };
    assert_eq!(
        chat.messages,
        [
            Message::user("And in Paris?"),
            turn("call_1"),
            Message::tool(&call("call_1"), "sunny"),
            turn("call_2"),
            Message::tool(&call("call_2"), "sunny"),
        ]
    );
}

#[test]
fn two_calls_at_once_are_one_turn_with_two_results() {
    let call =
        |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let output = |id: &str, text: &str| {
        json!({"type": "function_call_output", "call_id": id, "output": [
            {"type": "input_text", "text": text},
        ]})
    };
    let chat = read(json!({"input": [call("a"), call("b"), output("b", "2"), output("a", "1")]}));
    let [turn, b, a] = chat.messages.as_slice() else { panic!("three messages: {chat:?}") };
    assert!(matches!(turn, Message::Assistant(turn) if turn.tool_calls().count() == 2));
    let result = |message: &Message| match message {
        Message::Tool(output) => (output.call_id.clone(), output.content.clone()),
        other => panic!("no result: {other:?}"),
    };
    assert_eq!(result(b), (Some("b".into()), "2".into()));
    assert_eq!(result(a), (Some("a".into()), "1".into()));
}

#[test]
fn an_item_that_is_kept_can_be_named() {
    // What the AI SDK sends in place of the items that it got.
    let items = round("call_1");
    let kept = |id: &str| items.iter().find(|item| item["id"] == id).cloned();
    let reference = |id: &str| json!({"type": "item_reference", "id": id});
    let output = items[3].clone();
    let named = json!({"input": [reference("rs_1"), {"id": "msg_1"}, reference("fc_1"), output]});
    let chat = Request::read(&named, &[], &kept).expect("they are kept").chat;
    assert_eq!(chat.messages, read(json!({"input": round("call_1")})).messages);
}

#[test]
fn an_answer_ends_its_turn() {
    let answer = |text: &str| json!({"type": "message", "role": "assistant", "phase": "final_answer", "content": text});
    let chat = read(json!({"input": [answer("One."), answer("Two.")]}));
    assert_eq!(chat.messages, [said([Item::text("One.")]), said([Item::text("Two.")])]);
}

#[test]
fn a_response_goes_on_from_the_one_before() {
    let call = ToolCall::function("call_1", "weather", "{}");
    let before = [Message::user("And in Paris?"), said([Item::ToolCall(call.clone())])];
    let body = json!({
        "instructions": "Be brief.",
        "previous_response_id": "resp_1",
        "input": [{"type": "function_call_output", "call_id": "call_1", "output": "sunny"}],
    });
    let request =
        Request::read(&body, &before, &|_| None).expect("the call is in the response before");
    let [one, two] = before;
    let conversation = [one, two, Message::tool(&call, "sunny")];
    // Instructions are those of this request alone.
    assert_eq!(request.chat.messages[0], Message::developer("Be brief."));
    assert_eq!(request.chat.messages[request.instructions..], conversation);
    assert_eq!(request.echo["previous_response_id"], "resp_1");
    assert!(request.store, "kept unless the client says otherwise");
}

#[test]
fn options_are_passed_on() {
    let chat = read(json!({
        "input": "Hello",
        "reasoning": {"effort": "high", "summary": "auto"},
        "max_output_tokens": 30,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "string"}, "strict": true}},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 3,
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}],
        "tool_choice": {"type": "function", "name": "f"},
        "truncation": "disabled",
        "background": false,
        "metadata": {"a": "b"},
        "user": "me",
        "something_new": 1,
    }));
    assert_eq!(chat.effort, Effort::High);
    assert_eq!(chat.max_tokens, Some(30));
    assert_eq!(chat.sampling.temperature, Some(0.5));
    assert_eq!(chat.sampling.seed, Some(7));
    assert_eq!(chat.format, Some(Format::json_schema(json!({"type": "string"}))));
    assert_eq!(chat.logprobs, Some(3));
    assert_eq!(chat.tools[0].name, "f");
    assert_eq!(chat.tools[0].parameters, Some(json!({"type": "object"})));
    assert_eq!(chat.tool_choice, ToolChoice::Named("f".into()));
    assert_eq!(read(json!({"input": "", "top_logprobs": 0})).logprobs, None);
    let json_object = json!({"input": "", "text": {"format": {"type": "json_object"}}});
    assert_eq!(read(json_object).format, Some(Format::json_object()));
}

#[test]
fn allowed_tools_are_the_only_ones_on_offer() {
    let tool = |name: &str| json!({"type": "function", "name": name});
    let chat = read(json!({
        "input": "Hello",
        "tools": [tool("a"), tool("b"), tool("c")],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [tool("c"), tool("a")]},
    }));
    let names: Vec<&str> = chat.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!((names.as_slice(), chat.tool_choice), (&["a", "c"][..], ToolChoice::Required));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let tool = |kind: &str| json!([{"type": kind, "name": "x"}]);
    let part = |kind: &str| json!([{"role": "user", "content": [{"type": kind}]}]);
    let cases = [
        ("background", json!(true), "background"),
        ("conversation", json!("conv_1"), "conversation"),
        ("prompt", json!({"id": "pmpt_1"}), "prompt"),
        ("context_management", json!([{"type": "compaction"}]), "context_management"),
        ("truncation", json!("auto"), "truncation"),
        ("messages", json!([]), "messages"),
        ("max_tokens", json!(3), "max_tokens"),
        ("max_output_tokens", json!(0), "max_output_tokens"),
        ("temperature", json!("hot"), "temperature"),
        ("n", json!(2), "n"),
        ("tools", tool("web_search"), "tools[0]"),
        ("tools", tool("file_search"), "tools[0]"),
        ("tools", tool("code_interpreter"), "tools[0]"),
        ("tools", tool("computer_use_preview"), "tools[0]"),
        ("tools", tool("mcp"), "tools[0]"),
        ("tools", tool("image_generation"), "tools[0]"),
        ("tools", tool("custom"), "tools[0]"),
        ("tool_choice", json!({"type": "web_search"}), "tool_choice"),
        ("tool_choice", json!({"type": "function", "name": "nowhere"}), "tool_choice"),
        ("reasoning", json!({"effort": "minimal"}), "reasoning.effort"),
        ("reasoning", json!({"context": "all_turns"}), "reasoning.context"),
        ("text", json!({"verbosity": "low"}), "text.verbosity"),
        ("text", json!({"format": {"type": "grammar"}}), "text.format"),
        ("include", json!(["everything"]), "include"),
        ("metadata", json!("a"), "metadata"),
        ("instructions", json!(["a"]), "instructions"),
        ("input", json!(null), "input"),
        ("input", json!([{"content": "no type"}]), "input[0]"),
        ("input", part("input_image"), "input[0]"),
        ("input", part("input_file"), "input[0]"),
        ("input", json!([{"role": "tool", "content": ""}]), "input[0]"),
        ("input", json!([{"type": "item_reference", "id": "rs_1"}]), "input[0]"),
        ("input", json!([{"type": "web_search_call", "id": "ws_1"}]), "input[0]"),
        (
            "input",
            json!([{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]),
            "input[0]",
        ),
        (
            "input",
            json!([{"type": "function_call_output", "call_id": "c", "output": ""}]),
            "input[0]",
        ),
    ];
    for (field, value, param) in cases {
        let mut body = json!({"input": "Hello"});
        body[field] = value.clone();
        let (found, message) = refusal(body);
        assert_eq!(found, param, "{field}: {value}: {message}");
        assert!(message.starts_with(param), "{message}");
    }
    let (_, message) = refusal(json!({"input": "", "tools": tool("web_search")}));
    assert!(message.contains("web_search"), "the tool is named: {message}");
}

#[test]
fn null_is_as_good_as_absent() {
    let names = [
        "instructions",
        "previous_response_id",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "store",
        "max_output_tokens",
        "temperature",
        "top_p",
        "metadata",
        "include",
        "background",
        "conversation",
        "prompt",
        "truncation",
        "parallel_tool_calls",
        "user",
        "top_logprobs",
        "stream_options",
    ];
    let mut body = json!({"input": "Hello"});
    names.iter().for_each(|name| body[*name] = Value::Null);
    assert_eq!(read(body), read(json!({"input": "Hello"})));
}

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
