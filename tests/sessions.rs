//! What a conversation costs: how much of each prompt is computed, counted, on a model with windows of 64 and 512
//! tokens and without.

#[path = "common/engine.rs"]
mod engine;

use engine::{model, reference, whole, words};
use gpt_oss_puzzle::cache::PAGE_TOKENS;
use gpt_oss_puzzle::chat::{ChatRequest, ChatResponse, Model};
use gpt_oss_puzzle::generation::{FinishReason, GenerateOptions, SamplingParams};
use gpt_oss_puzzle::harmony::{Message, Tool};
use gpt_oss_puzzle::{Engine, EngineOptions};
use serde_json::json;

fn system() -> ChatRequest {
    ChatRequest::new([Message::system("Be brief.")])
        .date("2026-01-02")
        .sampling(SamplingParams::greedy())
        .max_tokens(120)
}

/// A question of so many words that do not matter, and a sum.
fn question(turn: usize, words: usize) -> String {
    format!("{}What is {} + {}?", "red ".repeat(words), 11 + 3 * turn, 20 + turn)
}

/// What goes on with a conversation: an engine that is sent all of it, or a session.
trait Ask {
    fn ask(&mut self, question: String) -> ChatResponse;
}

struct Sent<'a>(&'a Engine, ChatRequest);

impl Ask for Sent<'_> {
    fn ask(&mut self, question: String) -> ChatResponse {
        self.1.messages.push(Message::user(question));
        let answer = whole(self.0.chat(&self.1).expect("asked")).expect("answers");
        self.1.messages.push(answer.message.clone().into());
        answer
    }
}

impl Ask for gpt_oss_puzzle::ChatSession {
    fn ask(&mut self, question: String) -> ChatResponse {
        self.send(question).expect("asked").finish().expect("answers")
    }
}

/// At most the answer as it is rendered without its chain of thought, the new question, and a page.
fn twenty_turns(conversations: &mut [&mut dyn Ask], words: usize) {
    let mut before = vec![0; conversations.len()];
    let (mut thought, mut computed) = (0, 0);
    for turn in 0..20 {
        for (number, conversation) in conversations.iter_mut().enumerate() {
            let usage = conversation.ask(question(turn + 7 * number, words)).usage;
            thought += usage.reasoning_tokens;
            let new = usage.prompt_tokens - before[number];
            let read = usage.prompt_tokens - usage.cached_tokens;
            assert!(
                read <= new + PAGE_TOKENS,
                "turn {turn}: {read} were computed for {new} new ones"
            );
            before[number] = usage.prompt_tokens;
            computed += read;
        }
    }
    let all: usize = before.iter().sum();
    assert!(thought > 20 * conversations.len(), "chain of thought that is dropped: {thought}");
    assert!(computed <= all + 20 * conversations.len() * PAGE_TOKENS, "{computed} of {all}");
    assert!(before.iter().all(|tokens| words < 40 || *tokens > 1200), "longer than a window");
}

#[test]
fn twenty_turns_of_a_session_compute_what_is_new_and_a_page() {
    for words in [0, 50] {
        let model = model();
        twenty_turns(&mut [&mut model.session(system())], words);
    }
}

#[test]
fn twenty_turns_through_an_engine_compute_what_is_new_and_a_page() {
    for words in [0, 50] {
        let model = model();
        let engine = model.engine(EngineOptions::default()).expect("starts");
        let (mut one, mut other, mut third) =
            (Sent(&engine, system()), Sent(&engine, system()), Sent(&engine, system()));
        twenty_turns(&mut [&mut one, &mut other, &mut third], words);
        let stats = engine.stats();
        assert_eq!((stats.prefix_hits, stats.prefix_misses), (59, 1), "only the first is new");
    }
}

/// Turns in an engine and in a session are the turns of a fresh chat.
#[test]
fn what_is_not_computed_does_not_change_the_answer() {
    let model = model();
    let engine =
        model.engine(EngineOptions::default().pages(model.cache().pages() / 2)).expect("starts");
    let (mut sent, mut session) = (Sent(&engine, system()), model.session(system()));
    for turn in 0..6 {
        let one = sent.ask(question(turn, 60));
        let other = session.ask(question(turn, 60));
        let mut request = sent.1.clone();
        request.messages.pop();
        let fresh = reference().chat(&request).expect("answers");
        assert_eq!((&one.tokens, &other.tokens), (&fresh.tokens, &fresh.tokens), "turn {turn}");
        assert!(turn == 0 || one.usage.cached_tokens > 0 && other.usage.cached_tokens > 0);
    }
}

