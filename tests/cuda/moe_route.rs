//! Pairs sorted by expert into slots and chunks, and activations in slots.

use crate::common::Rng;
use crate::device::{Gpu, device};
use gpt_oss_puzzle::kernels::cuda::RouteRoom;
use half::bf16;

/// What a slot without a pair has in `order`.
const NO_PAIR: u32 = u32::MAX;

/// A routing as read back: pairs of slots, and of each class its chunks as expert, first slot, pairs.
#[derive(Debug, PartialEq)]
struct Routing {
    order: Vec<u32>,
    chunks: Vec<Vec<[u32; 3]>>,
}

/// What the device should make of it.
fn routing(indices: &[u32], experts: usize, limits: &[usize]) -> Routing {
    let most = limits[limits.len() - 1];
    let room = RouteRoom::new(indices.len(), experts, most);
    let (mut order, mut chunks) = (Vec::new(), vec![Vec::new(); limits.len()]);
    for expert in 0..experts as u32 {
        let mine: Vec<u32> =
            (0..indices.len() as u32).filter(|pair| indices[*pair as usize] == expert).collect();
        let parts = mine.len().div_ceil(most).max(1);
        for part in mine.chunks(mine.len().div_ceil(parts).next_multiple_of(8).max(8)) {
            let class = limits.iter().position(|limit| part.len() <= *limit).unwrap();
            chunks[class].push([expert, order.len() as u32, part.len() as u32]);
            order.extend(part);
            order.resize(order.len().next_multiple_of(8), NO_PAIR);
        }
    }
    assert!(chunks.iter().all(|chunks| chunks.len() <= room.chunks) && order.len() <= room.slots);
    order.resize(room.slots, NO_PAIR);
    Routing { order, chunks }
}

fn check(gpu: &Gpu, indices: &[u32], experts: usize, limits: &[usize]) {
    let stream = gpu.cuda.stream();
    let input = gpu.input(indices, 1);
    let routed = gpu.cuda.route(&input.view(), experts, limits).unwrap();
    let order = stream.clone_dtoh(&routed.order()).unwrap();
    let all = stream.clone_dtoh(&routed.chunks()).unwrap();
    let counts = stream.clone_dtoh(&routed.counts()).unwrap();
    let of_class = all.chunks(4 * routed.room().chunks);
    let chunks = of_class.zip(counts).map(|(chunks, count)| {
        let chunks = chunks.chunks(4).take(count as usize);
        chunks.map(|chunk| [chunk[0], chunk[1], chunk[2]]).collect()
    });
    let got = Routing { order, chunks: chunks.collect() };
    assert_eq!(
        got,
        routing(indices, experts, limits),
        "{experts} experts, {limits:?}: {indices:?}"
    );
}

/// A routing by which expert `chosen[i]` has `counts[i]` pairs, in a random order.
fn ragged(rng: &mut Rng, chosen: &[usize], counts: &[usize]) -> Vec<u32> {
    let mut indices: Vec<u32> = chosen
        .iter()
        .zip(counts)
        .flat_map(|(expert, count)| std::iter::repeat_n(*expert as u32, *count))
        .collect();
    for i in (1..indices.len()).rev() {
        indices.swap(i, rng.below(i + 1));
    }
    indices
}

#[test]
fn no_routing_takes_more_than_its_room() {
    let (mut rng, mut full) = (Rng(20), 0);
    for _ in 0..4000 {
        let (experts, most) = (1 + rng.below(9), 8 * (1 + rng.below(5)));
        // Now and then every expert has one pair more than whole chunks.
        let some = [0, 1, 1 + most * rng.below(3), rng.below(4 * most)];
        let uneven = rng.below(3) > 0;
        let counts = (0..experts).map(|_| some[if uneven { rng.below(4) } else { 2 }]);
        let counts: Vec<usize> = counts.collect();
        let pairs: usize = counts.iter().sum();
        let room = RouteRoom::new(pairs, experts, most);
        let slots: usize = counts.iter().map(|n| n.next_multiple_of(8)).sum();
        let chunks: usize = counts.iter().map(|n| n.div_ceil(most)).sum();
        assert!(slots <= room.slots && chunks <= room.chunks, "{counts:?} {most} {room:?}");
        full += usize::from(slots == room.slots && chunks == room.chunks && pairs > 0);
    }
    assert!(full > 400, "the room is tight: {full}");
}

