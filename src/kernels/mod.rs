//! Raw kernels over slices: what each computes, on which layout, to which accuracy.
//!
//! Below this line nothing is known of candle, config or files. [`mod@reference`] holds the f64
//! specification of every kernel, written to be read; [`cpu`] the tiers chosen at run time; `cuda`, with
//! the feature of that name, the same on an NVIDIA GPU.
//!
//! Shape letters: T rows (tokens of the flat batch), H hidden, I intermediate, O output features,
//! Q query heads, K key/value heads, D head_dim, E experts of the layer, k experts per token,
//! S cached positions of a sequence.
//!
//! | kernel | formula | shapes | class |
//! |---|---|---|---|
//! | `embedding` | `out[t,:] = table[token[t],:]` | `table: [V,H]` bf16, `out: [T,H]` | exact |
//! | `rms_norm` | `out = x · rsqrt(mean(x²) + eps) · w` | `x, out: [T,H]`, `w: [H]` | bounded |
//! | `matmul` | `out[t,o] = b[o] + Σ_i w[o,i]·x[t,i]` | `w: [O,I]` row-major, bf16 or Q8, `x: [T,I]`, `out: [T,O]` | bounded, row-invariant |
//! | `q8_encode` | `scale = max|w| / 127` rounded up to bf16, `quant = w / scale` to nearest even | blocks of 32 | exact |
//! | `rope` | half-split pairs `(i, i+D/2)`: `(x1·c − x2·s, x2·c + x1·s)`, in place | `x: [T,heads,D]`, `cos, sin: [T,D/2]` | bounded |
//! | `topk_softmax` | the k largest logits of a row, ties to the lower index, in descending order; softmax over those k | `logits: [T,E]`, `indices, weights: [T,k]` | indices exact, weights bounded |
//! | `moe_gate_up` | `h = W_gu[e]·x + b_gu[e]`; `g = min(h[2i], limit)`, `u = clamp(h[2i+1], ±limit)`; `out[i] = g·σ(alpha·g)·(u+1)` | `x: [T,H]`, `W_gu: [E,2I,H]`, `indices: [T,k]`, `out: [T·k,I]` | bounded, row-invariant |
//! | `moe_down` | `out[t,:] = Σ_j weight[t,j] · (W_d[e_j]·a[t·k+j,:] + b_d[e_j])`, summed in the order of `indices` | `a: [T·k,I]`, `W_d: [E,H,I]`, `out: [T,H]` | bounded, row-invariant |
//! | `kv_write` | stores row t of k and v at `slots[t]`, converted to the page's type; NaN in FP8 of either sign | `k, v: [T,K,D]`, page `[2,K,64,D]` | exact |
//! | `attention` | softmax over the visible positions and the head's sink, times V | `q, out: [T,Q,D]`, pages | bounded, row-invariant |
//! | `sample` | penalties, bias, mask; temperature, the k largest, the nucleus, the likely enough; one drawn | `logits: [R,V]`, `out: [R]` | the token exact but for the rounding of sums, row-invariant |
//! | `mxfp4_decode` | `FP4[nibble] · 2^(scale−127)` | blocks `[rows, cols/2]`, scales `[rows, cols/32]` | exact |
//! | `fp8_encode`, `fp8_decode` | E4M3FN, round to nearest even, saturate at ±448; NaN stays NaN, of either sign | scalar | exact |
//!
//! **Classes.** *exact*: bit equality with the reference. *bounded*:
//! `|out − ref| ≤ c·n·eps_f32·Σ|terms|` with n the length of the reduction and c stated by the test;
//! the references return `Σ|terms|` beside the value, so that the tolerance follows the data.
//! *row-invariant*: a row's result depends on that row's inputs alone, bit for bit: not on how many
//! rows share the call, on their order, or on the number of threads. Prefill, decode and ragged
//! batches are equal because of it. On a GPU dense products and routed experts (`moe`, both halves in one)
//! have it among calls of 1 to 256 rows, attention has it for rows that are alone in their sequence, and
//! so a step of decode has it as a whole. What more rows are given depends on how many pairs an expert
//! has, and with bf16 weights on cuBLAS.
//!
//! **Activations.** The products (`matmul`, `moe_gate_up`, `moe_down`) multiply what
//! [`reference::activations`] makes of their `x` or `a`: the numbers themselves, or their neighbours in
//! bf16. Against the reference of these the classes hold in every mode. Nothing else rounds: sums,
//! softmax, norms, attention and what one kernel hands to the next are f32.
//!
//! **MXFP4** (OCP Microscaling v1.0): 32 consecutive input features share one E8M0 scale; byte j of a
//! block holds feature 2j in its low nibble and 2j+1 in its high nibble. Row 2i of `W_gu` is gate i,
//! row 2i+1 is up i.
//!
//! **Q8**: [`Q8_BLOCK`] consecutive input features share one scale in bf16, each is a signed byte times
//! that scale. 8.5 bits for the 16 of bf16.
//!
//! **Pages.** One page holds [`PAGE_TOKENS`] positions of one layer: keys `[K, 64, D]`, then values
//! `[K, 64, D]`. A sequence's page table maps position p to page `table[p / 64]`, row `p % 64`;
//! [`NO_PAGE`] marks a page that left the window.

