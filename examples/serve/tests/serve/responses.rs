//! `/v1/responses`.

use crate::server::{Server, post, server, with};
use axum::body::Body;
use axum::body::BodyDataStream;
use axum::http::{Method, Request, StatusCode};
use futures_core::Stream;
use serde_json::{Value, json};
use serve::app::router;
use std::future::poll_fn;
use std::pin::Pin;
use std::slice::from_ref;
use tower::ServiceExt;

const RESPONSES: &str = "/v1/responses";

fn question() -> Value {
    json!({"input": "What is the capital of France?", "temperature": 0})
}

fn tools() -> Value {
    let parameters = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required});
    json!([
        {"type": "function", "name": "get_weather", "description": "The weather in a city.",
            "parameters": parameters(json!({"city": {"type": "string"}}), json!(["city"]))},
        {"type": "function", "name": "add", "description": "The sum of two numbers.", "parameters":
            parameters(json!({"a": {"type": "integer"}, "b": {"type": "integer"}}), json!(["a", "b"]))},
    ])
}

/// The text of the answer.
fn text(response: &Value) -> &str {
    let items = response["output"].as_array().expect("items");
    let message = items.iter().find(|item| item["type"] == "message").expect("a message");
    message["content"][0]["text"].as_str().expect("a text")
}

async fn ask(server: &Server, body: Value) -> Value {
    server.ask(RESPONSES, body).await
}