#[test]
fn a_long_prompt_is_read_once() {
    let model = model();
    let engine = model.engine(EngineOptions::default()).expect("starts");
    let prompt = words(3000, 1);
    let options = GenerateOptions::default().sampling(SamplingParams::greedy()).max_tokens(5);
    let ask = || {
        let before = engine::settled(&engine).step_tokens;
        let answer = whole(engine.generate(&prompt, &options).expect("asked")).expect("answers");
        let fed = engine::settled(&engine).step_tokens - before;
        assert_eq!(fed as usize, 3000 - answer.usage.cached_tokens + answer.tokens.len() - 1);
        (answer.usage.cached_tokens, engine::ids(&answer))
    };
    let (first, second) = (ask(), ask());
    assert_eq!(first.0, 0);
    assert!(3000 - second.0 < 90, "{} of 3000 tokens were computed", 3000 - second.0);
    assert_eq!(first.1, second.1);
    // So it is as the end of a conversation.
    let long = system().message(Message::user("red green ".repeat(1400)));
    let ask =
        || whole(engine.chat(long.clone().max_tokens(2)).expect("asked")).expect("answers").usage;
    let (first, second) = (ask(), ask());
    assert!(first.prompt_tokens > 2800);
    assert!(
        100 * (second.prompt_tokens - second.cached_tokens) < 3 * second.prompt_tokens,
        "{second:?}"
    );
}

fn weather() -> Tool {
    let city =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    Tool::new("get_weather", "The weather in a city.", city)
}

/// The model goes on to call for as long as it may not answer.
fn calling(model: &Model, request: ChatRequest) -> ChatRequest {
    let id = model.tokenizer().encode_with_special("final").expect("a token")[0];
    request.sampling(SamplingParams::greedy().logit_bias(id, -100.0))
}

/// Each step goes on from the call, the turn after the loop from the question that it began with.
#[test]
fn a_loop_of_six_calls_goes_on_at_each_step() {
    let model = model();
    let engine = model.engine(EngineOptions::default()).expect("starts");
    let ask = |request: &ChatRequest| whole(engine.chat(request).expect("asked")).expect("answers");
    let mut request = system().tools([weather()]);
    request
        .messages
        .push(Message::user(format!("{} What is the weather in Oslo?", "red ".repeat(70))));
    let (mut begin, mut known) = (0, 0);
    for call in 0..6 {
        let answer = ask(&calling(&model, request.clone()));
        assert_eq!(answer.finish_reason, FinishReason::ToolCalls, "{answer:?}");
        let (prompt, cached) = (answer.usage.prompt_tokens, answer.usage.cached_tokens);
        match call {
            0 => begin = prompt,
            // All that was read and said is there, but for the last page.
            _ => assert!(known - cached <= PAGE_TOKENS, "call {call}: {cached} of {known}"),
        }
        assert!(answer.usage.reasoning_tokens > 0);
        known = prompt + answer.usage.completion_tokens;
        let made = answer.tool_calls().next().expect("a call").clone();
        request.messages.push(answer.message.into());
        request
            .messages
            .push(Message::tool(&made, format!("{{\"temperature\":{call},\"sky\":\"clear\"}}")));
    }
    let answer = ask(&request);
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert!(known - answer.usage.cached_tokens <= PAGE_TOKENS);
    request.messages.push(answer.message.into());
    request.messages.push(Message::user("Thank you. What is 11 + 12?"));
    let after = ask(&request);
    assert!(
        begin > 2 * PAGE_TOKENS && begin <= after.usage.cached_tokens + PAGE_TOKENS,
        "{begin} {:?}",
        after.usage
    );
    let fresh = reference().chat(&request).expect("answers");
    assert_eq!(after.tokens, fresh.tokens);
}

/// The same in a session.
#[test]
fn a_loop_of_six_calls_in_a_session() {
    let model = model();
    let mut session = model.session(system().tools([weather()]));
    session.push(Message::user(format!("{} What is the weather in Oslo?", "red ".repeat(70))));
    let (mut begin, mut known) = (0, 0);
    for call in 0..7 {
        let request = session.request().clone();
        *session.request_mut() = match call < 6 {
            true => calling(&model, request),
            false => request.sampling(SamplingParams::greedy()),
        };
        let answer = session.respond().expect("asked").finish().expect("answers");
        let (prompt, cached) = (answer.usage.prompt_tokens, answer.usage.cached_tokens);
        match call {
            0 => begin = prompt,
            _ => assert!(known - cached <= PAGE_TOKENS, "call {call}: {cached} of {known}"),
        }
        known = prompt + answer.usage.completion_tokens;
        if let Some(made) = answer.tool_calls().next() {
            session
                .push(Message::tool(made, format!("{{\"temperature\":{call},\"sky\":\"clear\"}}")));
        }
    }
    let after =
        session.send("Thank you. What is 11 + 12?").expect("asked").finish().expect("answers");
    assert!(begin <= after.usage.cached_tokens + PAGE_TOKENS, "{begin} {:?}", after.usage);
}
