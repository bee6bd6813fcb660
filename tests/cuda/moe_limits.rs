//! Routed experts at the limits: every weight and scale, what is no expert, what is no number, and what
//! cannot be packed.

use super::moe::{Host, Kind, Layer, Projection, SWIGLU, Tokens, shape};
use crate::common::{Rng, Weights, assert_bounded, assert_same_bits};
use crate::device::device;
use gpt_oss_puzzle::kernels::cuda::{Upload, cudarc::driver::CudaSlice};
use gpt_oss_puzzle::kernels::{ExpertShape, Experts, reference};
use half::bf16;

/// Scale `first + i` of expert i and byte r of row r, 16 times: an input that picks one column reads one
/// nibble.
fn read_every_weight(first: usize, experts: usize, packed: bool) {
    let Some(gpu) = device() else { return };
    let rows = experts * 256;
    let blocks: Vec<u8> =
        (0..rows).flat_map(|row| std::iter::repeat_n((row % 256) as u8, 16)).collect();
    let scales: Vec<u8> = (0..rows).map(|row| (first + row / 256) as u8).collect();
    let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
    let shape = shape([experts, 256, 32]);
    let projection = Projection::new(gpu, w, &vec![bf16::ZERO; rows], shape, packed);
    // Every scale, and every column at some.
    let tokens = (0..experts).map(|e| (e, e * 5 % 32)).chain((0..32).map(|i| (experts / 2, i)));
    let tokens: Vec<(usize, usize)> = tokens.collect();
    let mut a = vec![0.0; tokens.len() * 32];
    for (a, (_, lane)) in a.chunks_exact_mut(32).zip(&tokens) {
        a[*lane] = 1.0;
    }
    let indices: Vec<u32> = tokens.iter().map(|(expert, _)| *expert as u32).collect();
    let out = projection.down(&a, &indices, &vec![1.0; tokens.len()], 1);
    for (out, (expert, lane)) in out.chunks_exact(256).zip(&tokens) {
        for (byte, &got) in out.iter().enumerate() {
            let nibble = if lane % 2 == 0 { byte & 15 } else { byte >> 4 };
            let scale = (first + expert) as u8;
            let want = (reference::fp4(nibble as u8) * reference::e8m0(scale)) as f32;
            assert!(got == want, "scale {scale} byte {byte} column {lane}: {got}, want {want}");
        }
    }
}

/// Above scale 252 the largest code overflows.
#[test]
fn one_hot_inputs_read_every_stored_weight_exactly() {
    read_every_weight(0, 253, false);
}

#[test]
fn one_hot_inputs_read_every_packed_weight_exactly() {
    read_every_weight(8, 121, true);
}

/// A gate and up projection without weights, whose bias repeats `gate` and `up`, and a down projection
/// that hands all 32 activations on.
fn activation(gate: f32, up: f32) -> Host {
    let bias = [gate, up].map(bf16::from_f32).repeat(32);
    let ones: Vec<u8> = (0..32 * 16)
        .map(|i| {
            if i / 16 / 2 != i % 16 {
                0
            } else if i / 16 % 2 == 0 {
                2
            } else {
                2 << 4
            }
        })
        .collect();
    let weights = [(vec![0; 64 * 16], 64), (ones, 32)].map(|(blocks, rows)| Weights::Mxfp4 {
        blocks: crate::common::Input::new(blocks, 0),
        scales: crate::common::Input::new(vec![127; rows], 0),
    });
    Host {
        weights,
        bias: [bias, vec![bf16::ZERO; 32]],
        shapes: [[1, 64, 32], [1, 32, 32]].map(shape),
    }
}

#[test]
fn the_activation_handles_extremes() {
    let Some(gpu) = device() else { return };
    let kinds = [[Kind::Packed; 2], [Kind::Stored; 2]];
    for (t, kinds) in [(1, kinds[0]), (3, kinds[0]), (3, kinds[1])] {
        let tokens =
            Tokens { k: 1, x: vec![0.0; t * 32], indices: vec![0; t], weights: vec![1.0; t] };
        for (gate, up) in [(-1e30, 1.0), (-90.0, -7.5), (1e30, 1e30), (7.0, -7.0), (-0.0, 0.0)] {
            let host = activation(gate, up);
            let (w, shape) = (host.weights[0].view(), host.shapes[0]);
            let want = reference::moe_gate_up(
                w,
                &host.bias[0],
                shape,
                &tokens.x,
                &tokens.indices,
                1,
                SWIGLU,
            );
            let got = host.on(gpu, kinds).run(&gpu.cuda, &tokens);
            assert_bounded(&got, &want, 2.0, 4 + 64, &format!("T {t} gate {gate} up {up}"));
        }
        for (gate, up) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            let got = activation(gate, up).on(gpu, kinds).run(&gpu.cuda, &tokens);
            assert!(got.iter().all(|y| y.is_nan()), "T {t} hides a NaN: {got:?}");
        }
    }
}

