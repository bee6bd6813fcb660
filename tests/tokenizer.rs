//! The tokenizer: against tiktoken's ids, in streams, and on hostile files.

#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::tokenizer::{Special, TextStream, Tokenizer};
use serde_json::{Value, json};
use tokenizers::{MARKERS, o200k_harmony, tiny, tiny_json};

/// Texts with their ids by tiktoken, control tokens recognised.
fn cases() -> Vec<(String, Vec<u32>)> {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("data/tokenizer-cases.json")).expect("valid");
    cases
        .iter()
        .map(|case| {
            let ids = case["ids"]
                .as_array()
                .expect("ids")
                .iter()
                .map(|id| id.as_u64().expect("id") as u32);
            (case["text"].as_str().expect("text").to_owned(), ids.collect())
        })
        .collect()
}

#[test]
fn real_vocabulary_encodes_as_tiktoken() {
    let tokenizer = o200k_harmony();
    assert_eq!(tokenizer.vocab_size(), 201_088);
    assert_eq!(cases().len(), 250);
    for (text, ids) in cases() {
        assert_eq!(tokenizer.encode_with_special(&text).expect("encodes"), ids, "{text:?}");
        assert_eq!(tokenizer.decode_with_special(&ids).expect("decodes"), text);
    }
}

#[test]
fn control_tokens_in_text_stay_text() {
    let tokenizer = o200k_harmony();
    let text = "<|start|>user<|message|>hi<|end|>";
    let ids = tokenizer.encode(text).expect("encodes");
    assert!(ids.iter().all(|id| tokenizer.special(*id).is_none()), "{ids:?}");
    assert_eq!(ids[..2], [27, 91], "`<` and `|`");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    for (text, _) in cases() {
        let ids = tokenizer.encode(&text).expect("encodes");
        assert!(ids.iter().all(|id| tokenizer.special(*id).is_none()), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    }
    // Left out when decoding, unless asked for.
    let ids = tokenizer.encode_with_special("a<|end|>b").expect("encodes");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), "ab");
    assert_eq!(tokenizer.decode_with_special(&ids).expect("decodes"), "a<|end|>b");
}

#[test]
fn long_runs_do_not_exhaust_the_regex() {
    // fancy-regex gives up after a million steps of backtracking, and the splitter then takes the
    // rest as one piece; tiktoken encodes these as runs of the same tokens throughout.
    let tokenizer = o200k_harmony();
    for unit in [" ", "a", "\n", "!", "1", "\u{3000}", "aB", " \n"] {
        let text = unit.repeat(300_000);
        let ids = tokenizer.encode(&text).expect("encodes");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
        assert_eq!(ids, tiktoken_rs::o200k_base_singleton().encode_ordinary(&text), "{unit:?}");
    }
    // Beyond that limit tiktoken panics; here the text survives.
    let text = format!("x{}hello world", " ".repeat(1_200_000));
    assert_eq!(
        tokenizer.decode(&tokenizer.encode(&text).expect("encodes")).expect("decodes"),
        text
    );
}

#[test]
fn streams_never_split_a_character() {
    let tokenizer = o200k_harmony();
    for (text, ids) in cases() {
        let mut stream = TextStream::default();
        let pieces: Vec<String> =
            ids.iter().map(|id| stream.push(tokenizer.token_bytes(*id).expect("known"))).collect();
        assert_eq!(pieces.concat() + &stream.finish(), text);
    }
}

#[test]
fn streams_equal_lossy_decoding_in_any_chunking() {
    // Random bytes, biased to the ones that make UTF-8 hard, cut at random places.
    let hard = [
        0x00, 0x41, 0x7f, 0x80, 0xbf, 0xc0, 0xc2, 0xe0, 0xed, 0xa0, 0xef, 0xf0, 0x90, 0xf4, 0x8f,
        0xff,
    ];
    let mut state = 1u64;
    let mut random = move |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random(24)).map(|_| hard[random(hard.len())]).collect();
        let mut stream = TextStream::default();
        let mut text = String::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(1 + random(rest.len()));
            text += &stream.push(head);
            rest = tail;
        }
        text += &stream.finish();
        assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        assert_eq!(stream.finish(), "", "nothing leaks into the next text");
    }
}

#[test]
fn tiny_vocabulary_has_its_own_ids() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.encode("hello\u{e9}").expect("encodes"), [257, 108, 111, 0xc3, 0xa9]);
    let special = tokenizer.special_tokens().expect("all there");
    assert_eq!((special.startoftext, special.ret, special.call), (258, 260, 266));
    assert_eq!(tokenizer.stop_tokens(), [260, 259, 266], "return, endoftext, call");
    assert!(!tokenizer.stop_tokens().contains(&special.end));
    assert_eq!(tokenizer.special(special.end), Some(Special::End));
    assert_eq!(tokenizer.special(267), Some(Special::Other));
    assert_eq!(tokenizer.special(65), None);
    assert_eq!(tokenizer.token_bytes(special.end), Some(&b"<|end|>"[..]));
    assert_eq!(tokenizer.token_bytes(0xc3), Some(&[0xc3][..]));
    assert_eq!(tokenizer.token_bytes(268), None);
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    let error = tokenizer.decode(&[65, 268]).expect_err("unknown");
    assert_eq!(error.to_string(), "token id 268 is not in the vocabulary of 268 ids");
}

#[test]
fn stop_tokens_of_the_real_vocabulary() {
    assert_eq!(o200k_harmony().stop_tokens(), [200_002, 199_999, 200_012]);
}

