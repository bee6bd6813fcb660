//! Chain of thought that is limited, hidden or left out, and the forced tokens that do it.

#[allow(unreachable_pub)]
#[path = "common/bigram.rs"]
mod bigram;
#[allow(unreachable_pub)]
#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(unreachable_pub)]
#[path = "common/speaking.rs"]
mod speaking;

use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::chat::{ChatEvent, ChatRequest, ChatResponse, Model, Reasoning, ReasoningCut};
use gpt_oss_puzzle::generation::{
    FinishReason, GenerateOptions, GeneratedToken, Generator, SamplingParams, StopTokens,
};
use gpt_oss_puzzle::harmony::{BuiltinTool, Effort, Item, Message, Repair, RepairKind, Tool};
use speaking::{AGAIN, CALLING, EMPTY, ENDLESS, LOOPING, PREAMBLE, biased, events, speaking, tiny};

const SWITCH: &str = "<|end|><|start|>assistant<|channel|>final<|message|>";

fn tool() -> Tool {
    Tool::new("weather", "Looks outside.", serde_json::json!({"type": "object"}))
}

/// The text of the forced tokens, one string for each run of them.
fn forced(model: &Model, response: &ChatResponse) -> Vec<String> {
    let runs = response.forced.chunk_by(|a, b| a + 1 == *b);
    let text = |run: &[usize]| {
        let ids: Vec<u32> = run.iter().map(|&at| response.tokens[at]).collect();
        model.tokenizer().decode_with_special(&ids).unwrap()
    };
    runs.map(text).collect()
}

/// For each token the channel whose content it is, found without the parser: the model of these tests
/// writes headers as they should be.
fn channels(model: &Model, tokens: &[u32]) -> Vec<Option<String>> {
    let (mut header, mut inside) = (Vec::new(), None);
    let mut channel =
        |&id: &u32| match model.tokenizer().decode_with_special(&[id]).unwrap().as_str() {
            "<|message|>" => {
                inside = Some(model.tokenizer().decode(&header).unwrap());
                None
            }
            text if text.starts_with("<|") => {
                (header, inside) = (Vec::new(), None);
                None
            }
            _ => {
                header.push(id);
                inside.clone()
            }
        };
    tokens.iter().map(&mut channel).collect()
}

fn cuts(events: &[ChatEvent]) -> Vec<(usize, ReasoningCut)> {
    let cut = |event: &ChatEvent| match event {
        ChatEvent::BudgetReached { reasoning_tokens, cut } => Some((*reasoning_tokens, *cut)),
        _ => None,
    };
    events.iter().filter_map(cut).collect()
}

#[test]
fn a_budget_ends_the_thought_once_per_turn() {
    let model = speaking();
    let mut messages = 0;
    for budget in 1..40 {
        for (seed, biases) in [(0, ENDLESS), (1, AGAIN)] {
            let request = biased(&model, seed + 2 * budget as u64, biases)
                .max_tokens(300)
                .reasoning(Reasoning::default().max_tokens(budget).min_answer_tokens(5));
            let events = events(&model, &request);
            let response = model.chat(&request).unwrap();
            let thought = response.usage.reasoning_tokens;
            assert_eq!(cuts(&events), [(thought, ReasoningCut::Budget)], "budget {budget}");
            assert_eq!(response.reasoning_cut, Some(ReasoningCut::Budget));
            assert!((budget..=budget + Reasoning::GRACE).contains(&thought), "{budget} {thought}");
            // In whole characters, and nothing of it afterwards.
            assert!(!response.reasoning().contains('\u{fffd}'));
            let at = events.iter().position(|e| matches!(e, ChatEvent::BudgetReached { .. }));
            let later = &events[at.unwrap()..];
            assert!(!later.iter().any(|e| matches!(e, ChatEvent::Reasoning(_))));
            assert_eq!(forced(&model, &response), [SWITCH]);
            assert!(!response.text().is_empty());
            // The length may cut off the header of a message after the answer.
            // And the model calls a tool that nobody offered.
            let expected = |repair: &Repair| {
                repair.token_index == response.tokens.len()
                    || repair.kind == RepairKind::UndeclaredTool
            };
            assert!(response.repairs.iter().all(expected), "{:?}", response.repairs);
            // Counted without the parser.
            let channels = channels(&model, &response.tokens);
            let analysis = |c: &&Option<String>| c.as_deref() == Some("analysis");
            assert_eq!(channels.iter().filter(analysis).count(), thought);
            assert_eq!(response.usage.completion_tokens, response.tokens.len());
            messages = messages.max(response.message.items.len());
        }
    }
    assert!(messages >= 4, "{messages}");
}