/// The tokens whose rows are NaN, every other row being the one it is in `right`.
fn broken(layer: &Layer<'_>, tokens: &Tokens, right: &[f32], what: &str) -> Vec<usize> {
    let hidden = tokens.x.len() / (tokens.indices.len() / tokens.k);
    let got = layer.run(&device().unwrap().cuda, tokens);
    let mut broken = Vec::new();
    for (t, (got, right)) in got.chunks(hidden).zip(right.chunks(hidden)).enumerate() {
        if got.iter().any(|y| y.is_nan()) {
            assert!(got.iter().all(|y| y.is_nan()), "{what}: token {t}: {got:?}");
            broken.push(t);
        } else {
            assert_same_bits(got, right, &format!("{what}: token {t}"));
        }
    }
    broken
}

/// Indices are not looked at on the host. One that names no expert reads nothing and gives NaN where it
/// was used, and nowhere else.
#[test]
fn what_is_no_expert_is_nan() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(41);
    use Kind::{Bf16, Packed, Stored};
    for (t, kinds) in [
        (2, [Packed; 2]),
        (12, [Packed; 2]),
        (12, [Stored; 2]),
        (3, [Bf16; 2]),
        (12, [Packed, Stored]),
        (12, [Stored, Packed]),
    ] {
        let host = Host::random(&mut rng, 3, 32, 32, kinds);
        let layer = host.on(gpu, kinds);
        let indices = (0..2 * t).map(|_| rng.below(3) as u32).collect();
        let mut tokens = Tokens::new(&mut rng, indices, 2, 32);
        let right = layer.run(&gpu.cuda, &tokens);
        assert!(right.iter().all(|y| y.is_finite()));
        // The first number behind the experts, and one that is larger; of all tokens of a call.
        (tokens.indices[0], tokens.indices[2 * t - 1]) = (3, u32::MAX);
        let what = format!("T {t} {kinds:?}");
        assert_eq!(broken(&layer, &tokens, &right, &what), [0, t - 1], "{what}");
        tokens.indices.fill(7);
        let all: Vec<_> = (0..t).collect();
        assert_eq!(broken(&layer, &tokens, &right, &what), all, "{what}");
    }
}

/// Infinity and NaN in a token's x reach its own row alone.
#[test]
fn what_is_no_number_is_nan() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(42);
    for (t, kinds) in [(2, [Kind::Packed; 2]), (12, [Kind::Packed; 2]), (3, [Kind::Stored; 2])] {
        let host = Host::random(&mut rng, 1, 224, 32, kinds);
        let (layer, indices) = (host.on(gpu, kinds), vec![0; t]);
        let mut tokens = Tokens::new(&mut rng, indices, 1, 224);
        let right = layer.run(&gpu.cuda, &tokens);
        // A row of the matrix has both signs and zeros: sums are NaN.
        (tokens.x[223], tokens.x[(t - 1) * 224 + 5]) = (f32::NAN, f32::INFINITY);
        let what = format!("T {t} {kinds:?}");
        assert_eq!(broken(&layer, &tokens, &right, &what), [0, t - 1], "{what}");
    }
}

/// Two rows of columns that are a slab and a bit, with one block of one expert at a time made extreme.
#[test]
fn scales_that_cannot_be_packed_are_noticed() {
    let Some(gpu) = device() else { return };
    let (mut rng, shape) = (Rng(43), shape([3, 32, 224]));
    let n = shape.experts * shape.rows * shape.cols;
    let (mut blocks, mut scales) = (rng.bytes(n / 2), vec![8; n / 32]);
    let packs = |blocks: &[u8], scales: &[u8]| {
        let (blocks, scales) = (gpu.input(blocks, 0), gpu.input(scales, 1));
        gpu.cuda.pack_experts(&blocks.view(), &scales.view(), shape).unwrap().is_some()
    };
    for at in [0, 1, 6, 7, n / 64 + 100, n / 32 - 1] {
        for (code, fits) in [(128, true), (129, false), (7, false), (0, false), (255, false)] {
            scales[at] = code;
            assert_eq!(packs(&blocks, &scales), fits, "code {code} of block {at}");
        }
        // Zeros of either sign are zeros whatever they are multiplied with, but for NaN.
        let stored: Vec<u8> = blocks[16 * at..16 * at + 16].to_vec();
        blocks[16 * at..16 * at + 16].copy_from_slice(&[0x08, 0x80].repeat(8));
        for (code, fits) in [(0, true), (254, true), (255, false)] {
            scales[at] = code;
            assert_eq!(packs(&blocks, &scales), fits, "zeros with code {code} in block {at}");
        }
        blocks[16 * at..16 * at + 16].copy_from_slice(&stored);
        scales[at] = 8;
    }
    for [rows, cols] in [[24, 32], [16, 48], [16, 2912]] {
        let shape = ExpertShape { experts: 1, rows, cols };
        let (blocks, scales) = (vec![0; rows * cols / 2], vec![127; rows * cols / 32]);
        let (blocks, scales) = (gpu.input(&blocks, 0), gpu.input(&scales, 0));
        let packed = gpu.cuda.pack_experts(&blocks.view(), &scales.view(), shape).unwrap();
        assert!(packed.is_none(), "{shape:?}");
    }
}

