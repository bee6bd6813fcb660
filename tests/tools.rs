//! Tools that are called, run and answered, on a small model that calls them.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;

use gpt_oss_puzzle::chat::{
    ChatEvent, ChatRequest, ChatSession, Model, ToolErrors, ToolLoop, ToolLoopHandle,
};
use gpt_oss_puzzle::generation::{FinishReason, SamplingParams};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, BuiltinTool, Item, Message, Tool, ToolCall, ToolChoice, ToolKind,
};
use gpt_oss_puzzle::{Error, ErrorKind};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::error::Error as _;

/// Turns of calls to `q`, which is on offer, and `z`, which is not, with good arguments and bad ones,
/// and of answers.
const CALLING: &bigram::Table = &[
    (b"assistant", &[b"<|channel|>"]),
    (b"<|channel|>", &[b"analysis", b"final", b"commentary", b"commentary"]),
    (b"analysis", &[b"<|message|>"]),
    (b"final", &[b"<|message|>"]),
    (b"commentary", &[b" "]),
    (b" ", &[b"to"]),
    (b"to", &[b"="]),
    (b"=", &[b"q", b"q", b"q", b"z"]),
    (b"q", &[b"<|message|>"]),
    (b"z", &[b"<|message|>"]),
    (b"<|message|>", &[b"{", b"{", b"{", b"B"]),
    (b"{", &[b"}"]),
    (b"}", &[b"<|end|>", b"<|call|>"]),
    (b"B", &[b"<|end|>", b"<|call|>"]),
    (b"<|end|>", &[b"<|start|>"]),
    (b"<|start|>", &[b"assistant"]),
];

fn q() -> Tool {
    Tool::new("q", "Does something.", json!({"type": "object", "properties": {}}))
}

fn calling() -> Model {
    let dir = tempfile::tempdir().unwrap();
    bigram::write_bigram_checkpoint_of(dir.path(), CALLING);
    Model::builder(dir.path()).threads(1).context(2048).load().unwrap()
}

fn session(model: &Model) -> ChatSession {
    let request = ChatRequest::user("Go on").date("2026-01-02").tools([q()]).max_tokens(60);
    model.session(request)
}

fn set_seed(session: &mut ChatSession, seed: u64) {
    session.request_mut().sampling = SamplingParams::default().seed(seed);
}

fn calls_of(message: &Message) -> Vec<ToolCall> {
    match message {
        Message::Assistant(answer) => answer.tool_calls().cloned().collect(),
        _ => Vec::new(),
    }
}

/// A tool that gives the arguments back.
fn echo(call: &ToolCall) -> Result<serde_json::Value, Error> {
    call.parse()
}

/// A seed whose answer satisfies `is`, and the answer's calls.
fn find_answer(
    model: &Model,
    is: impl Fn(&[ToolCall], FinishReason) -> bool,
) -> (u64, Vec<ToolCall>) {
    for seed in 0..500 {
        let mut session = session(model);
        set_seed(&mut session, seed);
        let answer = session.respond().unwrap().finish().unwrap();
        let calls: Vec<ToolCall> = answer.tool_calls().cloned().collect();
        if is(&calls, answer.finish_reason) {
            return (seed, calls);
        }
    }
    panic!("no seed gives such an answer");
}

fn all_q(calls: &[ToolCall]) -> bool {
    calls.iter().all(|call| call.name == "q" && call.kind == ToolKind::Function)
}

