//! The differentiable graph that the shipped model is trained with: its gradients are those of its
//! forward pass, its MXFP4 is the format's, and the crate computes the same logits from the same file.

#![allow(dead_code)] // Not all of the trainer is tested.

#[path = "../examples/train_tiny/attention.rs"]
mod attention;
#[path = "../examples/train_tiny/batches.rs"]
mod batches;
#[path = "../examples/train_tiny/checkpoint.rs"]
mod checkpoint;
#[path = "common/golden.rs"]
mod golden;
#[path = "../examples/train_tiny/induction.rs"]
mod induction;
#[path = "common/kernels.rs"]
mod kernels;
#[path = "../examples/train_tiny/model.rs"]
mod model;
#[path = "../examples/train_tiny/mxfp4.rs"]
mod mxfp4;
#[path = "../examples/train_tiny/ops.rs"]
mod ops;
#[path = "../examples/world/mod.rs"]
mod world;

use attention::Attention;
use candle_core::{Device, Tensor, Var};
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::kernels::reference::mxfp4_decode;
use gpt_oss_puzzle::model::{Batch, GptOss, LogitRows};
use gpt_oss_puzzle::tokenizer::Tokenizer;
use gpt_oss_puzzle::weights::Checkpoint;
use half::bf16;
use model::{FlatBatch, Mode, TinyModel};
use ops::{PerExpert, RmsNorm, Rotation, SwiGlu};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use world::{Rng, Split, Task};

/// Where the SwiGLU under test clamps: a difference across it would be of neither side.
const KINK: f32 = 0.8;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/puzzle-tiny");

/// Numbers from -1 to 1, none near ±[`KINK`].
fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let number = |_| {
        let x = rng.below(2001) as f32 / 1000.0 - 1.0;
        if (x.abs() - KINK).abs() < 0.02 { x / 2.0 } else { x }
    };
    let numbers = (0..shape.iter().product()).map(number);
    Tensor::from_vec(numbers.collect::<Vec<_>>(), shape, &Device::Cpu).expect("a tensor")
}