#[allow(unsafe_code)]
pub mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod cuda;
pub mod reference;

use half::bf16;

/// Elements per MXFP4 block; one E8M0 scale each.
pub const MXFP4_BLOCK: usize = 32;

/// Elements per block of [`Dense::Q8`].
pub const Q8_BLOCK: usize = 32;

/// FP4 E2M1 code points.
pub const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Positions per page of the key-value cache.
pub const PAGE_TOKENS: usize = 64;

/// Page-table entry of a page that was given back.
pub const NO_PAGE: u32 = u32::MAX;

/// A dense matrix `[rows, cols]`, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Dense<'a> {
    /// As stored in checkpoints.
    Bf16(&'a [bf16]),
    /// In 8 bits, see the module's text. Rows are whole blocks.
    Q8 {
        /// `rows · cols` values.
        quants: &'a [i8],
        /// `rows · cols / 32` scales.
        scales: &'a [bf16],
    },
}

/// The expert matrices of one projection of one layer, as stored in the checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum Experts<'a> {
    /// `[E, rows, cols]` in MXFP4.
    Mxfp4 {
        /// `E · rows · cols / 2` packed bytes.
        blocks: &'a [u8],
        /// `E · rows · cols / 32` E8M0 exponents.
        scales: &'a [u8],
    },
    /// `[E, cols, rows]` in bf16: the transposed layout of dequantised checkpoints.
    Bf16(&'a [bf16]),
}

/// Shape of the expert matrices of one projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// E.
    pub experts: usize,
    /// Output features of one expert.
    pub rows: usize,
    /// Input features of one expert, a multiple of [`MXFP4_BLOCK`].
    pub cols: usize,
}

/// Clamped SwiGLU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwigluParams {
    /// Slope of the sigmoid.
    pub alpha: f32,
    /// Upper bound of the gate, bound of the magnitude of up.
    pub limit: f32,
}

/// What the products of weights with activations (the projections of attention, the routers, the experts
/// and the head) make of the activations. Everything else is f32 in any case: the sums, the residual
/// stream, norms, softmax and attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// As they are, to f32's precision; on tensor cores as two bf16, which leaves 2^-17 of them out.
    #[default]
    Exact,
    /// Rounded to bf16, to nearest even: half the work of a GPU's tensor cores, no less on the CPU. The
    /// logits change a little; README says by how much. openai's implementation and its peers on GPUs keep
    /// all activations in bf16, the residual stream and what lies between products too: this is nearer to
    /// f32 than they are.
    Bf16,
}

/// How the pages of one layer store keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvFormat {
    /// As computed.
    F32,
    /// Rounded to nearest even.
    Bf16,
    /// E4M3FN of `x / scale`, one scale each for the layer's keys and values.
    Fp8 {
        /// Scale of the keys.
        k_scale: f32,
        /// Scale of the values.
        v_scale: f32,
    },
}