#[test]
fn every_call_is_answered_in_order_until_the_model_answers() {
    let model = calling();
    let (mut several, mut parallel, mut unknown, mut bad) = (0, 0, 0, 0);
    for _ in 0..60 {
        let mut session = session(&model);
        let ran = RefCell::new(Vec::new());
        let finishes = RefCell::new(Vec::new());
        let options = ToolLoop::default().on_event(|event| {
            if let ChatEvent::Finish { reason, .. } = event {
                finishes.borrow_mut().push(reason.clone());
            }
        });
        let answer = session
            .run_tools(options, |call| {
                ran.borrow_mut().push(call.id.clone());
                echo(call)
            })
            .unwrap();
        let finishes = finishes.into_inner();
        assert_eq!(finishes.last(), Some(&answer.finish_reason));
        let (last, before) = finishes.split_last().unwrap();
        assert!(before.iter().all(|reason| *reason == FinishReason::ToolCalls), "{finishes:?}");
        assert!(finishes.len() <= ToolLoop::MAX_ROUNDS);
        // Each assistant's turn is followed by the results of its calls, one each, in order.
        let mut offered = Vec::new();
        let mut messages = session.messages().iter().skip(1).peekable();
        while let Some(message) = messages.next() {
            let calls = calls_of(message);
            parallel += usize::from(calls.len() > 1);
            let is_last = messages.peek().is_none();
            assert!(!calls.is_empty() || is_last);
            if is_last {
                break;
            }
            for call in calls {
                let Some(Message::Tool(output)) = messages.next() else { panic!("no result") };
                assert_eq!(output.call_id.as_ref(), Some(&call.id));
                assert_eq!((&output.name, output.kind), (&call.name, call.kind));
                let expected = match (call.name.as_str(), call.parse::<serde_json::Value>()) {
                    ("z", _) => {
                        unknown += 1;
                        "error: there is no tool z, only functions.q".to_owned()
                    }
                    ("q", Ok(value)) => value.to_string(),
                    ("q", Err(error)) => {
                        bad += 1;
                        format!("error: {error}")
                    }
                    (name, _) => panic!("{name}"),
                };
                assert_eq!(output.content, expected);
                if call.name == "q" {
                    offered.push(call.id);
                }
            }
        }
        assert_eq!(ran.into_inner(), offered);
        assert_ne!(*last, FinishReason::Cancelled);
        assert_eq!(*last == FinishReason::ToolCalls, finishes.len() == ToolLoop::MAX_ROUNDS);
        several += usize::from(finishes.len() > 2);
    }
    // Chances of less than one in a million each to be met by none of these.
    for shape in [several, parallel, unknown, bad] {
        assert!(shape > 0, "{several} {parallel} {unknown} {bad}");
    }
}

#[test]
fn rounds_are_bounded_and_a_run_goes_on_where_one_ended() {
    let model = calling();
    let called = |calls: &[ToolCall], reason| reason == FinishReason::ToolCalls && all_q(calls);
    let (calls_seed, calls) = find_answer(&model, called);
    let (answer_seed, _) =
        find_answer(&model, |calls, reason| calls.is_empty() && reason == FinishReason::Stop);
    let mut session = session(&model);
    set_seed(&mut session, calls_seed);
    // The same seed calls in every answer of this model.
    let ran = Cell::new(0);
    let mut tool = |call: &ToolCall| {
        ran.set(ran.get() + 1);
        echo(call)
    };
    let answer = session.run_tools(ToolLoop::default().max_rounds(3), &mut tool).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::ToolCalls);
    assert_eq!(ran.get(), 2 * calls.len());
    assert!(!calls_of(session.messages().last().unwrap()).is_empty(), "not yet answered");
    set_seed(&mut session, answer_seed);
    let answer = session.run_tools(ToolLoop::default().max_rounds(1), &mut tool).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert_eq!(ran.get(), 3 * calls.len());
    // With nothing to answer, a run is an answer.
    session.push(Message::user("And?"));
    let before = session.messages().len();
    session.run_tools(ToolLoop::default(), &mut tool).unwrap();
    assert_eq!((ran.get(), session.messages().len()), (3 * calls.len(), before + 1));
    let none = session.run_tools(ToolLoop::default().max_rounds(0), tool).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidRequest);
    assert_eq!(none.to_string(), "max_rounds is 0, expected at least 1");
}

#[test]
fn a_run_answers_only_the_calls_without_a_result() {
    let model = calling();
    let (answer_seed, _) =
        find_answer(&model, |calls, reason| calls.is_empty() && reason == FinishReason::Stop);
    let mut session = session(&model);
    set_seed(&mut session, answer_seed);
    let calls = ["a", "b", "c"].map(|id| ToolCall::function(id, "q", "{}"));
    let mut items: Vec<Item> = calls.iter().cloned().map(Item::ToolCall).collect();
    let turn = |items: &[Item]| Message::Assistant(AssistantMessage { items: items.to_vec() });
    session.push(turn(&items));
    session.push(Message::tool(&calls[1], "done"));
    let mut ran = Vec::new();
    let tool = |call: &ToolCall| {
        ran.push(call.id.clone());
        Ok::<_, Error>("")
    };
    session.run_tools(ToolLoop::default(), tool).unwrap();
    assert_eq!(ran, ["a", "c"]);
    // A turn that went on to an answer waits for nothing.
    items.push(Item::text("Never mind."));
    session.push(turn(&items));
    let unreachable = |_: &ToolCall| -> Result<String, Error> { panic!("ran a tool") };
    session.run_tools(ToolLoop::default(), unreachable).unwrap();
}

