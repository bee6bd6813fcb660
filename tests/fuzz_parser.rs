//! Random streams through the parser: it never panics, never loses or invents text, never lets a
//! marker's text into an event, and needs linear time. Runs for `FUZZ_SECONDS` (default 2); each
//! failure prints the seed, and `FUZZ_SEED` repeats it.

#[path = "common/parsing.rs"]
mod parsing;
#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::harmony::openai::{Request, StringArguments};
use gpt_oss_puzzle::harmony::{
    AssistantMessage, Channel, Collector, Dialect, Event, Header, Item, Message, Mode, Parser,
    Primed, RenderRequest, Renderer, Template, Tool, ToolCall, ToolKind,
};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use parsing::Random;
use proptest::prelude::*;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use tokenizers::{MARKERS, o200k_harmony, tiny, tiny_json};

fn fuzz(mut one: impl FnMut(&mut Random)) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = variable("FUZZ_SEED") {
        return one(&mut Random(seed));
    }
    let deadline = Instant::now() + Duration::from_secs(variable("FUZZ_SECONDS").unwrap_or(2));
    let mut seed = 0;
    while Instant::now() < deadline {
        seed += 1;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| one(&mut Random(seed)))) {
            eprintln!("FUZZ_SEED={seed} repeats this");
            std::panic::resume_unwind(panic);
        }
    }
    assert!(seed > 20, "only {seed} rounds: too few to mean anything");
}

/// Pieces of headers, right and wrong; each number is a word of its own, found again in the events.
const WORDS: [&str; 26] = [
    "assistant",
    "user",
    "functions.f",
    "analysis",
    "commentary",
    "final",
    " to=functions.f",
    " to=",
    " json",
    "json",
    " ",
    "\n",
    "to=assistant",
    " to=python",
    "??",
    "fin",
    "tool.functions.f",
    "{\"a\": 1}",
    "🌧",
    " code",
    "system",
    " to=functions.fjson",
    "commentaryto=x",
    "developer",
    "assistantassistant",
    "__",
];

/// A random stream, and the words in it that nothing else contains.
fn stream(random: &mut Random, tokenizer: &Tokenizer) -> (Vec<u32>, Vec<String>) {
    let (mut tokens, mut words) = (Vec::new(), Vec::new());
    for i in 0..1 + random.below(40) {
        match random.below(10) {
            0..4 => tokens.extend(tokenizer.special_id(MARKERS[random.below(MARKERS.len())])),
            4..7 => {
                tokens.extend(tokenizer.encode(WORDS[random.below(WORDS.len())]).expect("encodes"))
            }
            7 => {
                let space = ["", " "][random.below(2)];
                words.push(format!("w{i}w"));
                tokens.extend(tokenizer.encode(&format!("{space}w{i}w")).expect("encodes"));
            }
            8 => tokens.extend(
                (0..random.below(30)).flat_map(|_| tokenizer.encode(" la").expect("encodes")),
            ),
            _ => tokens.push(random.below(300) as u32),
        }
    }
    (tokens, words)
}

fn primed(random: &mut Random) -> Primed {
    match random.below(3) {
        0 => Primed::Role,
        1 => Primed::Nothing,
        _ => Primed::Content(Header::assistant(Channel::Commentary)),
    }
}

fn run(tokens: &[u32], primed: Primed, mode: Mode) -> gpt_oss_puzzle::Result<Vec<Event>> {
    let mut parser = Parser::new(tiny(), primed, mode)?.tools(["f", "la"]);
    let mut events = Vec::new();
    for token in tokens {
        events.extend(parser.push(*token)?);
    }
    events.extend(parser.finish()?);
    Ok(events)
}

/// All text of the events: what is delivered, what headers say, and what repairs set aside.
fn all_text(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        text += "\u{0}";
        match event {
            Event::Open(header) => {
                let channel = header.channel.as_ref().map(Channel::as_str);
                let fields = [
                    Some(header.role.as_str()),
                    channel,
                    header.recipient.as_deref(),
                    header.content_type.as_deref(),
                ];
                text += &fields.into_iter().flatten().collect::<Vec<_>>().join("\u{0}");
            }
            Event::Delta(delta) => {
                text.pop();
                text += delta;
            }
            Event::Repaired(repair) => text += &repair.raw,
            _ => {}
        }
    }
    text
}

