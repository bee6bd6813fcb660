//! What a client sends.

use crate::responses::request::Request;
use gpt_oss_puzzle::ChatRequest;
use gpt_oss_puzzle::chat::Format;
use gpt_oss_puzzle::harmony::{AssistantMessage, Effort, Item, Message, ToolCall, ToolChoice};
use serde_json::{Value, json};

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
        "date": "2026-01-02",
        "thinking_token_budget": 20,
    }));
    assert_eq!(chat.effort, Effort::High);
    assert_eq!(chat.max_tokens, Some(30));
    assert_eq!(chat.sampling.temperature, Some(0.5));
    assert_eq!(chat.sampling.seed, Some(7));
    assert_eq!(chat.format, Some(Format::json_schema(json!({"type": "string"}))));
    assert_eq!(chat.logprobs, Some(3));
    assert_eq!(chat.date.as_deref(), Some("2026-01-02"));
    assert_eq!(chat.reasoning.max_tokens, Some(20));
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
