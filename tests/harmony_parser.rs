//! The parser, on tables of streams: well-formed ones, and what models get wrong.
//!
//! Each row runs in two vocabularies, whose tokens cut the text differently: single bytes, and the
//! real one. Events are written compactly: `[role channel >recipient :type]` opens a message (`*` for
//! a constrained type), `</end>` closes it, `{kind raw}` is a repair, the rest is content.

#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::harmony::{
    AssistantMessage, Channel, Collector, Content, Dialect, Event, Header, Item, Message, Mode,
    Parser, Primed, RenderRequest, Renderer, ToolCall, ToolKind,
};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use std::sync::Arc;
use tokenizers::{o200k_harmony, tiny};

const TOOLS: [&str; 3] = ["f", "shell", "get_weather"];

/// Markers are written short in the tables: `‹s›` for `<|start|>` and so on.
fn long(stream: &str) -> String {
    [
        ("‹s›", "<|start|>"),
        ("‹e›", "<|end|>"),
        ("‹msg›", "<|message|>"),
        ("‹ch›", "<|channel|>"),
        ("‹co›", "<|constrain|>"),
        ("‹call›", "<|call|>"),
        ("‹ret›", "<|return|>"),
        ("‹eot›", "<|endoftext|>"),
        ("‹sot›", "<|startoftext|>"),
    ]
    .iter()
    .fold(stream.to_owned(), |text, (short, long)| text.replace(short, long))
}

fn parse(
    tokenizer: &Arc<Tokenizer>,
    primed: Primed,
    mode: Mode,
    tokens: &[u32],
) -> gpt_oss_puzzle::Result<Vec<Event>> {
    let mut parser = Parser::new(Arc::clone(tokenizer), primed, mode)?.tools(TOOLS);
    let mut events = Vec::new();
    for token in tokens {
        events.extend(parser.push(*token)?);
    }
    events.extend(parser.finish()?);
    Ok(events)
}

fn compact(events: &[Event]) -> String {
    let mut out = String::new();
    for event in events {
        match event {
            Event::Open(header) => {
                let channel = header.channel.as_ref().map(|c| format!(" {}", c.as_str()));
                let recipient = header.recipient.as_ref().map(|r| format!(" >{r}"));
                let star = if header.constrained { "*" } else { "" };
                let kind = header.content_type.as_ref().map(|t| format!(" {star}:{t}"));
                let parts = [channel, recipient, kind].into_iter().flatten().collect::<String>();
                out += &format!("[{}{parts}]", header.role);
            }
            Event::Delta(text) => {
                assert!(!text.is_empty());
                out += text;
            }
            Event::Close(end) => {
                out += &format!("</{}>", serde_json::to_value(end).unwrap().as_str().unwrap())
            }
            Event::Repaired(repair) => {
                let kind = serde_json::to_value(repair.kind).unwrap();
                let space = if repair.raw.is_empty() { "" } else { " " };
                out += &format!("{{{}{space}{}}}", kind.as_str().unwrap(), repair.raw);
            }
            other => panic!("{other:?}"),
        }
    }
    out
}

fn check(primed: &Primed, stream: &str, expected: &str) {
    for tokenizer in [tiny(), o200k_harmony()] {
        let tokens = tokenizer.encode_with_special(&long(stream)).expect("encodes");
        let events = parse(&tokenizer, primed.clone(), Mode::Tolerant, &tokens).expect("tolerant");
        assert_eq!(compact(&events), expected, "{stream}");
        let strict = parse(&tokenizer, primed.clone(), Mode::Strict, &tokens);
        let repaired = events.iter().any(|e| matches!(e, Event::Repaired(_)));
        match strict {
            Ok(strict) => assert!(
                !repaired && strict == events || only_strict_differs(&events),
                "{stream}: {strict:?}"
            ),
            Err(error) => {
                assert!(repaired && error.kind() == ErrorKind::Malformed, "{stream}: {error}")
            }
        }
    }
}

