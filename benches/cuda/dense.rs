//! What every layer and every step does outside of attention and experts.

use crate::data::{Rng, part};
use crate::timing::{Bench, Work};
use crate::{Result, Sizes};
use gpt_oss_puzzle::kernels::cuda::CudaDense;
use gpt_oss_puzzle::kernels::{Draw, Q8_BLOCK};

/// Different tokens of the embedding: their rows are in no cache when they come again.
const TOKENS: usize = 1 << 20;

pub(crate) fn run(bench: &Bench, sizes: &Sizes) -> Result<()> {
    embedding(bench, sizes)?;
    norms(bench, sizes)?;
    matmul(bench, sizes)?;
    topk(bench, sizes)?;
    sample(bench, sizes)
}

fn embedding(bench: &Bench, sizes: &Sizes) -> Result<()> {
    if !bench.wants("embedding") {
        return Ok(());
    }
    let (vocab, hidden) = (sizes.config.vocab_size, sizes.config.hidden_size);
    let table = bench.bf16s(vocab * hidden)?;
    let tokens = bench.random(TOKENS, |rng| rng.below(vocab) as u32)?;
    for &rows in sizes.rows {
        let work = Work { rows, bytes: rows * hidden * (2 + 4), flops: 0 };
        bench.case("embedding", work, &mut bench.nans(rows * hidden)?, |i, out| {
            bench.cuda.embedding(out, &table.as_view(), &part(&tokens, i, rows), hidden)
        })?;
    }
    Ok(())
}

fn norms(bench: &Bench, sizes: &Sizes) -> Result<()> {
    let (hidden, eps) = (sizes.config.hidden_size, sizes.config.rms_norm_eps as f32);
    let weight = bench.floats(hidden)?;
    for &rows in sizes.rows {
        let x = bench.floats(rows * hidden)?;
        let work = Work { rows, bytes: 4 * (2 * x.len() + hidden), flops: 0 };
        bench.case("rms_norm", work, &mut bench.nans(x.len())?, |_, out| {
            bench.cuda.rms_norm(out, &x.as_view(), &weight.as_view(), eps)
        })?;
    }
    for &rows in sizes.rows {
        let (mut x, delta) = (bench.floats(rows * hidden)?, bench.floats(rows * hidden)?);
        let work = Work { rows, bytes: 4 * (4 * delta.len() + hidden), flops: 0 };
        bench.case("add_rms_norm", work, &mut bench.nans(delta.len())?, |_, out| {
            let x = &mut x.as_view_mut();
            bench.cuda.add_rms_norm(x, &delta.as_view(), out, &weight.as_view(), eps)
        })?;
    }
    Ok(())
}

fn matmul(bench: &Bench, sizes: &Sizes) -> Result<()> {
    if !bench.wants("matmul") {
        return Ok(());
    }
    let config = &sizes.config;
    let (vocab, hidden, dim) = (config.vocab_size, config.hidden_size, config.head_dim);
    let (queries, keys) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    // The head's weight is the largest; the others are parts of the same array.
    let largest = vocab.max(queries + 2 * keys) * hidden;
    let weights = bench.bf16s(largest)?;
    let quants = bench.random(largest, |rng| rng.bits() as i8)?;
    for (name, outputs, inputs) in [
        ("qkv", queries + 2 * keys, hidden),
        ("o", hidden, queries),
        ("router", sizes.experts()[0], hidden),
        ("head", vocab, hidden),
    ] {
        let bias = bench.floats(outputs)?;
        let n = outputs * inputs;
        let form = |q8| sizes.product_rows.iter().map(move |&rows| (q8, rows));
        let forms = form(false).chain(form(true));
        for (q8, rows) in forms {
            let x = bench.floats(rows * inputs)?;
            let weight = if q8 { n + n / Q8_BLOCK * 2 } else { 2 * n };
            let bytes = weight + 4 * (outputs + rows * (inputs + outputs));
            let work = Work { rows, bytes, flops: 2 * rows * n };
            let form = if q8 { "matmul_q8" } else { "matmul" };
            let name = format!("{form} {name} {outputs} x {inputs}");
            bench.case(&name, work, &mut bench.nans(rows * outputs)?, |i, out| {
                let bias = bias.as_view();
                let weight = match q8 {
                    false => CudaDense::Bf16(part(&weights, i, n)),
                    true => CudaDense::Q8 {
                        quants: part(&quants, i, n),
                        scales: part(&weights, i, n / Q8_BLOCK),
                    },
                };
                // The head has no bias.
                let bias = (outputs != vocab).then_some(&bias);
                bench.cuda.matmul(out, &weight, &x.as_view(), bias, outputs, inputs)
            })?;
        }
    }
    Ok(())
}

fn topk(bench: &Bench, sizes: &Sizes) -> Result<()> {
    let k = sizes.config.num_experts_per_tok;
    for &experts in &sizes.experts() {
        for &rows in sizes.rows {
            let logits = bench.floats(rows * experts)?;
            let mut indices = bench.same(0u32, rows * k)?;
            let work = Work { rows, bytes: 4 * rows * (experts + 2 * k), flops: 0 };
            let name = format!("topk_softmax {k} of {experts}");
            bench.case(&name, work, &mut bench.nans(rows * k)?, |_, weights| {
                let (indices, logits) = (&mut indices.as_view_mut(), &logits.as_view());
                bench.cuda.topk_softmax(indices, weights, logits, None, experts, k)
            })?;
        }
    }
    Ok(())
}

fn sample(bench: &Bench, sizes: &Sizes) -> Result<()> {
    if !bench.wants("sample") {
        return Ok(());
    }
    let (vocab, mut rng) = (sizes.config.vocab_size, Rng(0x5eed));
    for &rows in sizes.draws {
        let logits = bench.random(rows * vocab, |rng| 8.0 * rng.float())?;
        let mut tokens = bench.same(0u32, rows)?;
        // Half of all tokens, as the grammar of a string allows most.
        let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|_| rng.bits() as u32).collect();
        let cut = Draw { top_k: 50, top_p: 0.95, ..Draw::default() };
        for (name, draw, masked) in [
            ("sample", Draw::default(), false),
            ("sample greedy", Draw { temperature: 0.0, ..Draw::default() }, false),
            ("sample top_k top_p", cut, false),
            ("sample masked", Draw::default(), true),
            ("sample masked top_k top_p", cut, true),
        ] {
            let allowed = masked.then_some(&mask[..]);
            let mut uniform = || f64::from(rng.float().abs());
            let draws: Vec<Draw<'_>> =
                (0..rows).map(|_| Draw { uniform: uniform(), allowed, ..draw }).collect();
            let bytes = 4 * rows * (vocab + 2 + allowed.map_or(0, <[u32]>::len));
            let work = Work { rows, bytes, flops: 0 };
            bench.case(name, work, &mut bench.nans(rows)?, |_, logprobs| {
                let (tokens, logits) = (&mut tokens.as_view_mut(), &logits.as_view());
                bench.cuda.sample(tokens, logprobs, logits, &draws)
            })?;
        }
    }
    Ok(())
}