#[test]
fn pairs_are_sorted_into_chunks() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(21);
    let counts = [0, 1, 7, 8, 9, 33, 64, 65, 300, 130, 160, 161];
    let limits: [&[usize]; 4] = [&[8], &[16], &[32, 64, 96, 128, 160], &[8, 2040]];
    for limits in limits {
        for experts in [12, 64, 128, 512] {
            // Of many experts, most without a pair, and the last with one.
            let chosen: Vec<_> = (1..=12).map(|i| experts * i / 12 - 1).collect();
            let mut indices = ragged(&mut rng, &chosen, &counts);
            check(gpu, &indices, experts, limits);
            // What names no expert has no slot.
            for i in (0..indices.len()).step_by(7) {
                indices[i] = [experts as u32, u32::MAX, experts as u32 + 31][i % 3];
            }
            check(gpu, &indices, experts, limits);
        }
        for pairs in [1, 7, 8, 9, 300] {
            check(gpu, &vec![0; pairs], 1, limits);
        }
        check(gpu, &[3, u32::MAX], 3, limits);
    }
}

#[test]
fn every_small_number_of_pairs_is_sorted() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(22);
    for pairs in (1..70).chain([511, 512, 513, 1025]) {
        let indices: Vec<u32> = (0..pairs).map(|_| rng.below(9) as u32).collect();
        check(gpu, &indices, 8, &[8]);
        check(gpu, &indices, 9, &[8, 24]);
    }
}

#[test]
fn slots_hold_the_parts_of_their_rows() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(23);
    let stream = gpu.cuda.stream();
    for (cols, k) in [(32, 1), (64, 4), (200, 2), (2880, 3)] {
        let t = 5;
        let mut x = rng.floats(t * cols);
        (x[0], x[1], x[2], x[3]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX);
        let indices: Vec<u32> = (0..t * k).map(|_| rng.below(5) as u32).collect();
        let (input, x) = (gpu.input(&indices, 0), gpu.input(&x, 4));
        let routed = gpu.cuda.route(&input.view(), 4, &[8]).unwrap();
        let order = stream.clone_dtoh(&routed.order()).unwrap();
        for (cuda, parts) in [(&gpu.cuda, 2), (&gpu.rounded, 1)] {
            let slots = cuda.slots(&x.view(), cols, &routed, k).unwrap();
            let (slots, n) = (stream.clone_dtoh(&slots).unwrap(), order.len());
            let slabs = cols.div_ceil(192);
            assert_eq!(slots.len(), parts * slabs * 192 * n);
            for (slot, pair) in order.iter().enumerate().filter(|(_, pair)| **pair != NO_PAIR) {
                for c in 0..slabs * 192 {
                    let value = |part: usize| {
                        let row = (part * 3 * slabs + c / 64) * n + slot;
                        let at = 64 * row + 8 * ((c / 8 % 8) ^ (slot % 8)) + c % 8;
                        bf16::from_bits(slots[at]).to_f32()
                    };
                    let want = if c < cols { x[*pair as usize / k * cols + c] } else { 0.0 };
                    let hi = value(0);
                    let lo = if parts == 2 { value(1) } else { 0.0 };
                    let what = format!("slot {slot} column {c} of {cols}: {hi} {lo}, want {want}");
                    let nearest = bf16::from_f32(want).to_f32();
                    if want == f32::MAX {
                        assert_eq!(hi, bf16::MAX.to_f32(), "{what}");
                    } else {
                        assert!(hi == nearest || hi.is_nan() && want.is_nan(), "{what}");
                    }
                    let exact = want.is_finite() && parts == 2;
                    let error = f64::from(hi) + f64::from(lo) - f64::from(want);
                    let bound = f64::from(want.abs()) / 131_072.0;
                    assert!(!exact || error.abs() <= bound, "{what}");
                    assert!(exact || lo == 0.0, "{what}");
                }
            }
        }
    }
}
