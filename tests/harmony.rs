//! Rendering: against what the reference implementations render, and what they leave open.

#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::harmony::openai::{Request, StringArguments};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, BuiltinTool, ContentType, Dialect, Effort, History, Item, Message,
    RecipientPosition, RenderRequest, Rendered, Renderer, RendererKind, Template, Tool, ToolCall,
    ToolKind,
};
use gpt_oss_puzzle::{ErrorKind, Result};
use serde_json::{Value, json};
use tokenizers::{o200k_harmony, tiny};

fn embedded() -> Renderer {
    Template::embedded().expect("compiles").into()
}

/// The cases rendered by the released checkpoints' template under jinja2.
fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("data/harmony-render-cases.json")).expect("valid cases")
}

fn render(renderer: &Renderer, case: &Value) -> Result<(String, RendererKind)> {
    let request = Request::from_json(&case["request"], StringArguments::Verbatim)?;
    let rendered = renderer.render(&request.as_render(), &tiny())?;
    assert_eq!(tiny().decode_with_special(&rendered.tokens)?, rendered.text, "{}", case["name"]);
    Ok((rendered.text, rendered.used))
}

/// A template can be checked against the cases by naming its file in CHAT_TEMPLATE.
#[test]
fn every_case_is_byte_equal_in_both_renderers() {
    let native = Renderer::Native(Dialect::template());
    let mut renderers = vec![
        ("embedded", embedded(), RendererKind::Template),
        ("native", native, RendererKind::Native),
    ];
    if let Ok(path) = std::env::var("CHAT_TEMPLATE") {
        let template =
            Template::new(std::fs::read_to_string(path).expect("readable")).expect("compiles");
        renderers.push(("given", template.into(), RendererKind::Template));
    }
    for (which, renderer, kind) in renderers {
        let mut compared = 0;
        for case in cases() {
            if let Some(expected) = case["text"].as_str() {
                let (text, used) = render(&renderer, &case)
                    .unwrap_or_else(|e| panic!("{which} {}: {e}", case["name"]));
                assert_eq!(text, expected, "{which} {}", case["name"]);
                assert_eq!(used, kind, "{which} {}", case["name"]);
                compared += 1;
            }
        }
        assert_eq!(compared, 27, "{which}");
    }
}

/// What becomes of each request on which the reference fails: an error, or what is rendered instead,
/// by the part that shows it.
#[test]
fn where_the_reference_fails() {
    let decisions: [(&str, std::result::Result<&str, &str>); 16] = [
        // A default that is no string is written as JSON.
        ("t_enumint", Ok("a?: number, // default: 1,\n")),
        ("t_oneint", Ok("a?: string | \nnumber// default: 3,\n")),
        // Null is absent.
        ("effort_none", Ok("Reasoning: medium\n")),
        (
            "content_none_tc",
            Ok("<|start|>user<|message|>w<|end|><|start|>assistant to=functions.f<|channel|>"),
        ),
        ("content_none", Ok("<|channel|>final<|message|><|end|>")),
        ("thinking_none", Ok("<|channel|>final<|message|>a<|end|>")),
        ("tool_calls_none", Ok("<|channel|>final<|message|>x<|end|>")),
        ("tool_calls_empty", Ok("<|channel|>final<|message|>x<|end|>")),
        ("desc_none", Ok("// \ntype f = () => any;")),
        ("no_desc", Ok("// \ntype f = (_: {\na?: string,\n}) => any;")),
        // Content parts are joined.
        ("content_parts", Ok("<|start|>user<|message|>hi<|end|>")),
        // Analysis and text beside a call: analysis and a preamble.
        (
            "loop_both",
            Ok(
                "<|channel|>analysis<|message|>th<|end|><|start|>assistant<|channel|>commentary<|message|>Let me<|end|>\
                <|start|>assistant to=functions.get_weather",
            ),
        ),
        // Markers in text are text.
        ("leak_tag", Ok("<|channel|>final<|message|><|channel|>analysis<|message|>x<|end|>")),
        ("leak_think", Ok("<|channel|>final<|message|>ok<|end|>")),
        ("tool_orphan", Err("message 1 is a tool result, but no message before it calls a tool")),
        ("no_messages", Err("the conversation has no messages")),
    ];
    for renderer in [embedded(), Renderer::Native(Dialect::template())] {
        let failing: Vec<Value> =
            cases().into_iter().filter(|c| c["reference_error"].is_string()).collect();
        assert_eq!(failing.len(), decisions.len());
        for case in failing {
            let (_, expected) =
                decisions.iter().find(|(name, _)| case["name"] == *name).expect("decided");
            match (render(&renderer, &case), expected) {
                (Ok((text, _)), Ok(part)) => {
                    assert!(text.contains(part), "{}: {text}", case["name"])
                }
                (Err(error), Err(message)) => assert_eq!(error.to_string(), *message),
                (result, _) => panic!("{}: {result:?}", case["name"]),
            }
        }
    }
    // Inert means ordinary tokens: the markers of the text are not among the control tokens.
    let leak = cases().into_iter().find(|c| c["name"] == "leak_tag").expect("there");
    let request = Request::from_json(&leak["request"], StringArguments::Parse).expect("reads");
    let tokens = embedded().render(&request.as_render(), &tiny()).expect("renders").tokens;
    let channel = tiny().special_tokens().expect("harmony").channel;
    assert_eq!(tokens.iter().filter(|t| **t == channel).count(), 1);
}

