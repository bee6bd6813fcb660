//! The shape of the paged cache, and the writing of it.

use super::shares::Shares;
use super::{Cpu, elements, words};
use crate::kernels::{HeadShape, KvFormat, PAGE_TOKENS};

/// Panics unless `heads` is a shape and `pages` a pool of such pages; returns how many.
pub(super) fn page_count(pages: &[u32], heads: HeadShape, format: KvFormat) -> usize {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    assert!(kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads), "{heads:?}");
    assert!(head_dim > 0 && head_dim.is_multiple_of(16), "{heads:?}");
    let page = elements([2, kv_heads, PAGE_TOKENS, head_dim, format.element_bytes()]);
    let page_words = page / 4;
    assert!(pages.len().is_multiple_of(page_words), "pages");
    pages.len() / page_words
}

/// See [`Cpu::kv_write`]. Tasks take kv heads, not rows: then equal slots are written in order.
pub(super) fn kv_write(
    cpu: &Cpu,
    pages: &mut [u32],
    k: &[f32],
    v: &[f32],
    slots: &[u64],
    heads: HeadShape,
    format: KvFormat,
) {
    let count = page_count(pages, heads, format);
    let HeadShape { kv_heads, head_dim, .. } = heads;
    let width = kv_heads * head_dim;
    let written = elements([slots.len(), width]);
    assert_eq!((k.len(), v.len()), (written, written), "k, v");
    let end = (count * PAGE_TOKENS) as u64;
    assert!(slots.iter().all(|&slot| slot < end), "slot not below {end}");
    let row_words = head_dim * format.element_bytes() / 4;
    let pages = Shares::new(pages);
    cpu.split(kv_heads, 2 * slots.len() * head_dim, 1, 1, |range| {
        for head in range {
            for (t, &slot) in slots.iter().enumerate() {
                let (page, row) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
                for (part, x) in [k, v].into_iter().enumerate() {
                    let x = &x[t * width + head * head_dim..][..head_dim];
                    let head = (page * 2 + part) * kv_heads + head;
                    let at = (head * PAGE_TOKENS + row) * row_words;
                    // SAFETY: rows of this kv head are this task's alone, in every page.
                    let words = unsafe { pages.part(at..at + row_words) };
                    match format {
                        KvFormat::F32 => words::f32s_mut(words).copy_from_slice(x),
                        // SAFETY: the table exists only where its tier runs.
                        KvFormat::Bf16 => unsafe {
                            (cpu.kernels.encode_bf16)(words::bf16s_mut(words), x);
                        },
                        // SAFETY: as above.
                        KvFormat::Fp8 { k_scale, v_scale } => unsafe {
                            let scale = [k_scale, v_scale][part];
                            (cpu.kernels.encode_fp8)(words::bytes_mut(words), x, scale);
                        },
                    }
                }
            }
        }
    });
}