#[test]
fn a_failing_tool_is_told_or_ends_the_run() {
    let model = calling();
    let two = |calls: &[ToolCall], reason| {
        reason == FinishReason::ToolCalls && calls.len() == 2 && all_q(calls)
    };
    let (seed, _) = find_answer(&model, two);
    let mut session = session(&model);
    set_seed(&mut session, seed);
    let fail = |_: &ToolCall| Err::<String, _>(std::io::Error::other("disk on fire"));
    let told = ToolLoop::default().max_rounds(2);
    session.run_tools(told, fail).unwrap();
    let Message::Tool(output) = &session.messages()[2] else { panic!("no result") };
    assert_eq!(output.content, "error: disk on fire");
    // Two calls are waiting; the first one works, the second fails.
    let mut count = 0;
    let second_fails = |call: &ToolCall| {
        count += 1;
        if count == 1 { Ok("fine") } else { fail(call).map(|_| "") }
    };
    let before = session.messages().len();
    let abort = ToolLoop::default().errors(ToolErrors::Abort);
    let error = session.run_tools(abort, second_fails).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tool);
    assert_eq!(error.to_string(), "tool q failed: disk on fire");
    let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
    assert_eq!(cause.map(ToString::to_string).as_deref(), Some("disk on fire"));
    assert_eq!(session.messages().len(), before + 1, "the first result is kept");
    // Another run begins with the second call.
    let mut ids = Vec::new();
    let note = |call: &ToolCall| {
        ids.push(call.id.clone());
        Ok::<_, Error>("")
    };
    session.run_tools(ToolLoop::default().max_rounds(1), note).unwrap();
    assert_eq!(ids, ["call_3"]);
}

#[test]
fn tools_that_are_not_on_offer_are_not_run() {
    let python = tempfile::tempdir().unwrap();
    bigram::write_bigram_checkpoint(python.path());
    let model = Model::builder(python.path()).threads(1).context(4096).load().unwrap();
    let (seed, _) = find_answer(&model, |calls, reason| {
        reason == FinishReason::ToolCalls && calls.iter().all(|call| call.name == "python")
    });
    let cases = [
        (vec![], ToolChoice::Auto, "error: there is no tool python, only functions.q"),
        (
            vec![BuiltinTool::Browser],
            ToolChoice::Auto,
            "error: there is no tool python, only functions.q, browser",
        ),
        (
            vec![BuiltinTool::Python],
            ToolChoice::None,
            "error: there is no tool python, and no other",
        ),
        (vec![BuiltinTool::Python], ToolChoice::Auto, "ran"),
    ];
    for (builtin, choice, expected) in cases {
        let mut session = session(&model);
        set_seed(&mut session, seed);
        session.request_mut().builtin_tools = builtin;
        session.request_mut().tool_choice = choice;
        let mut ran = false;
        let tool = |_: &ToolCall| {
            ran = true;
            Ok::<_, Error>("ran")
        };
        session.run_tools(ToolLoop::default().max_rounds(2), tool).unwrap();
        let Message::Tool(output) = &session.messages()[2] else { panic!("no result") };
        assert_eq!((output.content.as_str(), ran), (expected, expected == "ran"));
    }
}

#[test]
fn a_call_that_was_cut_off_is_not_run() {
    let model = calling();
    let one = |calls: &[ToolCall], reason| {
        reason == FinishReason::ToolCalls && calls.len() == 1 && all_q(calls)
    };
    let (seed, _) = find_answer(&model, one);
    let whole = {
        let mut session = session(&model);
        set_seed(&mut session, seed);
        session.respond().unwrap().finish().unwrap()
    };
    let mut session = session(&model);
    set_seed(&mut session, seed);
    session.request_mut().max_tokens = Some(whole.tokens.len() - 1);
    let unreachable = |_: &ToolCall| -> Result<String, Error> { panic!("ran a tool") };
    let answer = session.run_tools(ToolLoop::default(), unreachable).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Length);
    assert!(answer.tool_calls().all(|call| call.incomplete) && answer.tool_calls().count() == 1);
}