/// Token by token what OpenAI's library renders; data/harmony_goldens.py made the cases.
#[test]
fn harmony_dialect_is_token_equal_to_the_library() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("data/harmony-library-cases.json")).expect("valid cases");
    assert_eq!(cases.len(), 15);
    let mut dialect = Dialect::harmony();
    dialect.history = History::KeepAll;
    let tokenizer = o200k_harmony();
    for case in cases {
        let request = Request::from_json(&case["request"], StringArguments::Parse).expect("reads");
        let rendered = Renderer::Native(dialect.clone())
            .render(&request.as_render(), &tokenizer)
            .expect("renders");
        assert_eq!(rendered.text, case["text"].as_str().expect("text"), "{}", case["name"]);
        let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
        assert_eq!(rendered.tokens, tokens, "{}", case["name"]);
    }
}

#[test]
fn dialects_and_prompts_survive_json() {
    for dialect in [Dialect::harmony(), Dialect::template()] {
        let json = serde_json::to_string(&dialect).expect("JSON");
        assert_eq!(serde_json::from_str::<Dialect>(&json).expect("a dialect"), dialect, "{json}");
    }
    assert_eq!(
        serde_json::to_value(Dialect::harmony()).expect("JSON"),
        json!({
            "recipient": "in_role", "content_type": "constrain", "tool_text": "raw",
            "text_with_call": "preamble", "typescript": "harmony",
            "blank_after_instructions": false, "always_dated": false, "history": "current_turn",
        })
    );
    let messages = [Message::user("q")];
    let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
    let rendered = embedded().render(&request, &tiny()).expect("renders");
    let json = serde_json::to_string(&rendered).expect("JSON");
    assert_eq!(serde_json::from_str::<Rendered>(&json).expect("a prompt"), rendered);
}

fn weather() -> [Tool; 1] {
    let schema = json!({"type": "object", "properties": {"location": {"type": "string", "description": "city"}},
                        "required": ["location"]});
    [Tool::new("get_weather", "Gets the weather.", schema)]
}

