//! `/v1/completions`.

use crate::server::{COMPLETIONS, server, with};
use serde_json::{Value, json};

fn prompt() -> Value {
    json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6})
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("a text")
}

#[tokio::test]
async fn a_prompt_is_gone_on_with() {
    let server = server();
    let answer = server.ask(COMPLETIONS, prompt()).await;
    assert!(text(&answer).contains("Paris"), "{answer}");
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let model = server.app.engine().unwrap().model();
    let ids = model.tokenizer().encode_with_special("The capital of France is").unwrap();
    let of_ids = server.ask(COMPLETIONS, with(prompt(), json!({"prompt": ids}))).await;
    assert_eq!(of_ids["choices"], answer["choices"]);
    assert_eq!(of_ids["usage"]["prompt_tokens"], ids.len());
    // Several prompts, `n` answers to each, in that order.
    let both = json!({"prompt": [ids, [ids[0], ids[1]]], "n": 2});
    let several = server.ask(COMPLETIONS, with(prompt(), both)).await;
    let choices = several["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], answer["choices"][0]["text"]);
    assert_eq!(choices[2]["text"], choices[3]["text"]);
    assert_ne!(choices[0]["text"], choices[2]["text"]);
    assert_eq!(several["usage"]["prompt_tokens"], ids.len() + 2);
    let texts = json!({"prompt": ["The capital of France is", "What"]});
    let texts = server.ask(COMPLETIONS, with(prompt(), texts)).await;
    assert_eq!(texts["choices"][0]["text"], answer["choices"][0]["text"]);
}

#[tokio::test]
async fn chunks_accumulate_to_the_answer() {
    let server = server();
    let counts = json!({"stream_options": {"include_usage": true}});
    for more in [
        json!({}),
        json!({"n": 3, "temperature": 1, "seed": 5, "max_tokens": 40}),
        json!({"logprobs": 2}),
        json!({"stop": "ris"}),
        json!({"stop": ["nowhere", "never"], "ignore_eos": true, "max_tokens": 50}),
        json!({"skip_special_tokens": false, "ignore_eos": true, "max_tokens": 50}),
    ] {
        let request = with(prompt(), more.clone());
        let whole = server.ask(COMPLETIONS, request.clone()).await;
        let chunks = server.stream(COMPLETIONS, with(request, counts.clone())).await;
        let mut choices: Vec<Value> = Vec::new();
        let (usage, chunks) = chunks.split_last().expect("chunks");
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
        for chunk in chunks {
            assert!(chunk["usage"].is_null());
            let choice = &chunk["choices"][0];
            let index = choice["index"].as_u64().unwrap() as usize;
            while choices.len() <= index {
                choices.push(json!({"text": "", "finish_reason": null}));
            }
            let all = &mut choices[index];
            assert!(all["finish_reason"].is_null(), "nothing comes after the end");
            all["finish_reason"] = choice["finish_reason"].clone();
            let piece = choice["text"].as_str().unwrap();
            assert_eq!(piece.is_empty(), !choice["finish_reason"].is_null(), "{choice}");
            let text = format!("{}{piece}", all["text"].as_str().unwrap());
            all["text"] = json!(text);
            for (name, list) in choice["logprobs"].as_object().into_iter().flatten() {
                let list = list.as_array().unwrap().iter();
                if all[name].is_null() {
                    all[name] = json!([]);
                }
                all[name].as_array_mut().unwrap().extend(list.cloned());
            }
        }
        for (choice, whole) in choices.iter().zip(whole["choices"].as_array().unwrap()) {
            assert_eq!(
                (&choice["text"], &choice["finish_reason"]),
                (&whole["text"], &whole["finish_reason"])
            );
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(choice[name], whole["logprobs"][name], "{more}");
            }
        }
        assert_eq!(choices.len(), whole["choices"].as_array().unwrap().len());
    }
}

