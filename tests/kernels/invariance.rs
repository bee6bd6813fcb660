//! Row invariance, bit for bit: a row's result does not depend on its company, on its place, on the
//! number of threads, or on how attention is split. Prefill, decode and ragged batches are equal for
//! this reason.

use super::attention::{Cache, FORMATS};
use crate::common::*;
use gpt_oss_puzzle::kernels::cpu::Cpu;
use gpt_oss_puzzle::kernels::{
    Activations, Dense, ExpertShape, HeadShape, KvFormat, Q8_BLOCK, SwigluParams, reference,
};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Every tier on pools of one size.
type Pool = Vec<Cpu>;

/// Pools of several sizes: 16 threads split the attention of few rows by partition. The second three
/// round the activations of products.
fn pools() -> &'static [[Pool; 3]; 2] {
    static POOLS: LazyLock<[[Pool; 3]; 2]> = LazyLock::new(|| {
        [Activations::Exact, Activations::Bf16].map(|activations| {
            let of = |cpu: Cpu| cpu.with_activations(activations);
            [1, 2, 16].map(|threads| on_threads(threads).into_iter().map(of).collect())
        })
    });
    &POOLS
}

/// Row `t` of `width` values.
fn row(x: &[f32], t: usize, width: usize) -> &[f32] {
    &x[t * width..(t + 1) * width]
}

/// Runs `kernel(cpu, rows, out)` with all rows at once on every one of `pools`, with reversed rows, and
/// with each row alone, and asserts equal bits. `kernel` writes `width` values for each row it is given.
fn assert_row_invariant_on(
    pools: &[Pool; 3],
    rows: usize,
    width: usize,
    what: &str,
    kernel: impl Fn(&Cpu, &[usize], &mut [f32]),
) {
    let forward: Vec<usize> = (0..rows).collect();
    let reversed: Vec<usize> = (0..rows).rev().collect();
    for tier in 0..pools[0].len() {
        let (isa, activations) = (pools[0][tier].isa(), pools[0][tier].activations());
        let what = format!("{what} on {isa:?}, {activations:?} activations");
        let run = |cpu: &Cpu, rows: &[usize]| {
            guarded(rows.len() * width, 1, |out| kernel(cpu, rows, out))
        };
        let want = run(&pools[0][tier], &forward);
        for pool in &pools[1..] {
            let what = format!("{what} with {} threads", pool[tier].threads());
            assert_same_bits(&run(&pool[tier], &forward), &want, &what);
        }
        let backwards = run(&pools[2][tier], &reversed);
        for t in 0..rows {
            let alone = run(&pools[t % 3][tier], &[t]);
            assert_same_bits(&alone, row(&want, t, width), &format!("{what}, row {t} alone"));
            let moved = row(&backwards, rows - 1 - t, width);
            assert_same_bits(moved, row(&want, t, width), &format!("{what}, row {t} moved"));
        }
    }
}

/// The same on the pools whose products are exact, for what is no product.
fn assert_row_invariant(
    rows: usize,
    width: usize,
    what: &str,
    kernel: impl Fn(&Cpu, &[usize], &mut [f32]),
) {
    assert_row_invariant_on(&pools()[0], rows, width, what, kernel);
}

/// The same for a product, whatever it makes of its activations.
fn assert_product_row_invariant(
    rows: usize,
    width: usize,
    what: &str,
    product: impl Fn(&Cpu, &[usize], &mut [f32]),
) {
    for pools in pools() {
        assert_row_invariant_on(pools, rows, width, what, &product);
    }
}

/// The rows named by `rows` of a matrix of `width` columns.
fn pick<T: Copy>(x: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&t| &x[t * width..(t + 1) * width]).copied().collect()
}

#[derive(Debug, Clone)]
struct DenseProblem {
    tokens: usize,
    rows: usize,
    cols: usize,
    seed: u64,
}

fn dense(p: &DenseProblem) {
    let DenseProblem { tokens, rows, cols, seed } = *p;
    let mut rng = Rng(seed);
    let (w, x) = (rng.bf16s(rows * cols), rng.floats(tokens * cols));
    let bias = rng.floats(rows);
    assert_product_row_invariant(tokens, rows, &format!("matmul {p:?}"), |cpu, picked, out| {
        cpu.matmul(out, Dense::Bf16(&w), &pick(&x, picked, cols), Some(&bias), rows, cols);
    });
    let whole = cols.next_multiple_of(Q8_BLOCK);
    let (quants, scales) = reference::q8_encode(&rng.bf16s(rows * whole));
    let (q8, long) = (Dense::Q8 { quants: &quants, scales: &scales }, rng.floats(tokens * whole));
    assert_product_row_invariant(tokens, rows, &format!("q8 matmul {p:?}"), |cpu, picked, out| {
        cpu.matmul(out, q8, &pick(&long, picked, whole), Some(&bias), rows, whole);
    });
    assert_row_invariant(tokens, cols, &format!("rms_norm {p:?}"), |cpu, picked, out| {
        cpu.rms_norm(out, &pick(&x, picked, cols), &x[..cols], 1e-5);
    });
}

#[derive(Debug, Clone)]
struct ExpertProblem {
    tokens: usize,
    k: usize,
    experts: usize,
    pairs: usize,
    blocks: usize,
    mxfp4: bool,
    seed: u64,
}

