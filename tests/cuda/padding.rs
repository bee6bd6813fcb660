//! Recorded steps have rows of padding, which change nothing.

use super::graph::gpu;
use super::replay::{cache, config_of, feed, models, step};
use crate::batches::tokens;
use crate::golden::relative_error;
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::kernels::cuda::{MOST_RECORDED_ROWS, padded_rows};
use gpt_oss_puzzle::model::{Batch, Device, GptOss, LogitRows};
use gpt_oss_puzzle::weights::Checkpoint;
use std::io::Write;

/// The first page of the pool is seen by every row of the first sequence: nothing goes there unnoticed.
fn config() -> ModelConfig {
    config_of(&[(8, None), (4, Some(16))])
}

#[test]
fn a_quarter_at_most_is_padding() {
    let sizes: Vec<usize> = (0..=MOST_RECORDED_ROWS).map(padded_rows).collect();
    assert_eq!(sizes[..9], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for (rows, &padded) in sizes.iter().enumerate() {
        assert!(padded >= rows && 4 * (padded - rows) <= rows, "{rows}: {padded}");
        assert_eq!(padded_rows(padded), padded);
    }
    let different: std::collections::BTreeSet<usize> = sizes.into_iter().collect();
    assert_eq!(different.len(), 1 + 28);
    assert_eq!(padded_rows(1000), 1000);
}

/// A token for each of `sequences`.
fn decode(model: &GptOss, sequences: &mut [&mut Sequence], seed: u32) -> Vec<u32> {
    let mut batch = Batch::new();
    for (number, token) in tokens(sequences.len(), seed).into_iter().enumerate() {
        batch.push(number, sequences[number].len(), &[token], LogitRows::Last);
    }
    step(model, &batch, sequences)
}

/// Sequences of a few tokens, fed at once.
fn begun(model: &GptOss, cache: &KvCache, count: usize) -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> = (0..count).map(|_| cache.sequence()).collect();
    let mut batch = Batch::new();
    for number in 0..count {
        batch.push(number, 0, &tokens(1 + number % 5, number as u32), LogitRows::None);
    }
    let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
    model.forward(&batch, &mut all).unwrap();
    sequences
}

#[test]
fn padding_changes_no_bits() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 11);
    for rows in [1, 3, 8, 9, 12, 40] {
        let before = replaying.replayed_steps();
        let run = |model: &GptOss| {
            let cache = cache(&config(), gpu, KvDtype::Bf16, 2 * rows);
            let mut sequences = begun(model, &cache, rows);
            let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
            (0..4).map(|seed| decode(model, &mut all, seed)).collect::<Vec<_>>()
        };
        assert!(run(&replaying) == run(&plain), "{rows} rows");
        assert_eq!(replaying.replayed_steps(), before + 3, "{rows} rows");
    }
}

/// Sequences join, leave, change places, fork and go back, in a batch that meets two recordings.
#[test]
fn a_changing_batch_meets_few_recordings() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 12);
    let run = |model: &GptOss| {
        let cache = cache(&config(), gpu, KvDtype::Bf16, 60);
        let mut sequences = begun(model, &cache, 10);
        let mut bits = Vec::new();
        for round in 0..14 {
            match round % 7 {
                2 => drop(sequences.remove(0)),
                3 => sequences.push(sequences[4].fork()),
                4 => sequences.insert(1, begun(model, &cache, 1).remove(0)),
                5 => {
                    let len = sequences[3].len();
                    sequences[3].truncate(len - 2).unwrap();
                }
                6 => sequences.rotate_left(3),
                _ => {}
            }
            let mut all: Vec<&mut Sequence> = sequences.iter_mut().collect();
            bits.push(decode(model, &mut all, 100 + round));
        }
        bits
    };
    assert!(run(&replaying) == run(&plain));
    // 9 and 10 rows share a recording, 11 and 12 do: the first of each is not recorded.
    assert_eq!(replaying.replayed_steps(), 14 - 2);
}

/// Recordings, the tables and the logits that they share all get others while a batch grows; and a sequence
/// that is new has more pages than a step has room for.
#[test]
fn a_batch_grows_and_shrinks() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 14);
    let run = |model: &GptOss| {
        let cache = cache(&config(), gpu, KvDtype::Bf16, 100);
        let mut sequences = begun(model, &cache, 3);
        let mut bits = Vec::new();
        for (round, count) in (0..).zip([3, 3, 3, 9, 9, 3, 3, 20, 20, 9, 17, 1, 1]) {
            match count - sequences.len().min(count) {
                0 => {}
                missing => sequences.extend(begun(model, &cache, missing)),
            }
            let mut all: Vec<&mut Sequence> = sequences[..count].iter_mut().collect();
            bits.push(decode(model, &mut all, 200 + round));
        }
        // Four pages in each layer, where a step of one row brings one.
        feed(model, &mut sequences[0], &tokens(200, 1), 200);
        let mut fork = sequences[0].fork();
        bits.push(decode(model, &mut [&mut fork], 300));
        bits
    };
    assert!(run(&replaying) == run(&plain));
    assert!(replaying.replayed_steps() >= 6, "{}", replaying.replayed_steps());
}