/// Names are taken literally in strict mode, where tolerant mode interprets them.
fn only_strict_differs(events: &[Event]) -> bool {
    events.iter().all(|e| match e {
        Event::Repaired(r) => matches!(
            serde_json::to_value(r.kind).unwrap().as_str().unwrap(),
            "self_recipient" | "decorated_name"
        ),
        _ => true,
    })
}

#[test]
fn well_formed_turns() {
    for (stream, expected) in [
        ("‹ch›final‹msg›Hi 🌧!‹ret›", "[assistant final]Hi 🌧!</return>"),
        ("‹ch›final‹msg›‹ret›", "[assistant final]</return>"),
        (
            "‹ch›analysis‹msg›Think.‹e›‹s›assistant‹ch›final‹msg›So‹ret›",
            "[assistant analysis]Think.</end>[assistant final]So</return>",
        ),
        (
            "‹ch›analysis‹msg›a‹e›‹s›assistant‹ch›commentary‹msg›Let me see.‹e›‹s›assistant‹ch›commentary to=functions.f \
             ‹co›json‹msg›{\"a\": 1}‹call›",
            "[assistant analysis]a</end>[assistant commentary]Let me see.</end>\
             [assistant commentary >functions.f *:json]{\"a\": 1}</call>",
        ),
        (
            " to=functions.f‹ch›commentary json‹msg›{}‹call›",
            "[assistant commentary >functions.f :json]{}</call>",
        ),
        (
            " to=functions.f‹ch›commentary ‹co›json‹msg›{}‹call›",
            "[assistant commentary >functions.f *:json]{}</call>",
        ),
        (
            "‹ch›commentary to=functions.f‹co›json‹msg›{}‹call›",
            "[assistant commentary >functions.f *:json]{}</call>",
        ),
        (
            "‹ch›commentary to=functions.f ‹co› json‹msg›{}‹call›",
            "[assistant commentary >functions.f *:json]{}</call>",
        ),
        (
            "‹ch›analysis to=functions.f code‹msg›{}‹call›",
            "[assistant analysis >functions.f :code]{}</call>",
        ),
        (
            "‹ch›analysis to=python code‹msg›1+1‹call›",
            "[assistant analysis >python :code]1+1</call>",
        ),
        (
            "‹ch›analysis to=browser.search code‹msg›{}‹call›",
            "[assistant analysis >browser.search :code]{}</call>",
        ),
        (
            "‹ch›commentary to=functions.f‹msg›{}‹ret›",
            "[assistant commentary >functions.f]{}</return>",
        ),
        ("‹ch›final ‹co›json‹msg›{}‹ret›", "[assistant final *:json]{}</return>"),
        ("‹ch›final json‹msg›{}‹ret›", "[assistant final :json]{}</return>"),
        ("‹ch›final‹msg›cut of", "[assistant final]cut of</truncated>"),
        ("‹ch›final‹msg›x‹eot›", "[assistant final]x</end_of_text>"),
        ("", ""),
    ] {
        check(&Primed::Role, stream, expected);
    }
}

#[test]
fn well_formed_transcripts() {
    for (stream, expected) in [
        ("", ""),
        (
            "‹sot›‹s›system‹msg›S‹e›‹s›developer‹msg›D‹e›‹s›user‹msg›U‹e›‹s›assistant‹ch›analysis‹msg›A‹e›\
             ‹s›assistant to=functions.f‹ch›commentary json‹msg›{}‹call›\
             ‹s›functions.f to=assistant‹ch›commentary‹msg›\"R\"‹e›‹s›assistant‹ch›final‹msg›F‹ret›",
            "[system]S</end>[developer]D</end>[user]U</end>[assistant analysis]A</end>\
             [assistant commentary >functions.f :json]{}</call>\
             [functions.f commentary >assistant]\"R\"</end>[assistant final]F</return>",
        ),
        (
            "‹s›python to=assistant‹ch›analysis‹msg›2‹e›‹s›user:bob‹msg›hi‹e›‹s›assistant",
            "[python analysis >assistant]2</end>[user:bob]hi</end>",
        ),
    ] {
        check(&Primed::Nothing, stream, expected);
    }
}

