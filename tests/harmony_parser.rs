//! The parser: well-formed streams, its settings, and its promises. What models get wrong is in
//! `harmony_rows.rs`.

#[path = "common/parsing.rs"]
mod parsing;
#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::harmony::{
    AssistantMessage, Channel, Collector, Content, Event, Header, Item, Mode, Parser, Primed,
    ToolCall, ToolKind, UndeclaredTool,
};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::{ErrorKind, Result};
use parsing::{Chunking, check, compact, events, long, parser, vocabularies};
use std::sync::Arc;
use tokenizers::{o200k_harmony, tiny};

fn parse(
    tokenizer: &Arc<Tokenizer>,
    primed: Primed,
    mode: Mode,
    tokens: &[u32],
) -> Result<Vec<Event>> {
    events(parser(tokenizer, primed, mode), tokens)
}

#[test]
fn well_formed_turns() {
    let vocabularies = vocabularies();
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
        check(&vocabularies, &Primed::Role, stream, expected);
    }
}

#[test]
fn well_formed_transcripts() {
    let vocabularies = vocabularies();
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
        check(&vocabularies, &Primed::Nothing, stream, expected);
    }
}

#[test]
fn prefilled_turns_go_on_in_their_content() {
    let primed = Primed::Content(Header::assistant(Channel::Analysis));
    check(
        &vocabularies(),
        &primed,
        "on‹e›‹s›assistant‹ch›final‹msg›x‹ret›",
        "[assistant analysis]on</end>[assistant final]x</return>",
    );
    check(&vocabularies(), &primed, "on", "[assistant analysis]on</truncated>");
}

/// A parser that begins inside content goes on as one that came there itself would.
#[test]
fn a_parser_goes_on_wherever_another_stopped() {
    let stream = "‹ch›analysis‹msg›Th🌧nk‹e›‹s›assistant‹ch›commentary‹msg›plan‹e›‹s›assistant to=functions.f\
                  ‹ch›commentary ‹co›json‹msg›{\"a\": \"‹q<|end|>›\"}‹s›assistant‹ch›final‹msg›So‹ret›x";
    for vocabulary in vocabularies() {
        let (tokenizer, tokens) =
            (&vocabulary.tokenizer, vocabulary.tokens(stream, Chunking::Bytes));
        let messages = |events: &[Event]| {
            let mut collector = Collector::default();
            events.iter().cloned().for_each(|e| collector.push(e));
            collector.messages().to_vec()
        };
        let whole =
            messages(&parse(tokenizer, Primed::Role, Mode::Tolerant, &tokens).expect("tolerant"));
        assert_eq!(whole.len(), 4);
        let mut resumed = 0;
        for (at, next) in tokens.iter().enumerate() {
            let mut first = parser(tokenizer, Primed::Role, Mode::Tolerant);
            let mut events: Vec<Event> = tokens[..at]
                .iter()
                .flat_map(|t| first.push(*t).expect("tolerant").collect::<Vec<_>>())
                .collect();
            // The bytes of half a character are with the parser that stopped.
            let inside = tokenizer.token_bytes(*next).is_some_and(|b| (0x80..0xc0).contains(&b[0]));
            let Some(header) = first.header().filter(|_| !inside).cloned() else { continue };
            let rest =
                parse(tokenizer, Primed::Content(header.clone()), Mode::Tolerant, &tokens[at..]);
            let mut rest = rest.expect("tolerant").into_iter();
            assert_eq!(rest.next(), Some(Event::Open(header)));
            events.extend(rest);
            assert_eq!(messages(&events), whole, "{at}");
            resumed += 1;
        }
        assert!(resumed > 30, "{resumed}");
    }
}

