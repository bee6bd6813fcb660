//! What real models get wrong: the rows F1 to F33 of `data/harmony-rows.txt`, each stream in three
//! chunkings and two vocabularies.

#[path = "common/parsing.rs"]
mod parsing;
#[path = "common/tokenizers.rs"]
mod tokenizers;

use gpt_oss_puzzle::harmony::Primed;
use parsing::{check, vocabularies};

#[test]
fn every_row_is_understood_in_any_chunking() {
    let vocabularies = vocabularies();
    let source = |file: &str| {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).expect(file)
    };
    let (mut row, mut covered, mut stream, mut failed) = (0, true, None, Vec::new());
    for line in source("tests/data/harmony-rows.txt").lines() {
        if let Some(text) = line.strip_prefix("> ") {
            assert!(
                stream.replace(text.to_owned()).is_none(),
                "two streams without events: {text}"
            );
        } else if let Some(expected) = line.strip_prefix("= ") {
            let stream = stream.take().expect("events follow their stream");
            let check = || check(&vocabularies, &Primed::Role, &stream, expected);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() {
                failed.push(row);
            }
            covered = true;
        } else if let Some((file, test)) = line.strip_prefix("@ ").and_then(|l| l.split_once(' ')) {
            assert!(source(file).contains(&format!("fn {test}(")), "{file} has no test {test}");
            covered = true;
        } else if let Some(reason) = line.strip_prefix("- ") {
            println!("F{row} is not tested here: {reason}");
            covered = true;
        } else if let Some((number, _)) = line.strip_prefix('F').and_then(|l| l.split_once(' ')) {
            assert!(covered, "nothing covers F{row}");
            row += 1;
            assert_eq!(number, row.to_string(), "rows are in order");
            covered = false;
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{line}");
        }
    }
    assert!(covered && stream.is_none());
    assert_eq!(row, 33);
    assert!(failed.is_empty(), "these rows fail, as told above: {failed:?}");
}