#[test]
fn any_stream_is_parsed_without_loss_or_leak() {
    let tokenizer = tiny();
    fuzz(|random| {
        let (tokens, words) = stream(random, &tokenizer);
        let primed = primed(random);
        let events =
            run(&tokens, primed.clone(), Mode::Tolerant).expect("tolerant mode has no errors");
        let text = all_text(&events);
        for word in words {
            assert!(text.contains(&word), "{word} is lost: {events:?}");
        }
        assert!(!MARKERS.iter().any(|m| text.contains(m)), "a marker leaks: {events:?}");
        // Messages open, deliver and close, one after another.
        let mut open = false;
        for event in &events {
            match event {
                Event::Open(_) => assert!(!std::mem::replace(&mut open, true), "{events:?}"),
                Event::Close(_) => assert!(std::mem::replace(&mut open, false), "{events:?}"),
                Event::Delta(delta) => assert!(open && !delta.is_empty(), "{events:?}"),
                _ => {}
            }
        }
        assert!(!open, "{events:?}");
        // Delivered text is no more than what came in.
        let bytes_in: usize =
            tokens.iter().map(|t| tokenizer.token_bytes(*t).map_or(0, <[u8]>::len)).sum();
        let delivered: String = events
            .iter()
            .filter_map(|e| if let Event::Delta(d) = e { Some(d.as_str()) } else { None })
            .collect();
        assert!(delivered.replace('\u{fffd}', "").len() <= bytes_in);
        // Strict mode fails where tolerant mode repairs, and else agrees.
        let repaired = events.iter().any(|e| matches!(e, Event::Repaired(_)));
        match run(&tokens, primed, Mode::Strict) {
            Ok(strict) => assert!(repaired || strict == events, "{strict:?}\n{events:?}"),
            Err(_) => assert!(repaired, "{events:?}"),
        }
        // Whatever came of it collects into a message that renders.
        let mut collector = Collector::default();
        events.into_iter().for_each(|e| collector.push(e));
        let messages = [Message::user("q"), collector.assistant().into()];
        let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
        Renderer::Native(Dialect::harmony()).render(&request, &tokenizer).expect("renders");
    });
}

#[test]
fn time_is_linear() {
    let special = tiny().special_tokens().expect("harmony");
    let text = |s: &str| tiny().encode(s).expect("encodes");
    let patterns: Vec<Vec<u32>> = vec![
        vec![special.channel],
        vec![special.start],
        vec![special.message],
        text(" "),
        text("a"),
        text("to="),
        [vec![special.channel], text(&" to=x".repeat(50))].concat(),
        [vec![special.constrain], text("json ")].concat(),
        [vec![special.channel, special.channel], text("x")].concat(),
        [text("assistant "), vec![special.constrain]].concat(),
        [vec![special.channel], text("final"), vec![special.message, special.ret]].concat(),
        vec![0xf0, 0x9f],
    ];
    for pattern in patterns {
        for primed in [Primed::Role, Primed::Nothing] {
            // Linear takes about 0.05 s; anything quadratic in so many tokens takes minutes. A
            // ratio of two times would be closer, but not hold on a busy machine.
            let start = Instant::now();
            let mut parser = Parser::new(tiny(), primed, Mode::Tolerant).expect("harmony");
            for (i, token) in pattern.iter().cycle().take(300_000).enumerate() {
                parser.push(*token).expect("tolerant");
                let in_time = i % 1000 != 0 || start.elapsed() < Duration::from_secs(5);
                assert!(in_time, "{pattern:?}: {i} tokens in {:?}", start.elapsed());
            }
            parser.finish().expect("tolerant");
            assert!(start.elapsed() < Duration::from_secs(5), "{pattern:?}");
        }
    }
}

fn item() -> impl Strategy<Value = Item> {
    let text = "[ -~é🌧\n]{1,12}|.*<\\|end\\|>.*";
    prop_oneof![
        text.prop_map(Item::reasoning),
        text.prop_map(Item::preamble),
        ("[a-z_]{1,8}", text, any::<bool>()).prop_map(|(name, arguments, builtin)| {
            let kind = if builtin { ToolKind::Builtin } else { ToolKind::Function };
            let mut call = ToolCall::function("", format!("t_{name}"), arguments);
            call.kind = kind;
            Item::ToolCall(call)
        }),
        text.prop_map(Item::text),
    ]
}