#[test]
fn several_calls_in_a_turn_are_read_if_allowed() {
    let stream = "‹ch›commentary to=functions.f‹msg›{}‹call›‹s›assistant‹ch›commentary to=functions.shell‹msg›ls‹call›\
                  commentary to=functions.f‹msg›[]‹call›‹s›functions.f to=assistant‹ch›commentary‹msg›R‹e›";
    for vocabulary in vocabularies() {
        let tokens = vocabulary.tokens(stream, Chunking::Whole);
        for (allowed, expected) in [
            (
                true,
                "[assistant commentary >functions.f]{}</call>[assistant commentary >functions.shell]ls</call>\
                 {bare_channel commentary to=functions.f}{missing_start commentary to=functions.f}\
                 [assistant commentary >functions.f][]</call>\
                 {foreign_role functions.f to=assistant commentary}{foreign_role R}",
            ),
            (
                false,
                "[assistant commentary >functions.f]{}</call>{after_end assistantcommentary to=functions.shelllscommentary \
                 to=functions.f[]functions.f to=assistantcommentaryR}",
            ),
        ] {
            let parser = parser(&vocabulary.tokenizer, Primed::Role, Mode::Tolerant);
            let events = events(parser.parallel_calls(allowed), &tokens).expect("tolerant");
            assert_eq!(compact(&events), expected);
        }
    }
    let mut parser =
        parser(&tiny(), Primed::Content(Header::default()), Mode::Strict).parallel_calls(true);
    let special = tiny().special_tokens().expect("harmony");
    for (token, done) in [(special.call, false), (special.ret, true)] {
        let _ = parser.push(token);
        assert_eq!(parser.is_done(), done);
    }
}

#[test]
fn undeclared_tools_are_what_the_caller_wants() {
    let run = |stream, policy, mode| {
        let tokens = tiny().encode_with_special(&long(stream)).expect("encodes");
        let parser = Parser::new(tiny(), Primed::Role, mode).expect("harmony");
        let parser = parser.tools(["f"]).builtin_tools([]).undeclared(policy);
        events(parser, &tokens).map(|events| compact(&events))
    };
    for (stream, header, emitted, as_text) in [
        (
            " to=container.exec‹ch›commentary‹msg›ls‹call›",
            "to=container.exec commentary",
            "[assistant commentary >container.exec]ls</call>",
            "[assistant final]ls</call>",
        ),
        (
            "‹ch›commentary to=python ‹co›code‹msg›1‹call›",
            "commentary to=python  code",
            "[assistant commentary >python *:code]1</call>",
            "[assistant final *:code]1</call>",
        ),
        (
            "‹ch›analysis to=browser.search code‹msg›{}‹call›",
            "analysis to=browser.search code",
            "[assistant analysis >browser.search :code]{}</call>",
            "[assistant final :code]{}</call>",
        ),
        (
            "‹ch›analysis to=functions.g‹msg›{}‹call›",
            "analysis to=functions.g",
            "[assistant analysis >functions.g]{}</call>",
            "[assistant final]{}</call>",
        ),
    ] {
        // The stream is well-formed, so strict mode says the same.
        for mode in [Mode::Tolerant, Mode::Strict] {
            let reported = |events| format!("{{undeclared_tool {header}}}{events}");
            let emit = run(stream, UndeclaredTool::Emit, mode).expect("emitted");
            assert_eq!(emit, reported(emitted));
            let text = run(stream, UndeclaredTool::AsText, mode).expect("text");
            assert_eq!(text, reported(as_text));
            let error = run(stream, UndeclaredTool::Reject, mode).expect_err("rejected");
            assert_eq!(error.kind(), ErrorKind::Malformed);
            let problem = format!("a call of a tool that is not on offer: {header:?}");
            assert!(error.to_string().ends_with(&problem), "{error}");
        }
        // Who does not say what is on offer has nothing undeclared.
        let tokens = tiny().encode_with_special(&long(stream)).expect("encodes");
        let parser = Parser::new(tiny(), Primed::Role, Mode::Strict).expect("harmony");
        let events = events(parser.undeclared(UndeclaredTool::Reject), &tokens);
        assert_eq!(compact(&events.expect("nothing is undeclared")), emitted);
    }
    // A tool on offer, an answer, and words to nobody are none of this.
    for (stream, expected) in [
        (
            "‹ch›commentary to=functions.f‹msg›{}‹call›",
            "[assistant commentary >functions.f]{}</call>",
        ),
        ("‹ch›final to=functions.g‹msg›x‹ret›", "[assistant final >functions.g]x</return>"),
        ("‹ch›commentary‹msg›x‹e›", "[assistant commentary]x</end>"),
    ] {
        let events = run(stream, UndeclaredTool::Reject, Mode::Tolerant).expect("on offer");
        assert_eq!(events, expected);
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
