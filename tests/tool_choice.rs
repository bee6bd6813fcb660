//! Turns that have to end in a call of a tool, from models that would rather not.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(unreachable_pub)]
#[path = "common/speaking.rs"]
mod speaking;

use gpt_oss_puzzle::chat::{ChatRequest, Model, Reasoning, ToolLoop};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{BuiltinTool, Message, Tool, ToolCall, ToolChoice, ToolKind};
use gpt_oss_puzzle::{Error, ErrorKind};
use serde_json::{Value, json};
use speaking::{ENDLESS, biased, speaking, tiny};

fn weather() -> Tool {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 9},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["celsius", "kelvin"]},
        },
        "required": ["city", "days", "unit"],
        "additionalProperties": false,
    });
    Tool::new("weather", "Looks outside.", parameters)
}

fn news() -> Tool {
    Tool { name: "weather_news".into(), description: "Reads.".into(), parameters: None }
}

fn request(model: &Model, seed: u64, choice: ToolChoice) -> ChatRequest {
    // What may be any text comes to its end.
    let id = |text: &str| model.tokenizer().special_id(text).unwrap();
    let (end, call) = (id("<|end|>"), id("<|call|>"));
    ChatRequest::user("Go on")
        .date("2026-01-02")
        .sampling(
            SamplingParams::default()
                .temperature(1.0)
                .seed(seed)
                .logit_bias(end, 4.0)
                .logit_bias(call, 4.0),
        )
        .reasoning(Reasoning::default().max_tokens(6))
        .max_tokens(500)
        .tools([weather(), news()])
        .tool_choice(choice)
}

fn assert_follows(call: &ToolCall) {
    if cfg!(not(feature = "structured")) {
        return;
    }
    let arguments: Value = call.parse().unwrap();
    let map = arguments.as_object().unwrap();
    match call.name.as_str() {
        "weather" => {
            assert_eq!(map.len(), 3);
            assert!((1..=9).contains(&map["city"].as_str().unwrap().chars().count()), "{call:?}");
            assert!((1..=14).contains(&map["days"].as_i64().unwrap()), "{call:?}");
            assert!(["celsius", "kelvin"].contains(&map["unit"].as_str().unwrap()), "{call:?}");
        }
        "weather_news" => assert!(map.is_empty(), "{call:?}"),
        _ => assert_eq!(call.kind, ToolKind::Builtin),
    }
}

#[test]
fn a_required_call_is_made() {
    let (tiny, speaking) = (tiny(), speaking());
    for (model, seeds) in [(&tiny, 60), (&speaking, 20)] {
        let (mut names, mut thoughts) = (Vec::new(), 0);
        for seed in 0..seeds {
            let request = request(model, seed, ToolChoice::Required);
            let response = model.chat(&request).unwrap();
            assert_eq!(response.finish_reason, FinishReason::ToolCalls, "{response:?}");
            assert_eq!(response.text(), "");
            assert!(response.repairs.is_empty(), "{:?}", response.repairs);
            let calls: Vec<&ToolCall> = response.tool_calls().collect();
            let [call] = calls[..] else { panic!("{calls:?}") };
            assert_eq!(call.kind, ToolKind::Function);
            assert_follows(call);
            names.push(call.name.clone());
            thoughts += usize::from(response.usage.reasoning_tokens > 0);
        }
        names.sort();
        names.dedup();
        assert_eq!(names, ["weather", "weather_news"]);
        assert!(thoughts > 5, "{thoughts}");
    }
}

#[test]
fn a_named_function_is_called() {
    let model = tiny();
    for name in ["weather", "weather_news"] {
        for seed in 0..8 {
            let request = request(&model, seed, ToolChoice::Named(name.into()))
                .builtin_tools([BuiltinTool::Python]);
            let response = model.chat(&request).unwrap();
            assert_eq!(response.finish_reason, FinishReason::ToolCalls);
            let call = response.tool_calls().next().unwrap();
            assert_eq!((call.name.as_str(), call.kind), (name, ToolKind::Function));
            assert_follows(call);
            assert_eq!(response.text(), "");
        }
    }
}

#[test]
fn a_builtin_tool_will_do() {
    let model = tiny();
    let mut names = Vec::new();
    for seed in 0..40 {
        let mut request = request(&model, seed, ToolChoice::Required)
            .builtin_tools([BuiltinTool::Python, BuiltinTool::Browser]);
        request.tools.clear();
        let response = model.chat(&request).unwrap();
        assert_eq!(response.finish_reason, FinishReason::ToolCalls);
        let call = response.tool_calls().next().unwrap();
        assert_eq!(call.kind, ToolKind::Builtin);
        names.push(call.name.clone());
    }
    names.sort();
    names.dedup();
    assert_eq!(names, ["browser.find", "browser.open", "browser.search", "python"]);
}