#[test]
fn prefilled_turns_go_on_in_their_content() {
    let primed = Primed::Content(Header::assistant(Channel::Analysis));
    check(
        &primed,
        "on‹e›‹s›assistant‹ch›final‹msg›x‹ret›",
        "[assistant analysis]on</end>[assistant final]x</return>",
    );
    check(&primed, "on", "[assistant analysis]on</truncated>");
}

/// The rows of real models' mistakes, F1 to F33 in the order of the collection they come from.
#[test]
fn malformed_turns_are_repaired() {
    for (row, stream, expected) in [
        (
            "F1",
            "‹ch›commentary to=functions.f‹msg›{}‹call›assistant‹ch›x",
            "[assistant commentary >functions.f]{}</call>{after_end assistantx}",
        ),
        (
            "F2",
            "‹ch›analysis‹msg›a‹e›commentary to=functions.f ‹co›json‹msg›{}‹call›",
            "[assistant analysis]a</end>{missing_start commentary to=functions.f  json}[assistant commentary >functions.f *:json]{}</call>",
        ),
        (
            "F2",
            "‹ch›analysis‹msg›a‹e›commentary‹ch›commentary to=functions.f‹msg›{}‹call›",
            "[assistant analysis]a</end>{missing_start commentary commentary to=functions.f}\
             {duplicate_channel commentary commentary to=functions.f}[assistant commentary >functions.f]{}</call>",
        ),
        (
            "F2",
            "‹ch›analysis‹msg›a‹e›assistant‹ch›final‹msg›x‹ret›",
            "[assistant analysis]a</end>{missing_start assistant final}[assistant final]x</return>",
        ),
        (
            "F2",
            "‹ch›analysis‹msg›a‹e›‹ch›final‹msg›x‹ret›",
            "[assistant analysis]a</end>{missing_start final}[assistant final]x</return>",
        ),
        (
            "F2",
            "‹ch›analysis‹msg›a‹e›‹msg›x‹ret›",
            "[assistant analysis]a</end>{missing_start}[assistant]x</return>",
        ),
        (
            "F4",
            " to=functions.f‹ch›commentary to=functions.f json‹msg›{}‹call›",
            "[assistant commentary >functions.f :json]{}</call>",
        ),
        (
            "F4",
            " to=functions.nope‹ch›commentary to=functions.f json‹msg›{}‹call›",
            "{duplicate_recipient to=functions.nope commentary to=functions.f json}[assistant commentary >functions.f :json]{}</call>",
        ),
        (
            "F6",
            "‹ch›commentary to=functions.shelljson‹msg›{}‹call›",
            "{decorated_name commentary to=functions.shelljson}[assistant commentary >functions.shell]{}</call>",
        ),
        (
            "F6",
            "‹ch›commentary to=functions.otherjson‹msg›{}‹call›",
            "[assistant commentary >functions.otherjson]{}</call>",
        ),
        (
            "F9",
            "‹ch›commentary functions.f json‹msg›{}‹call›",
            "{bare_recipient commentary functions.f json}[assistant commentary >functions.f :json]{}</call>",
        ),
        ("F9", "‹ch›commentary json‹msg›{}‹e›", "[assistant commentary :json]{}</end>"),
        (
            "F10",
            "‹ch›commentary to=functions.f‹ch›commentary json‹msg›{}‹call›",
            "{duplicate_channel commentary to=functions.f commentary json}[assistant commentary >functions.f :json]{}</call>",
        ),
        (
            "F10",
            "‹ch›analysis‹ch›commentary to=f‹msg›{}‹call›",
            "{duplicate_channel analysis commentary to=f}{decorated_name analysis commentary to=f}[assistant commentary >functions.f]{}</call>",
        ),
        (
            "F10",
            "‹ch›commentary to=assistant‹ch›final‹msg›x‹ret›",
            "{duplicate_channel commentary to=assistant final}{self_recipient commentary to=assistant final}[assistant final]x</return>",
        ),
        (
            "F10",
            "‹ch›final‹ch›??‹msg›x‹ret›",
            "{unknown_channel final ??}{duplicate_channel final ??}[assistant final]x</return>",
        ),
        ("F11", "‹ch›final Hello‹e›", "{missing_message final Hello}[assistant final] Hello</end>"),
        (
            "F11",
            "‹ch›analysis‹msg›a‹e›‹s›assistant‹ch›final__HANDOFF__‹ret›",
            "[assistant analysis]a</end>{missing_message assistant final__HANDOFF__}[assistant final]__HANDOFF__</return>",
        ),
        (
            "F11",
            "‹ch›commentary to=functions.f ‹co›json{\"a\": 1}‹call›",
            "{missing_message commentary to=functions.f  json{\"a\": 1}}[assistant commentary >functions.f *:json]{\"a\": 1}</call>",
        ),
        (
            "F11",
            "‹ch›commentary to=functions.f {\"a\": 1}‹call›",
            "{missing_message commentary to=functions.f {\"a\": 1}}[assistant commentary >functions.f] {\"a\": 1}</call>",
        ),
        (
            "F11",
            "‹ch›I cannot help.‹ret›",
            "{empty_channel I cannot help.}{missing_message I cannot help.}[assistant]I cannot help.</return>",
        ),
        ("F12", "‹ch›??‹msg›x‹e›", "{unknown_channel ??}[assistant ??]x</end>"),
        (
            "F12",
            "‹ch›commentary?‹msg›x‹e›",
            "{misspelled_channel commentary?}[assistant commentary]x</end>",
        ),
        (
            "F12",
            "‹ch›commentary 2?‹msg›x‹e›",
            "{unexpected_text commentary 2?}[assistant commentary]x</end>",
        ),
        (
            "F12",
            "‹ch›commentary?commentary?‹msg›x‹e›",
            "{misspelled_channel commentary?commentary?}[assistant commentary]x</end>",
        ),
        (
            "F12",
            "‹ch›to=functions.f ––commentary json‹msg›{}‹call›",
            "{misspelled_channel to=functions.f ––commentary json}[assistant commentary >functions.f :json]{}</call>",
        ),
        (
            "F12",
            "‹ch›comment‹msg›x‹e›",
            "{misspelled_channel comment}[assistant commentary]x</end>",
        ),
        (
            "F12",
            "‹ch›commentaryto=functions.f‹msg›{}‹call›",
            "[assistant commentary >functions.f]{}</call>",
        ),
        (
            "F13",
            "‹ch›commentary to=assistant‹msg›x‹e›",
            "{self_recipient commentary to=assistant}[assistant commentary]x</end>",
        ),
        ("F14", "‹ch›‹msg›hi‹ret›", "{empty_channel}[assistant]hi</return>"),
        (
            "F15",
            "‹s›‹s›assistant‹ch›final‹msg›x‹ret›",
            "{repeated_start}{repeated_start}[assistant final]x</return>",
        ),
        (
            "F15",
            "assistantassistant‹ch›final‹msg›x‹ret›",
            "{repeated_start assistantassistant final}[assistant final]x</return>",
        ),
        (
            "F15",
            "assistant‹ch›final‹msg›x‹ret›",
            "{repeated_start assistant final}[assistant final]x</return>",
        ),
        (
            "F15",
            "‹s›assistantassistant‹ch›final‹msg›x‹ret›",
            "{repeated_start}{repeated_start assistantassistant final}[assistant final]x</return>",
        ),
        (
            "F16",
            "‹s›shell‹ch›commentary‹msg›ls‹call›",
            "{repeated_start}{unknown_role shell commentary}{decorated_name shell commentary}[assistant commentary >functions.shell]ls</call>",
        ),
        (
            "F16",
            "‹s›bash‹ch›commentary‹msg›ls‹e›",
            "{repeated_start}{unknown_role bash commentary}[assistant commentary]ls</end>",
        ),
        ("F17", "‹msg›hi‹ret›", "[assistant]hi</return>"),
        ("F17", "Hello‹ret›", "{missing_header Hello}[assistant final]Hello</return>"),
        ("F17", "{\"a\":1}", "{missing_header {\"a\":1}}[assistant final]{\"a\":1}</truncated>"),
        (
            "F17",
            "‹ch›analysis‹msg›a‹e›{\"country\": 1}‹ret›",
            "[assistant analysis]a</end>{missing_start {\"country\": 1}}{missing_header {\"country\": 1}}[assistant final]{\"country\": 1}</return>",
        ),
        (
            "F17",
            "‹s›assistant Hello‹ret›",
            "{repeated_start}{missing_header assistant Hello}[assistant final] Hello</return>",
        ),
        ("F18", "‹ch›final‹msg›x‹ret›‹ret›‹ret›", "[assistant final]x</return>{after_end}"),
        ("F18", "‹ch›final‹msg›x‹ret›y‹e›z", "[assistant final]x</return>{after_end yz}"),
        ("F18", "‹ch›analysis‹msg›x‹e›‹ret›", "[assistant analysis]x</end>{unexpected_marker}"),
        (
            "F19",
            "‹ch›analysis‹msg›a‹s›assistant‹ch›final‹msg›x‹ret›",
            "[assistant analysis]a</implicit>{missing_end}[assistant final]x</return>",
        ),
        (
            "F19",
            "‹ch›analysis‹msg›a‹ch›final‹msg›x‹ret›",
            "[assistant analysis]a</implicit>{missing_end}{missing_start final}[assistant final]x</return>",
        ),
        (
            "F19",
            "‹ch›final‹msg›a‹msg›b‹co›c‹ret›",
            "[assistant final]a{unexpected_marker}b{unexpected_marker}c</return>",
        ),
        ("F22", "‹ch›commentary to=functi", "{truncated_header commentary to=functi}"),
        ("F22", "‹ch›fin", "{truncated_header fin}"),
        (
            "F22",
            "‹ch›analysis‹msg›a‹e›‹s›assist",
            "[assistant analysis]a</end>{truncated_header assist}",
        ),
        ("F22", "‹ch›analysis‹msg›a‹e›‹s›", "[assistant analysis]a</end>"),
        (
            "F22",
            "‹ch›commentary to=functions.f‹msg›{\"a",
            "[assistant commentary >functions.f]{\"a</truncated>",
        ),
        (
            "F22",
            "‹ch›commentary to=functions.f‹call›",
            "{truncated_header commentary to=functions.f}",
        ),
        ("F22", "‹ret›", "{truncated_header}"),
        (
            "F26",
            "‹ch›analysis‹msg›a‹e›‹s›functions.f to=assistant‹ch›commentary‹msg›R‹e›‹s›assistant‹ch›final‹msg›x‹ret›",
            "[assistant analysis]a</end>{foreign_role functions.f to=assistant commentary}{foreign_role Rassistantfinalx}",
        ),
        (
            "F26",
            "‹ch›final‹msg›a‹e›‹s›user‹msg›q‹e›",
            "[assistant final]a</end>{foreign_role user}{foreign_role q}",
        ),
        (
            "F26",
            "‹s›functions.f to=assistant‹e›",
            "{repeated_start}{truncated_header functions.f to=assistant}",
        ),
        (
            "F29",
            "‹ch›commentary to=functions.f.json‹msg›{}‹call›",
            "{decorated_name commentary to=functions.f.json}[assistant commentary >functions.f]{}</call>",
        ),
        (
            "F29",
            "‹ch›commentary to=tool.functions.f‹msg›{}‹call›",
            "{decorated_name commentary to=tool.functions.f}[assistant commentary >functions.f]{}</call>",
        ),
        (
            "F29",
            "‹ch›commentary to=functions.a.b‹msg›{}‹call›",
            "[assistant commentary >functions.a.b]{}</call>",
        ),
        (
            "F32",
            " to=container.exec‹ch›commentary‹msg›ls‹call›",
            "[assistant commentary >container.exec]ls</call>",
        ),
        (
            "F32",
            "‹ch›commentary to=python ‹co›code‹msg›1‹call›",
            "[assistant commentary >python *:code]1</call>",
        ),
    ] {
        println!("{row}");
        check(&Primed::Role, stream, expected);
    }
}