/// The events of a streamed response, each called what its type is.
async fn stream(server: &Server, body: Value) -> Vec<Value> {
    let reply = server.post(RESPONSES, with(body, json!({"stream": true}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let events = reply.text.strip_suffix("\n\n").expect("ends in an empty line").split("\n\n");
    let read = |event: &str| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    events.filter(|event| !event.starts_with(':')).map(read).collect()
}

/// A streamed response that is read piece by piece.
async fn open(server: &Server, body: Value) -> BodyDataStream {
    let request = post(RESPONSES, with(body, json!({"stream": true})));
    let response = router(server.app.clone()).oneshot(request).await.expect("never fails");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().into_data_stream()
}

async fn piece(body: &mut BodyDataStream) -> String {
    let next = poll_fn(|cx| Pin::new(&mut *body).poll_next(cx)).await;
    let bytes = next.expect("more to come").expect("no error");
    String::from_utf8(bytes.into()).expect("UTF-8")
}

async fn send(server: &Server, method: Method, path: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let reply = server.send(request).await;
    (reply.status, reply.json())
}

#[tokio::test]
async fn a_question_is_answered() {
    let server = server();
    let response = ask(&server, question()).await;
    assert_eq!(text(&response), "The capital of France is Paris.");
    assert_eq!(response["output"][0]["type"], "reasoning");
    assert!(response["output"][0]["content"][0]["text"].as_str().unwrap().contains("France"));
    assert_eq!(
        (&response["object"], &response["status"], &response["model"]),
        (&json!("response"), &json!("completed"), &json!("puzzle-tiny"))
    );
    let usage = &response["usage"];
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_stream_ends_in_the_whole_response() {
    let server = server();
    let mut whole = ask(&server, question()).await;
    let events = stream(&server, question()).await;
    let mut last = events.last().expect("events").clone();
    assert_eq!(last["type"], "response.completed");
    // Each has ids of its own, and the second prompt is cached.
    let responses = [&mut whole, &mut last["response"]];
    let [whole, streamed] = responses.map(|response| {
        for name in ["id", "created_at", "usage"] {
            response[name] = Value::Null;
        }
        let items = response["output"].as_array_mut().expect("items");
        items.iter_mut().for_each(|item| item["id"] = Value::Null);
        response.clone()
    });
    assert_eq!(whole, streamed);
    let deltas: String = (events.iter())
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().expect("a text"))
        .collect();
    assert_eq!(deltas, text(&whole));
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_answered() {
    let server = server();
    let request = |input: Value| json!({"input": input, "tools": tools(), "temperature": 0});
    let user = json!({"role": "user", "content": "What is the weather in Rome?"});
    let first = ask(&server, request(json!([user]))).await;
    let items = first["output"].as_array().expect("items");
    let call = items.last().expect("a call");
    assert_eq!(call["arguments"], "{\"city\":\"Rome\"}");
    let output = json!({"type": "function_call_output", "call_id": call["call_id"],
        "output": "{\"temperature\":16,\"sky\":\"clear\"}"});
    let expected = "It is 16 degrees and clear in Rome.";

    // The client keeps the conversation, or the server does, or both by halves: the prompt is the same.
    let all = [from_ref(&user), items.as_slice(), from_ref(&output)].concat();
    let sent = ask(&server, request(json!(all))).await;
    let previous = json!({"previous_response_id": first["id"]});
    let kept = ask(&server, with(request(json!([output])), previous)).await;
    let named = items.iter().map(|item| json!({"type": "item_reference", "id": item["id"]}));
    let named: Vec<Value> = [user].into_iter().chain(named).chain([output]).collect();
    let named = ask(&server, request(json!(named))).await;
    for answer in [&sent, &kept, &named] {
        assert_eq!(text(answer), expected);
        assert_eq!(answer["usage"]["input_tokens"], sent["usage"]["input_tokens"]);
    }
}

#[tokio::test]
async fn a_response_is_kept_before_its_end_is_told() {
    let server = server();
    let mut body = open(&server, with(question(), json!({"instructions": "Be brief."}))).await;
    let mut read = String::new();
    let response = loop {
        read += &piece(&mut body).await;
        if let Some((_, end)) = read.split_once("event: response.completed\ndata: ") {
            break serde_json::from_str::<Value>(end.trim()).expect("JSON")["response"].clone();
        }
    };
    // The body is not read to its end: a client that has seen this may ask at once.
    let italy = json!({"role": "user", "content": "What is the capital of Italy?"});
    let next = json!({"input": [italy], "previous_response_id": response["id"], "temperature": 0});
    let next = ask(&server, next).await;
    assert_eq!(text(&next), "The capital of Italy is Rome.");
    // The instructions were those of the first alone.
    let items = response["output"].as_array().expect("items").iter().cloned();
    let all = [json!({"role": "user", "content": question()["input"]})].into_iter().chain(items);
    let all: Vec<Value> = all.chain([italy]).collect();
    let all = ask(&server, json!({"input": all, "temperature": 0})).await;
    assert_eq!(next["usage"]["input_tokens"], all["usage"]["input_tokens"]);
}

#[tokio::test]
async fn responses_are_kept_unless_told_otherwise() {
    let server = server();
    let response = ask(&server, question()).await;
    let path = format!("{RESPONSES}/{}", response["id"].as_str().unwrap());
    assert_eq!(send(&server, Method::GET, &path).await, (StatusCode::OK, response.clone()));
    let deleted = json!({"id": response["id"], "object": "response", "deleted": true});
    assert_eq!(send(&server, Method::DELETE, &path).await, (StatusCode::OK, deleted));
    let passing = ask(&server, with(question(), json!({"store": false}))).await;
    let passing = format!("{RESPONSES}/{}", passing["id"].as_str().unwrap());
    for (method, path) in [(Method::GET, &path), (Method::DELETE, &path), (Method::GET, &passing)] {
        let (status, error) = send(&server, method, path).await;
        assert_eq!(
            (status, &error["error"]["type"]),
            (StatusCode::NOT_FOUND, &json!("invalid_request_error"))
        );
    }
    let unknown = with(question(), json!({"previous_response_id": response["id"]}));
    let reply = server.post(RESPONSES, unknown).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert_eq!(reply.error()["code"], "previous_response_not_found");
    assert_eq!(reply.error()["param"], "previous_response_id");
    // A stream that is over is not to be had again.
    let kept = ask(&server, question()).await;
    let path = format!("{RESPONSES}/{}?stream=true", kept["id"].as_str().unwrap());
    assert_eq!(send(&server, Method::GET, &path).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_not_gone_on_from() {
    let server = server();
    let request = json!({"input": "What is 27 plus 48?", "tools": tools(), "temperature": 0,
        "tool_choice": "required", "reasoning": {"effort": "low"}, "max_output_tokens": 30});
    let cut = ask(&server, request).await;
    assert_eq!(cut["status"], "incomplete");
    assert_eq!(cut["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let call = cut["output"].as_array().unwrap().last().unwrap();
    assert_eq!((&call["type"], &call["status"]), (&json!("function_call"), &json!("incomplete")));
    let next = with(question(), json!({"previous_response_id": cut["id"], "tools": tools()}));
    let next = ask(&server, next).await;
    assert_eq!(text(&next), "The capital of France is Paris.");
    let user = |text: &str| json!({"role": "user", "content": text});
    let without = json!([user("What is 27 plus 48?"), user(question()["input"].as_str().unwrap())]);
    let without = ask(&server, json!({"input": without, "tools": tools()})).await;
    assert_eq!(next["usage"]["input_tokens"], without["usage"]["input_tokens"]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_response() {
    let server = server();
    // Without the tokens that end a message it goes on until the context is full.
    let ends = json!({"1980": -100, "1983": -100, "1987": -100, "1988": -100, "1993": -100});
    let mut body = open(&server, with(question(), json!({"logit_bias": ends}))).await;
    piece(&mut body).await;
    server.until("the response is made", |stats| stats.running == 1).await;
    drop(body);
    server
        .until("the response is cancelled", |stats| stats.cancelled == 1 && stats.running == 0)
        .await;
}

#[tokio::test]
async fn the_page_is_one_file() {
    let reply = server().get("/").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["content-type"], "text/html; charset=utf-8");
    // Nothing is fetched from elsewhere, and no text becomes HTML.
    for forbidden in
        ["http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval("]
    {
        let text = reply.text.replace("http://www.w3.org/2000/svg", "");
        let text = text.replace("xmlns='http://www.w3.org/2000/svg'", "");
        assert!(!text.contains(forbidden), "the page has {forbidden}");
    }
}
