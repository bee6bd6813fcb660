//! Where the heads that copy begin: as the circuit that training would otherwise take most of its time
//! to find.
//!
//! Going on with what followed the last time takes two layers (Olsson et al. 2022, arXiv 2209.11895):
//! one head tells every token which token stood before it, a later head looks for the place whose token
//! before is the present one, and copies what stands there. Neither is of use without the other, so
//! they form late, if at all, in a training as short as this one. Here they are in place from the
//! start, and all of it is trained like any other parameter.
//!
//! For that the residual stream of D numbers has parts: `0..D/2` is the token itself, `D/2..3D/4` the
//! token before it, `3D/4..D` the one before that. The prediction is read from `D/2..D`, in reverse.

use crate::model::TinyModel;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Share of the random start that is left in what is put in place.
const RANDOM: f32 = 0.1;
/// Size of the keys that find a neighbour.
const NEAR: f32 = 5.0;

/// A parameter's numbers, to be changed in place.
struct Matrix<'m> {
    model: &'m TinyModel,
    name: String,
    columns: usize,
    numbers: Vec<f32>,
}

impl<'m> Matrix<'m> {
    fn load(model: &'m TinyModel, name: String) -> Result<Matrix<'m>> {
        let Some(var) = model.parameters.get(&name) else {
            candle_core::bail!("no parameter {name}");
        };
        let columns = if var.rank() == 1 { 1 } else { var.dim(1)? };
        Ok(Matrix { model, name, columns, numbers: var.flatten_all()?.to_vec1()? })
    }

    fn at(&mut self, row: usize, column: usize) -> &mut f32 {
        &mut self.numbers[row * self.columns + column]
    }

    fn scale(&mut self, rows: Range<usize>, columns: Range<usize>, factor: f32) {
        for row in rows {
            for column in columns.clone() {
                *self.at(row, column) *= factor;
            }
        }
    }

    fn store(self) -> Result<()> {
        let var = &self.model.parameters[&self.name];
        var.set(&Tensor::from_vec(self.numbers, var.shape(), var.device())?)
    }
}

/// Puts the circuit into a model with random parameters: heads for the token before and the one before
/// that in layer 0, heads that look for both in the layers of `copying`.
pub fn put_in_place(model: &TinyModel, copying: &[usize]) -> Result<()> {
    embedding_and_head(model)?;
    tokens_before(model)?;
    copying.iter().try_for_each(|layer| copies(model, *layer))
}

fn projection<'m>(model: &'m TinyModel, layer: usize, part: &str) -> Result<Matrix<'m>> {
    Matrix::load(model, format!("model.layers.{layer}.self_attn.{part}"))
}

/// The head reads from the second half what the embedding writes to the first.
fn embedding_and_head(model: &TinyModel) -> Result<()> {
    let (tokens, width) = (model.config.vocab_size, model.config.hidden_size);
    let mut embedding = Matrix::load(model, "model.embed_tokens.weight".into())?;
    let mut head = Matrix::load(model, "lm_head.weight".into())?;
    embedding.scale(0..tokens, width / 2..width, 0.2);
    head.scale(0..tokens, 0..width, RANDOM);
    for token in 0..tokens {
        for i in 0..width / 2 {
            *head.at(token, width - 1 - i) += 0.2 * *embedding.at(token, i);
        }
    }
    embedding.store()?;
    head.store()
}

/// Layer 0, heads 0 and 1, which share keys and values: the token before, and the one before that.
/// Keys are alike, so what counts is the distance; the query of head h is the key turned back by h + 1
/// positions. Only pairs that turn fast tell neighbours apart.
fn tokens_before(model: &TinyModel) -> Result<()> {
    let (width, dim) = (model.config.hidden_size, model.config.head_dim);
    let (half, quarter, pairs) = (width / 2, width / 4, dim / 2);
    let fast = 0..3 * pairs / 8;
    let part = |part| projection(model, 0, part);
    let (mut q, mut q_bias) = (part("q_proj.weight")?, part("q_proj.bias")?);
    let (mut k, mut k_bias) = (part("k_proj.weight")?, part("k_proj.bias")?);
    let (mut v, mut o) = (part("v_proj.weight")?, part("o_proj.weight")?);
    q.scale(0..2 * dim, 0..width, RANDOM);
    k.scale(0..dim, 0..width, RANDOM);
    v.scale(0..dim, 0..width, RANDOM);
    o.scale(0..width, 0..2 * dim, RANDOM);
    for pair in fast.clone() {
        *k_bias.at(pair, 0) = NEAR;
    }
    for j in 0..half.min(dim) {
        *v.at(j, j) += 1.0;
    }
    for h in 0..2 {
        for pair in fast.clone() {
            let angle = -((h + 1) as f64) * model.inv_freq[pair];
            *q_bias.at(h * dim + pair, 0) = NEAR * angle.cos() as f32;
            *q_bias.at(h * dim + pair + pairs, 0) = NEAR * angle.sin() as f32;
        }
        for j in 0..quarter {
            *o.at(half + h * quarter + j, h * dim + j) += 0.4;
        }
    }
    [q, q_bias, k, k_bias, v, o].into_iter().try_for_each(Matrix::store)
}

/// Two heads of `layer` that copy what stands where the token before is the present one, and where the
/// one before that is the token before the present one.
fn copies(model: &TinyModel, layer: usize) -> Result<()> {
    let c = &model.config;
    let (width, dim) = (c.hidden_size, c.head_dim);
    let (half, quarter, pairs) = (width / 2, width / 4, dim / 2);
    let group = c.num_attention_heads / c.num_key_value_heads;
    // Pairs that turn slowly compare tokens at any distance.
    let slow: Vec<usize> = (pairs / 2..pairs).flat_map(|pair| [pair, pair + pairs]).collect();
    let part = |part| projection(model, layer, part);
    let (mut q, mut k) = (part("q_proj.weight")?, part("k_proj.weight")?);
    let (mut v, mut o) = (part("v_proj.weight")?, part("o_proj.weight")?);
    for kv in 0..2 {
        // What is looked for, and where it stands there.
        let (own, other) = (kv * half, half + kv * quarter);
        let (keys, queries) = (kv * dim, kv * group * dim);
        k.scale(keys..keys + dim, 0..width, RANDOM);
        v.scale(keys..keys + dim, 0..width, RANDOM);
        q.scale(queries..queries + dim, 0..width, RANDOM);
        o.scale(0..width, queries..queries + dim, RANDOM);
        for (j, row) in slow.iter().enumerate().take(quarter) {
            *q.at(queries + row, own + j) += 1.5;
            *k.at(keys + row, other + j) += 1.5;
        }
        for j in 0..half.min(dim) {
            *v.at(keys + j, j) += 1.0;
            *o.at(width - 1 - j, queries + j) += 0.3;
        }
    }
    [q, k, v, o].into_iter().try_for_each(Matrix::store)
}
