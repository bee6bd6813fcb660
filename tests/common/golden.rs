//! The golden checkpoints and logits of `tests/golden` (see the head of `make.py` there).
//!
//! Knows files and shapes only, so that any test can run its own code on a case and measure it.

#![allow(dead_code)] // each test binary uses its own part

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor of any type, widened: exact for F32, and for I64 up to 2^53.
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// What one checkpoint answers to one sequence. T tokens, V vocabulary, H hidden.
pub struct Golden {
    pub input_ids: Vec<u32>,
    /// 0, 1, .. except in `golden-far`.
    pub positions: Vec<usize>,
    /// [T, V].
    pub logits: Vec<f32>,
    pub vocab_size: usize,
    /// The embedding and the output of every layer, each [T, H]; empty where not recorded.
    pub hidden: Vec<Vec<f32>>,
    /// By how much the last chosen expert beat the first rejected one, [layers with a choice, T].
    pub margins: Vec<f32>,
    /// [T, V], with position times frequency rounded to f32; in `golden-far` only.
    pub logits_f32_angles: Option<Vec<f32>>,
}

/// `tests/golden`: where `GOLDEN_DIR` says, of the sources the test was built from, or, for a binary that
/// was carried to another machine, of the working directory.
pub fn root() -> PathBuf {
    if let Some(dir) = std::env::var_os("GOLDEN_DIR") {
        return dir.into();
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if sources.is_dir() { sources } else { "tests/golden".into() }
}

/// The checkpoint directories, by name.
pub fn cases() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root()).expect("tests/golden is part of the repository");
    let mut cases: Vec<_> = (entries.map(|e| e.unwrap().path()))
        .filter(|path| path.join("golden.safetensors").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", root().display());
    cases
}

/// Every tensor of a safetensors file of F32, F64 or I64.
pub fn read(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let array = |(name, view): (String, safetensors::tensor::TensorView)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => {
                data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
            }
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::I64 => {
                data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()
            }
            other => panic!("{}: {name} is {other:?}", path.display()),
        };
        (name, Array { shape: view.shape().to_vec(), values })
    };
    file.tensors().into_iter().map(array).collect()
}

impl Golden {
    /// Reads `golden`, `golden-bf16`, `golden-fp8` or `golden-far` of a case.
    pub fn load(case: &Path, file: &str) -> Golden {
        let mut tensors = read(&case.join(format!("{file}.safetensors")));
        let mut f32s = |name: &str| -> Option<Vec<f32>> {
            tensors.remove(name).map(|t| t.values.iter().map(|v| *v as f32).collect())
        };
        let logits = f32s("logits").expect("logits");
        let hidden = (0..).map_while(|n| f32s(&format!("hidden.{n}"))).collect();
        let margins = f32s("margins").unwrap_or_default();
        let logits_f32_angles = f32s("logits_f32_angles");
        let input_ids: Vec<u32> = tensors["input_ids"].values.iter().map(|v| *v as u32).collect();
        let positions = tensors["positions"].values.iter().map(|v| *v as usize).collect();
        let vocab_size = logits.len() / input_ids.len();
        Golden { input_ids, positions, logits, vocab_size, hidden, margins, logits_f32_angles }
    }

    /// Logits of one token.
    pub fn row(&self, token: usize) -> &[f32] {
        &self.logits[token * self.vocab_size..][..self.vocab_size]
    }
}

/// Largest |got - expected| / |expected| over rows of `width`, in the Euclidean norm, with the row
/// where it happens. NaN anywhere gives NaN, so `assert!(error <= bound)` fails on it.
pub fn relative_error(got: &[f32], expected: &[f32], width: usize) -> (f64, usize) {
    assert_eq!(got.len(), expected.len(), "got and expected differ in length");
    let mut worst = (0.0, 0);
    for (row, (g, e)) in got.chunks(width).zip(expected.chunks(width)).enumerate() {
        let square = |v: f64| v * v;
        let off: f64 = g.iter().zip(e).map(|(g, e)| square(f64::from(*g) - f64::from(*e))).sum();
        let norm: f64 = e.iter().map(|e| square(f64::from(*e))).sum();
        let error = (off / norm).sqrt();
        if error.is_nan() {
            return (error, row);
        }
        if error > worst.0 {
            worst = (error, row);
        }
    }
    worst
}