#[tokio::test]
async fn what_ends_a_continuation() {
    let server = server();
    let ask = |more: Value| server.ask(COMPLETIONS, with(prompt(), more));
    let stopped = ask(json!({"stop": ["is."], "max_tokens": 40})).await;
    assert_eq!(
        (text(&stopped).trim(), &stopped["choices"][0]["finish_reason"]),
        ("Par", &json!("stop"))
    );
    let none = ask(json!({"max_tokens": null, "ignore_eos": true})).await;
    assert_eq!(none["usage"]["completion_tokens"], 16, "OpenAI's default");
    let long = ask(json!({"max_tokens": 300, "ignore_eos": true})).await;
    assert_eq!(long["usage"]["completion_tokens"], 300);
    assert_eq!(long["choices"][0]["finish_reason"], "length");
    let ends = ask(json!({"max_tokens": 300})).await;
    assert_eq!(ends["choices"][0]["finish_reason"], "stop");
    let paris = server.app.engine().unwrap().model().tokenizer().encode("Paris").unwrap();
    let ended = ask(json!({"stop_token_ids": [paris[0]], "ignore_eos": true})).await;
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
}

/// A stop string ends the work too, not only what is told of it.
#[tokio::test]
async fn nothing_is_made_after_a_stop_string() {
    let server = server();
    let request =
        json!({"stop": " ", "max_tokens": 4000, "ignore_eos": true, "n": 2, "logprobs": 0});
    let request = with(prompt(), request);
    let answer = server.ask(COMPLETIONS, request.clone()).await;
    let tokens = |choice: &Value| choice["logprobs"]["tokens"].as_array().unwrap().len();
    let told: usize = answer["choices"].as_array().unwrap().iter().map(tokens).sum();
    assert_eq!(answer["usage"]["completion_tokens"], told, "what came after it is not counted");
    server.stream(COMPLETIONS, request).await;
    server.until("all ended", |stats| stats.finished + stats.cancelled == 4).await;
    let made = server.stats().completion_tokens;
    assert!(made < 1000, "{made} tokens for some spaces");
}

#[tokio::test]
async fn choices_are_those_of_seeds_that_follow_each_other() {
    let server = server();
    let request = with(prompt(), json!({"temperature": 2, "max_tokens": 30, "seed": 5}));
    let three = server.ask(COMPLETIONS, with(request.clone(), json!({"n": 3}))).await;
    for choice in 0..3 {
        let alone =
            server.ask(COMPLETIONS, with(request.clone(), json!({"seed": 5 + choice}))).await;
        assert_eq!(three["choices"][choice]["text"], alone["choices"][0]["text"]);
    }
    assert_ne!(three["choices"][0]["text"], three["choices"][1]["text"]);
}

#[tokio::test]
async fn control_tokens_are_text_on_demand() {
    let server = server();
    let chat = "<|start|>user<|message|>What is the capital of France?<|end|><|start|>assistant";
    let request = json!({"prompt": chat, "temperature": 0, "max_tokens": 100});
    let hidden = server.ask(COMPLETIONS, request.clone()).await;
    let shown = server.ask(COMPLETIONS, with(request, json!({"skip_special_tokens": false}))).await;
    assert!(!text(&hidden).contains("<|"), "{hidden}");
    assert!(text(&shown).contains("<|channel|>"), "{shown}");
}

/// The four lists of the old shape agree with each other and with the text.
#[tokio::test]
async fn log_probabilities_are_in_the_old_shape() {
    let server = server();
    let answer = server
        .ask(COMPLETIONS, with(prompt(), json!({"logprobs": 3, "skip_special_tokens": false})))
        .await;
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let tokens = list("tokens");
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text(&answer));
    let mut at = 0;
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(list("text_offset")[index], at);
        at += token.as_str().unwrap().chars().count();
        let logprob = &list("token_logprobs")[index];
        assert!(logprob.as_f64().unwrap() <= 0.0);
        let top = list("top_logprobs")[index].as_object().unwrap().clone();
        assert!((3..=4).contains(&top.len()), "{top:?}");
        assert_eq!(&top[token.as_str().unwrap()], logprob);
    }
}
