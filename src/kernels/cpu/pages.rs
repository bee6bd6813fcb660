//! Writing of the paged cache.

use super::shares::Shares;
use super::{Cpu, words};
use crate::kernels::{HeadShape, KvFormat, PAGE_TOKENS, elements, page_count};

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
    let count = page_count(pages.len(), heads, format);
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