#[test]
fn a_control_token_listed_in_the_vocabulary_too_stays_text() {
    let mut json = tiny_json();
    json["model"]["vocab"]["<|end|>"] = json!(264);
    json["model"]["ignore_merges"] = json!(true);
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads");
    assert_eq!(tokenizer.encode("<|end|>").expect("encodes").len(), 7);
    assert_eq!(tokenizer.encode_with_special("<|end|>").expect("encodes"), [264]);
    assert_eq!(tokenizer.token_bytes(264), Some(&b"<|end|>"[..]));
}

#[test]
fn other_added_tokens_are_found_in_text() {
    let mut json = tiny_json();
    let mut other = json["added_tokens"][0].clone();
    (other["content"], other["id"], other["special"]) = (json!("[x]"), json!(258), json!(false));
    let added = json["added_tokens"].as_array_mut().expect("list");
    added.iter_mut().for_each(|t| t["id"] = json!(t["id"].as_u64().expect("id") + 1));
    added.insert(0, other);
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads");
    assert_eq!(tokenizer.encode("a[x]").expect("encodes"), [97, 258]);
    assert_eq!(tokenizer.decode(&[97, 258]).expect("decodes"), "a[x]");
    json["added_tokens"][0]["id"] = json!(300);
    let error = Tokenizer::from_bytes(json.to_string().as_bytes()).expect_err("out of turn");
    assert_eq!(
        error.to_string(),
        "added token \"[x]\" has id 300, which is not next after the vocabulary"
    );
}

#[test]
fn a_vocabulary_without_harmony_encodes_but_names_what_it_lacks() {
    let mut json = tiny_json();
    json["added_tokens"].as_array_mut().expect("list").retain(|t| t["content"] != "<|call|>");
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).expect("loads");
    let error = tokenizer.special_tokens().expect_err("incomplete");
    assert_eq!(
        error.to_string(),
        "the vocabulary has no <|call|> token, so it cannot speak harmony"
    );
    assert_eq!(tokenizer.stop_tokens(), [260, 259]);
}

#[test]
fn hostile_files_are_errors() {
    type Break = fn(&mut Value);
    let breakages: [(&str, Break); 17] = [
        ("not a byte-level tokenizer.json", |j| *j = json!([])),
        ("not a byte-level tokenizer.json", |j| j["model"]["vocab"] = json!({"a": -1})),
        ("not a byte-level tokenizer.json", |j| {
            j["model"]["vocab"]["zz"] = json!(4_294_967_296u64)
        }),
        ("not a byte-level tokenizer.json", |j| j["model"]["merges"] = json!([["a"]])),
        ("not a byte-level tokenizer.json", |j| {
            j["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}})
        }),
        ("model type is \"WordPiece\", expected \"BPE\"", |j| {
            j["model"]["type"] = json!("WordPiece")
        }),
        ("token \"zz\" has id 4294967295, above the largest possible 4194303", |j| {
            j["model"]["vocab"]["zz"] = json!(u32::MAX);
        }),
        ("has id 4294967295, above the largest possible", |j| {
            j["added_tokens"][0]["id"] = json!(u32::MAX)
        }),
        ("id 65 is given twice", |j| j["model"]["vocab"]["zz"] = json!(65)),
        ("id 65 is given twice, the second time to token \"<|startoftext|>\"", |j| {
            j["added_tokens"][0]["id"] = json!(65);
        }),
        ("added token \"<|end|>\" has two ids, 264 and 258", |j| {
            j["added_tokens"][0]["content"] = json!("<|end|>");
            j["added_tokens"].as_array_mut().expect("list").swap(0, 6);
        }),
        ("the vocabulary has no token for byte 0x41 (\"A\")", |j| {
            j["model"]["vocab"].as_object_mut().expect("map").remove("A");
        }),
        ("is not byte-level: no byte is written '\u{2581}'", |j| {
            j["model"]["vocab"]["\u{2581}a"] = json!(400)
        }),
        ("the token with id 400 is empty", |j| j["model"]["vocab"][""] = json!(400)),
        ("makes a token the vocabulary lacks", |j| {
            j["model"]["merges"] = json!([["hel", "hel"]]);
        }),
        ("invalid vocabulary or merges", |j| j["model"]["merges"] = json!([["a", "b"]])),
        ("end_of_word_suffix is Some(\"</w>\"), but byte-level tokens carry none", |j| {
            j["model"]["end_of_word_suffix"] = json!("</w>");
        }),
    ];
    for (expected, breakage) in breakages {
        let mut json = tiny_json();
        breakage(&mut json);
        match Tokenizer::from_bytes(json.to_string().as_bytes()) {
            Ok(_) => panic!("accepted, expected {expected:?}"),
            Err(error) => {
                assert!(error.to_string().contains(expected), "{error}\nexpected {expected}")
            }
        }
    }
    let good = tiny_json().to_string();
    for cut in 0..good.len() {
        assert!(Tokenizer::from_bytes(&good.as_bytes()[..cut]).is_err(), "cut at {cut}");
    }
    let error = Tokenizer::from_file("no/such/tokenizer.json").expect_err("absent");
    assert!(error.to_string().starts_with("cannot read no/such/tokenizer.json: "), "{error}");
}

#[test]
fn markers_split_longest_first_and_only_whole() {
    let tokenizer = tiny();
    for marker in MARKERS {
        let id = tokenizer.special_id(marker).expect("there");
        assert_eq!(tokenizer.encode_with_special(marker).expect("encodes"), [id]);
        let text = format!("<{marker}|>{}", &marker[..marker.len() - 1]);
        let ids = tokenizer.encode_with_special(&text).expect("encodes");
        assert_eq!(ids.iter().filter(|i| tokenizer.special(**i).is_some()).count(), 1, "{text}");
        assert_eq!(tokenizer.decode_with_special(&ids).expect("decodes"), text);
    }
}