/// Content that is taken for a header is not held back to its end.
#[test]
fn long_text_without_a_message_marker_streams() {
    // The patience of the parser ends inside a character, at each of its bytes in turn.
    for shift in 0..4 {
        let words = format!("{}🌧 это 🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧🌧 ends", "x".repeat(shift));
        for (stream, lead) in
            [("‹ch›final ", " "), ("", ""), ("‹ch›analysis‹msg›a‹e›‹s›assistant ", " ")]
        {
            for tokenizer in [tiny(), o200k_harmony()] {
                let stream = long(&format!("{stream}{words}"));
                let tokens = tokenizer.encode_with_special(&stream).expect("encodes");
                let mut parser =
                    Parser::new(tokenizer, Primed::Role, Mode::Tolerant).expect("harmony");
                let mut collector = Collector::default();
                for token in tokens {
                    parser.push(token).expect("tolerant").for_each(|e| collector.push(e));
                }
                assert_eq!(collector.assistant().text(), format!("{lead}{words}"), "{stream}");
                assert_eq!(parser.header().and_then(Header::content), Some(Content::Text));
            }
        }
    }
}

#[test]
fn half_characters_become_one_replacement_and_stay_in_their_message() {
    let tokenizer = tiny();
    let special = tokenizer.special_tokens().expect("harmony");
    // Inside the content 0xe6 0x97 is two thirds of a character; 0xff is none.
    let mut tokens = tokenizer.encode_with_special(&long("‹ch›analysis‹msg›a")).expect("encodes");
    tokens.extend([0xe6, 0x97, special.end]);
    tokens.extend(
        tokenizer.encode_with_special(&long("‹s›assistant‹ch›final‹msg›")).expect("encodes"),
    );
    tokens.extend([0xff, 0x62, 0xf0, 0x9f, 0x8c, 0xa7, 0xc3, special.ret]);
    let events = parse(&tokenizer, Primed::Role, Mode::Strict, &tokens).expect("well-formed");
    assert_eq!(
        compact(&events),
        "[assistant analysis]a\u{fffd}</end>[assistant final]\u{fffd}b🌧\u{fffd}</return>"
    );
}

