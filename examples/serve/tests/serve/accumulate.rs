//! What OpenAI's own clients make of chunks.

use serde_json::{Map, Value, json};

/// The completion that the chunks of one choice or several add up to. Each choice begins with its role
/// alone and ends in a chunk without text; token counts come last and once.
pub fn accumulate(chunks: &[Value]) -> Value {
    let mut choices: Vec<Map<String, Value>> = Vec::new();
    let mut usage = Value::Null;
    for (number, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for key in ["id", "created", "model"] {
            assert_eq!(chunk[key], chunks[0][key]);
        }
        if !chunk["usage"].is_null() {
            assert_eq!((number + 1, &chunk["choices"]), (chunks.len(), &json!([])), "{chunk}");
            usage = chunk["usage"].clone();
        }
        for choice in chunk["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index") as usize;
            while choices.len() <= index {
                choices.push(Map::new());
            }
            let all = &mut choices[index];
            if all.is_empty() {
                let first = json!({"role": "assistant", "content": null, "refusal": null});
                assert_eq!(choice["delta"], first, "the first chunk has the role alone");
                all.insert("index".into(), json!(index));
                all.insert("message".into(), json!({}));
                all.insert("logprobs".into(), Value::Null);
                all.insert("finish_reason".into(), Value::Null);
            }
            assert!(all["finish_reason"].is_null(), "nothing comes after the end: {choice}");
            if !choice["finish_reason"].is_null() {
                assert_eq!(choice["delta"], json!({}), "the last chunk has no text");
                all["finish_reason"] = choice["finish_reason"].clone();
            }
            add(&mut all["message"], &choice["delta"]);
            if !choice["logprobs"].is_null() {
                add(&mut all["logprobs"], &choice["logprobs"]);
            }
        }
    }
    for choice in &mut choices {
        let calls = choice["message"].get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            call.as_object_mut().expect("a call").shift_remove("index");
        }
    }
    let mut whole = chunks[0].clone();
    whole["object"] = json!("chat.completion");
    whole["choices"] = choices.into_iter().map(Value::from).collect();
    whole["usage"] = usage;
    whole
}

/// Strings and lists go on, list elements with an index go on with the one of that index, all else
/// replaces.
fn add(all: &mut Value, delta: &Value) {
    if delta.is_null() && !all.is_null() {
        return;
    }
    match (all, delta) {
        (Value::String(text), Value::String(more)) => text.push_str(more),
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                match fields.get_mut(name) {
                    Some(old) if !["id", "type", "index"].contains(&name.as_str()) => {
                        add(old, value);
                    }
                    _ => drop(fields.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(list), Value::Array(more)) => {
            for element in more {
                let same = |old: &&mut Value| {
                    !element["index"].is_null() && old["index"] == element["index"]
                };
                match list.iter_mut().find(same) {
                    Some(old) => add(old, element),
                    None => list.push(element.clone()),
                }
            }
        }
        (all, delta) => *all = delta.clone(),
    }
}
