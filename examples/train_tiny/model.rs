//! The graph of gpt-oss-puzzle in plain differentiable form: f32, candle's own ops, no cache, no
//! quantised storage. It is trained with, and it is what the fast path is tested against.
//!
//! Sequences of any length stand one after another in one flat batch; only attention looks at them
//! one by one. Parameters have their Hugging Face names; experts are `[E, 2I, D]` and `[E, D, I]`, the
//! shapes of their MXFP4 blocks, gate and up rows interleaved.

use crate::attention::Attention;
use crate::mxfp4;
use crate::ops::{PerExpert, RmsNorm, Rotation, SwiGlu};
use crate::world::Rng;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use gpt_oss_puzzle::ModelConfig;
use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::sync::Arc;

/// The model's parameters.
pub struct TinyModel {
    pub config: ModelConfig,
    pub parameters: BTreeMap<String, Var>,
    pub inv_freq: Vec<f64>,
}

/// Sequences to run, one after another.
#[derive(Clone, Debug, Default)]
pub struct FlatBatch {
    pub tokens: Vec<u32>,
    pub lengths: Vec<usize>,
    /// Rows whose next token is to be predicted.
    pub rows: Vec<u32>,
}

/// What a forward pass gives.
pub struct Forward {
    /// `[rows, V]`.
    pub logits: Tensor,
    /// How unevenly tokens are spread over experts, a scalar; 1 per layer where even.
    pub imbalance: Tensor,
    /// Largest magnitude of a rotated key and of a value, per layer, where asked for.
    pub kv_max: Vec<[f32; 2]>,
}

/// What is measured and rounded on the way.
#[derive(Clone, Default)]
pub struct Mode {
    /// What MXFP4 storage adds to each expert's numbers, see [`TinyModel::mxfp4_errors`]; gradients go
    /// to the numbers behind (straight-through, Bengio et al. 2013, arXiv 1308.3432).
    pub mxfp4: Arc<BTreeMap<String, Tensor>>,
    /// Fill [`Forward::kv_max`].
    pub kv_max: bool,
}

