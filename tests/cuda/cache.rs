//! Rotary positions and the writing of pages.

use crate::common::{Rng, assert_bounded};
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::{HeadShape, KvFormat, PAGE_TOKENS, reference};
use half::bf16;

const FORMATS: [KvFormat; 4] = [
    KvFormat::F32,
    KvFormat::Bf16,
    KvFormat::Fp8 { k_scale: 1.0, v_scale: 1.0 },
    KvFormat::Fp8 { k_scale: 0.037, v_scale: 3.1 },
];

struct Rows {
    heads: HeadShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rows {
    fn random(rng: &mut Rng, heads: HeadShape, rows: usize) -> Rows {
        let HeadShape { q_heads, kv_heads, head_dim } = heads;
        let angles: Vec<f32> = rng.floats(rows * head_dim / 2).iter().map(|a| 9.0 * a).collect();
        Rows {
            heads,
            q: rng.floats(rows * q_heads * head_dim),
            k: rng.floats(rows * kv_heads * head_dim),
            v: rng.floats(rows * kv_heads * head_dim),
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
        }
    }

    /// The rotated q and the pages that were `pages`.
    fn write(
        &self,
        gpu: &Gpu,
        pages: &[u32],
        slots: &[u64],
        format: KvFormat,
        offset: usize,
    ) -> (Vec<f32>, Vec<u32>) {
        let [k, v, cos, sin] =
            [&self.k, &self.v, &self.cos, &self.sin].map(|x| gpu.input(x, offset));
        let slots = gpu.input(slots, offset);
        let mut written = Vec::new();
        let q = gpu.guarded_from(&self.q, offset, |q| {
            written = gpu.guarded_from(pages, 0, |pages| {
                let (k, v, cos, sin) = (k.view(), v.view(), cos.view(), sin.view());
                let slots = slots.view();
                gpu.cuda.rope_kv_write(q, &k, &v, &cos, &sin, pages, &slots, self.heads, format)
            });
            Ok(())
        });
        (q, written)
    }
}

/// Slots in a permuted order, spread over the pool.
fn permuted(rows: usize, pages: usize) -> Vec<u64> {
    (0..rows).map(|t| ((t * 37 + 5) % (pages * PAGE_TOKENS)) as u64).collect()
}

/// A NaN in FP8 is a NaN, whatever its sign.
fn nan_without_sign(pages: Vec<u32>, format: KvFormat) -> Vec<u32> {
    let unsigned = |code: u8| if code == 0xff { 0x7f } else { code };
    match format {
        KvFormat::Fp8 { .. } => (pages.into_iter())
            .map(|word| u32::from_le_bytes(word.to_le_bytes().map(unsigned)))
            .collect(),
        _ => pages,
    }
}

fn page_words(heads: HeadShape, format: KvFormat) -> usize {
    heads.page_elements() * format.element_bytes() / 4
}

/// Inputs on and beside every rounding boundary of FP8 and BF16, and the special values.
fn hard_values() -> Vec<f32> {
    let mut values = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
    values.extend([f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xff80_ffff)]);
    values.extend([f32::MIN_POSITIVE, 1e-40, 448.0, 464.0, 479.9, 480.0, 1e9]);
    let fp8 = |code| reference::fp8_decode(code) as f32;
    for code in 0..0x7e {
        let middle = (fp8(code) + fp8(code + 1)) / 2.0;
        values.extend([middle, middle.next_up(), middle.next_down(), -middle]);
    }
    for i in 0..64u32 {
        let middle = f32::from_bits(0x3f80_8000 + i * 0x1_0000);
        values.extend([middle, middle.next_up(), middle.next_down(), -middle]);
    }
    values
}

#[test]
fn rotated_queries_and_keys_are_bounded_and_stored_exactly() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    let shapes = [(1, 1, 16, 1), (6, 2, 64, 5), (3, 3, 48, 67), (5, 1, 80, 2), (64, 8, 64, 3)];
    for (i, (q_heads, kv_heads, head_dim, rows)) in shapes.into_iter().enumerate() {
        let heads = HeadShape { q_heads, kv_heads, head_dim };
        let given = Rows::random(&mut rng, heads, rows);
        let slots = permuted(rows, 3);
        let what = format!("{heads:?}, {rows} rows");
        let bounded = |got: &[f32], x: &[f32], n| {
            let want = reference::rope(x, &given.cos, &given.sin, n, head_dim);
            assert_bounded(got, &want, 1.0, 3, &what);
        };
        // As f32 the pages tell what the keys have become.
        let zeros = vec![0; 3 * page_words(heads, KvFormat::F32)];
        let (q, pages) = given.write(gpu, &zeros, &slots, KvFormat::F32, i % 2);
        bounded(&q, &given.q, q_heads);
        let key = |t: usize, i: usize| {
            let (page, row) = (slots[t] as usize / PAGE_TOKENS, slots[t] as usize % PAGE_TOKENS);
            let head = (page * 2 * kv_heads + i / head_dim) * PAGE_TOKENS + row;
            f32::from_bits(pages[head * head_dim + i % head_dim])
        };
        let width = kv_heads * head_dim;
        let rotated: Vec<f32> = (0..rows * width).map(|i| key(i / width, i % width)).collect();
        bounded(&rotated, &given.k, kv_heads);
        for format in FORMATS {
            let before: Vec<u32> =
                (0..3 * page_words(heads, format)).map(|_| rng.bits() as u32).collect();
            let mut want = before.clone();
            reference::kv_write(&mut want, &rotated, &given.v, &slots, heads, format);
            let (again, got) = given.write(gpu, &before, &slots, format, i % 2);
            assert!(got == want, "{what} {format:?}");
            assert!(again == q, "{what} {format:?}: q");
        }
    }
}