/// In a process of its own, because the device is full for a while.
#[test]
fn a_step_without_memory_is_as_if_it_had_not_been() {
    let Some(gpu) = gpu() else { return };
    let [replaying, plain] = models(&config(), gpu, 15);
    if !plain.kernels().contains("CUDA emulator") {
        let line = b"NOT TESTED: a device without memory\n";
        return std::io::stderr().write_all(line).unwrap();
    }
    if std::env::var_os("EMULATOR_MEMORY_MIB").is_none() {
        let name = "cuda::padding::a_step_without_memory_is_as_if_it_had_not_been";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = again.args([name, "--exact"]).env("EMULATOR_MEMORY_MIB", "64").output();
        let ended = ended.unwrap();
        return assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let run = |model: &GptOss, fails: bool| {
        let cache = cache(&config(), gpu, KvDtype::Bf16, 20);
        let mut bits = Vec::new();
        let mut first = cache.sequence();
        bits.extend(feed(model, &mut first, &tokens(70, 9), 70));
        for seed in 0..3 {
            // Its first step is to bring pages that it holds whether the step succeeds or not.
            let mut sequence = first.fork();
            if fails {
                let Device::Cuda(device) = gpu else { unreachable!() };
                let (stream, mut taken) = (device.cuda_stream(), Vec::new());
                for bits in (4..21).rev() {
                    taken.extend(std::iter::from_fn(|| stream.alloc_zeros::<u8>(1 << bits).ok()));
                }
                let batch = Batch::single(&sequence, &[1], LogitRows::All);
                model.forward(&batch, &mut [&mut sequence]).unwrap_err();
                drop(taken);
                stream.synchronize().unwrap();
            }
            bits.extend(feed(model, &mut sequence, &tokens(4, seed), 1));
        }
        bits
    };
    assert!(run(&replaying, true) == run(&plain, false));
}

/// Beside the CPU, which is told everything anew in every step.
#[test]
fn page_tables_follow_their_sequences() {
    let Some(gpu) = gpu() else { return };
    let mut small = config_of(&[(4, None), (4, Some(70))]);
    small.head_dim = 16;
    let checkpoint = Checkpoint::random(&small, 13).unwrap();
    let here = GptOss::new(&checkpoint, 1).unwrap().on_device(gpu, |_| {}).unwrap();
    let there = GptOss::new(&checkpoint, 1).unwrap();
    let cache = |device: &Device| {
        let config = KvCacheConfig { dtype: KvDtype::F32, pages: 150, scales: None };
        KvCache::new(&small, &config, device).unwrap()
    };
    let caches = [cache(gpu), cache(&Device::Cpu)];
    // The same happens to both of a pair.
    let mut pairs: Vec<[Sequence; 2]> = Vec::new();
    let mut random = crate::common::Rng(3);
    for round in 0..50 {
        match random.below(8) {
            0..=1 if pairs.len() < 12 => {
                let mut new = [caches[0].sequence(), caches[1].sequence()];
                feed(&here, &mut new[0], &tokens(62, round), 62);
                feed(&there, &mut new[1], &tokens(62, round), 62);
                pairs.push(new);
            }
            2 if !pairs.is_empty() => {
                let [a, b] = &pairs[random.below(pairs.len())];
                let fork = [a.fork(), b.fork()];
                pairs.push(fork);
            }
            3 if pairs.len() > 4 => drop(pairs.swap_remove(random.below(pairs.len()))),
            4 if !pairs.is_empty() => {
                let pair = random.below(pairs.len());
                let back = random.below(10);
                for sequence in &mut pairs[pair] {
                    let _ = sequence.truncate(sequence.len().saturating_sub(back));
                }
            }
            5 => pairs.reverse(),
            _ => {}
        }
        if pairs.is_empty() {
            continue;
        }
        let (mut a, mut b): (Vec<_>, Vec<_>) = pairs.iter_mut().map(|[a, b]| (a, b)).unzip();
        let values = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect::<Vec<_>>();
        let got = values(decode(&here, &mut a, round));
        let want = values(decode(&there, &mut b, round));
        let (error, row) = relative_error(&got, &want, 96);
        assert!(error <= 5e-3, "round {round}: row {row} is off by {error}");
    }
    assert!(here.replayed_steps() > 20, "{}", here.replayed_steps());
}
