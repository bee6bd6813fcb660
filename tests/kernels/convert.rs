//! Number formats, over their whole domains, and the writing of pages.

use crate::common::*;
use float8::F8E4M3;
use gpt_oss_puzzle::kernels::cpu::{fp8_decode, fp8_encode};
use gpt_oss_puzzle::kernels::{HeadShape, KvFormat, PAGE_TOKENS, reference};
use half::bf16;

#[test]
fn mxfp4_decodes_every_byte_with_every_scale() {
    // 256 bytes make 16 blocks; 255 finite scales; bit-exact, infinities from overflow included.
    for scale in 0..255 {
        let blocks: Vec<u8> = (0..=255).collect();
        let scales = [scale; 16];
        let want = reference::mxfp4_decode(&blocks, &scales);
        for cpu in tiers() {
            let got = guarded(512, 1, |out| cpu.mxfp4_decode(out, &blocks, &scales));
            assert_same_bits(&got, &want, &format!("{cpu:?} scale {scale}"));
        }
    }
}

#[test]
fn mxfp4_with_the_nan_scale_is_nan() {
    for cpu in tiers() {
        let got = guarded(32, 0, |out| cpu.mxfp4_decode(out, &[0x21; 16], &[255]));
        assert!(got.iter().all(|x| x.is_nan()), "{cpu:?}");
    }
}

#[test]
fn fp8_decodes_every_code() {
    for code in 0..=255 {
        let (got, want) = (fp8_decode(code), reference::fp8_decode(code));
        assert!(f64::from(got) == want || got.is_nan() && want.is_nan(), "{code:#x}: {got}");
        assert_eq!(got.is_sign_negative(), code >= 0x80);
        let float8 = F8E4M3::from_bits(code).to_f32();
        assert!(got == float8 || got.is_nan() && float8.is_nan(), "{code:#x}: {got}, {float8}");
    }
}

#[test]
fn fp8_encodes_every_bf16() {
    for bits in 0..=u16::MAX {
        let x = bf16::from_bits(bits).to_f32();
        let got = fp8_encode(x);
        assert_eq!(got, reference::fp8_encode(f64::from(x)), "{x}");
        let float8 = F8E4M3::from_f32(x).to_bits();
        if x.is_nan() {
            assert_eq!((got & 0x7f, float8 & 0x7f), (0x7f, 0x7f), "{bits:#x}");
        } else {
            assert_eq!(got, float8, "{x}");
        }
    }
}

/// Inputs on and beside every rounding boundary of FP8 and BF16, and the special values.
fn hard_values() -> Vec<f32> {
    let mut values = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX];
    values.extend([f32::MIN_POSITIVE, 1e-40, 448.0, 464.0, 479.9, 480.0, 1e9]);
    for code in 0..0x7e {
        let middle = (fp8_decode(code) + fp8_decode(code + 1)) / 2.0;
        values.extend([middle, middle.next_up(), middle.next_down(), -middle]);
    }
    for i in 0..64u32 {
        let middle = f32::from_bits(0x3f80_8000 + i * 0x1_0000);
        values.extend([middle, middle.next_up(), middle.next_down(), -middle]);
    }
    values
}

#[test]
fn pages_hold_what_the_reference_writes() {
    let mut rng = Rng(7);
    let formats = [
        KvFormat::F32,
        KvFormat::Bf16,
        KvFormat::Fp8 { k_scale: 1.0, v_scale: 1.0 },
        KvFormat::Fp8 { k_scale: 0.037, v_scale: 3.1 },
    ];
    for (kv_heads, head_dim) in [(1, 16), (2, 64), (3, 48), (8, 64)] {
        let heads = HeadShape { q_heads: kv_heads, kv_heads, head_dim };
        let width = kv_heads * head_dim;
        for format in formats {
            // Times a scale, too: dividing gives the boundary back, multiplying by 1/scale often misses it.
            let mut hard = hard_values();
            hard.extend(hard_values().iter().flat_map(|x| [x * 0.037, x * 3.1]));
            let rows = hard.len().div_ceil(width).max(70);
            let mut k: Vec<f32> = rng.floats(rows * width).iter().map(|x| 99.0 * x).collect();
            k[..hard.len()].copy_from_slice(&hard);
            let v = Input::new(k.iter().rev().copied().collect(), 1);
            let k = Input::new(k, 1);
            let page_words = heads.page_elements() * format.element_bytes() / 4;
            let pages = rows / PAGE_TOKENS + 3;
            // A permuted order of slots, and the last row once more on the first one's slot.
            let total = pages * PAGE_TOKENS;
            let mut slots: Vec<u64> = (0..rows).map(|t| ((t * 37 + 5) % total) as u64).collect();
            slots[rows - 1] = slots[0];
            let before: Vec<u32> = (0..pages * page_words).map(|_| rng.bits() as u32).collect();
            let mut want = before.clone();
            reference::kv_write(&mut want, &k, &v, &slots, heads, format);
            for cpu in tiers() {
                let mut got = before.clone();
                cpu.kv_write(&mut got, &k, &v, &slots, heads, format);
                assert!(got == want, "{cpu:?} {heads:?} {format:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "slot not below 64")]
fn a_slot_outside_the_pool_is_refused() {
    let heads = HeadShape { q_heads: 1, kv_heads: 1, head_dim: 16 };
    let mut pages = vec![0; heads.page_elements()];
    tiers()[0].kv_write(&mut pages, &[0.0; 16], &[0.0; 16], &[64], heads, KvFormat::F32);
}
