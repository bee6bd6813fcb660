//! `/v1/chat/completions`.

use crate::accumulate::accumulate;
use crate::server::{CHAT, question, server, with};
use serde_json::{Value, json};

/// What does not depend on when it was asked.
fn same(mut value: Value) -> Value {
    for name in ["id", "created"] {
        assert!(!value[name].is_null());
        value[name] = Value::Null;
    }
    // The second of two equal prompts is cached.
    value["usage"]["prompt_tokens_details"] = Value::Null;
    value
}

#[tokio::test]
async fn a_question_is_answered() {
    let server = server();
    let answer = server.ask(CHAT, question()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "The capital of France is Paris.");
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["reasoning_content"].as_str().unwrap().contains("France"));
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("puzzle-tiny"))
    );
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
    assert!(usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn chunks_accumulate_to_the_answer() {
    let server = server();
    let usage = json!({"stream_options": {"include_usage": true}});
    for more in [
        json!({}),
        json!({"temperature": 1, "seed": 7, "n": 3}),
        json!({"logprobs": true, "top_logprobs": 2}),
        json!({"max_tokens": 30}),
        json!({"stop": ["Par"]}),
        json!({"include_reasoning": false}),
    ] {
        let request = with(question(), more.clone());
        let whole = server.ask(CHAT, request.clone()).await;
        let chunks = server.stream(CHAT, with(request.clone(), usage.clone())).await;
        assert_eq!(same(accumulate(&chunks)), same(whole.clone()), "{more}");
        // Without `include_usage` no chunk has counts, nor a place for them.
        let plain = server.stream(CHAT, request).await;
        assert_eq!(plain.len() + 1, chunks.len());
        assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
    }
}

#[tokio::test]
async fn three_choices_are_those_of_three_seeds() {
    let server = server();
    let request = with(question(), json!({"temperature": 1.5, "seed": 40}));
    let three = server.ask(CHAT, with(request.clone(), json!({"n": 3}))).await;
    let mut completion_tokens = 0;
    for choice in 0..3 {
        let alone = server.ask(CHAT, with(request.clone(), json!({"seed": 40 + choice}))).await;
        let mut expected = alone["choices"][0].clone();
        expected["index"] = json!(choice);
        assert_eq!(three["choices"][choice], expected);
        completion_tokens += alone["usage"]["completion_tokens"].as_u64().unwrap();
        // The prompt is one, however many answers it has.
        assert_eq!(three["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
    }
    assert_eq!(three["usage"]["completion_tokens"], completion_tokens);
    assert_eq!(three["choices"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_used() {
    let server = server();
    let parameters = json!({
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    });
    let tools = json!([{"type": "function", "function": {
        "name": "get_weather", "description": "The weather in a city.",
        "parameters": parameters,
    }}]);
    let ask = json!([{"role": "user", "content": "What is the weather in Paris?"}]);
    let request = json!({"messages": ask, "tools": tools, "temperature": 0, "date": "2026-01-02"});
    let answer = server.ask(CHAT, request.clone()).await;
    let chunks = server.stream(CHAT, request.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"city": "Paris"}));
    let streamed = &accumulate(&chunks)["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(streamed["function"], call["function"]);
    // As a client sends it back.
    let mut messages = ask.as_array().unwrap().clone();
    messages.push(choice["message"].clone());
    messages.push(json!({
        "role": "tool", "tool_call_id": call["id"],
        "content": "{\"temperature\":17,\"sky\":\"cloudy\"}",
    }));
    let answer = server.ask(CHAT, with(request.clone(), json!({"messages": messages}))).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("17") && text.contains("cloudy"), "{text}");
    let required = with(request, json!({"tool_choice": "required"}));
    let required = with(required, question());
    let answer = server.ask(CHAT, required).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn answers_follow_a_schema_and_what_response_format_has_no_place_for() {
    let server = server();
    let schema = json!({
        "type": "object", "properties": {"answer": {"type": "string", "maxLength": 20}},
        "required": ["answer"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {
        "name": "answer", "strict": true, "schema": schema,
    }});
    let content =
        |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let ask = |more: Value| server.ask(CHAT, with(question(), more));
    for more in
        [json!({"response_format": format}), json!({"structured_outputs": {"json": schema}})]
    {
        let text = content(ask(more).await);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value["answer"].is_string());
    }
    let regex = content(ask(json!({"structured_outputs": {"regex": "[0-9]{3}"}})).await);
    assert!(regex.len() == 3 && regex.parse::<u32>().is_ok(), "{regex}");
    let choice = json!({"structured_outputs": {"choice": ["a \"b\"", "\\c|d"]}});
    let choice = content(ask(choice).await);
    assert!(["a \"b\"", "\\c|d"].contains(&choice.as_str()), "{choice}");
    let grammar = json!({"structured_outputs": {"grammar": "start: \"x\" \"y\"+ \"z\""}});
    let grammar = content(ask(with(grammar, json!({"max_tokens": 300}))).await);
    assert!(grammar.starts_with("xy"), "{grammar}");
}

#[tokio::test]
async fn effort_and_a_thinking_budget_are_kept_to() {
    let server = server();
    let thought = |more: Value| {
        let sum = json!([{"role": "user", "content": "What is 347 + 286?"}]);
        let request = with(question(), json!({"messages": sum}));
        let server = &server;
        async move {
            let answer = server.ask(CHAT, with(request, more)).await;
            answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap()
        }
    };
    let low = thought(json!({"reasoning_effort": "low"})).await;
    let high = thought(json!({"reasoning_effort": "high"})).await;
    assert!(high > low, "high {high}, low {low}");
    let template = thought(json!({"chat_template_kwargs": {"reasoning_effort": "high"}})).await;
    assert_eq!(template, high);
    let cut = thought(json!({"reasoning_effort": "high", "thinking_token_budget": 10})).await;
    assert!(cut <= 10 + 16, "{cut} tokens");
}

#[tokio::test]
async fn numbers_of_other_servers_are_understood() {
    let server = server();
    let plain = server.ask(CHAT, question()).await;
    let more = json!({
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "priority": -3, "cache_salt": "tenant",
        "user": "u", "store": false, "metadata": {"a": "b"}, "service_tier": "auto", "echo": false,
        "modalities": ["text"], "verbosity": "medium", "best_of": 1, "tools": null, "unknown": 1,
        "parallel_tool_calls": false, "options": {},
    });
    let answer = server.ask(CHAT, with(question(), more)).await;
    assert_eq!(answer["choices"], plain["choices"]);
}

#[tokio::test]
async fn a_thought_is_shown_unless_it_is_not_wanted() {
    let server = server();
    let message = |more: Value| {
        let asked = server.ask(CHAT, with(question(), more));
        async move { asked.await["choices"][0]["message"].clone() }
    };
    let (shown, hidden) =
        (message(json!({})).await, message(json!({"include_reasoning": false})).await);
    assert!(shown["reasoning_content"].is_string() && hidden.get("reasoning_content").is_none());
    assert_eq!(shown["content"], hidden["content"]);
}

/// What one tenant has asked, another cannot tell from how fast the answer comes.
#[tokio::test]
async fn caches_are_apart_by_their_salt() {
    let server = server();
    let cached = |salt: &str| {
        let asked = server.ask(CHAT, with(question(), json!({"cache_salt": salt})));
        async move { asked.await["usage"]["prompt_tokens_details"]["cached_tokens"].clone() }
    };
    assert_eq!((cached("a").await, cached("b").await), (json!(0), json!(0)));
    assert_eq!((cached("a").await, cached("b").await), (json!(64), json!(64)));
}

/// Turns of a conversation begin with what is cached.
#[tokio::test]
async fn a_second_turn_finds_the_first_in_the_cache() {
    let server = server();
    let long = format!("{} What is the capital of France?", "The sky is blue. ".repeat(30));
    let mut messages = vec![json!({"role": "user", "content": long})];
    let ask = |messages: &[Value]| {
        server.ask(CHAT, with(question(), json!({"messages": messages.to_vec()})))
    };
    let first = ask(&messages).await;
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "And of Italy?"}));
    let second = ask(&messages).await;
    let cached =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&first), Some(0));
    assert!(cached(&second) >= Some(64), "{}", second["usage"]);
}