#[test]
fn a_run_can_be_cancelled_at_any_point() {
    let model = calling();
    let called = |calls: &[ToolCall], reason| {
        reason == FinishReason::ToolCalls && calls.len() == 2 && all_q(calls)
    };
    let (seed, _) = find_answer(&model, called);
    let new_session = || {
        let mut session = session(&model);
        set_seed(&mut session, seed);
        session
    };
    // Before it begins: nothing runs.
    let mut session = new_session();
    let options = ToolLoop::default();
    options.cancel_handle().cancel();
    let answer = session.run_tools(options, echo).unwrap();
    assert_eq!((answer.finish_reason, answer.tokens.len()), (FinishReason::Cancelled, 0));
    assert_eq!(session.messages().len(), 1);
    // By a tool: the second call is not run, and waits.
    let mut session = new_session();
    let options = ToolLoop::default();
    let handle = options.cancel_handle();
    let mut ran = 0;
    let stop = |call: &ToolCall| {
        handle.cancel();
        ran += 1;
        echo(call)
    };
    let answer = session.run_tools(options, stop).unwrap();
    assert_eq!((answer.finish_reason, ran), (FinishReason::Cancelled, 1));
    assert_eq!(session.messages().len(), 3, "question, calls, one result");
    assert!(handle.is_cancelled());
    // While the second answer is made, from another thread.
    let mut session = new_session();
    let slot = Cell::new(None::<ToolLoopHandle>);
    let finished = Cell::new(0);
    let options = ToolLoop::default().on_event(|event| match event {
        ChatEvent::Finish { .. } => finished.set(finished.get() + 1),
        _ if finished.get() == 1 => {
            if let Some(handle) = slot.take() {
                std::thread::spawn(move || handle.cancel()).join().unwrap();
            }
        }
        _ => {}
    });
    slot.set(Some(options.cancel_handle()));
    let answer = session.run_tools(options, echo).unwrap();
    assert_eq!((answer.finish_reason, finished.get()), (FinishReason::Cancelled, 2));
}

#[test]
fn tool_choice_none_offers_nothing_and_keeps_the_history() {
    let model = calling();
    let call = ToolCall::function("call_0", "q", "{}");
    let request = ChatRequest::user("Go on")
        .message(AssistantMessage { items: vec![Item::ToolCall(call.clone())] })
        .message(Message::tool(&call, "done"))
        .tools([q()])
        .builtin_tools([BuiltinTool::Python]);
    let text = |choice| model.render(&request.clone().tool_choice(choice)).unwrap().text;
    let (auto, none) = (text(ToolChoice::Auto), text(ToolChoice::None));
    for part in ["namespace functions", "## python", "commentary channel: 'functions'"] {
        assert!(auto.contains(part) && !none.contains(part), "{part}");
    }
    assert!(none.contains("to=functions.q") && none.contains("functions.q to=assistant"));
    let mut without = request.clone();
    (without.tools, without.builtin_tools) = (Vec::new(), Vec::new());
    assert_eq!(model.render(&without).unwrap().text, none);
    // A call that the model makes all the same is a call.
    let (seed, calls) = find_answer(&model, |_, reason| reason == FinishReason::ToolCalls);
    let sampling = SamplingParams::default().seed(seed);
    let request =
        ChatRequest::user("Go on").tools([q()]).tool_choice(ToolChoice::None).max_tokens(60);
    let answer = model.chat(&request.sampling(sampling)).unwrap();
    assert_eq!(answer.finish_reason, FinishReason::ToolCalls);
    assert_eq!(answer.tool_calls().cloned().collect::<Vec<_>>(), calls);
    assert_eq!(serde_json::to_value(ToolChoice::None).unwrap(), json!("none"));
    let back: ChatRequest = serde_json::from_value(json!({"tool_choice": "none"})).unwrap();
    assert_eq!(back.tool_choice, ToolChoice::None);
}