#[test]
fn tokens_without_meaning_are_left_out_and_reported() {
    let tokenizer = tiny();
    let mut tokens =
        tokenizer.encode_with_special(&long("‹ch›final‹msg›a<|reserved_267|>b")).expect("encodes");
    tokens.extend([268, u32::MAX]);
    let events = parse(&tokenizer, Primed::Role, Mode::Tolerant, &tokens).expect("tolerant");
    assert_eq!(
        compact(&events),
        "[assistant final]a{unexpected_marker}b{unknown_token 268}{unknown_token 4294967295}</truncated>"
    );
    let index = |e: &Event| if let Event::Repaired(r) = e { Some(r.token_index) } else { None };
    let at = tokens.iter().position(|t| *t == 267).expect("there");
    assert_eq!(events.iter().filter_map(index).collect::<Vec<_>>(), [at, at + 2, at + 3]);
}

/// Markers that ordinary tokens spell are content.
#[test]
fn quoted_markers_are_text() {
    let tokenizer = o200k_harmony();
    let quoted = "the token <|end|> ends it<|start|>assistant<|channel|>final<|message|>";
    let mut tokens = tokenizer.encode_with_special(&long("‹ch›final‹msg›")).expect("encodes");
    tokens.extend(tokenizer.encode(quoted).expect("encodes"));
    tokens.push(tokenizer.special_tokens().expect("harmony").ret);
    let events = parse(&tokenizer, Primed::Role, Mode::Strict, &tokens).expect("well-formed");
    assert_eq!(compact(&events), format!("[assistant final]{quoted}</return>"));
}

