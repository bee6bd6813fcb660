//! Requests that are not answered, and what is said to them.

use crate::server::{CHAT, COMPLETIONS, question, server, with};
use axum::http::StatusCode;
use serde_json::{Value, json};
use serve::fields;

/// Every field of the tables is refused by its name, but for the values of it that ask for nothing.
#[tokio::test]
async fn fields_that_cannot_be_honoured_are_refused_by_name() {
    let server = server();
    let prompt = json!({"prompt": "What", "max_tokens": 1});
    for (path, request, own) in
        [(CHAT, question(), fields::CHAT), (COMPLETIONS, prompt, fields::COMPLETIONS)]
    {
        for field in own.iter().chain(fields::ANYWHERE) {
            let asked = with(request.clone(), json!({field.name: ["something"]}));
            let reply = server.post(path, asked).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path} {}", field.name);
            let error = reply.error();
            assert_eq!(error["param"], field.name);
            assert_eq!(error["code"], "unsupported_parameter");
            let message = error["message"].as_str().unwrap();
            assert!(
                message.starts_with(&format!("{} is [\"something\"], ", field.name)),
                "{message}"
            );
            assert!(message.ends_with(field.instead), "{message}");
        }
    }
    assert_eq!(server.stats().finished, 0);
}

#[tokio::test]
async fn wrong_values_are_named_with_what_was_expected() {
    let server = server();
    for (path, fields, param, expected) in [
        (CHAT, json!({"n": 0}), "n", "n is 0, expected 1 to 16"),
        (CHAT, json!({"n": 17}), "n", "n is 17, expected 1 to 16"),
        (CHAT, json!({"n": 1e30}), "n", "n is 1e+30, expected 1 to 16"),
        (CHAT, json!({"n": -1}), "n", "n is -1, expected 1 to 16"),
        (CHAT, json!({"stream": "yes"}), "stream", "stream is \"yes\", expected true or false"),
        (
            CHAT,
            json!({"temperature": -1}),
            "temperature",
            "temperature is -1, expected a number of at least 0",
        ),
        (
            CHAT,
            json!({"priority": 0.5}),
            "priority",
            "priority is 0.5, expected a whole number, or \"high\", \"normal\" or \"low\"",
        ),
        (CHAT, json!({"cache_salt": 7}), "cache_salt", "cache_salt is 7, expected a text"),
        (CHAT, json!({"max_tokens": 0}), "max_tokens", "max_tokens is 0, expected at least 1"),
        (
            CHAT,
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            "chat_template_kwargs",
            "chat_template_kwargs.enable_thinking is false, which is not supported: the template has reasoning_effort, model_identity and builtin_tools",
        ),
        (
            CHAT,
            json!({"structured_outputs": {"regex": "a", "json": {}}}),
            "structured_outputs",
            "structured_outputs is {\"regex\":\"a\",\"json\":{}}, expected one of json (a schema), regex, choice (a list of texts) and grammar (in Lark)",
        ),
        (
            COMPLETIONS,
            json!({"prompt": null}),
            "prompt",
            "prompt is null, expected a text, token ids, or a list of texts or of lists of token ids",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [1, -1]}),
            "prompt",
            "prompt is [1,-1], expected a text, token ids, or a list of texts or of lists of token ids",
        ),
        (
            COMPLETIONS,
            json!({"prompt": [[1], "a", {}]}),
            "prompt",
            "prompt is [[1],\"a\",{}], expected a text, token ids, or a list of texts or of lists of token ids",
        ),
        (
            COMPLETIONS,
            json!({"max_tokens": 1.5}),
            "max_tokens",
            "max_tokens is 1.5, expected a number of tokens",
        ),
        (COMPLETIONS, json!({"stop": 3}), "stop", "stop is 3, expected a text or a list of texts"),
        (
            COMPLETIONS,
            json!({"logprobs": true}),
            "logprobs",
            "logprobs is true, expected a number of tokens",
        ),
    ] {
        let base = if path == CHAT { question() } else { json!({"prompt": "What"}) };
        let reply = server.post(path, with(base, fields.clone())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{fields}");
        let error = reply.error();
        assert_eq!((error["message"].as_str(), &error["param"]), (Some(expected), &json!(param)));
        assert_eq!(error["type"], "invalid_request_error");
    }
}