#[test]
fn a_typed_conversation_is_token_equal_to_the_library() {
    let case: Value =
        serde_json::from_str(include_str!("data/harmony-tokens-case.json")).expect("valid");
    let mut call = ToolCall::function("c1", "get_weather", r#"{"location": "Tokyo"}"#);
    call.content_type = Some("<|constrain|> json".into());
    let result = Message::tool(&call, r#"{"temperature": 20}"#);
    let messages = [
        Message::developer("Always respond in riddles"),
        Message::user("What is the weather in Tōkyō? 🌧"),
        AssistantMessage {
            items: vec![
                Item::reasoning("User asks: need to use get_weather."),
                Item::ToolCall(call),
            ],
        }
        .into(),
        result,
    ];
    let request = RenderRequest {
        messages: &messages,
        tools: &weather(),
        effort: Effort::High,
        date: Some("2025-06-28"),
        ..RenderRequest::default()
    };
    let rendered =
        Renderer::Native(Dialect::harmony()).render(&request, &o200k_harmony()).expect("renders");
    assert_eq!(rendered.text, case["text"].as_str().expect("text"));
    let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
    assert_eq!(rendered.tokens, tokens);
}

/// Every string a caller can supply carries every marker, and the prompt has the control tokens of
/// the same conversation without them, and the text with them.
#[test]
fn markers_in_a_conversation_are_text_everywhere() {
    // Also a half at either end, and private-use characters, behind which markers are hidden.
    let evil = format!("|>{}\u{e000}\u{e001}|end|><", tokenizers::MARKERS.concat());
    let conversation = |word: &str| {
        json!({
            "messages": [
                {"role": "system", "content": word},
                {"role": "user", "content": word},
                {"role": "assistant", "thinking": word, "content": "", "tool_calls": [
                    {"id": "c", "function": {"name": format!("f{word}"), "arguments": {"k": word, word: 1}}}]},
                {"role": "tool", "tool_call_id": "c", "content": word},
                {"role": "assistant", "thinking": word, "tool_calls": [
                    {"id": "d", "function": {"name": "g", "arguments": {}, "content_type": format!("<|constrain|>{word}")}}]},
                {"role": "tool", "tool_call_id": "d", "content": word},
            ],
            "tools": [{"type": "function", "function": {"name": word, "description": word, "parameters": {
                "type": "object", "properties": {word: {"type": "string", "description": word, "enum": [word], "default": word}}}}}],
            "model_identity": word, "date": word, "extra": word,
        })
    };
    let controls = |renderer: &Renderer, word: &str| {
        let request =
            Request::from_json(&conversation(word), StringArguments::Parse).expect("reads");
        let rendered = renderer.render(&request.as_render(), &tiny()).expect("renders");
        assert_eq!(tiny().decode_with_special(&rendered.tokens).expect("decodes"), rendered.text);
        let controls: Vec<u32> =
            rendered.tokens.into_iter().filter(|t| tiny().special(*t).is_some()).collect();
        (controls, rendered.text.matches(word).count(), rendered.used)
    };
    let extra = Template::new("{{ extra }}{{ messages[0].content }}<|end|>").expect("compiles");
    for (renderer, count, used) in [
        (embedded(), 19, RendererKind::Template),
        (Renderer::Native(Dialect::template()), 19, RendererKind::Native),
        (Renderer::Native(Dialect::harmony()), 19, RendererKind::Native),
        (extra.into(), 2, RendererKind::Template),
    ] {
        let plain = controls(&renderer, "WORD");
        assert_eq!((plain.1, plain.2), (count, used));
        assert_eq!(controls(&renderer, &evil), plain);
    }
}

/// Only a call's own content type may be a control token, not what its arguments call so.
#[test]
fn a_content_type_is_a_marker_only_where_the_call_states_it() {
    let constrain = tiny().special_tokens().expect("harmony").constrain;
    let count = |function: Value, extra: Value| {
        let request = json!({
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]},
            ],
            "content_type": extra,
        });
        let request = Request::from_json(&request, StringArguments::Parse).expect("reads");
        let template = "{{ content_type }}{% set f = messages[1].tool_calls[0].function %}\
            {{ f.content_type }}{{ f.arguments | tojson }}";
        let template = Template::new(template).expect("compiles");
        [template.into(), embedded(), Renderer::Native(Dialect::template())].map(
            |renderer: Renderer| {
                let rendered = renderer.render(&request.as_render(), &tiny()).expect("renders");
                assert!(rendered.text.contains("<|constrain|>x"), "{}", rendered.text);
                rendered.tokens.iter().filter(|token| **token == constrain).count()
            },
        )
    };
    let typed = json!({"name": "f", "arguments": {}, "content_type": "<|constrain|>x"});
    assert_eq!(count(typed, "<|constrain|>x".into()), [1, 1, 1]);
    let argument = json!({"name": "f", "arguments": {"content_type": "<|constrain|>x"}});
    assert_eq!(count(argument, Value::Null), [0, 0, 0]);
}