/// JSON schemas with everything the TypeScript rules look at.
fn schema() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec![
        "\"string\"",
        "\"number\"",
        "\"integer\"",
        "\"boolean\"",
        "\"object\"",
        "\"array\"",
        "\"null\"",
        "[\"string\",\"null\"]",
        "[\"integer\"]",
        "[]",
        "null",
    ]);
    let default = prop::sample::select(vec![
        "null",
        "1",
        "-2.5",
        "\"<|s|>\"",
        "[\"a\",{\"k\":1e-7}]",
        "true",
    ]);
    let leaf = (kind, any::<[bool; 5]>(), default).prop_map(|(kind, has, default)| {
        let json = |text| serde_json::from_str::<Value>(text).expect("JSON");
        let mut schema = serde_json::Map::new();
        if kind != "null" {
            schema.insert("type".into(), json(kind));
        }
        for (has, key, value) in [
            (has[0], "description", json("\"one\\ntwo\"")),
            (has[1], "default", json(default)),
            (has[2], "nullable", json("true")),
            (has[3], "enum", json("[\"a\",\"b\"]")),
            (has[4], "required", json("[\"x\",\"zz\"]")),
        ] {
            if has {
                schema.insert(key.into(), value);
            }
        }
        Value::Object(schema)
    });
    leaf.clone().prop_recursive(4, 24, 4, move |inner| {
        let properties =
            prop::collection::btree_map("x|[a-z]{1,20}|items|keys|type", inner.clone(), 0..4);
        (
            leaf.clone(),
            inner.clone(),
            properties,
            prop::collection::vec(inner, 0..3),
            any::<[bool; 3]>(),
        )
            .prop_map(|(mut schema, items, properties, variants, has)| {
                for (has, key, value) in [
                    (has[0], "items", items),
                    (has[1], "properties", properties.into_iter().collect::<Value>()),
                    (has[2], "oneOf", Value::Array(variants)),
                ] {
                    if has {
                        schema[key] = value;
                    }
                }
                schema
            })
    })
}

/// Our template, or the one whose file CHAT_TEMPLATE names.
fn template() -> Renderer {
    match std::env::var("CHAT_TEMPLATE") {
        Ok(path) => Template::new(std::fs::read_to_string(path).expect("readable")),
        Err(_) => Template::embedded(),
    }
    .expect("compiles")
    .into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A turn rendered, parsed and rendered again is the same prompt.
    #[test]
    fn rendering_and_parsing_is_a_fixed_point(items in prop::collection::vec(item(), 1..6)) {
        let mut dialect = Dialect::harmony();
        dialect.history = gpt_oss_puzzle::harmony::History::KeepAll;
        let renderer = Renderer::Native(dialect);
        let render = |turn: AssistantMessage| {
            let messages = [Message::user("q"), turn.into(), Message::user("r")];
            let request = RenderRequest { messages: &messages, ..RenderRequest::default() };
            renderer.render(&request, &tiny()).expect("renders")
        };
        let first = render(AssistantMessage { items: items.clone() });
        let mut collector = Collector::default();
        for event in run(&first.tokens, Primed::Nothing, Mode::Strict).expect("well-formed") {
            collector.push(event);
        }
        prop_assert_eq!(&render(collector.assistant()), &first);
    }

    /// The template and the typed renderer declare every tool alike.
    #[test]
    fn both_renderers_declare_tools_alike(schemas in prop::collection::vec(schema(), 1..3)) {
        let tools: Vec<Tool> = schemas.into_iter().map(|s| Tool::new("f", "d", s)).collect();
        let messages = [Message::user("q")];
        let request = RenderRequest { messages: &messages, tools: &tools, ..RenderRequest::default() };
        let template: Renderer = template();
        prop_assert_eq!(
            template.render_text(&request).expect("renders"),
            Renderer::Native(Dialect::template()).render_text(&request).expect("renders")
        );
        Renderer::Native(Dialect::harmony()).render_text(&request).expect("renders");
    }

    /// The template and the typed renderer agree on every history, tool or none.
    #[test]
    fn both_renderers_agree(
        turns in prop::collection::vec((prop::collection::vec(item(), 0..3), any::<bool>()), 1..6),
        add_generation_prompt: bool,
        system: bool,
    ) {
        let mut messages = if system { vec![Message::system("<|s|>")] } else { vec![] };
        for (items, user) in turns {
            if user {
                messages.push(Message::user("q<"));
            }
            let turn = AssistantMessage { items };
            let results: Vec<Message> = turn.tool_calls().map(|c| Message::tool(c, "\"r\"")).collect();
            messages.push(turn.into());
            messages.extend(results);
        }
        let request = RenderRequest { messages: &messages, add_generation_prompt, ..RenderRequest::default() };
        let template: Renderer = template();
        let (template, native) =
            (template.render(&request, &tiny()).expect("renders"), Renderer::Native(Dialect::template()).render(&request, &tiny()).expect("renders"));
        prop_assert_eq!((template.text, template.tokens), (native.text, native.tokens));
    }
}