impl TinyModel {
    /// A model to be trained.
    pub fn new(config: &ModelConfig, rng: &mut Rng) -> Result<TinyModel> {
        let c = config;
        let (d, i, q) = (c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim);
        let kv = c.num_key_value_heads * c.head_dim;
        // What is added to the residual stream starts small, the more so the more is added.
        let added = 1.0 / (2.0 * c.num_hidden_layers() as f64).sqrt();
        let matrix = |width: usize| 1.0 / (width as f64).sqrt();
        let mut parameters = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], mean: f64, std: f64| -> Result<()> {
            let numbers = (0..shape.iter().product()).map(|_| (mean + std * normal(rng)) as f32);
            let tensor = Tensor::from_vec(numbers.collect(), shape, &Device::Cpu)?;
            parameters.insert(name, Var::from_tensor(&tensor)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), &[c.vocab_size, d], 0.0, 0.5)?;
        for (n, block) in c.block_configs.iter().enumerate() {
            let e = block.num_local_experts;
            let shapes: [(&str, &[usize], f64, f64); 16] = [
                ("input_layernorm.weight", &[d], 1.0, 0.0),
                ("self_attn.q_proj.weight", &[q, d], 0.0, matrix(d)),
                ("self_attn.q_proj.bias", &[q], 0.0, 0.0),
                ("self_attn.k_proj.weight", &[kv, d], 0.0, matrix(d)),
                ("self_attn.k_proj.bias", &[kv], 0.0, 0.0),
                ("self_attn.v_proj.weight", &[kv, d], 0.0, matrix(d)),
                ("self_attn.v_proj.bias", &[kv], 0.0, 0.0),
                ("self_attn.o_proj.weight", &[d, q], 0.0, matrix(q) * added),
                ("self_attn.o_proj.bias", &[d], 0.0, 0.0),
                ("self_attn.sinks", &[c.num_attention_heads], 0.0, 0.0),
                ("post_attention_layernorm.weight", &[d], 1.0, 0.0),
                ("mlp.router.weight", &[e, d], 0.0, matrix(d)),
                ("mlp.router.bias", &[e], 0.0, 0.0),
                ("mlp.experts.gate_up_proj", &[e, 2 * i, d], 0.0, matrix(d)),
                ("mlp.experts.gate_up_proj_bias", &[e, 2 * i], 0.0, 0.0),
                ("mlp.experts.down_proj", &[e, d, i], 0.0, matrix(i) * added),
            ];
            for (name, shape, mean, std) in shapes {
                add(format!("model.layers.{n}.{name}"), shape, mean, std)?;
            }
            add(format!("model.layers.{n}.mlp.experts.down_proj_bias"), &[e, d], 0.0, 0.0)?;
        }
        add("model.norm.weight".into(), &[d], 1.0, 0.0)?;
        add("lm_head.weight".into(), &[c.vocab_size, d], 0.0, matrix(d))?;
        Ok(TinyModel::from_parameters(config, parameters))
    }

    /// A model with these parameters.
    pub fn from_parameters(config: &ModelConfig, parameters: BTreeMap<String, Var>) -> TinyModel {
        TinyModel { config: config.clone(), parameters, inv_freq: inv_freq(config) }
    }

    /// What storage as MXFP4 adds to the experts' numbers as they are now.
    pub fn mxfp4_errors(&self) -> Result<Arc<BTreeMap<String, Tensor>>> {
        let experts = self.parameters.iter().filter(|(name, _)| name.ends_with("_proj"));
        let error = |(name, var): (&String, &Var)| {
            let numbers = var.as_detached_tensor();
            Ok((name.clone(), (mxfp4::rounded(&numbers)? - numbers)?))
        };
        Ok(Arc::new(experts.map(error).collect::<Result<_>>()?))
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        match self.parameters.get(name) {
            Some(var) => Ok(var.as_tensor()),
            None => candle_core::bail!("no parameter {name}"),
        }
    }

    /// Runs `batch`.
    pub fn forward(&self, batch: &FlatBatch, mode: &Mode) -> Result<Forward> {
        let tokens = Tensor::new(batch.tokens.as_slice(), &Device::Cpu)?;
        let mut x = self.get("model.embed_tokens.weight")?.index_select(&tokens, 0)?;
        let rotation = self.rotation(&batch.lengths);
        let mut imbalance = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let mut kv_max = Vec::new();
        for layer in 0..self.config.num_hidden_layers() {
            let (y, max) = self.attention(layer, &x, &rotation, &batch.lengths, mode)?;
            kv_max.extend(max);
            x = (x + y)?;
            let (y, uneven) = self.experts(layer, &x, mode)?;
            x = (x + y)?;
            imbalance = (imbalance + uneven)?;
        }
        let rows = Tensor::new(batch.rows.as_slice(), &Device::Cpu)?;
        let x = self.norm(&x.index_select(&rows, 0)?, "model.norm.weight")?;
        let logits = x.matmul(&self.get("lm_head.weight")?.t()?)?;
        Ok(Forward { logits, imbalance, kv_max })
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.apply_op2(self.get(name)?, RmsNorm { eps: self.config.rms_norm_eps as f32 })
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let y = x.matmul(&self.get(&format!("{name}.weight"))?.t()?)?;
        y + ones(x)?.matmul(&self.get(&format!("{name}.bias"))?.unsqueeze(0)?)
    }

    fn rotation(&self, lengths: &[usize]) -> Rotation {
        let angles = || {
            let positions = lengths.iter().flat_map(|length| 0..*length);
            positions.flat_map(|p| self.inv_freq.iter().map(move |w| p as f64 * w))
        };
        let factor = self.config.rope.attention_factor;
        Rotation {
            cos: Arc::new(angles().map(|a| (a.cos() * factor) as f32).collect()),
            sin: Arc::new(angles().map(|a| (a.sin() * factor) as f32).collect()),
            half: self.inv_freq.len(),
            sign: 1.0,
        }
    }

    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        rotation: &Rotation,
        lengths: &[usize],
        mode: &Mode,
    ) -> Result<(Tensor, Option<[f32; 2]>)> {
        let c = &self.config;
        let name = format!("model.layers.{layer}");
        let x = self.norm(x, &format!("{name}.input_layernorm.weight"))?;
        let part = |part| self.linear(&x, &format!("{name}.self_attn.{part}_proj"));
        let q = part("q")?.apply_op1(rotation.clone())?;
        let k = part("k")?.apply_op1(rotation.clone())?;
        let v = part("v")?;
        let max = match mode.kv_max {
            true => Some([largest(&k)?, largest(&v)?]),
            false => None,
        };
        let attention = Attention {
            lengths: lengths.to_vec(),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
            window: c.block_configs[layer].sliding_window.unwrap_or(usize::MAX),
        };
        let sinks = self.get(&format!("{name}.self_attn.sinks"))?;
        let attended = Tensor::cat(&[q, k, v], 1)?.apply_op2(sinks, attention)?;
        Ok((self.linear(&attended, &format!("{name}.self_attn.o_proj"))?, max))
    }

    /// The experts' sum, and how unevenly they were chosen (Fedus et al. 2021, arXiv 2101.03961,
    /// equation 4).
    fn experts(&self, layer: usize, x: &Tensor, mode: &Mode) -> Result<(Tensor, Tensor)> {
        let c = &self.config;
        let (experts, k) = (c.block_configs[layer].num_local_experts, c.num_experts_per_tok);
        let name = format!("model.layers.{layer}");
        let x = self.norm(x, &format!("{name}.post_attention_layernorm.weight"))?;
        let tokens = x.dim(0)?;
        let logits = self.linear(&x, &format!("{name}.mlp.router"))?;
        let chosen = top_k(&logits.detach().to_vec2()?, k);

        // Pairs of a token and one of its experts, sorted by expert.
        let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
        order.sort_by_key(|pair| chosen[*pair as usize]);
        let mut counts = vec![0usize; experts];
        chosen.iter().for_each(|expert| counts[*expert as usize] += 1);
        let mut place = vec![0u32; order.len()];
        order.iter().enumerate().for_each(|(i, pair)| place[*pair as usize] = i as u32);

        let device = Device::Cpu;
        let token_of: Vec<u32> = order.iter().map(|pair| pair / k as u32).collect();
        let inputs = x.index_select(&Tensor::from_vec(token_of, order.len(), &device)?, 0)?;
        let inputs =
            self.per_expert(&inputs, &counts, &format!("{name}.mlp.experts.gate_up_proj"), mode)?;
        let swiglu = SwiGlu { alpha: c.swiglu_alpha as f32, limit: c.swiglu_limit as f32 };
        let activated = inputs.apply_op1(swiglu)?;
        let outputs =
            self.per_expert(&activated, &counts, &format!("{name}.mlp.experts.down_proj"), mode)?;
        let outputs = outputs.index_select(&Tensor::from_vec(place, chosen.len(), &device)?, 0)?;
        let outputs = outputs.reshape((tokens, k, c.hidden_size))?;

        let chosen = Tensor::from_vec(chosen, (tokens, k), &device)?;
        let weights = softmax(&logits.gather(&chosen, 1)?)?;
        // [T, 1, k] × [T, k, D]
        let sum = weights.unsqueeze(1)?.matmul(&outputs)?.squeeze(1)?;
        let share = counts.iter().map(|n| *n as f32 * experts as f32 / (tokens * k) as f32);
        let share = Tensor::from_iter(share, &device)?.unsqueeze(1)?;
        let uneven = softmax(&logits)?.matmul(&share)?.mean_all()?;
        Ok((sum, uneven))
    }

    /// Row i of `x` times the matrix of its expert, and its bias; `counts[e]` rows for expert e, in
    /// order.
    fn per_expert(&self, x: &Tensor, counts: &[usize], name: &str, mode: &Mode) -> Result<Tensor> {
        let (matrices, biases) = (self.get(name)?, self.get(&format!("{name}_bias"))?);
        let matrices = match mode.mxfp4.get(name) {
            Some(error) => (matrices + error)?,
            None => matrices.clone(),
        };
        x.apply_op3(&matrices, biases, PerExpert { counts: counts.to_vec() })
    }
}

