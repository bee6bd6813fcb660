//! Products with many inputs. Weight rows and inputs are laid out first so that a tier's innermost loop
//! reads both from one end to the other, and decodes a weight once for all inputs (packing into
//! micro-panels: Goto and van de Geijn 2008, doi 10.1145/1356052.1356053).
//!
//! A panel of h rows holds the first vector of each of them, then the second of each, and so on; a
//! vector that the end of a row cuts off is filled up with zeros. Weights that bf16 holds exactly, which
//! MXFP4's are, stand in pairs of rows: the even row in the low half of each word, the odd one in the high
//! half, because a panel of whole floats would be too large for the first cache and the product wait for
//! the second. The sums are those of the kernels for few inputs, vector by vector from left to right, so
//! the results are the same bits.

use super::q8::Q8Rows;
use super::shares::Columns;
use super::words;
use half::bf16;
use std::ops::Range;

/// Inputs that one pass over a task's rows serves: their panels stay in the L2 cache. A multiple of
/// every tier's [`Tile::inputs`].
pub(super) const TOKENS: usize = 48;

/// A tier's innermost product, of a panel of weight rows and a panel of inputs.
#[derive(Clone, Copy)]
#[allow(clippy::type_complexity)] // a name for each signature would not make it simpler
pub(super) struct Tile {
    /// Weight rows, an even number.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) inputs: usize,
    /// Elements of a vector.
    pub(super) lanes: usize,
    /// `sums[n,r] = Σ_i w[r,i]·x[n,i]` for the panels `w`, in pairs of rows, and `x`, equally long.
    pub(super) product: unsafe fn(&mut [f32], &[u32], &[f32]),
    /// The same for a panel `w` of whole floats.
    pub(super) product_f32: unsafe fn(&mut [f32], &[f32], &[f32]),
    /// Makes two rows of bf16 the given pair of a panel of [`Tile::rows`].
    pub(super) pack_bf16: unsafe fn(&mut [u32], usize, [&[bf16]; 2]),
    /// The same for the blocks and scales of two MXFP4 rows, in the tier's order of features.
    pub(super) pack_mxfp4: unsafe fn(&mut [u32], usize, [(&[u8], &[u8]); 2]),
    /// Makes a row in 8 bits the given row of a panel of whole floats.
    pub(super) pack_q8: unsafe fn(&mut [f32], usize, Q8Rows<'_>),
}

/// How the weight rows of a product are laid out in a panel.
#[allow(clippy::type_complexity)] // as above
pub(super) enum LayOut<'a> {
    /// `pair(panel, i, [o, p])` makes weight rows o and p pair i.
    Pairs(&'a dyn Fn(&mut [u32], usize, [usize; 2])),
    /// `row(panel, i, o)` makes weight row o row i, in whole floats.
    Rows(&'a dyn Fn(&mut [f32], usize, usize)),
}

impl Tile {
    /// Most values of `sums`.
    const SUMS: usize = 32;

    /// Floats of a panel of `height` rows of `cols` elements.
    fn panel(&self, height: usize, cols: usize) -> usize {
        height * cols.next_multiple_of(self.lanes)
    }

    /// Floats of a panel of weight rows.
    pub(super) fn weights(&self, cols: usize) -> usize {
        self.panel(self.rows, cols)
    }

    /// Floats of the panels of `n` inputs, which are also where the panels of inputs behind them begin
    /// if `n` is a multiple of [`Tile::inputs`].
    pub(super) fn packed(&self, n: usize, cols: usize) -> usize {
        n.div_ceil(self.inputs) * self.panel(self.inputs, cols)
    }

    /// Lays out input `n` of panels that begin with `packed`. Vectors come from `row` in their order.
    pub(super) fn pack_input(&self, packed: &mut [f32], n: usize, row: &[f32]) {
        let len = self.panel(self.inputs, row.len());
        let panel = &mut packed[n / self.inputs * len..][..len];
        match self.lanes {
            16 => pack::<16>(panel, self.inputs, n % self.inputs, row),
            _ => pack::<8>(panel, self.inputs, n % self.inputs, row),
        }
    }

    /// All columns of `out` for the inputs of `packed`: `out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i]`. `panel`
    /// is scratch for [`Tile::weights`].
    pub(super) fn matmul(
        &self,
        out: &mut Columns<'_, f32>,
        packed: &[f32],
        bias: Option<&[f32]>,
        cols: usize,
        panel: &mut [f32],
        lay_out: &LayOut<'_>,
    ) {
        let (columns, inputs) = (out.width(), out.rows());
        assert_eq!(packed.len(), self.packed(inputs, cols), "packed");
        let whole = &mut panel[..self.weights(cols)];
        let halves = whole.len() / 2;
        for start in (0..columns).step_by(self.rows) {
            let rows = self.rows.min(columns - start);
            match lay_out {
                LayOut::Pairs(pair) => {
                    let panel = words::u32s_mut(&mut whole[..halves]);
                    for i in (0..rows).step_by(2) {
                        // The last of an odd number is its own neighbour.
                        pair(panel, i / 2, [start + i, start + rows.min(i + 2) - 1]);
                    }
                }
                LayOut::Rows(row) => (0..rows).for_each(|i| row(whole, i, start + i)),
            }
            let panels = packed.chunks_exact(self.panel(self.inputs, cols));
            for (x, t) in panels.zip((0..inputs).step_by(self.inputs)) {
                let mut sums = [0.0; Tile::SUMS];
                let sums = &mut sums[..self.rows * self.inputs];
                // SAFETY: the table exists only where its tier runs. Both panels have its height.
                unsafe {
                    match lay_out {
                        LayOut::Pairs(_) => {
                            (self.product)(sums, words::u32s(&whole[..halves]), x);
                        }
                        LayOut::Rows(_) => (self.product_f32)(sums, whole, x),
                    }
                }
                let sums = sums.chunks_exact(self.rows).take(self.inputs.min(inputs - t));
                for (n, sums) in sums.enumerate() {
                    let out = &mut out.row(t + n)[start..start + rows];
                    for (o, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                        *out = sum + bias.map_or(0.0, |bias| bias[start + o]);
                    }
                }
            }
        }
    }
}

/// Makes `row` row `at` of a panel of `height` rows.
fn pack<const L: usize>(panel: &mut [f32], height: usize, at: usize, row: &[f32]) {
    let (vectors, rest) = row.as_chunks::<L>();
    let mut places = panel.as_chunks_mut::<L>().0.iter_mut().skip(at).step_by(height);
    for (vector, place) in vectors.iter().zip(places.by_ref()) {
        *place = *vector;
    }
    if let (false, Some(place)) = (rest.is_empty(), places.next()) {
        place.fill(0.0);
        place[..rest.len()].copy_from_slice(rest);
    }
}

/// `n` inputs in pieces of [`TOKENS`].
pub(super) fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(TOKENS).map(move |start| start..n.min(start + TOKENS))
}
