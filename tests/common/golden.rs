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

    /// Asserts that `logits` of all tokens of `case` are off by what activations rounded to bf16 make, no more
    /// and no less.
    ///
    /// A number of bf16 is within 2^-8 of what it stands for. Where a choice of experts is as close as that,
    /// and in `puzzle` and `puzzle-long` it is for some tokens, another one is chosen, and the token's
    /// logits are others; attention hands that on to a few behind it. The f32 sums of two machines may
    /// round to different neighbours, so that they differ from each other by up to half as much.
    pub fn assert_near_with_activations_in_bf16(&self, case: &Path, logits: &[f32], what: &str) {
        assert_eq!(logits.len(), self.logits.len(), "{what}");
        let rows = logits.chunks(self.vocab_size).enumerate();
        let error = |(t, row)| relative_error(row, self.row(t), self.vocab_size).0;
        let mut errors: Vec<f64> = rows.map(error).collect();
        errors.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
        let rank = |of: usize| errors[errors.len() * of / 10];
        let (median, most, worst) = (rank(5), rank(9), errors[errors.len() - 1]);
        let name = case.file_name().unwrap().display();
        let what =
            format!("{name} {what}: {median:.1e}, of nine in ten {most:.1e}, worst {worst:.1e}");
        println!("{what}");
        assert!(median > 1e-3 && median < 1.5e-2 && most < 3e-2 && worst < 0.5, "{what}");
        let close = ["puzzle", "puzzle-long"].iter().any(|name| case.ends_with(name));
        assert!(close || worst < 2e-2, "{what}");
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
