//! The whole pipeline, from a checkpoint directory to events, on two small models: one of random
//! weights, whose answers depend on all that was said before, and one that speaks harmony.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;

use gpt_oss_puzzle::cache::{KvDtype, PAGE_TOKENS};
use gpt_oss_puzzle::chat::{
    ChatEvent, ChatRequest, ChatResponse, ChatSession, ChatStream, Model, ModelBuilder, Reasoning,
};
use gpt_oss_puzzle::generation::{FinishReason, GenerateOptions, SamplingParams};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, BuiltinTool, Effort, Item, Message, Tool, ToolCall, ToolKind,
};
use gpt_oss_puzzle::weights::{tiny_config, write_tiny_checkpoint};
use gpt_oss_puzzle::{Error, ErrorKind};
use std::path::Path;
use std::sync::mpsc;

/// A model of random weights that has forgotten nothing.
fn tiny() -> Model {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    Model::builder(dir.path()).threads(1).context(4096).load().unwrap()
}

/// A model that speaks harmony.
fn speaking() -> Model {
    let dir = tempfile::tempdir().unwrap();
    bigram::write_bigram_checkpoint(dir.path());
    Model::builder(dir.path()).threads(1).context(1024).load().unwrap()
}

fn request(seed: u64) -> ChatRequest {
    let sampling = SamplingParams::default().seed(seed);
    ChatRequest::user("Hello").date("2026-01-02").sampling(sampling).max_tokens(60)
}

/// The settings of [`request`] without a message.
fn opening(seed: u64) -> ChatRequest {
    let mut request = request(seed);
    request.messages.clear();
    request
}

/// The message that the events are about.
#[derive(Default, PartialEq, Debug)]
struct Heard {
    reasoning: String,
    preamble: String,
    text: String,
    calls: Vec<(String, String, ToolKind, String, bool)>,
}

impl Heard {
    fn of(events: &[ChatEvent]) -> Heard {
        let mut heard = Heard::default();
        for event in events {
            match event {
                ChatEvent::Reasoning(text) => heard.reasoning += text,
                ChatEvent::Preamble(text) => heard.preamble += text,
                ChatEvent::Text(text) => heard.text += text,
                ChatEvent::ToolCallStart { index, id, name, kind } => {
                    assert_eq!(*index, heard.calls.len());
                    heard.calls.push((id.clone(), name.clone(), *kind, String::new(), false));
                }
                ChatEvent::ToolCallDelta { index, arguments } => heard.calls[*index].3 += arguments,
                ChatEvent::ToolCallDone { index } => heard.calls[*index].4 = true,
                _ => {}
            }
        }
        heard
    }

    fn told(response: &ChatResponse) -> Heard {
        let mut heard = Heard::default();
        for item in &response.message.items {
            match item {
                Item::Reasoning { text } => heard.reasoning += text,
                Item::Preamble { text } => heard.preamble += text,
                Item::Text { text } => heard.text += text,
                Item::ToolCall(ToolCall { id, name, kind, arguments, incomplete, .. }) => heard
                    .calls
                    .push((id.clone(), name.clone(), *kind, arguments.clone(), !incomplete)),
                item => panic!("{item:?}"),
            }
        }
        heard
    }
}