/// A conversation as `user`, then the assistant's items, then results of its calls, and so on.
fn turns(turns: &[&[Item]]) -> Vec<Message> {
    let mut messages = Vec::new();
    for items in turns {
        if !matches!(messages.last(), Some(Message::Tool(_))) {
            messages.push(Message::user("q"));
        }
        let message = AssistantMessage { items: items.to_vec() };
        let results: Vec<Message> = message.tool_calls().map(|c| Message::tool(c, "r")).collect();
        messages.push(message.into());
        messages.extend(results);
    }
    messages
}

fn text(renderer: &Renderer, messages: &[Message]) -> String {
    let request = RenderRequest { messages, date: Some("2026-01-02"), ..RenderRequest::default() };
    let text = renderer.render_text(&request).expect("renders");
    let system = text.find("<|end|>").expect("system message") + "<|end|>".len();
    text[system..].to_owned()
}

#[test]
fn history_keeps_what_the_policy_says() {
    let call = |id: &str| Item::ToolCall(ToolCall::function(id, "f", "{}"));
    let think = Item::reasoning;
    let open_loop = turns(&[&[think("a"), call("1")], &[think("b"), call("2")]]);
    let closed_loop = turns(&[&[think("a"), call("1")], &[think("b"), Item::text("t")]]);
    let mut asked_again = closed_loop.clone();
    asked_again.extend(turns(&[&[think("c"), call("3")]]));
    let mut interrupted = open_loop.clone();
    interrupted.push(Message::user("stop"));
    let conversations = [&open_loop, &closed_loop, &asked_again, &interrupted];
    for (history, kept) in [
        (History::Template, ["ab", "", "c", "ab"]),
        (History::CurrentTurn, ["ab", "", "c", ""]),
        (History::KeepAll, ["ab", "ab", "abc", "ab"]),
        (History::DropAll, ["", "", "", ""]),
    ] {
        for (messages, kept) in conversations.into_iter().zip(kept) {
            let mut dialect = Dialect::harmony();
            dialect.history = history;
            let text = text(&Renderer::Native(dialect), messages);
            let analysis =
                text.split("analysis<|message|>").skip(1).map(|t| &t[..1]).collect::<String>();
            assert_eq!(analysis, kept, "{history:?}: {text}");
        }
    }
}