fn experts(p: &ExpertProblem) {
    let ExpertProblem { tokens, experts, pairs, blocks, mxfp4, seed, .. } = *p;
    let k = p.k.min(experts);
    let mut rng = Rng(seed);
    let shape = ExpertShape { experts, rows: 2 * pairs, cols: 32 * blocks };
    let w = Weights::random(&mut rng, shape, mxfp4, 1);
    let bias = rng.bf16s(experts * shape.rows);
    let indices: Vec<u32> = (0..tokens * k).map(|_| rng.below(experts) as u32).collect();
    let x = rng.floats(tokens * shape.cols);
    let swiglu = SwigluParams { alpha: 1.702, limit: 7.0 };
    assert_product_row_invariant(
        tokens,
        k * pairs,
        &format!("gate_up {p:?}"),
        |cpu, picked, out| {
            let (x, indices) = (pick(&x, picked, shape.cols), pick(&indices, picked, k));
            cpu.moe_gate_up(out, w.view(), &bias, shape, &x, &indices, k, swiglu);
        },
    );
    let (a, weights) = (rng.floats(tokens * k * shape.cols), rng.floats(tokens * k));
    assert_product_row_invariant(tokens, shape.rows, &format!("down {p:?}"), |cpu, picked, out| {
        let (a, weights) = (pick(&a, picked, k * shape.cols), pick(&weights, picked, k));
        let indices = pick(&indices, picked, k);
        cpu.moe_down(out, w.view(), &bias, shape, &a, &indices, &weights, k);
    });
}

#[derive(Debug, Clone)]
struct AttentionProblem {
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    lengths: Vec<usize>,
    window: Option<usize>,
    format: KvFormat,
    seed: u64,
}

/// The last positions of every sequence as one ragged batch: a prefill chunk each.
fn attention(p: &AttentionProblem) {
    let mut rng = Rng(p.seed);
    let (q_heads, kv_heads) = (p.group * p.kv_heads, p.kv_heads);
    let heads = HeadShape { q_heads, kv_heads, head_dim: p.head_dim };
    let cache = Cache::new(&mut rng, heads, p.format, &p.lengths);
    let mut rows = Vec::new();
    for (sequence, &length) in p.lengths.iter().enumerate() {
        rows.extend((length.saturating_sub(3)..length).map(|position| (sequence, position)));
        rows.push((sequence, length / 2));
    }
    let width = q_heads * p.head_dim;
    let q = rng.floats(rows.len() * width);
    assert_row_invariant(rows.len(), width, &format!("{p:?}"), |cpu, picked, out| {
        let rows: Vec<_> = picked.iter().map(|&t| rows[t]).collect();
        out.copy_from_slice(&cache.run(cpu, &pick(&q, picked, width), &rows, p.window));
    });
    // A window that reaches the beginning is full attention.
    let longest = *p.lengths.iter().max().expect("a sequence");
    for cpu in tiers() {
        let full = cache.run(cpu, &q, &rows, None);
        for window in [longest, longest + 1, usize::MAX] {
            let windowed = cache.run(cpu, &q, &rows, Some(window));
            assert_same_bits(&windowed, &full, &format!("{p:?} window {window}"));
        }
    }
}

#[test]
fn model_shapes_are_row_invariant() {
    dense(&DenseProblem { tokens: 7, rows: 70, cols: 2880, seed: 1 });
    dense(&DenseProblem { tokens: 60, rows: 20, cols: 40, seed: 2 });
    for mxfp4 in [true, false] {
        let p =
            ExpertProblem { tokens: 40, k: 4, experts: 6, pairs: 40, blocks: 90, mxfp4, seed: 2 };
        experts(&p);
        // More inputs of an expert than one pass over its rows serves.
        experts(&ExpertProblem { tokens: 70, k: 1, experts: 1, pairs: 9, blocks: 3, ..p });
    }
    for format in FORMATS {
        let (lengths, window) = (vec![1500, 513, 64], Some(700));
        let p = AttentionProblem {
            group: 8,
            kv_heads: 2,
            head_dim: 64,
            lengths,
            window,
            format,
            seed: 3,
        };
        attention(&p);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dense_is_row_invariant(
        tokens in 1usize..20, rows in 1usize..80, cols in 1usize..200, seed: u64
    ) {
        dense(&DenseProblem { tokens, rows, cols, seed });
    }

    #[test]
    fn experts_are_row_invariant(
        tokens in 1usize..30, k in 1usize..5, experts_ in 1usize..9, pairs in 1usize..40,
        blocks in 1usize..6, mxfp4: bool, seed: u64,
    ) {
        experts(&ExpertProblem { tokens, k, experts: experts_, pairs, blocks, mxfp4, seed });
    }

    #[test]
    fn attention_is_row_invariant(
        group in 1usize..9, kv_heads in 1usize..4, head_dim in 1usize..6,
        lengths in prop::collection::vec(1usize..700, 1..4),
        window in prop::option::of(1usize..700), format in 0usize..3, seed: u64,
    ) {
        let (head_dim, format) = (16 * head_dim, FORMATS[format]);
        attention(&AttentionProblem { group, kv_heads, head_dim, lengths, window, format, seed });
    }
}