#[test]
fn events_concatenated_are_the_response() {
    let model = speaking();
    let (mut calls, mut answers, mut lengths, mut preambles, mut emoji) = (0, 0, 0, 0, 0);
    for seed in 0..150 {
        let request = request(seed);
        let mut stream = model.chat_stream(&request).unwrap();
        let events: Vec<ChatEvent> = stream.by_ref().map(Result::unwrap).collect();
        assert!(stream.next().is_none());
        let response = stream.finish().unwrap();
        let heard = Heard::of(&events);
        assert_eq!(heard, Heard::told(&response), "seed {seed}");
        // Every character is whole, but for one that the length may have cut.
        let cut = response.finish_reason == FinishReason::Length;
        for event in &events {
            if let ChatEvent::Reasoning(t) | ChatEvent::Preamble(t) | ChatEvent::Text(t) = event {
                let whole = t.chars().all(|c| "AB🌧".contains(c));
                assert!(!t.is_empty() && (whole || (cut && t == "\u{fffd}")), "{t:?}");
            }
        }
        let (reason, usage, timings) = (response.finish_reason, response.usage, response.timings);
        let finish = ChatEvent::Finish { reason: reason.clone(), usage, timings };
        assert_eq!(events.last(), Some(&finish));
        assert_eq!(usage.completion_tokens, response.tokens.len());
        assert_eq!(usage.prompt_tokens, model.render(&request).unwrap().tokens.len());
        // Chain of thought is A, B and four tokens for an emoji.
        let tokens = |text: &str| text.chars().map(|c| if c == '🌧' { 4 } else { 1 }).sum::<usize>();
        assert!(usage.reasoning_tokens.abs_diff(tokens(&heard.reasoning)) <= 3);
        if reason != FinishReason::Length {
            assert_eq!(usage.reasoning_tokens, tokens(&heard.reasoning), "seed {seed}");
        }
        let last =
            model.tokenizer().decode_with_special(&response.tokens[usage.completion_tokens - 1..]);
        let last_call = heard.calls.last().is_some_and(|call| call.4)
            && matches!(response.message.items.last(), Some(Item::ToolCall(_)));
        match reason {
            FinishReason::ToolCalls => assert!(last_call),
            FinishReason::Stop => assert!(!last_call),
            FinishReason::Length => assert_eq!(usage.completion_tokens, 60),
            reason => panic!("{reason:?}"),
        }
        if reason != FinishReason::Length {
            assert!(["<|call|>", "<|return|>"].contains(&last.unwrap().as_str()));
        }
        calls += usize::from(reason == FinishReason::ToolCalls);
        answers += usize::from(reason == FinishReason::Stop && !heard.text.is_empty());
        lengths += usize::from(reason == FinishReason::Length);
        preambles += usize::from(!heard.preamble.is_empty());
        emoji += usize::from(heard.text.contains('🌧'));
        // The same again at once.
        let again = model.chat(&request).unwrap();
        assert_eq!((again.tokens, again.message), (response.tokens, response.message));
        assert_eq!(response.seed, seed);
    }
    for shape in [calls, answers, lengths, preambles, emoji] {
        assert!(shape >= 5, "{calls} {answers} {lengths} {preambles} {emoji}");
    }
}

#[test]
fn the_random_model_streams_what_it_answers() {
    let model = tiny();
    for seed in 0..20 {
        let mut stream = model.chat_stream(&request(seed)).unwrap();
        let first = stream.next().unwrap().unwrap();
        let mut events = vec![first];
        let rest: Vec<ChatEvent> = stream.by_ref().map(Result::unwrap).collect();
        events.extend(rest);
        let response = stream.finish().unwrap();
        let heard = Heard::of(&events);
        assert_eq!(heard, Heard::told(&response), "seed {seed}");
        let repairs: Vec<_> = (events.iter())
            .filter_map(|e| if let ChatEvent::Repaired(r) = e { Some(r.clone()) } else { None })
            .collect();
        assert_eq!(repairs, response.repairs);
        assert_eq!(model.chat(&request(seed)).unwrap().tokens, response.tokens);
    }
}

#[test]
fn finish_includes_what_was_already_streamed() {
    let model = speaking();
    let mut stream = model.chat_stream(&request(5)).unwrap();
    let _ = (stream.next(), stream.next());
    let response = stream.finish().unwrap();
    let whole = model.chat(&request(5)).unwrap();
    assert_eq!((response.message, response.tokens), (whole.message, whole.tokens));
}

