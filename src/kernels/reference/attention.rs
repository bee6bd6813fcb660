//! The paged cache and attention over it.

use super::Bounded;
use super::numbers::{bf16_encode, fp8_decode, fp8_encode};
use crate::kernels::{AttentionRows, HeadShape, KvFormat, PAGE_TOKENS};

/// Where element `d` of head `head` of the key (`part` 0) or value (1) of a slot lies, in elements from
/// the start of the pool.
fn element(heads: HeadShape, slot: usize, part: usize, head: usize, d: usize) -> usize {
    let (page, row) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
    let within = ((part * heads.kv_heads + head) * PAGE_TOKENS + row) * heads.head_dim + d;
    page * heads.page_elements() + within
}

/// Puts the low bits of `bits` at element `i` of a pool of elements of `bytes` bytes.
fn put(pages: &mut [u32], i: usize, bytes: usize, bits: u32) {
    let (word, shift) = (i * bytes / 4, i * bytes % 4 * 8);
    let mask = (u32::MAX >> (32 - 8 * bytes)) << shift;
    pages[word] = pages[word] & !mask | (bits << shift) & mask;
}

fn get(pages: &[u32], i: usize, bytes: usize) -> u32 {
    pages[i * bytes / 4] >> (i * bytes % 4 * 8) & (u32::MAX >> (32 - 8 * bytes))
}

/// Stores row t of `k` and `v` at `slots[t]`.
pub fn kv_write(
    pages: &mut [u32],
    k: &[f32],
    v: &[f32],
    slots: &[u64],
    heads: HeadShape,
    format: KvFormat,
) {
    let width = heads.kv_heads * heads.head_dim;
    for (t, &slot) in slots.iter().enumerate() {
        for (part, x) in [k, v].into_iter().enumerate() {
            for i in 0..width {
                let x = x[t * width + i];
                let bits = match format {
                    KvFormat::F32 => x.to_bits(),
                    KvFormat::Bf16 => u32::from(bf16_encode(x)),
                    KvFormat::Fp8 { k_scale, v_scale } => {
                        // The division is an f32 division: that is the format's rule.
                        u32::from(fp8_encode(f64::from(x / [k_scale, v_scale][part])))
                    }
                };
                let at =
                    element(heads, slot as usize, part, i / heads.head_dim, i % heads.head_dim);
                put(pages, at, format.element_bytes(), bits);
            }
        }
    }
}

/// Element `i` of the pool as a number; `part` chooses the scale.
fn stored(pages: &[u32], i: usize, part: usize, format: KvFormat) -> f64 {
    let bits = get(pages, i, format.element_bytes());
    match format {
        KvFormat::F32 => f64::from(f32::from_bits(bits)),
        KvFormat::Bf16 => f64::from(f32::from_bits(bits << 16)),
        KvFormat::Fp8 { k_scale, v_scale } => {
            fp8_decode(bits as u8) * f64::from([k_scale, v_scale][part])
        }
    }
}

/// `p_j = e^(s_j − m) / (Σ e^(s_k − m) + e^(sink − m))` with `s_j = scale · q·k_j` over the visible
/// positions j, `out = Σ p_j·v_j`. The sink takes its share of the weight and has no value.
///
/// `terms` is `Σ p_j·|v_j|` times the magnitude of the largest exponent, because an error of a score
/// comes out as a relative error of its weight (and of the sum under it).
#[allow(clippy::too_many_arguments)]
pub fn attention(
    q: &[f32],
    pages: &[u32],
    sinks: &[f32],
    rows: AttentionRows,
    heads: HeadShape,
    format: KvFormat,
    scale: f32,
) -> Bounded {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    let mut out = Bounded::with_capacity(q.len());
    for (t, &position) in rows.positions.iter().enumerate() {
        let table = rows.page_tables[rows.sequences[t] as usize];
        let position = position as usize;
        let first = rows.window.map_or(0, |window| (position + 1).saturating_sub(window));
        for head in 0..q_heads {
            let kv_head = head / (q_heads / kv_heads);
            let q = &q[(t * q_heads + head) * head_dim..][..head_dim];
            let at = |part, j: usize, d| {
                let slot = table[j / PAGE_TOKENS] as usize * PAGE_TOKENS + j % PAGE_TOKENS;
                stored(pages, element(heads, slot, part, kv_head, d), part, format)
            };
            let sink = f64::from(sinks[head]);
            let (mut scores, mut largest) = (Vec::new(), sink.abs());
            for j in first..=position {
                let (mut score, mut terms) = (0.0, 0.0);
                for (d, &q) in q.iter().enumerate() {
                    let term = f64::from(scale) * f64::from(q) * at(0, j, d);
                    score += term;
                    terms += term.abs();
                }
                scores.push(score);
                largest = f64::max(largest, terms);
            }
            let max = scores.iter().fold(sink, |m, &s| f64::max(m, s));
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
            for d in 0..head_dim {
                let (mut value, mut terms) = (0.0, 0.0);
                for (&score, j) in scores.iter().zip(first..) {
                    let term = (score - max).exp() / sum * at(1, j, d);
                    value += term;
                    terms += term.abs();
                }
                out.push(value, terms * (1.0 + largest));
            }
        }
    }
    out
}