#[test]
fn what_a_template_cannot_express_is_rendered_natively() {
    let call = |id: &str, name: &str| ToolCall::function(id, name, "{}");
    let mut python = call("p", "python");
    python.kind = ToolKind::Builtin;
    let two_calls = turns(&[&[Item::ToolCall(call("1", "f")), Item::ToolCall(call("2", "g"))]]);
    let preamble =
        turns(&[&[Item::reasoning("t"), Item::preamble("p"), Item::ToolCall(call("1", "f"))]]);
    let builtin = turns(&[&[Item::ToolCall(python)]]);
    // The first result answers the call before the last.
    let (f, g) = (call("1", "f"), call("2", "g"));
    let late = vec![
        Message::user("q"),
        AssistantMessage { items: vec![Item::ToolCall(f.clone())] }.into(),
        AssistantMessage { items: vec![Item::ToolCall(g.clone())] }.into(),
        Message::tool(&f, "r"),
        Message::tool(&g, "r"),
    ];
    let later = vec![Message::user("q"), Message::developer("d"), Message::user("q")];
    let c = |name: &str| {
        format!(
            "<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{{}}<|call|>"
        )
    };
    let r = |name: &str| {
        format!(
            "<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>\"r\"<|end|>"
        )
    };
    let q = "<|start|>user<|message|>q<|end|>";
    for (messages, expected) in [
        (two_calls, format!("{q}{}{}{}{}", c("f"), c("g"), r("f"), r("g"))),
        (
            preamble,
            format!(
                "{q}<|start|>assistant<|channel|>analysis<|message|>t<|end|>\
                 <|start|>assistant<|channel|>commentary<|message|>p<|end|>{}{}",
                c("f"),
                r("f")
            ),
        ),
        (
            builtin,
            format!(
                "{q}<|start|>assistant to=python<|channel|>analysis code<|message|>{{}}<|call|>\
                 <|start|>python to=assistant<|channel|>analysis<|message|>r<|end|>"
            ),
        ),
        (late, format!("{q}{}{}{}{}", c("f"), c("g"), r("f"), r("g"))),
        (later, format!("{q}<|start|>developer<|message|># Instructions\n\nd\n\n<|end|>{q}")),
    ] {
        let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
        assert_eq!(
            embedded().render(&request, &tiny()).expect("renders").used,
            RendererKind::Native
        );
        assert_eq!(text(&embedded(), &messages), expected + "<|start|>assistant");
    }
}

#[test]
fn dialects_differ_where_they_say() {
    let messages =
        turns(&[&[Item::text("so"), Item::ToolCall(ToolCall::function("1", "f", "{\"a\":1}"))]]);
    let harmony = text(&Renderer::Native(Dialect::harmony()), &messages);
    assert!(harmony.contains(
        "<|channel|>commentary<|message|>so<|end|><|start|>assistant to=functions.f<|channel|>commentary \
         <|constrain|>json<|message|>{\"a\":1}<|call|><|start|>functions.f to=assistant<|channel|>commentary<|message|>r<|end|>"
    ), "{harmony}");
    let mut mixed = Dialect::harmony();
    mixed.recipient = RecipientPosition::AfterChannel;
    mixed.content_type = ContentType::Plain;
    let mixed = text(&Renderer::Native(mixed), &messages);
    assert!(
        mixed.contains("<|start|>assistant<|channel|>commentary to=functions.f json<|message|>"),
        "{mixed}"
    );
    let template = text(&Renderer::Native(Dialect::template()), &messages);
    assert!(template.contains(
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant to=functions.f<|channel|>commentary json\
         <|message|>{\"a\": 1}<|call|><|start|>functions.f to=assistant<|channel|>commentary<|message|>\"r\"<|end|>"
    ), "{template}");
}

#[test]
fn return_ends_the_last_answer_of_a_training_text_and_no_other() {
    let messages = turns(&[&[Item::text("one")], &[Item::text("two")]]);
    for renderer in [embedded(), Renderer::Native(Dialect::template())] {
        for (add_generation_prompt, end) in
            [(true, "two<|end|><|start|>assistant"), (false, "two<|return|>")]
        {
            let request = RenderRequest {
                messages: &messages,
                add_generation_prompt,
                ..RenderRequest::default()
            };
            let text = renderer.render_text(&request).expect("renders");
            assert!(text.contains("one<|end|>") && text.ends_with(end), "{text}");
        }
    }
}

/// The template writes an array of objects out up to 50 characters, and beyond as `any[]`.
#[test]
fn long_element_types_become_any() {
    let messages = [Message::user("q")];
    for (length, expected) in [(25, true), (26, false)] {
        let name = "n".repeat(length - 4);
        let items = json!({"type": "object", "properties": {name.as_str(): {"type": "string"}}});
        let schema =
            json!({"type": "object", "properties": {"a": {"type": "array", "items": items}}});
        let tools = [Tool::new("f", "d", schema)];
        let inner = format!("{{\n{name}?: \n                string}}");
        assert_eq!(inner.len() <= 50, expected, "{}", inner.len());
        for renderer in [embedded(), Renderer::Native(Dialect::template())] {
            let request =
                RenderRequest { messages: &messages, tools: &tools, ..RenderRequest::default() };
            let text = renderer.render_text(&request).expect("renders");
            let expected = if expected { format!("a?: {inner}[],") } else { "a?: any[],".into() };
            assert!(text.contains(&expected), "{text}");
        }
    }
}

#[test]
fn no_date_is_today_except_in_harmony() {
    let messages = [Message::user("q")];
    let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
    let harmony = Renderer::Native(Dialect::harmony()).render_text(&request).expect("renders");
    assert!(!harmony.contains("Current date"), "{harmony}");
    let dated = embedded().render_text(&request).expect("renders");
    assert_eq!(
        dated,
        Renderer::Native(Dialect::template()).render_text(&request).expect("renders")
    );
    let date = dated.split("Current date: ").nth(1).and_then(|d| d.lines().next()).expect("dated");
    assert!(date.len() == 10 && date > "2026-01-01" && date < "2100", "{date}");
}

#[test]
fn string_arguments_are_json_text_unless_verbatim_is_asked_for() {
    let request = |arguments| {
        let json = json!({"messages": [
            {"role": "user", "content": "w"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1.0e-5,\"b\":\"é\"}"}}]},
            {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "8"}]},
        ]});
        let request = Request::from_json(&json, arguments).expect("reads");
        embedded().render_text(&request.as_render()).expect("renders")
    };
    let parsed = request(StringArguments::Parse);
    assert!(parsed.contains("json<|message|>{\"a\": 1e-05, \"b\": \"é\"}<|call|>"), "{parsed}");
    assert!(parsed.contains("<|message|>\"18\"<|end|>"), "{parsed}");
    let verbatim = request(StringArguments::Verbatim);
    assert!(
        verbatim.contains("json<|message|>\"{\\\"a\\\":1.0e-5,\\\"b\\\":\\\"é\\\"}\"<|call|>"),
        "{verbatim}"
    );
}