#[test]
fn hard_values_are_stored_as_the_reference_stores_them() {
    let Some(gpu) = device() else { return };
    let heads = HeadShape { q_heads: 2, kv_heads: 2, head_dim: 64 };
    // Times a scale, too: dividing gives the boundary back, multiplying by 1/scale often misses it.
    let mut hard = hard_values();
    hard.extend(hard_values().iter().flat_map(|x| [x * 0.037, x * 3.1]));
    let rows = hard.len().div_ceil(128);
    hard.resize(rows * 128, 0.5);
    let mut given = Rows::random(&mut Rng(2), heads, rows);
    let slots = permuted(rows, 2);
    // Keys that are not turned: a NaN or an infinity would take its partner with it.
    given.cos.fill(1.0);
    given.sin.fill(0.0);
    given.k = hard.iter().map(|x| if x.is_finite() { *x } else { 1.0 }).collect();
    given.v = hard;
    for format in FORMATS {
        let before = vec![0xa5a5_a5a5; 2 * page_words(heads, format)];
        let mut want = before.clone();
        // x · 1 − y · 0 and x · 1 + y · 0 keep x, but for the sign of a zero.
        let k: Vec<f32> = (given.k.chunks(64))
            .flat_map(|head| {
                let at = |i: usize| (head[i], head[(i + 32) % 64]);
                (0..64).map(move |i| match at(i) {
                    (x, y) if i < 32 => x * 1.0 - y * 0.0,
                    (x, y) => x * 1.0 + y * 0.0,
                })
            })
            .collect();
        reference::kv_write(&mut want, &k, &given.v, &slots, heads, format);
        let (_, got) = given.write(gpu, &before, &slots, format, 1);
        let [got, want] = [got, want].map(|pages| nan_without_sign(pages, format));
        assert!(got == want, "{format:?}");
    }
}

#[test]
fn fp8_stores_every_bf16() {
    let Some(gpu) = device() else { return };
    let heads = HeadShape { q_heads: 8, kv_heads: 8, head_dim: 64 };
    let rows = (1 << 16) / 512;
    let mut given = Rows::random(&mut Rng(3), heads, rows);
    given.v = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect();
    for v_scale in [1.0, 0.3] {
        let format = KvFormat::Fp8 { k_scale: 1.0, v_scale };
        let slots: Vec<u64> = (0..rows as u64).collect();
        let (_, got) = given.write(gpu, &vec![0; 2 * page_words(heads, format)], &slots, format, 0);
        let bytes: Vec<u8> = got.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (i, &x) in given.v.iter().enumerate() {
            let (row, head, d) = (i / 512, i / 64 % 8, i % 64);
            let at = ((row / PAGE_TOKENS * 2 + 1) * 8 + head) * PAGE_TOKENS + row % PAGE_TOKENS;
            let (got, want) = (bytes[at * 64 + d], reference::fp8_encode(f64::from(x / v_scale)));
            match x.is_nan() {
                true => assert_eq!(got & 0x7f, 0x7f, "NaN over {v_scale}"),
                false => assert_eq!(got, want, "{x} over {v_scale}"),
            }
        }
    }
}

#[test]
fn a_slot_outside_the_pool_is_not_written() {
    let Some(gpu) = device() else { return };
    let heads = HeadShape { q_heads: 1, kv_heads: 1, head_dim: 16 };
    let given = Rows::random(&mut Rng(4), heads, 3);
    let before = vec![7; page_words(heads, KvFormat::Bf16)];
    let (q, all) = given.write(gpu, &before, &[3, 4, 5], KvFormat::Bf16, 0);
    let (other, some) = given.write(gpu, &before, &[3, 64, u64::MAX], KvFormat::Bf16, 0);
    assert_eq!(q, other);
    // 16 dimensions are 8 words.
    let row = |pages: &[u32], i: usize| pages[8 * i..8 * (i + 1)].to_vec();
    assert_eq!(row(&some, 3), row(&all, 3));
    assert!(row(&some, 3) != [7; 8] && row(&some, 4) == [7; 8] && row(&some, 5) == [7; 8]);
}

#[test]
fn no_rows_are_legal() {
    let Some(gpu) = device() else { return };
    let heads = HeadShape { q_heads: 2, kv_heads: 1, head_dim: 16 };
    let given = Rows::random(&mut Rng(5), heads, 0);
    let before = vec![1; page_words(heads, KvFormat::F32)];
    assert_eq!(given.write(gpu, &before, &[], KvFormat::F32, 0), (Vec::new(), before));
}