/// What is wrong with a conversation, a schema or a prompt is said too, whatever says it.
#[tokio::test]
async fn requests_that_the_engine_refuses_are_bad_requests() {
    let server = server();
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}});
    for (path, request, part) in [
        (CHAT, json!({}), "no messages"),
        (CHAT, json!({"messages": "hi"}), "messages is a string"),
        (CHAT, json!({"messages": [{"role": "wizard", "content": "x"}]}), "wizard"),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "image_url",
        ),
        (CHAT, with(question(), json!({"response_format": schema})), "not"),
        (
            CHAT,
            with(question(), json!({"structured_outputs": {"regex": "("}})),
            "regular expression",
        ),
        (CHAT, with(question(), json!({"stop": [""]})), "stop string 0"),
        (CHAT, with(question(), json!({"tool_choice": "required"})), "tool"),
        (CHAT, with(question(), json!({"logit_bias": {"999999": 1}})), "999999"),
        (CHAT, with(question(), json!({"reasoning_effort": "extreme"})), "extreme"),
        (COMPLETIONS, json!({"prompt": ""}), "prompt"),
        (COMPLETIONS, json!({"prompt": [1, 2, 99999]}), "99999"),
        (COMPLETIONS, json!({"prompt": []}), "prompt"),
        (COMPLETIONS, json!({"prompt": "a", "logprobs": 100_000}), "logprobs"),
        (COMPLETIONS, json!({"prompt": "a", "stop_token_ids": [-1]}), "stop_token_ids"),
    ] {
        let reply = server.post(path, request.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{request}: {}", reply.text);
        let error = reply.error();
        assert!(error["message"].as_str().unwrap().contains(part), "{request}: {error}");
    }
    let again = server.ask(CHAT, question()).await;
    assert_eq!(again["choices"][0]["finish_reason"], "stop");
    // More answers than ever run and wait at once would be sent away for ever.
    let many = json!({"prompt": vec!["a"; 137], "n": 2, "max_tokens": 1});
    let reply = server.post(COMPLETIONS, many).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let message = reply.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("137 prompts") && message.contains("at most 272"), "{message}");
    let most = json!({"prompt": vec!["a"; 125], "n": 2, "max_tokens": 1});
    assert_eq!(server.ask(COMPLETIONS, most).await["choices"].as_array().unwrap().len(), 250);
}

/// What is wrong with an element of a list is said of the list.
#[tokio::test]
async fn errors_name_the_field_that_is_wrong() {
    let server = server();
    let tools = json!([{"type": "function", "function": {"description": "nameless"}}]);
    for (more, param) in [
        (json!({"messages": [{"content": "x"}]}), "messages"),
        (json!({"tools": tools}), "tools"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"response_format": {"type": "yaml"}}), "response_format"),
        (json!({"logprobs": true, "top_logprobs": "x"}), "top_logprobs"),
    ] {
        let reply = server.post(CHAT, with(question(), more)).await;
        assert_eq!(reply.error()["param"], param, "{}", reply.text);
    }
}

#[tokio::test]
async fn what_does_not_fit_the_context_has_a_code_of_its_own() {
    let server = server();
    let long = json!([{"role": "user", "content": "The sky is blue. ".repeat(2000)}]);
    for (path, request) in [
        (CHAT, with(question(), json!({"messages": long}))),
        (CHAT, with(question(), json!({"max_tokens": 1_000_000}))),
        (COMPLETIONS, json!({"prompt": "a", "max_tokens": 1_000_000})),
        (CHAT, with(question(), json!({"messages": long, "stream": true}))),
    ] {
        let reply = server.post(path, request).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        let error = reply.error();
        assert_eq!(error["code"], "context_length_exceeded");
        assert!(error["message"].as_str().unwrap().contains("4096"), "{error}");
    }
}

#[tokio::test]
async fn only_the_served_model_exists() {
    let server = server();
    let other = with(question(), json!({"model": "gpt-4o"}));
    for reply in [server.post(CHAT, other).await, server.get("/v1/models/gpt-4o").await] {
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        let error = reply.error();
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
        assert!(error["message"].as_str().unwrap().contains("puzzle-tiny"));
    }
    let named = server.ask(CHAT, with(question(), json!({"model": "puzzle-tiny"}))).await;
    assert_eq!(named["model"], "puzzle-tiny");
    let models: Value = server.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "puzzle-tiny");
    assert_eq!(server.get("/v1/models/puzzle-tiny").await.json(), models["data"][0]);
}