#[test]
fn a_thought_that_ends_in_time_is_left_alone() {
    let model = speaking();
    let mut thoughts = 0;
    for seed in 0..40 {
        let request = biased(&model, seed, &[("analysis", 2.0)]);
        let free = Reasoning::default().min_answer_tokens(0);
        let plain = model.chat(&request.clone().reasoning(free.clone())).unwrap();
        if plain.finish_reason == FinishReason::Length {
            continue;
        }
        let budget = plain.usage.reasoning_tokens + 1;
        let request = request.reasoning(free.max_tokens(budget));
        let response = model.chat(&request).unwrap();
        assert_eq!(response.tokens, plain.tokens);
        assert!(cuts(&events(&model, &request)).is_empty() && response.forced.is_empty());
        assert_eq!(response.reasoning_cut, None);
        thoughts += usize::from(budget > 5);
    }
    assert!(thoughts >= 10, "{thoughts}");
}

#[test]
fn a_thought_ends_at_a_pause_if_there_is_one() {
    let model = speaking();
    // A full stop now and then, after which there is nothing else.
    let stop = model.tokenizer().encode(".").unwrap()[0];
    let mut pauses = 0;
    for seed in 0..120 {
        let mut request =
            biased(&model, seed, ENDLESS).reasoning(Reasoning::default().max_tokens(20));
        request.sampling = request.sampling.logit_bias(stop, 36.5);
        let response = model.chat(&request).unwrap();
        // Not where the full stop came in a header.
        let cut = response.reasoning_cut == Some(ReasoningCut::Budget);
        if !cut || !response.repairs.is_empty() {
            continue;
        }
        let thought = response.usage.reasoning_tokens;
        let channels = channels(&model, &response.tokens);
        let analysis = channels.iter().zip(&response.tokens).filter(|(c, _)| c.is_some());
        let first = analysis.take(thought).position(|(_, id)| *id == stop);
        match first.map(|at| at + 1) {
            Some(at) if at <= 20 => assert_eq!(thought, 20),
            Some(at) if at < 28 => {
                assert_eq!(thought, at);
                pauses += 1;
            }
            _ => assert!((28..=36).contains(&thought), "{thought}"),
        }
    }
    assert!(pauses >= 3, "{pauses}");
}

#[test]
fn the_answer_is_never_empty_from_the_documented_minimum_on() {
    let model = speaking();
    let (mut reserved, mut called) = (0, 0);
    for max_tokens in Reasoning::RESERVED_FROM..=90 {
        for (seed, biases) in [ENDLESS, AGAIN, PREAMBLE, EMPTY, &[]].into_iter().enumerate() {
            let seed = seed as u64 + 5 * max_tokens as u64;
            let request = biased(&model, seed, biases).max_tokens(max_tokens);
            let response = model.chat(&request).unwrap();
            let calls = response.tool_calls().count();
            called += usize::from(calls > 0);
            assert!(response.tokens.len() <= max_tokens);
            if response.finish_reason == FinishReason::Length && calls == 0 {
                assert!(!response.text().is_empty(), "{max_tokens} {response:?}");
            }
            let Some(last) = response.forced.last() else { continue };
            let answer = response.tokens.len() - 1 - last;
            assert_eq!(response.reasoning_cut, Some(ReasoningCut::Reserve));
            if response.finish_reason == FinishReason::Length && calls == 0 {
                assert!(answer >= max_tokens / 3, "{max_tokens}: {answer}");
            }
            assert!(answer > 0 && !response.text().is_empty());
            reserved += 1;
        }
    }
    assert!(reserved >= 200 && called >= 2, "{reserved} {called}");
}

#[test]
fn the_random_model_answers_too() {
    let model = tiny();
    let mut lengths = 0;
    for seed in 0..60 {
        let request = biased(&model, seed, &[]).max_tokens(24 + seed as usize % 40);
        let response = model.chat(&request).unwrap();
        if response.finish_reason == FinishReason::Length && response.tool_calls().count() == 0 {
            assert!(!response.text().is_empty(), "{seed} {response:?}");
            lengths += 1;
        }
    }
    assert!(lengths >= 10, "{lengths}");
}