#[test]
fn a_thought_that_never_ends_does_not_keep_it_from_calling() {
    let model = speaking();
    for seed in 0..6 {
        let request = biased(&model, seed, ENDLESS)
            .max_tokens(500)
            .tools([weather(), news()])
            .tool_choice(ToolChoice::Required);
        let budget = request.clone().reasoning(Reasoning::default().max_tokens(20));
        // Without a grammar nothing ends arguments that go on.
        let may_be_cut = cfg!(not(feature = "structured"));
        for request in [budget, request] {
            let response = model.chat(&request).unwrap();
            assert!(response.reasoning_cut.is_some() && response.text().is_empty());
            assert_eq!(response.tool_calls().count(), 1, "{response:?}");
            if may_be_cut {
                continue;
            }
            assert_eq!(response.finish_reason, FinishReason::ToolCalls);
            assert_follows(response.tool_calls().next().unwrap());
        }
    }
}

#[test]
fn a_call_that_is_cut_off_is_told() {
    let model = tiny();
    let whole = model.chat(&request(&model, 3, ToolChoice::Named("weather".into()))).unwrap();
    assert_eq!(whole.finish_reason, FinishReason::ToolCalls);
    let free = Reasoning::default().max_tokens(6).min_answer_tokens(0);
    let cut = request(&model, 3, ToolChoice::Named("weather".into()))
        .reasoning(free)
        .max_tokens(whole.tokens.len() - 1);
    let response = model.chat(&cut).unwrap();
    assert_eq!(response.tokens, whole.tokens[..whole.tokens.len() - 1]);
    assert_eq!(response.finish_reason, FinishReason::Length);
    assert!(response.tool_calls().all(|call| call.incomplete));
}

#[test]
fn what_is_not_on_offer_cannot_be_required() {
    let model = tiny();
    let named = |name: &str| ToolChoice::Named(name.into());
    for (tools, builtin, choice, expected) in [
        (
            vec![],
            vec![],
            ToolChoice::Required,
            "tool_choice is required, and no tools are on offer, expected at least one",
        ),
        (
            vec![weather(), news()],
            vec![],
            named("time"),
            "tool_choice names \"time\", expected a function on offer, of which there is weather, \
             weather_news",
        ),
        (
            vec![],
            vec![BuiltinTool::Python],
            named("python"),
            "tool_choice names \"python\", expected a function on offer, of which there are none",
        ),
    ] {
        let request = ChatRequest::user("Go on").tools(tools).builtin_tools(builtin);
        let error = model.chat(&request.tool_choice(choice)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(error.to_string(), expected);
    }
    let skipping = request(&model, 0, ToolChoice::Required)
        .reasoning(Reasoning::default().max_tokens(0).allow_skipping());
    assert_eq!(model.chat(&skipping).unwrap_err().kind(), ErrorKind::InvalidRequest);
    let tool = Tool::new("odd", "", json!({"not": {}}));
    let odd = ChatRequest::user("Go on").tools([tool]);
    // Nothing is said against it as long as nothing has to follow it.
    assert!(model.chat_stream(&odd).is_ok());
    let required = model.chat_stream(&odd.tool_choice(ToolChoice::Required)).map(drop);
    if cfg!(feature = "structured") {
        let error = required.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let expected = "the JSON schema of the arguments of tool odd cannot be followed: ";
        assert!(error.to_string().starts_with(expected), "{error}");
    } else {
        required.unwrap();
    }
}

#[test]
fn a_format_takes_the_feature() {
    let model = tiny();
    let format = gpt_oss_puzzle::chat::Format::regex("yes|no");
    let answer = model.chat_stream(&ChatRequest::user("Go on").format(format)).map(drop);
    if cfg!(feature = "structured") {
        return answer.unwrap();
    }
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        error.to_string(),
        "the answer is to follow a format, which takes the feature `structured`: this build is without"
    );
}

#[test]
fn only_the_first_answer_of_a_run_has_to_be_a_call() {
    let model = tiny();
    let mut answered = 0;
    for seed in 0..12 {
        let mut session = model.session(request(&model, seed, ToolChoice::Required));
        let mut ran = 0;
        let tool = |_: &ToolCall| {
            ran += 1;
            Ok::<_, Error>("fine")
        };
        let response = session.run_tools(ToolLoop::default().max_rounds(3), tool).unwrap();
        assert!(ran >= 1);
        assert!(matches!(session.messages()[1], Message::Assistant(_)));
        answered += usize::from(response.finish_reason != FinishReason::ToolCalls);
        assert_eq!(session.request().tool_choice, ToolChoice::Required);
    }
    assert!(answered > 6, "{answered}");
}

#[test]
fn the_prompt_is_the_same_and_so_is_the_data() {
    let model = tiny();
    let text = |choice| model.render(&request(&model, 0, choice)).unwrap().text;
    let auto = text(ToolChoice::Auto);
    assert_eq!(text(ToolChoice::Required), auto);
    assert_eq!(text(ToolChoice::Named("weather".into())), auto);
    for (choice, json) in [
        (ToolChoice::Required, json!("required")),
        (ToolChoice::Named("weather".into()), json!({"named": "weather"})),
    ] {
        assert_eq!(serde_json::to_value(&choice).unwrap(), json);
        assert_eq!(serde_json::from_value::<ToolChoice>(json).unwrap(), choice);
    }
}