/// JSON of any shape is a request or an error.
#[test]
fn any_json_request_is_answered() {
    let template: Renderer = template();
    let native = Renderer::Native(Dialect::harmony());
    let seeds: Vec<Value> =
        serde_json::from_str(include_str!("data/harmony-render-cases.json")).expect("valid");
    fuzz(|random| {
        let mut request = seeds[random.below(seeds.len())]["request"].clone();
        for _ in 0..random.below(4) {
            mutate(random, &mut request);
        }
        let Ok(request) = Request::from_json(&request, StringArguments::Parse) else { return };
        for renderer in [&template, &native] {
            if let Ok(rendered) = renderer.render(&request.as_render(), &tiny()) {
                assert_eq!(
                    tiny().decode_with_special(&rendered.tokens).expect("decodes"),
                    rendered.text
                );
            }
        }
    });
}

/// Any change of a tokenizer.json is a tokenizer or an error.
#[test]
fn any_tokenizer_file_is_answered() {
    fuzz(|random| {
        let mut json = tiny_json();
        for _ in 0..1 + random.below(4) {
            mutate(random, &mut json);
        }
        let Ok(tokenizer) = Tokenizer::from_bytes(json.to_string().as_bytes()) else { return };
        for text in ["hello <|end|>", "", "🌧\0"] {
            if let Ok(ids) = tokenizer.encode_with_special(text) {
                let _ = tokenizer.decode_with_special(&ids);
            }
        }
    });
}

/// Replaces, removes or doubles a random part.
fn mutate(random: &mut Random, value: &mut Value) {
    let children: usize =
        value.as_array().map_or(0, Vec::len) + value.as_object().map_or(0, serde_json::Map::len);
    if children == 0 || random.below(5) == 0 {
        let junk = [
            "null",
            "0",
            "-1",
            "4294967295",
            "1e300",
            "\"<|end|>\"",
            "\"\"",
            "[]",
            "{}",
            "[null]",
            "true",
            "\"tool\"",
        ];
        *value = serde_json::from_str(junk[random.below(junk.len())]).expect("JSON");
        return;
    }
    let at = random.below(children);
    match (value, random.below(8)) {
        (Value::Array(list), 0) => drop(list.remove(at)),
        (Value::Array(list), 1) => list.push(list[at].clone()),
        (Value::Array(list), _) => mutate(random, &mut list[at]),
        (Value::Object(map), action) => {
            let key = map.keys().nth(at).expect("there").clone();
            match action {
                0 => drop(map.shift_remove(&key)),
                1 => drop(map.insert(format!("{key}<|"), map[&key].clone())),
                _ => mutate(random, &mut map[&key]),
            }
        }
        _ => {}
    }
}

/// The real vocabulary once, at length: a long random stream of its ids.
#[test]
fn any_stream_of_real_ids_is_parsed() {
    let tokenizer = o200k_harmony();
    let mut random = Random(7);
    let mut parser = Parser::new(tokenizer, Primed::Nothing, Mode::Tolerant).expect("harmony");
    let mut opened = 0;
    for _ in 0..200_000 {
        let token = match random.below(8) {
            0 => 200_002 + random.below(11),
            _ => random.below(201_100),
        };
        let events = parser.push(token as u32).expect("tolerant");
        opened += events.filter(|e| matches!(e, Event::Open(_))).count();
    }
    parser.finish().expect("tolerant");
    assert!(opened > 100, "{opened}");
}