#[test]
fn a_reserve_that_is_asked_for_is_kept() {
    let model = speaking();
    for reserve in [1, 5, 20, 64] {
        for more in [16, 17, 25, 80] {
            for seed in 0..3 {
                let request = biased(&model, seed, ENDLESS).max_tokens(reserve + more).reasoning(
                    // The smaller of the two limits counts.
                    Reasoning::default().min_answer_tokens(reserve).max_tokens(1000),
                );
                let response = model.chat(&request).unwrap();
                assert_eq!(cuts(&events(&model, &request)).len(), 1);
                assert_eq!(response.reasoning_cut, Some(ReasoningCut::Reserve));
                let answer = response.tokens.len() - 1 - response.forced.last().unwrap();
                assert!(answer >= reserve, "{reserve} {more}: {answer}");
                assert!(response.usage.reasoning_tokens > 0 && !response.text().is_empty());
            }
        }
    }
    let request = biased(&model, 0, ENDLESS).max_tokens(35);
    let error = model
        .chat(&request.clone().reasoning(Reasoning::default().min_answer_tokens(20)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        error.to_string(),
        "reasoning.min_answer_tokens is 20 and at most 35 tokens can be generated, expected 16 more \
         than the former"
    );
    let huge = Reasoning::default().min_answer_tokens(usize::MAX).max_tokens(usize::MAX);
    assert!(model.chat(&request.clone().reasoning(huge)).is_err());
    // Without a reserve it thinks to the end.
    let none = model.chat(&request.reasoning(Reasoning::default().min_answer_tokens(0))).unwrap();
    assert_eq!((none.finish_reason, none.message.text()), (FinishReason::Length, String::new()));
    assert!(none.forced.is_empty());
}

#[test]
fn loops_are_broken() {
    let model = speaking();
    let request = biased(&model, 1, LOOPING).max_tokens(300);
    assert_eq!(cuts(&events(&model, &request)), [(64, ReasoningCut::Loop)]);
    let response = model.chat(&request).unwrap();
    assert_eq!(forced(&model, &response), [SWITCH]);
    let looped = ["AB", "BA"].map(|text| text.repeat(32));
    assert!(looped.contains(&response.reasoning()), "{}", response.reasoning());
    // What repeats itself in an answer is the answer.
    assert!(response.text().len() > 100);
    let request = request.reasoning(Reasoning::default().break_loops(false));
    assert_eq!(model.chat(&request).unwrap().reasoning_cut, Some(ReasoningCut::Reserve));
    // Thought that is drawn at random is no loop.
    let request = biased(&model, 1, ENDLESS).max_tokens(700);
    assert_eq!(model.chat(&request).unwrap().reasoning_cut, Some(ReasoningCut::Reserve));
}

#[test]
fn a_hidden_thought_is_in_no_event() {
    for (model, seeds, least) in [(speaking(), 30, 10), (tiny(), 6, 0)] {
        let mut thoughts = 0;
        for seed in 0..seeds {
            for max_tokens in [10, 60] {
                let request =
                    biased(&model, seed, &[("analysis", 1.0)]).logprobs(1).max_tokens(max_tokens);
                let hidden = request.clone().reasoning(Reasoning::default().hidden());
                let shown = model.chat(&request).unwrap();
                let response = model.chat(&hidden).unwrap();
                assert_eq!(response.tokens, shown.tokens);
                assert_eq!(response.usage, shown.usage);
                assert_eq!(response.reasoning(), "");
                assert!(response.repairs.iter().all(|repair| repair.raw.is_empty()));
                assert_eq!(response.repairs.len(), shown.repairs.len());
                let without = |event: &ChatEvent| {
                    !matches!(event, ChatEvent::Reasoning(_) | ChatEvent::Logprob(_))
                };
                let kinds = |request| {
                    let kind = |event: ChatEvent| match event {
                        ChatEvent::Repaired(repair) => format!("{:?}", repair.kind),
                        ChatEvent::Finish { reason, usage, .. } => format!("{reason:?} {usage:?}"),
                        event => format!("{event:?}"),
                    };
                    events(&model, request).into_iter().filter(without).map(kind).collect()
                };
                let (found, expected): (Vec<String>, Vec<String>) =
                    (kinds(&hidden), kinds(&request));
                assert_eq!(found, expected);
                let all = events(&model, &hidden);
                assert!(!all.iter().any(|event| matches!(event, ChatEvent::Reasoning(_))));
                // Nor do the log-probabilities spell it.
                let told = |event: &ChatEvent| match event {
                    ChatEvent::Logprob(logprob) => Some(logprob.id),
                    _ => None,
                };
                let told: Vec<u32> = all.iter().filter_map(told).collect();
                assert_eq!(told, response.logprobs.iter().map(|l| l.id).collect::<Vec<_>>());
                if shown.repairs.is_empty() {
                    let special = |id: &&u32| model.tokenizer().special(**id).is_some();
                    let channels = channels(&model, &response.tokens);
                    let open = channels.iter().zip(&response.tokens).filter(|(channel, _)| {
                        channel.as_deref().is_some_and(|channel| channel != "analysis")
                    });
                    let open: Vec<u32> = open.map(|(_, id)| *id).collect();
                    let told: Vec<u32> = told.iter().filter(|id| !special(id)).copied().collect();
                    assert_eq!(told, open);
                }
                thoughts += usize::from(!shown.reasoning().is_empty());
            }
        }
        assert!(thoughts >= least, "{thoughts}");
    }
}

#[test]
fn with_tools_the_model_chooses_between_answer_and_call() {
    let model = speaking();
    let (mut answers, mut others) = (0, 0);
    for seed in 0..25 {
        for biases in [ENDLESS, AGAIN] {
            for (tools, builtin) in [(vec![tool()], vec![]), (vec![], vec![BuiltinTool::Python])] {
                let request = biased(&model, seed, biases)
                    .tools(tools)
                    .builtin_tools(builtin)
                    .reasoning(Reasoning::default().max_tokens(10));
                let response = model.chat(&request).unwrap();
                assert_eq!(cuts(&events(&model, &request)).len(), 1);
                let switch = "<|end|><|start|>assistant<|channel|>";
                assert_eq!(forced(&model, &response), [switch]);
                // The model would go back to thinking at once.
                let after = &response.tokens[*response.forced.last().unwrap()..];
                let text = model.tokenizer().decode_with_special(after).unwrap();
                assert!(!text.contains("analysis"), "{text}");
                assert!(response.usage.reasoning_tokens <= 10 + Reasoning::GRACE);
                match text.starts_with("<|channel|>final") {
                    true => answers += 1,
                    false => others += 1,
                }
            }
        }
    }
    assert!(answers >= 20 && others >= 20, "{answers} {others}");
}

#[test]
fn arguments_are_never_interrupted() {
    let model = speaking();
    for seed in 0..10 {
        for tools in [vec![], vec![tool()]] {
            let reasoning = Reasoning::default().max_tokens(1).min_answer_tokens(10);
            let request =
                biased(&model, seed, CALLING).tools(tools).reasoning(reasoning).max_tokens(80);
            let response = model.chat(&request).unwrap();
            assert!(cuts(&events(&model, &request)).is_empty() && response.forced.is_empty());
            assert_eq!(response.finish_reason, FinishReason::Length);
            let arguments = &response.tool_calls().next().unwrap().arguments;
            assert!(arguments.len() > 40 && response.usage.reasoning_tokens == 0);
        }
    }
}

#[test]
fn skipping_has_to_be_permitted() {
    let model = speaking();
    let request = biased(&model, 1, &[]).reasoning(Reasoning::default().max_tokens(0));
    let error = model.chat(&request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("reasoning.allow_skipping"), "{error}");
    assert!(model.session(request.clone()).respond().is_err());
    let permitted = Reasoning::default().max_tokens(0).allow_skipping();
    let error =
        model.chat(&request.clone().tools([tool()]).reasoning(permitted.clone())).unwrap_err();
    assert!(error.to_string().contains("tools are on offer"), "{error}");
    for seed in 0..20 {
        let request = biased(&model, seed, &[("analysis", 30.0)]).reasoning(permitted.clone());
        let prompt = model.render(&request).unwrap();
        assert!(prompt.text.ends_with("<|start|>assistant<|channel|>final<|message|>"));
        let response = model.chat(&request).unwrap();
        assert_eq!(response.usage.prompt_tokens, prompt.tokens.len());
        assert!(matches!(response.message.items[0], Item::Text { .. }), "{response:?}");
        let undeclared = |repair: &Repair| repair.kind == RepairKind::UndeclaredTool;
        assert!(response.repairs.iter().all(undeclared), "{:?}", response.repairs);
        assert_eq!(response.usage.reasoning_tokens, 0);
        assert!(response.forced.is_empty() && response.reasoning_cut.is_none());
    }
    // Permission alone changes nothing.
    let plain = biased(&model, 1, &[]);
    let allowed = plain.clone().reasoning(Reasoning::default().allow_skipping());
    assert_eq!(model.chat(&plain).unwrap().tokens, model.chat(&allowed).unwrap().tokens);
}

#[test]
fn a_session_goes_on_after_a_cut() {
    for (model, biases) in [(speaking(), ENDLESS), (speaking(), AGAIN), (tiny(), &[][..])] {
        for skip in [false, true] {
            let reasoning = match skip {
                true => Reasoning::default().max_tokens(0).allow_skipping(),
                false => Reasoning::default().max_tokens(8),
            };
            let mut start = biased(&model, 1, biases).max_tokens(50).reasoning(reasoning);
            start.messages = vec![Message::system("Be brief. ".repeat(20))];
            let mut session = model.session(start);
            let mut before: Option<Vec<u32>> = None;
            for text in ["Hello", "And then?", "Why?"] {
                let mut request = session.request_mut().clone();
                request.messages.push(Message::user(text));
                let prompt = model.render(&request).unwrap().tokens;
                let fresh = model.chat(&request).unwrap();
                let response = session.send(text).unwrap().finish().unwrap();
                assert_eq!(response.tokens, fresh.tokens);
                assert_eq!((&response.message, &response.forced), (&fresh.message, &fresh.forced));
                if let Some(before) = before {
                    let common = before.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                    let cached = response.usage.cached_tokens;
                    assert!(cached > 200 && cached <= common, "{cached} {common}");
                    // An answer that follows its prompt directly is cached with it.
                    assert!(!skip || cached + 130 >= common, "{cached} {common}");
                }
                before = Some([prompt, response.tokens].concat());
            }
            session.release();
            assert_eq!(model.cache().free_pages(), model.cache().pages());
        }
    }
}

#[test]
fn time_is_split_between_thought_and_answer() {
    let model = speaking();
    let request = biased(&model, 1, ENDLESS).reasoning(Reasoning::default().max_tokens(30));
    let timings = model.chat(&request).unwrap().timings;
    assert!(!timings.reasoning.is_zero() && !timings.answer.is_zero());
    assert!(timings.reasoning < timings.decode, "{timings:?}");
    let calling = model.chat(&biased(&model, 1, CALLING)).unwrap().timings;
    assert!(calling.reasoning.is_zero() && calling.answer.is_zero());
}

#[test]
fn settings_survive_json_and_defaults_are_left_out() {
    let json = serde_json::to_value(ChatRequest::user("Hi")).unwrap();
    assert!(json.get("reasoning").is_none() && json.get("stop").is_none());
    let text = r#"{"messages":[],"effort":"low","reasoning":{"max_tokens":7},"stop":["END"]}"#;
    let read: ChatRequest = serde_json::from_str(text).unwrap();
    let written = ChatRequest::new([])
        .effort(Effort::Low)
        .reasoning(Reasoning::default().max_tokens(7))
        .stop(["END"]);
    assert_eq!(read, written);
    let token: GeneratedToken = serde_json::from_str(r#"{"id":7}"#).unwrap();
    assert!(!token.forced);
}

fn generator<'m>(model: &'m Model, prompt: &[u32], options: &GenerateOptions) -> Generator<'m> {
    let stop = StopTokens::default();
    Generator::new(model.transformer(), model.cache().sequence(), prompt, stop, options).unwrap()
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 37 + 11) % 250).collect()
}