#[test]
fn stop_tokens_do_not_depend_on_generation_config() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let special = |model: &Model, text: &str| model.tokenizer().special_id(text).unwrap();
    let expected = |model: &Model| {
        let mut ids = ["<|return|>", "<|endoftext|>", "<|call|>"].map(|t| special(model, t));
        ids.sort();
        ids
    };
    let model = Model::load(dir.path()).unwrap();
    let (end, ret) = (special(&model, "<|end|>"), special(&model, "<|return|>"));
    // As the puzzle checkpoint has it, and as one that would cut every answer off.
    for ids in [format!("[{ret}]"), format!("{end}"), format!("[{end},{ret}]"), "null".into()] {
        let json = format!(r#"{{"eos_token_id":{ids}}}"#);
        std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
        let model = Model::load(dir.path()).unwrap();
        assert_eq!(model.stop_tokens().ids(), expected(&model), "{ids}");
    }
    std::fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    let model = Model::load(dir.path()).unwrap();
    assert_eq!(model.stop_tokens().ids(), expected(&model));
    std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    let error = Model::load(dir.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn defaults_of_the_checkpoint_are_used_and_can_be_overridden() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), r#"{"do_sample":false}"#).unwrap();
    let model = Model::load(dir.path()).unwrap();
    let ids = |sampling: SamplingParams| -> Vec<u32> {
        let options = GenerateOptions::default().sampling(sampling).max_tokens(10);
        model.generate("Once", &options).unwrap().map(|t| t.unwrap().id).collect()
    };
    let greedy = ids(SamplingParams::greedy());
    assert_eq!(ids(SamplingParams::default().seed(1)), greedy);
    assert_ne!(ids(SamplingParams::default().seed(1).temperature(2.0)), greedy);
}

/// One turn in the session and, for comparison, of a fresh chat with the same messages.
fn turn(session: &mut ChatSession, text: &str, seed: u64) -> (ChatResponse, ChatResponse) {
    session.request_mut().sampling = SamplingParams::default().seed(seed);
    session.request_mut().max_tokens = Some(30);
    let mut request = session.request_mut().clone();
    request.messages.push(Message::user(text));
    let fresh = session.model().chat(&request).unwrap();
    (session.send(text).unwrap().finish().unwrap(), fresh)
}

/// What is kept of a prompt of so many tokens: whole pages, without the last token.
fn whole_pages(tokens: usize) -> usize {
    (tokens - 1) / PAGE_TOKENS * PAGE_TOKENS
}

#[test]
fn a_session_gives_the_same_tokens_and_reads_only_what_is_new() {
    for model in [tiny(), speaking()] {
        let start = ChatRequest::new([Message::system("Be brief. ".repeat(40))]);
        let mut session = model.session(start.date("2026-01-02"));
        let mut before: Option<(Vec<u32>, Vec<u32>)> = None;
        let (mut resumed, mut rereads) = (0, 0);
        for (number, text) in ["Hello", "And then?", "Why?", "Who?", "Go on"].iter().enumerate() {
            let (response, fresh) = turn(&mut session, text, number as u64);
            assert_eq!(response.tokens, fresh.tokens, "turn {number}");
            assert_eq!(response.message, fresh.message);
            assert_eq!(response.finish_reason, fresh.finish_reason);
            assert_eq!(fresh.usage.cached_tokens, 0);
            // The prompt this turn had: the conversation without what the turn added.
            let mut request = session.request_mut().clone();
            while !matches!(request.messages.last(), Some(Message::User { .. })) {
                request.messages.pop();
            }
            let prompt = model.render(&request).unwrap().tokens;
            assert_eq!(response.usage.prompt_tokens, prompt.len());
            let cached = response.usage.cached_tokens;
            match &before {
                None => assert_eq!(cached, 0),
                Some((earlier, all)) => {
                    // At most what is common with the last prompt and its answer; at least the whole pages
                    // of the last prompt, unless a chain of thought in it, kept for a call, has gone.
                    let common = all.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                    assert!(cached <= common, "turn {number}: {cached} of {common}");
                    if prompt.starts_with(earlier) {
                        assert!(cached >= whole_pages(earlier.len()), "turn {number}: {cached}");
                        resumed += 1;
                    }
                    rereads += common - cached;
                }
            }
            let all = [prompt.clone(), response.tokens.clone()].concat();
            before = Some((prompt, all));
        }
        assert!(resumed >= 2 && rereads <= 4 * (30 + PAGE_TOKENS), "{resumed} {rereads}");
        session.release();
        assert_eq!(model.cache().free_pages(), model.cache().pages());
    }
}

