//! What a conversation costs: how much of each prompt is computed, counted, on a model with windows of 64 and 512
//! tokens and without.

#[path = "common/engine.rs"]
mod engine;

use engine::{model, reference, whole, words};
use gpt_oss_puzzle::cache::PAGE_TOKENS;
use gpt_oss_puzzle::chat::{ChatRequest, ChatResponse, ChatSession};
use gpt_oss_puzzle::generation::{GenerateOptions, SamplingParams};
use gpt_oss_puzzle::harmony::Message;
use gpt_oss_puzzle::{Engine, EngineOptions};

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

impl Ask for ChatSession {
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

/// Loops of tool calls: with the feature `structured` the model calls for as long as it has to.
#[cfg(feature = "structured")]
mod loops {
    use super::*;
    use gpt_oss_puzzle::generation::FinishReason;
    use gpt_oss_puzzle::harmony::{Tool, ToolChoice};
    use serde_json::json;

    fn opening() -> ChatRequest {
        let city = json!({
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome", "Paris"]}},
            "required": ["city"],
            "additionalProperties": false,
        });
        let request = system().tools([Tool::new("get_weather", "The weather in a city.", city)]);
        request.message(Message::user("What is the weather in Oslo?"))
    }

    /// Asserts what each step of a loop of six calls goes on from, and the turn after it. `answer` answers a
    /// conversation and adds its answer to it.
    fn six_calls(mut answer: impl FnMut(&mut ChatRequest) -> ChatResponse) {
        let mut request = opening();
        let (mut begin, mut known, mut thought) = (0, 0, 0);
        for call in 0..7 {
            let choice = if call < 6 { ToolChoice::Required } else { ToolChoice::Auto };
            let mut asked = request.clone().tool_choice(choice);
            let mut all = reference().render(&asked).expect("a prompt").tokens;
            let response = answer(&mut asked);
            request.messages = asked.messages;
            let usage = response.usage;
            thought += usage.reasoning_tokens;
            match call {
                0 => begin = usage.prompt_tokens,
                // All that the prompts have in common is there, but for a page and `<|start|>assistant`.
                _ => assert!(
                    known <= usage.cached_tokens + PAGE_TOKENS + 2,
                    "call {call}: {known} tokens are known, {usage:?}"
                ),
            }
            if call < 6 {
                assert_eq!(response.finish_reason, FinishReason::ToolCalls, "{response:?}");
                let made = response.tool_calls().next().expect("a call");
                let result = format!("{{\"temperature\":{call},\"sky\":\"clear\"}}");
                request.messages.push(Message::tool(made, result));
                all.extend(&response.tokens);
                let next = reference().render(&request).expect("a prompt").tokens;
                known = all.iter().zip(&next).take_while(|(a, b)| a == b).count();
                assert!(known > usage.prompt_tokens, "what led to the call is kept");
            }
        }
        assert!(begin > 2 * PAGE_TOKENS && thought > 60, "{begin} {thought}");
        // The chain of thought of the loop goes, and with it all after the question.
        request.messages.push(Message::user("Thank you. What is 11 + 12?"));
        let fresh = reference().chat(&request).expect("answers");
        let after = answer(&mut request);
        assert_eq!(after.tokens, fresh.tokens);
        let cached = after.usage.cached_tokens;
        assert!((begin - PAGE_TOKENS..known).contains(&cached), "{begin} {:?}", after.usage);
    }

    #[test]
    fn each_step_of_a_loop_goes_on_from_the_call() {
        let model = model();
        let engine = model.engine(EngineOptions::default()).expect("starts");
        six_calls(|request| {
            let answer = whole(engine.chat(&*request).expect("asked")).expect("answers");
            request.messages.push(answer.message.clone().into());
            answer
        });
    }

    #[test]
    fn each_step_of_a_loop_in_a_session_goes_on_from_the_call() {
        let model = model();
        let mut session = model.session(opening());
        six_calls(|request| {
            session.request_mut().clone_from(request);
            let answer = session.respond().expect("asked").finish().expect("answers");
            request.messages = session.messages().to_vec();
            answer
        });
    }
}