/// A row with a scale that is NaN is NaN, which only stored experts can say.
#[test]
fn a_scale_that_is_nan_makes_its_row_nan() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(44);
    let (blocks, mut scales) = (rng.bytes(3 * 4 * 32), vec![120; 3 * 4 * 2]);
    // Of expert 1, row 2, the second half of the columns.
    scales[4 * 2 + 2 * 2 + 1] = 255;
    let w = Experts::Mxfp4 { blocks: &blocks, scales: &scales };
    let projection = Projection::new(gpu, w, &[bf16::ZERO; 12], shape([3, 4, 64]), false);
    let down = projection.down(&rng.floats(9 * 2 * 64), &[1, 2].repeat(9), &[1.0; 18], 2);
    for (i, y) in down.iter().enumerate() {
        assert_eq!(y.is_nan(), i % 4 == 2, "[{i}]: {y}");
    }
}

/// What is uploaded in parts is what is packed in one piece, and what cannot be packed is reported once.
#[test]
fn experts_are_packed_on_their_way() {
    let Some(gpu) = device() else { return };
    let (mut rng, shape) = (Rng(45), shape([3, 48, 224]));
    let n = shape.experts * shape.rows * shape.cols;
    let (blocks, mut scales) = (rng.bytes(n / 2), rng.scales(n / 32));
    let read = |packed: &CudaSlice<u8>| gpu.cuda.stream().clone_dtoh(packed).unwrap();
    let (on_device, of_blocks) = (gpu.input(&blocks, 0), gpu.input(&scales, 0));
    let packed = gpu.cuda.pack_experts(&on_device.view(), &of_blocks.view(), shape).unwrap();
    let want = read(&packed.unwrap());
    // One, two and four tiles of nine at a time, and all of them.
    for staged in [1, 2 * 1904, 4 * 1904, 1 << 20] {
        let mut reported = Vec::new();
        let upload = Upload::new(&gpu.cuda, |bytes| reported.push(bytes)).unwrap();
        let mut upload = upload.with_staged(staged);
        let packed = upload.packed(&blocks, &scales, shape).unwrap().unwrap();
        upload.finish().unwrap();
        assert!(read(&packed) == want, "{staged} bytes at a time");
        assert_eq!(reported.last(), Some(&((n / 2 + n / 32) as u64)));
    }
    scales[0] = 0;
    let mut reported = Vec::new();
    let upload = Upload::new(&gpu.cuda, |bytes| reported.push(bytes)).unwrap();
    let mut upload = upload.with_staged(2 * 1904);
    assert!(upload.packed(&blocks, &scales, shape).unwrap().is_none());
    let copies = [upload.copy(&blocks).unwrap(), upload.copy(&scales).unwrap()];
    upload.finish().unwrap();
    assert!(copies.each_ref().map(read) == [blocks, scales]);
    assert!(reported.is_sorted() && reported.last() == Some(&((n / 2 + n / 32) as u64)));
}

#[test]
#[should_panic(expected = "blocks or x not aligned")]
fn blocks_that_cannot_be_loaded_whole_are_refused() {
    let Some(gpu) = device() else { panic!("blocks or x not aligned") };
    let host = Host::random(&mut Rng(46), 1, 32, 32, [Kind::Stored; 2]);
    let mut layer = host.on(gpu, [Kind::Stored; 2]);
    layer.down.bytes[0] = gpu.input(&[0; 32 * 16], 8);
    let tokens = Tokens { k: 1, x: vec![0.0; 32], indices: vec![0], weights: vec![1.0] };
    layer.run(&gpu.cuda, &tokens);
}