#[test]
fn a_session_goes_back_past_a_tool_loop() {
    let model = tiny();
    let request = request(1).message(Message::user("What is the weather?"));
    let mut session = model.session(request);
    let first = session.respond().unwrap().finish().unwrap();
    let call = ToolCall::function("call_0", "weather", r#"{"city":"Bonn"}"#);
    let items = vec![Item::reasoning("I should look. ".repeat(30)), Item::ToolCall(call.clone())];
    session.request_mut().messages.truncate(2);
    session.push(AssistantMessage { items });
    session.push(Message::tool(&call, "rain"));
    let second = session.respond().unwrap().finish().unwrap();
    assert!(second.usage.cached_tokens >= whole_pages(first.usage.prompt_tokens));
    // The user speaks: the chain of thought of the loop goes, and with it all after the first prompt.
    session.request_mut().messages.truncate(4);
    session.push(Message::assistant("It rains."));
    session.push(Message::user("Thanks"));
    let fresh = model.chat(session.request_mut()).unwrap();
    let third = session.respond().unwrap().finish().unwrap();
    assert_eq!(third.tokens, fresh.tokens);
    let opening = whole_pages(first.usage.prompt_tokens);
    assert!(third.usage.cached_tokens >= opening, "{:?}", third.usage);
    assert!(third.usage.cached_tokens < second.usage.prompt_tokens);
}

/// However many calls a loop has, the turn after it starts from the question the loop began with.
#[test]
fn a_session_goes_back_past_a_long_tool_loop() {
    let model = tiny();
    let mut session = model.session(request(1).max_tokens(5));
    let mut first = None;
    for number in 0..6 {
        let answer = session.respond().unwrap().finish().unwrap();
        first.get_or_insert(whole_pages(answer.usage.prompt_tokens));
        let call = ToolCall::function(format!("call_{number}"), "weather", "{}");
        let thought = Item::reasoning("I should look again. ".repeat(8));
        session.request_mut().messages.truncate(1 + 2 * number);
        session.push(AssistantMessage { items: vec![thought, Item::ToolCall(call.clone())] });
        session.push(Message::tool(&call, "rain"));
    }
    session.push(Message::assistant("It rains."));
    session.push(Message::user("Thanks"));
    let fresh = model.chat(session.request_mut()).unwrap();
    let last = session.respond().unwrap().finish().unwrap();
    assert_eq!(last.tokens, fresh.tokens);
    assert!(Some(last.usage.cached_tokens) >= first, "{:?} of {first:?}", last.usage);
}

#[test]
fn calls_of_a_conversation_have_different_ids() {
    let model = speaking();
    let mut several = 0;
    for seed in 0..6 {
        let mut session = model.session(opening(seed).max_tokens(30));
        for turn in 0..9 {
            session.request_mut().sampling = SamplingParams::default().seed(9 * seed + turn);
            session.send("Go on").unwrap().finish().unwrap();
        }
        let mut ids = Vec::new();
        for message in session.messages() {
            if let Message::Assistant(answer) = message {
                ids.extend(answer.tool_calls().map(|call| call.id.clone()));
            }
        }
        several += usize::from(ids.len() > 1);
        let expected: Vec<String> = (0..ids.len()).map(|n| format!("call_{n}")).collect();
        assert_eq!(ids, expected, "seed {seed}");
    }
    assert!(several >= 2, "{several}");
    // Not even when the start of the conversation, with its call_0, has been cut off.
    let earlier = ToolCall::function("call_1", "f", "{}");
    let mut new = 0;
    for seed in 0..40 {
        let cut = request(seed)
            .message(AssistantMessage { items: vec![Item::ToolCall(earlier.clone())] })
            .message(Message::tool(&earlier, "r"));
        for call in model.chat(&cut).unwrap().tool_calls() {
            assert_ne!(call.id, "call_1", "seed {seed}");
            new += 1;
        }
    }
    assert!(new >= 2, "{new}");
}

#[test]
fn a_changed_past_is_read_anew() {
    let model = tiny();
    let mut session = model.session(request(1));
    session.respond().unwrap().finish().unwrap();
    session.request_mut().messages = vec![Message::user("Something else")];
    let fresh = model.chat(session.request_mut()).unwrap();
    let changed = session.respond().unwrap().finish().unwrap();
    assert_eq!(changed.tokens, fresh.tokens);
    assert!(changed.usage.cached_tokens < changed.usage.prompt_tokens);
    session.release();
    assert_eq!(model.cache().free_pages(), model.cache().pages());
    let released = session.respond().unwrap().finish().unwrap();
    assert_eq!(released.usage.cached_tokens, 0);
}

#[test]
fn interleaved_sessions_equal_separate_ones() {
    let model = tiny();
    let ask = |session: &mut ChatSession, text: &str| {
        session.send(text).unwrap().finish().unwrap().tokens
    };
    let start = |seed| model.session(opening(seed));
    let mut separate = Vec::new();
    for seed in [1, 2] {
        let mut session = start(seed);
        separate.push(["One", "Two", "Three"].map(|text| ask(&mut session, text)));
    }
    let (mut one, mut two) = (start(1), start(2));
    for (number, text) in ["One", "Two", "Three"].into_iter().enumerate() {
        assert_eq!(ask(&mut one, text), separate[0][number]);
        assert_eq!(ask(&mut two, text), separate[1][number]);
    }
}

#[test]
fn chats_from_two_threads_equal_chats_one_after_another() {
    let model = tiny();
    let expected: Vec<Vec<u32>> =
        (0..8).map(|seed| model.chat(&request(seed)).unwrap().tokens).collect();
    let found: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let half = |seeds: std::ops::Range<u64>| {
            let model = model.clone();
            scope.spawn(move || {
                seeds.map(|seed| model.chat(&request(seed)).unwrap().tokens).collect::<Vec<_>>()
            })
        };
        let halves = [half(0..4), half(4..8)];
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert_eq!(found, expected);
}

#[test]
fn a_chat_is_cancelled_from_another_thread() {
    let model = speaking();
    // A seed whose answer goes on past the fifth event.
    let mut stream = model.chat_stream(&request(0)).unwrap();
    let handle = stream.cancel_handle();
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let other = std::thread::spawn(move || {
        asked.recv().unwrap();
        handle.cancel();
        answer.send(()).unwrap();
    });
    stream.next().unwrap().unwrap();
    ask.send(()).unwrap();
    answered.recv().unwrap();
    let tokens = stream.usage().completion_tokens;
    let response = stream.finish().unwrap();
    other.join().unwrap();
    assert_eq!(response.finish_reason, FinishReason::Cancelled);
    assert_eq!(response.tokens.len(), tokens);
    let whole = model.chat(&request(0)).unwrap();
    assert!(whole.tokens.len() > tokens && whole.tokens.starts_with(&response.tokens));
}

#[test]
fn an_answer_that_is_dropped_stays_as_far_as_it_came() {
    let model = speaking();
    let mut kept = 0;
    for seed in 0..30 {
        let mut session = model.session(opening(seed));
        let mut stream = session.send("Hello").unwrap();
        let mut said = String::new();
        for event in stream.by_ref() {
            if let ChatEvent::Text(text) = event.unwrap() {
                said += &text;
                break;
            }
        }
        drop(stream);
        match session.messages() {
            [_, Message::Assistant(answer)] => {
                assert_eq!(answer.text(), said);
                assert!(answer.tool_calls().all(|call| !call.incomplete));
                kept += usize::from(!said.is_empty());
            }
            [_] => assert!(said.is_empty()),
            messages => panic!("{messages:?}"),
        }
        // And the conversation goes on.
        session.send("Go on").unwrap().finish().unwrap();
    }
    assert!(kept >= 5, "{kept}");
}

#[test]
fn a_request_that_is_refused_leaves_the_session_as_it_was() {
    let model = tiny();
    let mut session = model.session(request(1));
    session.respond().unwrap().finish().unwrap();
    let before = session.messages().to_vec();
    let error = session.send("a ".repeat(5000)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(session.messages(), before);
    session.request_mut().sampling = SamplingParams::default().top_p(2.0);
    assert_eq!(session.send("Hello").err().unwrap().kind(), ErrorKind::InvalidRequest);
    assert_eq!(session.messages(), before);
    // And what was cached stays so.
    session.request_mut().sampling = SamplingParams::default();
    assert!(session.send("Hello").unwrap().finish().unwrap().usage.cached_tokens > 0);
}

#[test]
fn too_long_names_prompt_request_and_limit() {
    let model = tiny();
    let prompt = model.render(&request(1)).unwrap().tokens.len();
    let error = model.chat(&request(1).max_tokens(4096)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(
        error.to_string(),
        format!(
            "a prompt of {prompt} tokens and 4096 requested tokens do not fit the context of 4096"
        )
    );
    // Up to the last token, it fits.
    assert!(model.chat_stream(&request(1).max_tokens(4096 - prompt)).is_ok());
    assert!(model.chat_stream(&request(1).max_tokens(4097 - prompt)).is_err());
}

#[test]
fn a_cache_that_is_full_says_so() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let model = Model::builder(dir.path()).threads(1).context(256).load().unwrap();
    let mut streams = Vec::new();
    let error = loop {
        assert!(streams.len() < 100, "the cache never fills");
        let mut stream = model.chat_stream(&request(1).max_tokens(20)).unwrap();
        match stream.next().unwrap() {
            Ok(_) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::CacheFull);
    let pages = model.cache().pages();
    assert!(error.to_string().contains(&format!("of {pages} pages free")), "{error}");
    drop(streams);
    model.chat(&request(1).max_tokens(20)).unwrap();
}

#[test]
fn weights_that_are_not_numbers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = {
        let random = tempfile::tempdir().unwrap();
        let checkpoint = gpt_oss_puzzle::weights::Checkpoint::random(&tiny_config(), 1).unwrap();
        checkpoint.save(random.path(), u64::MAX).unwrap();
        checkpoint::Draft::read(random.path())
    };
    draft.tensor("model.layers.2.mlp.experts.down_proj_scales").bytes.fill(255);
    write_tiny_checkpoint(dir.path(), 1).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    draft.write(dir.path());
    let error = Model::load(dir.path()).unwrap().chat(&request(1)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Numeric);
    let message = error.to_string();
    assert!(message.contains("the logit of token 0 is NaN"), "{message}");
    assert!(message.contains("model.layers.2.mlp.experts.down_proj_scales"), "{message}");
}

#[test]
fn log_probabilities_come_with_bytes_before_their_text() {
    let model = speaking();
    let request = request(5).logprobs(2);
    let events: Vec<ChatEvent> = model.chat_stream(&request).unwrap().map(Result::unwrap).collect();
    let response = model.chat(&request).unwrap();
    let logprobs: Vec<_> = (events.iter())
        .filter_map(|e| if let ChatEvent::Logprob(l) = e { Some(l.clone()) } else { None })
        .collect();
    assert_eq!(logprobs, response.logprobs);
    assert_eq!(logprobs.iter().map(|l| l.id).collect::<Vec<_>>(), response.tokens);
    for logprob in &logprobs {
        assert_eq!(logprob.bytes, model.tokenizer().token_bytes(logprob.id).unwrap());
        assert_eq!(logprob.top.len(), 2);
        assert!(logprob.logprob <= 0.0 && logprob.top[0].logprob >= logprob.logprob);
    }
    // The bytes of the answer, without its markers, are its text.
    let text = |l: &&_| matches!(l, ChatEvent::Text(_));
    let first_text = events.iter().position(|e| text(&e));
    if let Some(at) = first_text {
        assert!(matches!(events[at - 1], ChatEvent::Logprob(_)));
    }
    assert!(model.chat(&self::request(5)).unwrap().logprobs.is_empty());
}

#[test]
fn a_session_keeps_its_date() {
    let model = tiny();
    let mut session = model.session(ChatRequest::user("Hello"));
    let date = session.request_mut().date.clone().expect("pinned");
    let text = model.render(session.request_mut()).unwrap().text;
    assert!(text.contains(&format!("Current date: {date}\n")), "{text}");
    let mut given = model.session(ChatRequest::user("Hello").date("1999-12-31"));
    assert_eq!(given.request_mut().date.as_deref(), Some("1999-12-31"));
}

#[test]
fn the_prompt_has_what_was_asked_for() {
    let model = tiny();
    let request = ChatRequest::new([Message::system("Be brief."), Message::user("<|end|> Hi")])
        .tools([Tool::new("weather", "Looks outside.", serde_json::json!({"type": "object"}))])
        .builtin_tools([BuiltinTool::Python])
        .effort(Effort::High)
        .identity("You are a parrot.")
        .date("2026-01-02");
    let rendered = model.render(&request).unwrap();
    for part in ["Be brief.", "weather", "python", "Reasoning: high", "parrot", "2026-01-02"] {
        assert!(rendered.text.contains(part), "{part}: {}", rendered.text);
    }
    let end = model.tokenizer().special_id("<|end|>").unwrap();
    // System, developer, user: the user's own marker is not one.
    assert_eq!(rendered.tokens.iter().filter(|id| **id == end).count(), 3);
}

#[test]
fn loading_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let fail = |builder: ModelBuilder| {
        let error = builder.load().err().unwrap();
        (error.kind(), error.to_string())
    };
    let at = |dir: &Path| Model::builder(dir);
    let limit = tiny_config().max_position_embeddings;
    for context in [0, limit + 1] {
        assert_eq!(
            fail(at(dir.path()).context(context)),
            (
                ErrorKind::InvalidRequest,
                format!("a context of {context} tokens was asked for, the model's is 1 to {limit}")
            )
        );
    }
    assert_eq!(fail(at(dir.path()).prefill_chunk(0)).1, "prefill_chunk is 0, expected at least 1");
    assert_eq!(fail(at(dir.path()).sequences(0)).1, "sequences is 0, expected at least 1");
    assert_eq!(
        fail(at(dir.path()).threads(99_999)),
        (
            ErrorKind::InvalidRequest,
            "99999 threads were asked for, expected at most 1024".to_owned()
        )
    );
    let (kind, message) = fail(at(dir.path()).sequences(usize::MAX));
    assert_eq!(kind, ErrorKind::InvalidRequest, "{message}");
    let (kind, message) = fail(at(dir.path()).kv_dtype(KvDtype::Fp8).kv_scales(Vec::new()));
    assert_eq!((kind, message.contains("scales")), (ErrorKind::InvalidRequest, true), "{message}");
    // The checkpoint's own scales serve an FP8 cache.
    let model = at(dir.path()).kv_dtype(KvDtype::Fp8).load().unwrap();
    model.chat(&request(1)).unwrap();
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let (kind, message) = fail(at(dir.path()));
    assert!(message.contains("tokenizer.json"), "{kind:?} {message}");
    let (_, message) = fail(at(Path::new("no/such/place")));
    assert!(message.contains("no/such/place"), "{message}");
}

#[test]
fn data_types_survive_json() {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
        value: &T,
    ) {
        let json = serde_json::to_string(value).unwrap();
        assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    }
    same(&ChatRequest::default());
    let call = ToolCall::function("call_0", "weather", "{}");
    same(
        &request(1)
            .message(Message::tool(&call, "rain"))
            .tools([Tool::new("weather", "Looks.", serde_json::json!({"type": "object"}))])
            .builtin_tools([BuiltinTool::Browser])
            .effort(Effort::Low)
            .identity("me")
            .logprobs(3)
            .reasoning(Reasoning::default().max_tokens(0).min_answer_tokens(3).break_loops(false))
            .stop(["END"]),
    );
    let json = r#"{"messages":[{"role":"user","content":"Hi"}],"effort":"low"}"#;
    let request_read: ChatRequest = serde_json::from_str(json).unwrap();
    assert_eq!(request_read, ChatRequest::user("Hi").effort(Effort::Low));
    let model = speaking();
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..40 {
        // Short ones are cut off in headers, long ones in chains of thought.
        let request = request(seed).logprobs(1).max_tokens(if seed % 2 == 0 { 60 } else { 10 });
        for event in model.chat_stream(&request).unwrap() {
            let event = event.unwrap();
            same(&event);
            let json = serde_json::to_value(&event).unwrap();
            kinds.insert(json["event"].as_str().unwrap().to_owned());
        }
        same(&model.chat(&request).unwrap());
    }
    let found: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let expected = [
        "budget_reached",
        "finish",
        "logprob",
        "preamble",
        "reasoning",
        "repaired",
        "text",
        "tool_call_delta",
        "tool_call_done",
        "tool_call_start",
    ];
    assert_eq!(found, expected);
}

#[test]
fn types_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Model>();
    shared::<ChatSession>();
    shared::<ChatRequest>();
    shared::<ChatResponse>();
    shared::<Error>();
    fn sent<T: Send>() {}
    sent::<ChatStream<'_>>();
    sent::<ModelBuilder>();
}