impl KvFormat {
    /// Bytes of one stored element.
    pub fn element_bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::Bf16 => 2,
            KvFormat::Fp8 { .. } => 1,
        }
    }
}

/// Shape of a page and of the heads that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Q, a multiple of `kv_heads`.
    pub q_heads: usize,
    /// K.
    pub kv_heads: usize,
    /// D, a multiple of 16.
    pub head_dim: usize,
}

impl HeadShape {
    /// Elements of one page: keys and values of [`PAGE_TOKENS`] positions.
    pub fn page_elements(self) -> usize {
        2 * self.kv_heads * PAGE_TOKENS * self.head_dim
    }
}

/// Which positions each row of an attention call sees.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRows<'a> {
    /// Position of each row in its sequence, T entries. Row t sees positions
    /// `max(0, p − window + 1) ..= p`, all of which must have been written.
    pub positions: &'a [u32],
    /// Index into `page_tables` of each row's sequence, T entries.
    pub sequences: &'a [u32],
    /// Page table of each sequence for this layer: page of positions `64·i .. 64·i + 64`.
    pub page_tables: &'a [&'a [u32]],
    /// Positions seen, the row's own included; `None` for all.
    pub window: Option<usize>,
}

/// How a token is drawn from a row of logits: the steps and their order are those of
/// [`crate::generation`]'s sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw<'a> {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f64,
    /// Keeps this many of the largest; 0 keeps all.
    pub top_k: usize,
    /// Of those, the fewest whose probabilities reach this; 1 keeps all.
    pub top_p: f64,
    /// Of those, the ones at least this times as probable as the most probable.
    pub min_p: f64,
    /// Divides positive logits of tokens that were seen, multiplies negative ones.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens the answer has.
    pub presence_penalty: f32,
    /// Subtracted for each time the answer has them.
    pub frequency_penalty: f32,
    /// Tokens of prompt and answer, ascending, each with how often the answer has it.
    pub seen: &'a [(u32, u32)],
    /// Added to logits, after the penalties; by ascending token.
    pub bias: &'a [(u32, f32)],
    /// Which tokens may be drawn, a bit for each, none behind its end; `None` for all.
    pub allowed: Option<&'a [u32]>,
    /// In 0..1: the token is the first, in descending order, at which the sum of probabilities exceeds it.
    pub uniform: f64,
}

impl Default for Draw<'_> {
    /// From all, by their probability.
    fn default() -> Self {
        Draw {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seen: &[],
            bias: &[],
            allowed: None,
            uniform: 0.0,
        }
    }
}

/// Decodes an E8M0 scale, `2^(s − 127)`. Exact for 0..=254; 255 is NaN in the OCP MX format.
///
/// Not `powi`: `2f32.powi(-127)` is `1 / 2^127`, and `powi(-128)` is `1 / inf = 0`.
#[inline(always)]
pub const fn e8m0(s: u8) -> f32 {
    match s {
        0 => f32::from_bits(0x0040_0000), // 2^-127 is subnormal
        255 => f32::NAN,
        _ => f32::from_bits((s as u32) << 23),
    }
}

/// Elements of an array of shape `shape`. Lengths are compared with this instead of a product that may
/// have wrapped around: the kernels rely on the comparison.
///
/// # Panics
///
/// When the number does not fit.
fn elements<const N: usize>(shape: [usize; N]) -> usize {
    let product = shape.into_iter().try_fold(1, usize::checked_mul);
    product.unwrap_or_else(|| panic!("an array of shape {shape:?} overflows"))
}

/// How many pages of `heads` in `format` a pool of `words` 32-bit words is.
///
/// # Panics
///
/// Unless `heads` is a shape and these are whole pages of it.
fn page_count(words: usize, heads: HeadShape, format: KvFormat) -> usize {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    assert!(kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads), "{heads:?}");
    assert!(head_dim > 0 && head_dim.is_multiple_of(16), "{heads:?}");
    let page = elements([2, kv_heads, PAGE_TOKENS, head_dim, format.element_bytes()]) / 4;
    assert!(words.is_multiple_of(page), "pages");
    words / page
}