#[test]
fn forced_tokens_are_flagged_and_go_through_the_model_together() {
    let model = tiny();
    let options =
        GenerateOptions::default().sampling(SamplingParams::greedy()).logprobs(1).max_tokens(14);
    for chunk in [1, 3, 512] {
        let options = options.clone().prefill_chunk(chunk);
        let mut generator = generator(&model, &prompt(40), &options);
        let mut tokens: Vec<u32> =
            generator.by_ref().take(4).map(|token| token.unwrap().id).collect();
        let held = generator.sequence().len();
        generator.force(&[9, 8]).unwrap();
        generator.force(&[7]).unwrap();
        for expected in [9, 8, 7] {
            assert!(generator.is_forcing());
            let token = generator.next().unwrap().unwrap();
            assert_eq!((token.id, token.forced, token.logprobs), (expected, true, None));
            assert_eq!(generator.sequence().len(), held, "a forced token was fed alone");
            tokens.push(token.id);
        }
        assert!(!generator.is_forcing());
        let next = generator.next().unwrap().unwrap();
        assert!(!next.forced && next.logprobs.is_some());
        assert_eq!(generator.sequence().len(), held + 4);
        assert_eq!(generator.usage().completion_tokens, 8);
        // As if they had been in the prompt.
        let all = [prompt(40), tokens.clone()].concat();
        let fresh = self::generator(&model, &all, &options).next().unwrap().unwrap();
        assert_eq!((next.id, &next.logprobs), (fresh.id, &fresh.logprobs));
        // The sequence can be gone on from.
        let all = [all, vec![next.id, 5]].concat();
        let expected = self::generator(&model, &all, &options).next().unwrap().unwrap();
        let sequence = generator.into_sequence();
        let stop = StopTokens::default();
        let mut resumed =
            Generator::new(model.transformer(), sequence, &all, stop, &options).unwrap();
        assert_eq!(resumed.usage().cached_tokens, 40 + 7);
        assert_eq!(resumed.next().unwrap().unwrap(), expected);
    }
}

