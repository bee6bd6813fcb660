//! Requests in the shapes of OpenAI's chat API.

use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::chat::{ChatRequest, Format, openai};
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::harmony::openai::{Request, StringArguments};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolChoice, ToolKind,
    ToolOutput,
};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn a_conversation_survives_being_written_and_read() {
    let text = || "[a-z\"\\\\{}\u{1f327}<|> ]{1,12}";
    let call = (text(), any::<bool>()).prop_map(|(arguments, python)| {
        let mut call = ToolCall::function("", if python { "python" } else { "add" }, arguments);
        call.kind = if python { ToolKind::Builtin } else { ToolKind::Function };
        call
    });
    let turn = (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::collection::vec(call, 0..3),
        text(),
        text(),
    );
    let strategy = prop::collection::vec(turn, 1..4);
    proptest!(|(turns in strategy)| {
        let mut messages = vec![Message::system("Be brief."), Message::developer("Or not.")];
        let mut ids = 0..;
        for (reasoning, content, calls, question, output) in turns {
            messages.push(Message::user(question));
            let mut items: Vec<Item> = reasoning.map(Item::reasoning).into_iter().collect();
            if let Some(text) = content.or(calls.is_empty().then(|| "Yes".into())) {
                items.push(Item::text(text));
            }
            let mut results = Vec::new();
            for mut call in calls {
                call.id = format!("call_{}", ids.next().unwrap());
                results.push(Message::tool(&call, output.clone()));
                items.push(Item::ToolCall(call));
            }
            messages.push(AssistantMessage { items }.into());
            messages.extend(results);
        }
        let json: Vec<Value> = messages.iter().map(openai::message).collect();
        let request = json!({"messages": json, "builtin_tools": ["python"]});
        let read = Request::from_json(&request, StringArguments::Parse).unwrap();
        prop_assert_eq!(read.messages, messages);
    });
    let orphan =
        Message::Tool(ToolOutput { name: "add".into(), content: "3".into(), ..Default::default() });
    assert_eq!(openai::message(&orphan), json!({"role": "tool", "name": "add", "content": "3"}));
}

#[test]
fn a_request_is_read_whole() {
    let request = ChatRequest::from_openai(&json!({
        "model": "gpt-oss-puzzle-88B",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        "builtin_tools": ["browser"],
        "tool_choice": "none",
        "parallel_tool_calls": true,
        "reasoning_effort": "high",
        "date": "2026-01-02",
        "temperature": 0.5, "top_p": 0.9, "presence_penalty": 1, "seed": 7,
        "logit_bias": {"17": -100},
        "max_tokens": 5, "max_completion_tokens": 9,
        "logprobs": true, "top_logprobs": 3,
        "n": 1, "stop": null, "response_format": {"type": "text"},
        "stream": true, "stream_options": {"include_usage": true}, "user": "u",
    }));
    let sampling = SamplingParams::default().temperature(0.5).top_p(0.9).presence_penalty(1.0);
    let expected = ChatRequest::new([Message::system("Be brief."), Message::user("Hello")])
        .tools([Tool::new("add", "", json!({"type": "object"}))])
        .builtin_tools([BuiltinTool::Browser])
        .tool_choice(ToolChoice::None)
        .effort(Effort::High)
        .date("2026-01-02")
        .sampling(sampling.seed(7).logit_bias(17, -100.0))
        .max_tokens(9)
        .logprobs(3);
    assert_eq!(request.unwrap(), expected);
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let plain =
        json!({"messages": messages, "temperature": null, "max_tokens": 5, "logprobs": false});
    assert_eq!(ChatRequest::from_openai(&plain).unwrap(), ChatRequest::user("Hi").max_tokens(5));
}

#[test]
fn what_cannot_be_done_is_refused() {
    for (field, value, expected) in [
        ("n", json!(2), "n is 2, expected 1"),
        ("stop", json!(7), "stop is 7, expected a text or a list of texts"),
        ("stop", json!(["a", 7]), "stop is [\"a\",7], expected a text or a list of texts"),
        ("functions", json!([]), "functions is [], expected tools"),
        ("function_call", json!("auto"), "function_call is \"auto\", expected tool_choice"),
        (
            "tool_choice",
            json!("any"),
            "tool_choice is \"any\", expected \"auto\", \"none\", \"required\" or a function",
        ),
        (
            "tool_choice",
            json!({"type": "function"}),
            "tool_choice is {\"type\":\"function\"}, expected \"auto\", \"none\", \"required\" or a \
             function",
        ),
        ("max_tokens", json!(-1), "max_tokens is -1, expected a number of tokens"),
        ("logprobs", json!(3), "logprobs is 3, expected true or false"),
        ("top_logprobs", json!(3), "top_logprobs is 3, but logprobs is not true"),
        (
            "temperature",
            json!("hot"),
            "the sampling parameters are invalid: invalid type: string \"hot\", expected f64",
        ),
        ("add_generation_prompt", json!(false), "add_generation_prompt is false, expected true"),
    ] {
        let mut request = json!({"messages": [{"role": "user", "content": "Hi"}]});
        request[field] = value;
        let error = ChatRequest::from_openai(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn stops_and_required_tools_are_read() {
    let read = |field: &str, value: Value| {
        let mut request = json!({"messages": [{"role": "user", "content": "Hi"}]});
        request[field] = value;
        ChatRequest::from_openai(&request).unwrap()
    };
    assert_eq!(read("stop", json!("\n")).stop, ["\n"]);
    assert_eq!(read("stop", json!(["a", "b"])).stop, ["a", "b"]);
    for none in [json!(null), json!([])] {
        assert!(read("stop", none).stop.is_empty());
    }
    assert_eq!(read("tool_choice", json!("required")).tool_choice, ToolChoice::Required);
    let named = json!({"type": "function", "function": {"name": "add"}});
    assert_eq!(read("tool_choice", named).tool_choice, ToolChoice::Named("add".into()));
}

#[test]
fn formats_are_read_where_they_can_be_followed() {
    let read = |format: Value| {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        ChatRequest::from_openai(&json!({"messages": messages, "response_format": format}))
    };
    assert_eq!(read(json!({"type": "text"})).unwrap().format, None);
    let schema = json!({"type": "integer"});
    let named = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    if cfg!(feature = "structured") {
        let object = read(json!({"type": "json_object"})).unwrap().format;
        assert_eq!(object, Some(Format::json_object()));
        assert_eq!(read(named).unwrap().format, Some(Format::json_schema(schema)));
        for (wrong, expected) in [
            (json!({"type": "json_schema"}), "{\"type\":\"json_schema\"}"),
            (json!({"type": "yaml"}), "{\"type\":\"yaml\"}"),
            (json!("json"), "\"json\""),
        ] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert_eq!(
                error.to_string(),
                format!(
                    "response_format is {expected}, expected a type of text, json_object or \
                     json_schema, the last with its schema"
                )
            );
        }
    } else {
        for format in [json!({"type": "json_object"}), named] {
            let error = read(format.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            let expected = "{\"type\":\"text\"} in a build without the feature `structured`";
            assert_eq!(
                error.to_string(),
                format!("response_format is {format}, expected {expected}")
            );
        }
    }
}