/// `[N, 1]` of ones for the N rows of `x`: a bias added by matrix product has its gradient summed by
/// one, which is far faster than a broadcast's.
fn ones(x: &Tensor) -> Result<Tensor> {
    Tensor::ones((x.dim(0)?, 1), DType::F32, x.device())
}

/// Over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

fn largest(x: &Tensor) -> Result<f32> {
    x.detach().abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// The k largest of every row, largest first, ties to the lower index.
fn top_k(rows: &[Vec<f32>], k: usize) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(rows.len() * k);
    let mut ranked = Vec::new();
    for row in rows {
        ranked.clear();
        ranked.extend(0..row.len() as u32);
        ranked.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        chosen.extend_from_slice(&ranked[..k]);
    }
    chosen
}

/// YaRN's angle per position of each pair (Peng et al. 2023, arXiv 2309.00071).
fn inv_freq(config: &ModelConfig) -> Vec<f64> {
    let rope = &config.rope;
    let half = config.head_dim / 2;
    let context = rope.original_max_position_embeddings as f64;
    let pair = |turns: f64| half as f64 * (context / (turns * TAU)).ln() / rope.rope_theta.ln();
    let (mut low, mut high) = (pair(rope.beta_fast), pair(rope.beta_slow));
    if rope.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(config.head_dim as f64 - 1.0));
    let freq = |i: usize| {
        let freq = rope.rope_theta.powf(-(i as f64) / half as f64);
        let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        slow * freq / rope.factor + (1.0 - slow) * freq
    };
    (0..half).map(freq).collect()
}

/// A normally distributed number (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    let mut uniform = || (rng.below(1 << 30) as f64 + 0.5) / f64::from(1 << 30);
    let radius = (-2.0 * uniform().ln()).sqrt();
    radius * (TAU * uniform()).cos()
}