#[test]
fn forced_tokens_can_end_the_generation() {
    let model = tiny();
    let options = GenerateOptions::default().max_tokens(6).stop_tokens([77]);
    let ids = |generator: &mut Generator<'_>| -> Vec<(u32, bool)> {
        generator.by_ref().map(|t| t.unwrap()).map(|t| (t.id, t.forced)).collect()
    };
    // Before anything was drawn.
    let mut stopped = generator(&model, &prompt(40), &options);
    stopped.force(&[5, 77, 6]).unwrap();
    assert_eq!(ids(&mut stopped), [(5, true), (77, true)]);
    assert_eq!(stopped.finish_reason(), Some(FinishReason::Stop));
    let mut long = generator(&model, &prompt(40), &options);
    long.force(&[5; 9]).unwrap();
    assert_eq!(ids(&mut long), [(5, true); 6]);
    assert_eq!(long.finish_reason(), Some(FinishReason::Length));
    let mut cancelled = generator(&model, &prompt(40), &options);
    cancelled.force(&[5; 3]).unwrap();
    cancelled.next().unwrap().unwrap();
    cancelled.cancel_handle().cancel();
    assert!(cancelled.next().is_none());
    assert_eq!(cancelled.finish_reason(), Some(FinishReason::Cancelled));
}

#[test]
fn forbidden_tokens_are_not_drawn_next() {
    let model = tiny();
    for sampling in [SamplingParams::greedy(), SamplingParams::default().seed(1)] {
        let options = GenerateOptions::default().sampling(sampling.logit_bias(17, 1e9));
        let mut generator = generator(&model, &prompt(40), &options.max_tokens(9));
        let mut next = || generator.next().unwrap().unwrap().id;
        assert_eq!((next(), next()), (17, 17));
        generator.forbid(&[17, 18]).unwrap();
        // Forced tokens are not drawn.
        generator.force(&[17]).unwrap();
        let mut next = || generator.next().unwrap().unwrap().id;
        assert_eq!(next(), 17);
        assert!(![17, 18].contains(&next()));
        assert_eq!(next(), 17);
        let vocab_size = model.config().vocab_size;
        for result in [generator.force(&[1, 9999]), generator.forbid(&[1, 9999])] {
            let message = format!("token 9999 is outside the vocabulary of {vocab_size}");
            assert_eq!(result.unwrap_err().to_string(), message);
        }
        assert_eq!(generator.next().unwrap().unwrap().id, 17);
    }
}
