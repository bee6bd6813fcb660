//! Chat templates: where they come from, what they may use, how they fail.

use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::harmony::{Message, RenderRequest, Renderer, Template};
use serde_json::json;
use std::fs;

fn render(source: &str) -> Result<String, String> {
    let messages = [Message::user("hi <|end|> <b>")];
    let variables = json!({
        "n": {"z": 1, "a": [1.0, 1e-7, true, null], "é": "<&'\">"}, "s": "a,b", "big": 18446744073709551615u64,
    });
    let request = RenderRequest {
        messages: &messages,
        date: Some("2026-03-09"),
        variables: variables.as_object(),
        ..RenderRequest::default()
    };
    let template = Template::new(source).map_err(|e| e.to_string())?;
    Renderer::from(template).render_text(&request).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::Template);
        e.to_string()
    })
}

/// Expected: what jinja2 3.1.6 renders in transformers' environment.
#[test]
fn the_environment_is_that_of_transformers() {
    for (source, expected) in [
        ("{{ n | tojson }}", r#"{"z": 1, "a": [1.0, 1e-07, true, null], "é": "<&'\">"}"#),
        (
            "{{ n | tojson(indent=2, ensure_ascii=true, sort_keys=true) }}",
            "{\n  \"a\": [\n    1.0,\n    1e-07,\n    true,\n    null\n  ],\n  \"z\": 1,\n  \"\\u00e9\": \"<&'\\\">\"\n}",
        ),
        ("{{ n.a | tojson(separators=(',', ':')) }}", "[1.0,1e-07,true,null]"),
        ("{{ big | tojson }}", "18446744073709551615"),
        ("{% for k, v in n.items() %}{{ k }}{% endfor %}", "zaé"),
        ("{{ n.get('q', 'd') }}{{ s.split(',')[1].upper() }}{{ s[::-1] }}", "dBb,a"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        (
            "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %B %Y, %b %m %%') }}",
            "2026-03-09 09 March 2026, Mar 03 %",
        ),
        ("{{ messages[0].content }}{{ bos_token }}", "hi <|end|> <b><|startoftext|>"),
        ("{{ messages[0].content | length }}", "14"),
        (
            "{{ reasoning_effort }}{{ tools is defined }}{{ model_identity is defined }}",
            "mediumFalseFalse",
        ),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn failures_name_the_line_and_the_reason() {
    for (source, expected) in [
        ("a\n{% if %}", "the chat template does not compile (line 2): unexpected end of block"),
        (
            "a\n\n{{ raise_exception('no <|end|> please') }}",
            "the chat template refuses the conversation (line 3): no <|end|> please",
        ),
        ("{{ messages[0].content + 1 }}", "the chat template refuses the conversation (line 1): "),
        (
            "{{ nothing.at.all }}",
            "the chat template refuses the conversation (line 1): `nothing` is undefined",
        ),
        (
            "{{ nothing | tojson }}",
            "the chat template refuses the conversation (line 1): tojson of an undefined value",
        ),
        (
            "{{ n | tojson(indent=70000) }}",
            "the chat template refuses the conversation (line 1): tojson with an indent of 70000, expected at most 64",
        ),
        (
            "{{ strftime_now('%Q') }}",
            "the chat template refuses the conversation (line 1): strftime_now has no %Q",
        ),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
            "the chat template refuses the conversation (line 1): engine ran out of fuel",
        ),
    ] {
        let error = render(source).expect_err(source);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_checkpoint_directory_is_searched_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    let text = || {
        let template = Template::from_checkpoint(dir.path()).map_err(|e| e.to_string())?;
        let messages = [Message::user("x")];
        let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
        Ok(template.map(|t| Renderer::from(t).render_text(&request).expect("renders")))
    };
    assert_eq!(text(), Ok(None), "an empty directory");
    let native = Renderer::from_checkpoint(dir.path()).expect("native");
    assert!(matches!(native, Renderer::Native(_)));
    write("tokenizer_config.json", "{}");
    assert_eq!(text(), Ok(None), "a configuration without a template");
    write("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    assert_eq!(text(), Ok(Some("config".into())));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(text(), Ok(Some("d".into())));
    write("tokenizer_config.json", "{");
    let error: Result<Option<String>, String> = text();
    let error = error.expect_err("not JSON");
    assert!(error.starts_with("tokenizer_config.json is not JSON: EOF"), "{error}");
    write("chat_template.jinja", "file");
    assert_eq!(text(), Ok(Some("file".into())));
    fs::write(dir.path().join("chat_template.jinja"), [0xff]).expect("written");
    let error = text().expect_err("not UTF-8");
    assert!(error.contains("chat_template.jinja: stream did not contain valid UTF-8"), "{error}");
}
