//! The crate's shape: which module may use which, and where unsafe code may live.
//!
//! Reads the sources as text. A module reaching back, or an `unsafe` block outside the named
//! places, fails here with the line that does it.

use std::fs;
use std::path::{Path, PathBuf};

/// Top-level module, and the crate modules it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("config", &["error"]),
    ("weights", &["error", "config"]),
    ("kernels", &[]),
    ("ops", &["error", "kernels"]),
    ("cache", &["error", "config", "weights", "ops", "kernels"]),
    ("model", &["error", "config", "weights", "ops", "kernels", "cache"]),
    ("generation", &["error", "config", "weights", "model", "cache", "tokenizer"]),
    ("tokenizer", &["error"]),
    ("harmony", &["error", "tokenizer"]),
    (
        "chat",
        &["error", "config", "weights", "model", "cache", "generation", "tokenizer", "harmony"],
    ),
    ("serving", &["error", "model", "cache", "generation", "tokenizer", "harmony", "chat"]),
];

/// Names re-exported at the crate root, and the module each belongs to.
const ROOT: &[(&str, &str)] = &[
    ("Error", "error"),
    ("ErrorKind", "error"),
    ("Result", "error"),
    ("ModelConfig", "config"),
    ("BlockConfig", "config"),
    ("RopeConfig", "config"),
];

const MAY_BE_UNSAFE: &[&str] = &[
    "src/kernels/cpu",
    "src/kernels/cuda",
    "src/model/replay.rs",
    "src/ops/cuda.rs",
    "src/weights/safetensors.rs",
];

/// The one line of kernels that names candle: cudarc comes from there, so that its versions agree.
const CUDARC: (&str, &str) =
    ("src/kernels/cuda/mod.rs", "pub use candle_core::cuda_backend::cudarc;");

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable source folder") {
        let path = entry.expect("readable entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&root.join("src"), &mut found);
    assert!(found.len() > 20, "only {} sources found", found.len());
    let named = |path: PathBuf| {
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        (name, fs::read_to_string(&path).expect("readable source"))
    };
    found.into_iter().map(named).collect()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Every `crate::name` of a line, `use crate::{a, b::c}` included.
fn crate_paths(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let ident = |s: &str| -> String {
            s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            None => names.push(ident(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        ' ' => {}
                        _ if start && depth == 0 => {
                            names.push(ident(&list[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

/// `use crate::{` lists that rustfmt broke over lines, joined into one.
fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        if open {
            let last = &mut lines.last_mut().expect("an open list has a first line").1;
            last.push_str(line.trim());
        } else {
            lines.push((number + 1, line.to_string()));
        }
        let current = &lines.last().expect("just pushed").1;
        open = current.trim_start().starts_with("use ") && !current.trim_end().ends_with(';');
    }
    lines
}

#[test]
fn no_module_reaches_back() {
    for (file, text) in all_sources() {
        let module = file.trim_start_matches("src/").split(['/', '.']).next().expect("a name");
        if module == "lib" {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{file}: module {module} is not in the table of this test"));
        for (number, line) in joined_lines(&text) {
            if is_comment(&line) {
                continue;
            }
            for name in crate_paths(&line) {
                let owner = ROOT.iter().find(|(n, _)| *n == name).map_or(name.as_str(), |(_, m)| m);
                assert!(
                    owner == module || allowed.contains(&owner),
                    "{file}:{number}: {module} may not use {owner}: {}",
                    line.trim()
                );
            }
        }
    }
}

/// How many levels the longest `super::super::` path of a line goes up.
fn levels_up(line: &str) -> usize {
    (1..).take_while(|n| line.contains(&"super::".repeat(*n))).count()
}

#[test]
fn no_path_leaves_its_module_through_super() {
    for (file, text) in all_sources() {
        let path = file.trim_start_matches("src/").trim_end_matches(".rs");
        // What is left below the crate's root: src/a/b.rs and src/a/b/mod.rs are both a::b.
        let depth = path.split('/').filter(|part| *part != "mod").count();
        let mut inner = 0;
        for (number, line) in text.lines().enumerate() {
            // Unit tests are one module further down, and stand at the end of a file.
            inner += usize::from(line.starts_with("mod tests {"));
            assert!(
                is_comment(line) || path == "lib" || levels_up(line) < depth + inner,
                "{file}:{}: super leads to the crate's root, name it crate: {}",
                number + 1,
                line.trim()
            );
        }
    }
}

#[test]
fn kernels_use_std_half_and_cudarc_only() {
    let own = ["std", "half", "crate", "super", "self"];
    for (file, text) in all_sources().into_iter().filter(|(f, _)| f.starts_with("src/kernels")) {
        // Modules of the file itself come without a prefix.
        let modules: Vec<&str> =
            text.lines().filter_map(|l| l.split_once("mod ")?.1.strip_suffix(';')).collect();
        for (number, line) in joined_lines(&text) {
            let Some((_, path)) = line.split_once("use ").filter(|_| !is_comment(&line)) else {
                continue;
            };
            let first = path.split([':', ';', ' ']).next().unwrap_or_default();
            let cudarc =
                (file == CUDARC.0 && first == "cudarc") || (file.as_str(), line.as_str()) == CUDARC;
            assert!(
                own.contains(&first) || modules.contains(&first) || cudarc,
                "{file}:{number}: kernels may not use {first}: {}",
                line.trim()
            );
        }
    }
}

#[test]
fn tensors_of_candle_stay_below_generation() {
    for (file, text) in all_sources() {
        let module = file.trim_start_matches("src/").split(['/', '.']).next().expect("a name");
        let free = ["kernels", "tokenizer", "harmony", "chat", "serving", "config", "weights"];
        for (number, line) in text.lines().enumerate() {
            assert!(
                is_comment(line)
                    || !free.contains(&module)
                    || !line.contains("candle_")
                    || (file.as_str(), line) == CUDARC,
                "{file}:{}: {module} knows nothing of candle: {}",
                number + 1,
                line.trim()
            );
        }
    }
}

#[test]
fn unsafe_code_is_where_it_is_named() {
    for (file, text) in all_sources() {
        let named = MAY_BE_UNSAFE.iter().any(|place| file.starts_with(place));
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("allow(unsafe_code)") || code.contains("deny(unsafe_code)") {
                continue;
            }
            let has_block = code.contains("unsafe {") || code.contains("unsafe impl");
            assert!(named || !has_block, "{file}:{}: unsafe code: {}", index + 1, line.trim());
        }
    }
}