#[test]
fn strict_errors_name_the_problem_and_the_token() {
    for (stream, message) in [
        ("‹ch›??‹msg›", "malformed harmony stream at token 3: an unknown channel: \"??\""),
        ("‹ch›final‹msg›a‹s›", "malformed harmony stream at token 8: a message without an end"),
        (
            "‹ch›final‹msg›a‹ret›b",
            "malformed harmony stream at token 9: tokens after the end of the turn: \"b\"",
        ),
        ("x‹e›", "malformed harmony stream at token 1: text without a header: \"x\""),
    ] {
        let tokens = tiny().encode_with_special(&long(stream)).expect("encodes");
        let error = parse(&tiny(), Primed::Role, Mode::Strict, &tokens).expect_err(stream);
        assert_eq!((error.to_string().as_str(), error.kind()), (message, ErrorKind::Malformed));
    }
    let no_call = {
        let mut json = tokenizers::tiny_json();
        json["added_tokens"].as_array_mut().expect("list").pop();
        json["added_tokens"].as_array_mut().expect("list").pop();
        Arc::new(Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads"))
    };
    let error = Parser::new(no_call, Primed::Role, Mode::Tolerant).expect_err("incomplete");
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
}

fn collect(stream: &str) -> AssistantMessage {
    let tokens = tiny().encode_with_special(&long(stream)).expect("encodes");
    let mut collector = Collector::default();
    for event in parse(&tiny(), Primed::Role, Mode::Tolerant, &tokens).expect("tolerant") {
        collector.push(event);
    }
    collector.assistant()
}

#[test]
fn events_collect_into_a_message() {
    let message = collect(
        "‹ch›analysis‹msg›one‹e›‹s›assistant‹ch›analysis‹msg›two‹e›‹s›assistant‹ch›commentary‹msg›pre‹e›\
         ‹s›assistant‹ch›analysis‹msg›‹e›‹s›assistant‹ch›analysis to=functions.f code‹msg›{}‹e›\
         ‹s›assistant to=python‹ch›analysis code‹msg›1+1‹e›‹s›assistant‹ch›odd‹msg›o‹e›‹s›assistant‹ch›final‹msg›t‹ret›",
    );
    let mut f = ToolCall::function("call_0", "f", "{}");
    f.content_type = Some("code".into());
    let mut python = ToolCall::function("call_1", "python", "1+1");
    python.kind = ToolKind::Builtin;
    assert_eq!(
        message.items,
        [
            Item::reasoning("one"),
            Item::reasoning("two"),
            Item::preamble("pre"),
            Item::ToolCall(f),
            Item::ToolCall(python),
            Item::reasoning("o"),
            Item::text("t"),
        ]
    );
    assert_eq!((message.text().as_str(), message.reasoning().as_str()), ("t", "one\ntwo\no"));
    assert_eq!(message.tool_calls().count(), 2);
    // A recipient does not make a call of an answer.
    assert_eq!(collect("‹ch›final to=functions.f‹msg›x‹ret›").items, [Item::text("x")]);
}

#[test]
fn a_cut_off_call_is_incomplete() {
    let incomplete =
        |stream: &str| collect(stream).tool_calls().map(|c| c.incomplete).collect::<Vec<_>>();
    assert_eq!(incomplete("‹ch›commentary to=functions.f‹msg›{\"a\":1}"), [true]);
    assert_eq!(incomplete("‹ch›commentary to=functions.f‹msg›{\"a\":1}‹ret›"), [false]);
    assert_eq!(incomplete("‹ch›commentary to=functions.f‹msg›{\"a\":1‹call›"), [false]);
    assert_eq!(incomplete("‹ch›commentary to=functions.f‹msg›{\"a\":1}‹s›assistant"), [false]);
    assert_eq!(incomplete("‹ch›commentary to=functions.f‹msg›{\"a\":‹s›assistant"), [true]);
}

/// The conversation that OpenAI's library rendered parses back into what it was made from.
#[test]
fn the_librarys_conversation_parses_back() {
    let case: serde_json::Value =
        serde_json::from_str(include_str!("data/harmony-tokens-case.json")).expect("valid");
    let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
    let mut collector = Collector::default();
    for event in
        parse(&o200k_harmony(), Primed::Nothing, Mode::Strict, &tokens).expect("well-formed")
    {
        collector.push(event);
    }
    let messages: Vec<serde_json::Value> = collector.messages()[2..]
        .iter()
        .map(|m| serde_json::to_value(m).expect("writes"))
        .collect();
    assert_eq!(
        serde_json::Value::Array(messages),
        serde_json::json!([
            {"role": "user", "content": "What is the weather in Tōkyō? 🌧", "end": "end"},
            {"role": "assistant", "channel": "analysis", "content": "User asks: need to use get_weather.", "end": "end"},
            {"role": "assistant", "channel": "commentary", "recipient": "functions.get_weather", "content_type": "json",
             "constrained": true, "content": "{\"location\": \"Tokyo\"}", "end": "call"},
            {"role": "functions.get_weather", "channel": "commentary", "recipient": "assistant",
             "content": "{\"temperature\": 20}", "end": "end"},
        ])
    );
    assert_eq!(collector.messages()[0].header.role, "system");
    assert_eq!(collector.messages()[1].header.role, "developer");
}

/// What a turn is rendered as parses into the turn, in every dialect and spelling of a header.
#[test]
fn rendered_turns_parse_back() {
    let mut python = ToolCall::function("call_1", "python", "print('<|end|>')\n");
    python.kind = ToolKind::Builtin;
    let turn = AssistantMessage {
        items: vec![
            Item::reasoning("Let me think: <|end|> 🌧"),
            Item::preamble("I will look it up."),
            Item::ToolCall(ToolCall::function("call_0", "f", r#"{"a": "<|call|>"}"#)),
            Item::ToolCall(python),
        ],
    };
    let mut after_channel = Dialect::harmony();
    after_channel.recipient = gpt_oss_puzzle::harmony::RecipientPosition::AfterChannel;
    for dialect in [Dialect::harmony(), Dialect::template(), after_channel] {
        for tokenizer in [tiny(), o200k_harmony()] {
            let prompt = [Message::user("q")];
            let whole = [Message::user("q"), turn.clone().into()];
            let renderer = Renderer::Native(dialect.clone());
            let tokens = |messages, add_generation_prompt| {
                let request =
                    RenderRequest { messages, add_generation_prompt, ..RenderRequest::default() };
                renderer.render(&request, &tokenizer).expect("renders").tokens
            };
            let (prompt, whole) = (tokens(&prompt, true), tokens(&whole, false));
            // The first call ends a turn; a transcript goes on.
            let start = tokenizer.encode_with_special("<|start|>assistant").expect("encodes");
            let completion =
                [&start, whole.strip_prefix(prompt.as_slice()).expect("a prefix")].concat();
            let mut collector = Collector::default();
            for event in
                parse(&tokenizer, Primed::Nothing, Mode::Strict, &completion).expect("well-formed")
            {
                collector.push(event);
            }
            assert_eq!(collector.assistant(), turn, "{dialect:?}");
        }
    }
}
