//! The graph: one prompt fed in any way gives the same logits, bit for bit, and a failed step leaves
//! nothing behind. Golden logits are in tests/golden.rs.

#[path = "common/batches.rs"]
mod batches;

use batches::{interleave, tokens};
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::model::{Batch, Device, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, KvScales};
use gpt_oss_puzzle::{BlockConfig, ErrorKind, ModelConfig};

/// Heterogeneous experts; windows below, at and above a page, below and above the prompts, and none.
fn config() -> ModelConfig {
    batches::config(&[(8, Some(16)), (4, None), (8, Some(64)), (5, Some(100)), (4, Some(1000))])
}

struct Fixture {
    model: GptOss,
    dtype: KvDtype,
}

impl Fixture {
    fn new(dtype: KvDtype, threads: usize) -> Fixture {
        let checkpoint = Checkpoint::random(&config(), 7).expect("random checkpoint");
        Fixture { model: GptOss::new(&checkpoint, threads).expect("model"), dtype }
    }

    fn cache(&self, pages: usize) -> KvCache {
        let layers = self.model.config().num_hidden_layers();
        // Not a power of two, so that dividing and multiplying by it both round.
        let scales = Some(vec![KvScales { k: 0.011, v: 0.013 }; layers]);
        let config = KvCacheConfig { dtype: self.dtype, pages, scales };
        KvCache::new(self.model.config(), &config, &Device::Cpu).expect("cache")
    }