#[test]
fn openai_messages_become_typed_ones() {
    let json = json!({
        "model": "m", "reasoning_effort": "low", "builtin_tools": ["python"], "date": null, "tools": null,
        "messages": [
            {"role": "assistant", "reasoning": null, "reasoning_content": "r", "content": "c", "tool_calls": [
                {"id": "a", "function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "python"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "name": "functions.h", "tool_call_id": "gone", "content": {"k": [1, 2]}},
        ],
    });
    let request = Request::from_json(&json, StringArguments::Parse).expect("reads");
    let f = ToolCall::function("a", "f", "{}");
    let mut python = ToolCall::function("call_0_1", "python", "{}");
    python.kind = ToolKind::Builtin;
    let h = ToolCall::function("gone", "h", "");
    assert_eq!(
        request.messages,
        [
            AssistantMessage {
                items: vec![
                    Item::reasoning("r"),
                    Item::text("c"),
                    Item::ToolCall(f.clone()),
                    Item::ToolCall(python.clone()),
                ],
            }
            .into(),
            Message::tool(&f, "1"),
            Message::tool(&python, "2"),
            Message::tool(&h, "{\"k\": [1, 2]}"),
        ]
    );
    assert_eq!((request.effort, request.date.as_deref()), (Effort::Low, None));
    assert_eq!(request.builtin_tools, [BuiltinTool::Python]);
    assert_eq!(Value::Object(request.variables), json!({"model": "m"}));
}

#[test]
fn bad_requests_say_what_is_wrong_and_where() {
    let user = json!({"role": "user", "content": "x"});
    for (json, kind, message) in [
        (json!([]), ErrorKind::InvalidRequest, "the request is a list, expected an object"),
        (json!({}), ErrorKind::InvalidRequest, "the request has no messages"),
        (
            json!({"messages": "x"}),
            ErrorKind::InvalidRequest,
            "messages is a string, expected a list",
        ),
        (json!({"messages": [user, {}]}), ErrorKind::InvalidMessage, "message 1 has no role"),
        (json!({"messages": [7]}), ErrorKind::InvalidMessage, "message 0 has no role"),
        (
            json!({"messages": [{"role": "robot"}]}),
            ErrorKind::InvalidMessage,
            "message 0 has role \"robot\", expected system, developer, user, assistant or tool",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            ErrorKind::InvalidMessage,
            "message 0 has a number as content, expected a string",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            ErrorKind::InvalidMessage,
            "message 0 has content part 0 image_url, but only text is supported",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
            ErrorKind::InvalidMessage,
            "message 0 has tool call 0 without a name",
        ),
        (
            json!({"messages": [{"role": "tool", "tool_call_id": "z", "content": ""}]}),
            ErrorKind::InvalidMessage,
            "message 0 is the result of tool call \"z\", which no message before it makes",
        ),
        (
            json!({"messages": [user], "reasoning_effort": "extreme"}),
            ErrorKind::InvalidRequest,
            "reasoning effort is \"extreme\", expected low, medium or high",
        ),
        (
            json!({"messages": [user], "builtin_tools": ["shell"]}),
            ErrorKind::InvalidRequest,
            "builtin_tools is [\"shell\"], expected a list of \"browser\" and \"python\"",
        ),
        (
            json!({"messages": [user], "tools": [{"type": "mcp"}]}),
            ErrorKind::InvalidRequest,
            "tool 0 is of type \"mcp\", expected \"function\"",
        ),
        (
            json!({"messages": [user], "tools": [{}]}),
            ErrorKind::InvalidRequest,
            "tool 0 has no name",
        ),
        (
            json!({"messages": [user], "add_generation_prompt": 1}),
            ErrorKind::InvalidRequest,
            "add_generation_prompt is a number, expected true or false",
        ),
        (
            json!({"messages": [user], "date": 1}),
            ErrorKind::InvalidRequest,
            "date is a number, expected a string",
        ),
    ] {
        let error = Request::from_json(&json, StringArguments::Parse).expect_err(message);
        assert_eq!((error.to_string().as_str(), error.kind()), (message, kind));
    }
}

#[test]
fn typed_data_survives_serde() {
    let mut call = ToolCall::function("1", "f", "{\"a\":[1]}");
    call.content_type = Some("code".into());
    let messages = vec![
        Message::system("s"),
        Message::developer("d"),
        Message::user("u"),
        Message::assistant("a"),
        AssistantMessage {
            items: vec![
                Item::reasoning("r"),
                Item::preamble("p"),
                Item::ToolCall(call.clone()),
                Item::text("t"),
            ],
        }
        .into(),
        Message::tool(&call, "x"),
    ];
    let json = serde_json::to_string(&messages).expect("writes");
    assert_eq!(serde_json::from_str::<Vec<Message>>(&json).expect("reads"), messages);
    assert!(json.starts_with(r#"[{"role":"system","content":"s"},{"role":"developer","#), "{json}");
    let tool = weather().into_iter().next().expect("one");
    assert_eq!(
        serde_json::from_value::<Tool>(serde_json::to_value(&tool).expect("writes"))
            .expect("reads"),
        tool
    );
}

#[test]
fn arguments_parse_or_name_the_call_and_its_text() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Arguments {
        city: String,
    }
    let call = ToolCall::function("1", "weather", r#"{"city":"Tōkyō"}"#);
    assert_eq!(call.parse::<Arguments>().expect("parses"), Arguments { city: "Tōkyō".into() });
    let call = ToolCall::function("1", "weather", "{\"city\":\"x\"}]");
    let error = call.parse::<Arguments>().expect_err("trailing");
    assert_eq!(error.kind(), ErrorKind::ToolArguments);
    assert_eq!(
        error.to_string(),
        "arguments of tool call weather do not parse: trailing characters at line 1 column 13, found \"{\\\"city\\\":\\\"x\\\"}]\""
    );
}
