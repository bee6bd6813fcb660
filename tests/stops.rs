//! Stop strings: where an answer is cut, and what of it is seen.

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
use gpt_oss_puzzle::chat::ChatEvent;
use gpt_oss_puzzle::generation::FinishReason;
use gpt_oss_puzzle::harmony::{Item, Message};
use speaking::{biased, events, speaking, tiny};

/// What is streamed as the answer.
fn streamed(events: &[ChatEvent]) -> String {
    let text = |event: &ChatEvent| match event {
        ChatEvent::Text(text) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

/// `text` before the stop string that is complete first, and that string.
fn cut<'a>(text: &'a str, stops: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let ends = stops.iter().filter_map(|stop| {
        let start = text.find(stop)?;
        Some((start + stop.len(), start, *stop))
    });
    ends.min().map(|(_, start, stop)| (&text[..start], stop))
}

#[test]
fn an_answer_is_cut_exactly_before_a_stop_string() {
    let model = speaking();
    let (mut cuts, mut misses, mut split) = (0, 0, 0);
    for seed in 0..12 {
        let request = biased(&model, seed, &[("final", 1.0), ("<|end|>", -2.0)]);
        let whole = model.chat(&request).unwrap();
        // A second message would be matched by itself.
        let texts: Vec<&str> = (whole.message.items.iter())
            .filter_map(|item| if let Item::Text { text } = item { Some(&text[..]) } else { None })
            .collect();
        let [text] = texts[..] else { continue };
        let bounds: Vec<usize> =
            text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        // Every part of the first characters: an emoji is four tokens, so that parts begin and end at
        // every place within tokens, and some are not there.
        for from in 0..bounds.len().min(5) {
            for to in from + 1..bounds.len().min(from + 5) {
                let part = &text[bounds[from]..bounds[to]];
                for stops in [vec![part], vec!["no", part], vec!["A🌧A🌧A🌧B", "ABABABA"]] {
                    let request = request.clone().stop(stops.clone());
                    let response = model.chat(&request).unwrap();
                    let seen = events(&model, &request);
                    assert_eq!(streamed(&seen), response.text(), "{stops:?}");
                    assert!(whole.tokens.starts_with(&response.tokens));
                    // There may be more of it after the answer.
                    assert!(whole.reasoning().starts_with(&response.reasoning()));
                    assert_eq!(response.usage.completion_tokens, response.tokens.len());
                    let Some((answer, stop)) = cut(text, &stops) else {
                        assert_eq!(response.text(), text);
                        assert_eq!(response.finish_reason, whole.finish_reason);
                        assert_eq!(response.tokens, whole.tokens);
                        misses += 1;
                        continue;
                    };
                    assert_eq!(response.text(), answer, "{text} {stops:?}");
                    let reason = FinishReason::StopSequence(stop.into());
                    assert_eq!(response.finish_reason, reason);
                    let last = seen.last().unwrap();
                    assert!(matches!(last, ChatEvent::Finish { reason: r, .. } if *r == reason));
                    // The token that completes the stop string is the last.
                    let tokens = model.tokenizer().decode(&response.tokens).unwrap();
                    assert!(tokens.ends_with(stop), "{tokens:?} {stop:?}");
                    cuts += 1;
                    split += usize::from(stop.len() > 1);
                }
            }
        }
    }
    assert!(cuts >= 100 && misses >= 10 && split >= 50, "{cuts} {misses} {split}");
}

#[test]
fn the_random_model_is_cut_too() {
    let model = tiny();
    let mut cuts = 0;
    for seed in 0..20 {
        let request = biased(&model, seed, &[]).max_tokens(60);
        let whole = model.chat(&request).unwrap();
        let text = whole.text();
        let chars: Vec<char> = text.chars().collect();
        if chars.len() < 12 || whole.message.items.len() > 1 {
            continue;
        }
        for from in [0, 3, 7] {
            let stop: String = chars[from..from + 3].iter().collect();
            let request = request.clone().stop([stop.as_str()]);
            let response = model.chat(&request).unwrap();
            assert_eq!(response.text(), cut(&text, &[&stop]).unwrap().0);
            assert_eq!(streamed(&events(&model, &request)), response.text());
            assert_eq!(response.finish_reason, FinishReason::StopSequence(stop));
            cuts += 1;
        }
    }
    assert!(cuts >= 10, "{cuts}");
}

#[test]
fn only_the_answer_is_looked_at() {
    let model = speaking();
    let (mut others, mut answers) = (0, 0);
    for seed in 0..60 {
        let request = biased(&model, seed, &[]).max_tokens(60);
        let whole = model.chat(&request).unwrap();
        let response = model.chat(&request.stop(["A", "B", "🌧"])).unwrap();
        let items = &whole.message.items;
        let before: Vec<_> =
            items.iter().take_while(|item| !matches!(item, Item::Text { .. })).cloned().collect();
        assert_eq!(response.message.items, before, "seed {seed}");
        let cut = matches!(response.finish_reason, FinishReason::StopSequence(_));
        // A text that the length cut inside its first character has none of them.
        let none = |item: &Item| matches!(item, Item::Text { text } if text == "\u{fffd}");
        assert!(cut == (before.len() < items.len()) || items.iter().any(none), "seed {seed}");
        answers += usize::from(cut);
        others += usize::from(cut && !before.is_empty());
    }
    assert!(others >= 5 && answers >= 20, "{others} {answers}");
}

#[test]
fn an_empty_stop_string_is_refused() {
    let model = speaking();
    let error = model.chat(&biased(&model, 1, &[]).stop(["END", ""])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        error.to_string(),
        "stop string 1 of 2 is empty (\"\"), expected at least one character"
    );
    let mut session = model.session(biased(&model, 1, &[]).stop([""]));
    assert!(session.send("Hello").is_err());
    assert_eq!(session.messages().len(), 1);
}

#[test]
fn a_session_goes_on_after_a_stop_string() {
    for model in [speaking(), tiny()] {
        let mut start = biased(&model, 3, &[]).max_tokens(40).stop(["B", "e", "🌧A"]);
        start.messages.clear();
        let mut session = model.session(start);
        let mut cuts = 0;
        for turn in 0..8 {
            session.request_mut().sampling.seed = Some(turn);
            let mut request = session.request_mut().clone();
            request.messages.push(Message::user("Go on"));
            let fresh = model.chat(&request).unwrap();
            let response = session.send("Go on").unwrap().finish().unwrap();
            assert_eq!(response.tokens, fresh.tokens);
            assert_eq!(response.message, fresh.message);
            assert!(!response.text().contains('B') && !response.text().contains("🌧A"));
            cuts += usize::from(matches!(response.finish_reason, FinishReason::StopSequence(_)));
            if let Some(Message::Assistant(answer)) = session.messages().last() {
                assert_eq!(answer, &response.message);
            }
        }
        assert!(cuts >= 2, "{cuts}");
    }
}