    /// Logits of every row, fed to `sequence` in chunks.
    fn feed(&self, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<Vec<u32>> {
        let mut rows = Vec::new();
        for chunk in tokens.chunks(chunk) {
            let batch = Batch::single(sequence, chunk, LogitRows::All);
            rows.extend(self.step(&batch, &mut [sequence]));
        }
        rows
    }

    /// Logits as bits, so that equality is bit equality and NaN cannot hide.
    fn step(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Vec<Vec<u32>> {
        let logits = self.model.forward(batch, sequences).expect("forward");
        assert_eq!(logits.dims(), [batch.logit_rows().len(), 96]);
        let rows = logits.to_vec2::<f32>().expect("f32 logits");
        assert!(rows.iter().flatten().all(|v| v.is_finite()), "logits are not finite");
        rows.iter().map(|r| r.iter().map(|v| v.to_bits()).collect()).collect()
    }
}

#[test]
fn chunks_give_the_same_bits_as_one_piece() {
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8] {
        let fixture = Fixture::new(dtype, 0);
        let prompt = tokens(300, 1);
        let whole = fixture.feed(&mut fixture.cache(100).sequence(), &prompt, 300);
        assert_ne!(whole[0], whole[299], "the logits say something");
        for chunk in [1, 7, 64, 100] {
            let mut sequence = fixture.cache(100).sequence();
            let rows = fixture.feed(&mut sequence, &prompt, chunk);
            assert!(rows == whole, "{dtype:?}: chunks of {chunk} differ from one piece");
            assert_eq!(sequence.len(), 300);
        }
    }
}

#[test]
fn interleaved_sequences_give_the_same_bits_as_alone() {
    let fixture = Fixture::new(KvDtype::Bf16, 0);
    let prompts = [tokens(210, 1), tokens(130, 2), tokens(75, 3)];
    let alone: Vec<_> = prompts
        .iter()
        .map(|p| fixture.feed(&mut fixture.cache(100).sequence(), p, p.len()))
        .collect();
    let cache = fixture.cache(200);
    let mut sequences = [cache.sequence(), cache.sequence(), cache.sequence()];
    let together = interleave(&prompts, |batch| {
        let [a, b, c] = &mut sequences;
        fixture.step(batch, &mut [a, b, c])
    });
    for s in 0..3 {
        assert!(together[s] == alone[s], "sequence {s} depends on its company");
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let prompt = tokens(150, 4);
    let rows = |threads| {
        let fixture = Fixture::new(KvDtype::Bf16, threads);
        fixture.feed(&mut fixture.cache(100).sequence(), &prompt, 50)
    };
    let one = rows(1);
    for threads in [2, 3, 8] {
        assert!(rows(threads) == one, "{threads} threads differ from 1");
    }
}

#[test]
fn forks_and_truncated_sequences_go_on_as_if_alone() {
    let fixture = Fixture::new(KvDtype::Bf16, 0);
    let (past, one, two) = (tokens(90, 5), tokens(60, 6), tokens(60, 7));
    let alone = |ending: &[u32]| {
        let all: Vec<u32> = past.iter().chain(ending).copied().collect();
        let mut rows = fixture.feed(&mut fixture.cache(100).sequence(), &all, 150);
        rows.split_off(past.len())
    };
    let cache = fixture.cache(200);
    let mut first = cache.sequence();
    fixture.feed(&mut first, &past, 90);
    let mut second = first.fork();
    let mut ones = fixture.feed(&mut first, &one[..20], 9);
    assert!(fixture.feed(&mut second, &two, 60) == alone(&two), "the fork");
    ones.extend(fixture.feed(&mut first, &one[20..], 9));
    assert!(ones == alone(&one), "the original, resumed after its fork wrote");
    drop(first);

    // Back to position 88, inside a page that a fork shares, then another way forward.
    let mut third = second.fork();
    second.truncate(148).expect("within every window's pages");
    let again = fixture.feed(&mut second, &two[58..], 2);
    assert!(again == alone(&two)[58..], "truncated and fed again");
    assert!(fixture.feed(&mut third, &[3], 1) == fixture.feed(&mut second, &[3], 1));
    drop((second, third));
    assert_eq!(cache.free_pages(), cache.pages(), "every page came back");
}

#[test]
fn running_out_of_pages_leaves_everything_as_it_was() {
    let fixture = Fixture::new(KvDtype::Bf16, 0);
    let prompt = tokens(200, 8);
    let cache = fixture.cache(12);
    let (mut small, mut large) = (cache.sequence(), cache.sequence());
    fixture.feed(&mut small, &prompt[..60], 60);
    let free = cache.free_pages();
    let mut batch = Batch::new();
    batch.push(0, 60, &prompt[60..64], LogitRows::Last);
    batch.push(1, 0, &prompt, LogitRows::Last);
    let error = fixture.model.forward(&batch, &mut [&mut small, &mut large]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CacheFull);
    assert_eq!((small.len(), large.len(), cache.free_pages()), (60, 0, free));
    let rest = fixture.feed(&mut small, &prompt[60..64], 4);
    let whole = fixture.feed(&mut fixture.cache(12).sequence(), &prompt[..64], 64);
    assert!(rest == whole[60..], "the failed step wrote something");
}

#[test]
fn windows_hide_what_is_behind_them() {
    // Only windowed layers: a token 2·(16 − 1) + 1 or more positions back cannot matter to two layers.
    let mut config = config();
    config.block_configs = vec![BlockConfig { num_local_experts: 4, sliding_window: Some(16) }; 2];
    let checkpoint = Checkpoint::random(&config, 9).expect("random checkpoint");
    let model = GptOss::new(&checkpoint, 0).expect("model");
    let fixture = Fixture { model, dtype: KvDtype::F32 };
    let last = |tokens: &[u32]| {
        fixture.feed(&mut fixture.cache(100).sequence(), tokens, 64).pop().expect("a row")
    };
    let prompt = tokens(120, 10);
    let changed = |back: usize| {
        let mut other = prompt.clone();
        other[119 - back] = (other[119 - back] + 1) % 96;
        last(&other) != last(&prompt)
    };
    assert!(changed(30), "30 back is two windows' reach and must matter");
    assert!(!changed(31), "31 back is out of reach and must not");
    assert!(!changed(100));
}

#[test]
fn inconsistent_batches_are_errors() {
    let fixture = Fixture::new(KvDtype::F32, 1);
    let cache = fixture.cache(50);
    let mut sequence = cache.sequence();
    let fail = |batch: &Batch, sequences: &mut [&mut Sequence]| {
        let error = fixture.model.forward(batch, sequences).unwrap_err();
        (error.kind(), error.to_string())
    };
    let batch = |sequence, start, tokens: &[u32]| {
        let mut batch = Batch::new();
        batch.push(sequence, start, tokens, LogitRows::Last);
        batch
    };
    let cases = [
        (Batch::new(), "the batch is empty"),
        (batch(0, 0, &[1, 96]), "row 1: token 96 is outside the vocabulary of 96"),
        (batch(0, 3, &[1]), "row 0: position 3, but sequence 0 continues at 0"),
        (batch(1, 0, &[1]), "row 0: sequence 1 of 1"),
    ];
    for (batch, message) in cases {
        let error = fail(&batch, &mut [&mut sequence]);
        assert_eq!(error, (ErrorKind::InvalidRequest, message.to_string()));
    }
    assert_eq!(fail(&batch(0, 0, &[1]), &mut []).1, "row 0: sequence 0 of 0");
    let mut foreign = fixture.cache(50).sequence();
    let (_, message) = fail(&batch(0, 0, &[1]), &mut [&mut sequence, &mut foreign]);
    assert_eq!(message, "the sequences of a batch come from different caches");

    let mut other = config();
    other.block_configs.pop();
    let scales = None;
    let other_config = KvCacheConfig { dtype: KvDtype::F32, pages: 50, scales };
    let mut other = KvCache::new(&other, &other_config, &Device::Cpu).expect("cache").sequence();
    let (_, message) = fail(&batch(0, 0, &[1]), &mut [&mut other]);
    assert_eq!(message, "the key-value cache was made for a model of another shape");
    assert_eq!((sequence.len(), cache.free_pages()), (0, 50));
}

#[test]
fn the_context_ends_where_the_configuration_says() {
    let mut config = config();
    config.max_position_embeddings = 70;
    let checkpoint = Checkpoint::random(&config, 7).expect("random checkpoint");
    let fixture =
        Fixture { model: GptOss::new(&checkpoint, 0).expect("model"), dtype: KvDtype::F32 };
    let mut sequence = fixture.cache(50).sequence();
    fixture.feed(&mut sequence, &tokens(70, 1), 64);
    let batch = Batch::single(&sequence, &[1], LogitRows::None);
    let error = fixture.model.forward(&batch, &mut [&mut sequence]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(error.to_string(), "row 0: position 70 of a context of 70");
}

#[test]
fn rows_nobody_asked_for_are_not_computed() {
    let fixture = Fixture::new(KvDtype::F32, 0);
    let mut sequence = fixture.cache(50).sequence();
    let batch = Batch::single(&sequence, &[1, 2, 3], LogitRows::None);
    assert!(fixture.step(&batch, &mut [&mut sequence]).is_empty());
    let batch = Batch::single(&sequence, &[4, 5], LogitRows::Last);
    let last = fixture.step(&batch, &mut [&mut sequence]);
    let all = fixture.feed(&mut fixture.cache(50).sequence(), &[1, 2, 3, 4, 5], 5);
    assert!(last == all[4..]);
}

#[test]
fn threads_share_one_model_and_one_cache() {
    let fixture = Fixture::new(KvDtype::Bf16, 2);
    let past = tokens(90, 1);
    let ending = |seed: usize| tokens(40, 20 + seed as u32);
    let alone: Vec<_> = (0..4)
        .map(|seed| {
            let all: Vec<u32> = past.iter().copied().chain(ending(seed)).collect();
            fixture.feed(&mut fixture.cache(100).sequence(), &all, 130).split_off(90)
        })
        .collect();
    let cache = fixture.cache(300);
    for _ in 0..5 {
        let mut first = cache.sequence();
        fixture.feed(&mut first, &past, 90);
        // All go on in the same half-filled pages; whoever is last need not copy them.
        let mut sequences: Vec<_> = (0..3).map(|_| first.fork()).collect();
        sequences.push(first);
        std::thread::scope(|scope| {
            for (seed, mut sequence) in sequences.into_iter().enumerate() {
                let (fixture, want) = (&fixture, &alone[seed]);
                scope.spawn(move || {
                    let got = fixture.feed(&mut sequence, &ending(seed), 7);
                    assert!(got == *want, "thread {seed} sees another's tokens");
                });
            }
        });
        assert_eq!(cache.free_pages(), cache.pages(), "every page came back");
    }
}