/// The gradient of a random combination of `op`'s outputs, along a random direction of each input,
/// against the difference of the outputs on both sides.
fn check_gradient(
    name: &str,
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> candle_core::Result<()> {
    let mut rng = Rng::new(3);
    let inputs: Vec<Tensor> = shapes.iter().map(|shape| random(&mut rng, shape)).collect();
    let output = op(&inputs)?;
    let weights = random(&mut rng, output.dims());
    let loss =
        |inputs: &[Tensor]| -> candle_core::Result<Tensor> { (op(inputs)? * &weights)?.sum_all() };
    let variables: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_, _>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let gradients = loss(&tensors)?.backward()?;
    for (i, variable) in variables.iter().enumerate() {
        let direction = random(&mut rng, shapes[i]);
        let gradient = gradients.get(variable).expect("every input has a gradient");
        let along = (gradient * &direction)?.sum_all()?.to_scalar::<f32>()?;
        let step = 1e-2;
        let at = |sign: f64| -> candle_core::Result<f32> {
            let mut moved = inputs.clone();
            moved[i] = (&moved[i] + (&direction * (sign * step))?)?;
            loss(&moved)?.to_scalar::<f32>()
        };
        let difference = (at(1.0)? - at(-1.0)?) / (2.0 * step as f32);
        let error = (along - difference).abs() / (1.0 + difference.abs());
        println!("{name}, input {i}: {along} {difference}");
        assert!(error <= 5e-3, "{name}, input {i}: {along}, difference {difference}");
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_the_forward_pass() -> candle_core::Result<()> {
    check_gradient("norm", &[&[5, 24], &[24]], |x| x[0].apply_op2(&x[1], RmsNorm { eps: 1e-5 }))?;
    let angles: Vec<f32> = (0..5 * 4).map(|i| i as f32 * 0.7).collect();
    let rotation = Rotation {
        cos: Arc::new(angles.iter().map(|a| 1.2 * a.cos()).collect()),
        sin: Arc::new(angles.iter().map(|a| 1.2 * a.sin()).collect()),
        half: 4,
        sign: 1.0,
    };
    check_gradient("rotation", &[&[5, 16]], |x| x[0].apply_op1(rotation.clone()))?;
    let swiglu = || SwiGlu { alpha: 1.702, limit: KINK };
    check_gradient("swiglu", &[&[200, 24]], |x| x[0].apply_op1(swiglu()))?;
    let counts = vec![2, 0, 3];
    check_gradient("per expert", &[&[5, 8], &[3, 6, 8], &[3, 6]], |x| {
        x[0].apply_op3(&x[1], &x[2], PerExpert { counts: counts.clone() })
    })?;
    for window in [usize::MAX, 3, 270] {
        // Over 256 queries, to have more than one block.
        let lengths = vec![4, 300, 1];
        check_gradient("attention", &[&[305, (4 + 2 * 2) * 8], &[4]], |x| {
            let lengths = lengths.clone();
            x[0].apply_op2(&x[1], Attention { lengths, heads: 4, kv_heads: 2, dim: 8, window })
        })?;
    }
    Ok(())
}

/// A second opinion on the one op that has its own blocks: attention by candle's ops, all at once.
#[test]
fn attention_is_a_softmax_with_a_sink() -> candle_core::Result<()> {
    let (length, heads, kv_heads, dim, window) = (280, 4, 2, 8, 260);
    let mut rng = Rng::new(5);
    let (qkv, sinks) = (random(&mut rng, &[length, 8 * dim]), random(&mut rng, &[heads]));
    let lengths = vec![length];
    let got = qkv.apply_op2(&sinks, Attention { lengths, heads, kv_heads, dim, window })?;
    let part = |first, heads: usize| {
        qkv.narrow(1, first * dim, heads * dim)?.reshape((length, heads, dim))?.transpose(0, 1)
    };
    let mask: Vec<f32> = (0..length * length)
        .map(|i| (i / length, i % length))
        .map(|(t, s)| if s <= t && t - s < window { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
    for head in 0..heads {
        let q = part(0, heads)?.get(head)?.contiguous()?;
        let k = part(heads, kv_heads)?.get(head / 2)?.contiguous()?;
        let v = part(heads + kv_heads, kv_heads)?.get(head / 2)?.contiguous()?;
        let scores = ((q.matmul(&k.t()?)? / (dim as f64).sqrt())? + &mask)?;
        let sink = sinks.get(head)?.broadcast_as((length, 1))?;
        let weights = candle_nn::ops::softmax(&Tensor::cat(&[scores, sink], 1)?, 1)?;
        let want = weights.narrow(1, 0, length)?.matmul(&v)?;
        let got = got.narrow(1, head * dim, dim)?;
        let error = (want - got)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(error <= 1e-5, "head {head}: {error}");
    }
    Ok(())
}

#[test]
fn mxfp4_is_nearest_and_reads_as_the_reference_does() {
    let mut rng = Rng::new(9);
    let codes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for round in 0..200 {
        let size = 2f32.powi(round % 40 - 20);
        let block: Vec<f32> =
            (0..32).map(|_| (rng.below(2001) as f32 / 1000.0 - 1.0) * size).collect();
        let (blocks, scales) = mxfp4::encode(&block);
        let decoded = mxfp4_decode(&blocks, &scales);
        let power = 2f32.powi(i32::from(scales[0]) - 127);
        let error = |power: f32| {
            let nearest = |x: &f32| {
                codes.iter().map(|c| (x.abs() - c * power).abs()).fold(f32::MAX, f32::min)
            };
            block.iter().map(|x| nearest(x).powi(2)).sum::<f32>()
        };
        let got: f32 = block.iter().zip(&decoded).map(|(x, y)| (x - y).powi(2)).sum();
        assert!(got <= error(power) * 1.0001, "round {round}: {got}, best {}", error(power));
        let others = error(power * 2.0).min(error(power / 2.0));
        assert!(got <= others * 1.0001, "round {round}: {got}, with another scale {others}");
        let tensor = Tensor::from_vec(block, 32, &Device::Cpu).expect("a tensor");
        let rounded = mxfp4::rounded(&tensor).and_then(|t| t.to_vec1::<f32>()).expect("f32");
        assert_eq!(rounded, decoded);
    }
    let every_code: Vec<f32> = codes.iter().flat_map(|c| [*c, -c, 0.0, 0.0]).collect();
    let (blocks, scales) = mxfp4::encode(&every_code);
    assert_eq!(mxfp4_decode(&blocks, &scales), every_code);
}

#[test]
fn scales_of_the_cache_are_powers_of_two_that_reach() {
    for (max, scale) in [(448.0, 1.0), (449.0, 2.0), (7.0, 0.015625), (7.1, 0.03125)] {
        assert_eq!(checkpoint::kv_scale(max), scale, "{max}");
    }
}

/// The checkpoint at `dir` in differentiable form, every number as stored.
fn read(dir: &Path) -> Result<TinyModel, Box<dyn Error>> {
    let config = ModelConfig::from_file(&dir.join("config.json"))?;
    let mut stored = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path)?;
            for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
                stored.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
    }
    let mut parameters = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in &stored {
        let (name, shape, numbers) = match (name.strip_suffix("_blocks"), dtype) {
            (Some(experts), _) => {
                let (_, _, scales) = &stored[&format!("{experts}_scales")];
                let shape = vec![shape[0], shape[1], shape[2] * mxfp4::BLOCK];
                (experts, shape, mxfp4_decode(bytes, scales))
            }
            (None, Dtype::BF16) => {
                let numbers = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32());
                (name.as_str(), shape.clone(), numbers.collect())
            }
            // Scales of experts and of the cache.
            _ => continue,
        };
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu)?;
        parameters.insert(name.to_owned(), Var::from_tensor(&tensor)?);
    }
    Ok(TinyModel::from_parameters(&config, parameters))
}

/// The shipped model through both graphs, over every kind of exercise and past every window.
#[test]
fn the_crate_computes_what_was_trained() {
    let dir = PathBuf::from(DIR);
    let trained = read(&dir).expect("reads");
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).expect("loads");
    let stored = Checkpoint::open(&dir).expect("opens");
    let mut rng = Rng::new(1);
    let tasks = [
        Task::Facts,
        Task::Addition { digits: 3 },
        Task::Subtraction { digits: 2 },
        Task::Tools,
        Task::Unknown,
        Task::Needle { tokens: 600 },
    ];
    for task in tasks {
        let exercise = world::exercise(task, Split::HeldOut, &mut rng);
        let (mut sequence, turn) = batches::tokens(&exercise, &tokenizer).expect("renders");
        sequence.extend(turn);
        let rows = (0..sequence.len() as u32).collect();
        let lengths = vec![sequence.len()];
        let batch = FlatBatch { tokens: sequence.clone(), lengths, rows };
        let want = trained.forward(&batch, &Mode::default()).expect("runs").logits;
        let want = want.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
        for cpu in kernels::on_threads(2) {
            let isa = cpu.isa();
            let fast = GptOss::with_cpu(&stored, cpu).expect("builds");
            let config = KvCacheConfig { dtype: KvDtype::F32, pages: 100, scales: None };
            let cache = KvCache::new(fast.config(), &config, &Device::Cpu).expect("a cache");
            let mut kept = cache.sequence();
            let batch = Batch::single(&kept, &sequence, LogitRows::All);
            let got = fast.forward(&batch, &mut [&mut kept]).expect("runs");
            let got = got.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
            let width = fast.config().vocab_size;
            let (error, row) = golden::relative_error(&got, &want, width);
            println!("{task:?} on {isa:?}: relative error {error:.1e} (row {row})");
            assert!(error <= 1e-4, "{task:?} on {isa:?}: row {row} is off by {error}");
        }
    }
}

/// A sequence of random tokens, told twice: only copying foresees its second half.
#[test]
fn a_model_with_the_circuit_in_place_copies_before_it_is_trained() {
    let config = ModelConfig::from_file(&Path::new(DIR).join("config.json")).expect("valid");
    let model = TinyModel::new(&config, &mut Rng::new(1)).expect("a model");
    let mut rng = Rng::new(2);
    let once: Vec<u32> = (0..60).map(|_| rng.below(config.vocab_size) as u32).collect();
    let inputs = FlatBatch {
        tokens: [once.clone(), once.clone()].concat(),
        lengths: vec![120],
        rows: (60..119).collect(),
    };
    let targets = Tensor::new(&once[1..], &Device::Cpu).expect("targets");
    let loss = || {
        let logits = model.forward(&inputs, &Mode::default()).expect("logits").logits;
        let loss = candle_nn::loss::cross_entropy(&logits, &targets).expect("a loss");
        loss.to_scalar::<f32>().expect("a number")
    };
    let before = loss();
    induction::put_in_place(&model, &[1, 5]).expect("fits");
    let after = loss();
    assert!(before > 7.0 && after < 4.0, "{before} {after}");
}
