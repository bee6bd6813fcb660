//! The whole transformer on a device: golden logits, any way of feeding the same tokens, and talking.
//!
//! Unlike the CPU's, a row's logits on a device depend on how it is fed: a prompt's rows go through other
//! kernels than those of steps of decode (which have their bits in any company, see padding.rs). So logits
//! are compared in the Euclidean norm, not bit for bit.

use crate::batches::{self, interleave, tokens};
use crate::device::device;
use crate::golden::{Golden, cases, relative_error, root};
use gpt_oss_puzzle::ModelConfig;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype, Sequence};
use gpt_oss_puzzle::chat::{ChatRequest, Model};
use gpt_oss_puzzle::generation::{
    GenerateOptions, Generator, SamplingParams, StopTokens, TokenSet,
};
use gpt_oss_puzzle::model::{Batch, DenseDtype, Device, DeviceName, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, KvScales, write_tiny_checkpoint};
use std::path::Path;
use std::sync::OnceLock;

/// What splitting activations in two BF16 leaves out, 2^-17 of each, adds up to over the layers of the
/// golden checkpoints, five times over. The CPU is held to a tenth of it.
const BOUND: f64 = 1e-4;

/// The same for random weights, whose layers make more of every difference: the middle row of 150 is off
/// by 4e-5, the worst by 1.5e-4.
pub(super) const RANDOM_BOUND: f64 = 5e-4;

/// The first GPU as models use it, `None` when this machine has none.
pub(super) fn gpu() -> Option<&'static Device> {
    static GPU: OnceLock<Device> = OnceLock::new();
    device()?;
    Some(GPU.get_or_init(|| DeviceName::Cuda(0).open().unwrap()))
}

pub(super) struct OnGpu {
    pub(super) model: GptOss,
    pub(super) cache: KvCache,
}

impl OnGpu {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        dtype: KvDtype,
        pages: usize,
        gpu: &Device,
    ) -> OnGpu {
        OnGpu::of(GptOss::new(checkpoint, 1).unwrap(), checkpoint, dtype, pages, gpu)
    }

    /// `model`, which was made from `checkpoint`.
    pub(super) fn of(
        model: GptOss,
        checkpoint: &Checkpoint,
        dtype: KvDtype,
        pages: usize,
        gpu: &Device,
    ) -> OnGpu {
        let model = model.on_device(gpu, |_| {}).unwrap();
        let layers = model.config().num_hidden_layers();
        let scales: Option<Vec<_>> =
            (0..layers).map(|l| checkpoint.kv_scales(l).unwrap()).collect();
        let scales = scales.or_else(|| Some(vec![KvScales { k: 0.011, v: 0.013 }; layers]));
        let config = KvCacheConfig { dtype, pages, scales };
        let cache = KvCache::new(model.config(), &config, gpu).unwrap();
        OnGpu { model, cache }
    }

    /// Logits of every row of `batch`.
    pub(super) fn step(&self, batch: &Batch, sequences: &mut [&mut Sequence]) -> Vec<f32> {
        let logits = self.model.forward(batch, sequences).unwrap();
        assert_eq!(logits.dims(), [batch.logit_rows().len(), self.model.config().vocab_size]);
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Logits of every token, fed to `sequence` in chunks.
    pub(super) fn feed(&self, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<f32> {
        let chunks = tokens.chunks(chunk).flat_map(|chunk| {
            let batch = Batch::single(sequence, chunk, LogitRows::All);
            self.step(&batch, &mut [sequence])
        });
        chunks.collect()
    }
}

/// The golden logits of a case: in one piece, and with the last tokens few at a time.
fn check_logits(gpu: &Device, case: &Path, file: &str, dtype: KvDtype, bound: f64) {
    let golden = Golden::load(case, file);
    let on_gpu = OnGpu::new(&Checkpoint::open(case).unwrap(), dtype, 200, gpu);
    let (most, few) = golden.input_ids.split_at(golden.input_ids.len() - 12);
    for pieces in [&[&golden.input_ids[..]][..], &[most, &few[..8], &few[8..11], &few[11..]]] {
        let mut sequence = on_gpu.cache.sequence();
        let feed = |piece: &&[u32]| on_gpu.feed(&mut sequence, piece, piece.len());
        let logits: Vec<f32> = pieces.iter().flat_map(feed).collect();
        let (error, row) = relative_error(&logits, &golden.logits, golden.vocab_size);
        let name =
            format!("{}/{file} in {} pieces", case.file_name().unwrap().display(), pieces.len());
        println!("{name}: relative error {error:.1e} (row {row}), bound {bound:.0e}");
        assert!(error <= bound, "{name}: row {row} is off by {error}");
    }
}

#[test]
fn logits_with_an_exact_cache_are_those_of_the_official_implementations() {
    let Some(gpu) = gpu() else { return };
    let cases = cases();
    assert_eq!(cases.len(), 7);
    for case in cases {
        check_logits(gpu, &case, "golden", KvDtype::F32, BOUND);
    }
}

#[test]
fn logits_with_a_rounding_cache_round_as_the_reference_does() {
    let Some(gpu) = gpu() else { return };
    let case = root().join("puzzle-all-experts");
    // Near a tie, a value may round the other way than the reference's.
    check_logits(gpu, &case, "golden-fp8", KvDtype::Fp8, 1e-2);
    check_logits(gpu, &case, "golden-bf16", KvDtype::Bf16, 1e-3);
}

/// Experts and windows that differ from layer to layer.
pub(super) fn config() -> ModelConfig {
    batches::config(&[(8, Some(16)), (4, None), (5, Some(100))])
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    let (error, row) = relative_error(got, want, 96);
    assert!(error <= RANDOM_BOUND, "{what}: row {row} is off by {error}");
}

#[test]
fn chunks_give_what_one_piece_does() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = Checkpoint::random(&config(), 7).unwrap();
    let on_gpu = OnGpu::new(&checkpoint, KvDtype::F32, 60, gpu);
    let prompt = tokens(150, 1);
    let whole = on_gpu.feed(&mut on_gpu.cache.sequence(), &prompt, 150);
    let cpu = GptOss::new(&checkpoint, 1).unwrap();
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 60, scales: None };
    let mut sequence = KvCache::new(cpu.config(), &pool, &Device::Cpu).unwrap().sequence();
    let batch = Batch::single(&sequence, &prompt, LogitRows::All);
    let logits = cpu.forward(&batch, &mut [&mut sequence]).unwrap();
    assert_close(&whole, &logits.flatten_all().unwrap().to_vec1().unwrap(), "the CPU's");
    for chunk in [7, 64] {
        let rows = on_gpu.feed(&mut on_gpu.cache.sequence(), &prompt, chunk);
        assert_close(&rows, &whole, &format!("chunks of {chunk}"));
    }
    let mut sequence = on_gpu.cache.sequence();
    on_gpu.feed(&mut sequence, &prompt[..125], 125);
    let rows = on_gpu.feed(&mut sequence, &prompt[125..], 1);
    assert_close(&rows, &whole[125 * 96..], "one by one");
    drop(sequence);
    assert_eq!(on_gpu.cache.free_pages(), 60, "every page came back");
}

#[test]
fn dense_weights_in_8_bits_give_what_they_do_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = Checkpoint::random(&config(), 15).unwrap();
    let model = |dtype| GptOss::new(&checkpoint, 1).unwrap().with_dense_dtype(dtype);
    let prompt = tokens(150, 4);
    let on_cpu = |dtype| {
        let (cpu, pool) =
            (model(dtype), KvCacheConfig { dtype: KvDtype::F32, pages: 60, scales: None });
        let mut sequence = KvCache::new(cpu.config(), &pool, &Device::Cpu).unwrap().sequence();
        let batch = Batch::single(&sequence, &prompt, LogitRows::All);
        let logits = cpu.forward(&batch, &mut [&mut sequence]).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let want = on_cpu(DenseDtype::Q8);
    let (error, _) = relative_error(&want, &on_cpu(DenseDtype::Bf16), 96);
    assert!(error > 10.0 * RANDOM_BOUND, "8 bits change the logits by {error}");
    let on_gpu = OnGpu::of(model(DenseDtype::Q8), &checkpoint, KvDtype::F32, 60, gpu);
    for chunk in [150, 64, 7] {
        let rows = on_gpu.feed(&mut on_gpu.cache.sequence(), &prompt, chunk);
        assert_close(&rows, &want, &format!("chunks of {chunk}"));
    }
    let mut sequence = on_gpu.cache.sequence();
    on_gpu.feed(&mut sequence, &prompt[..141], 141);
    let rows = on_gpu.feed(&mut sequence, &prompt[141..], 1);
    assert_close(&rows, &want[141 * 96..], "one by one");
}

#[test]
fn sequences_do_not_see_each_other() {
    let Some(gpu) = gpu() else { return };
    let on_gpu = OnGpu::new(&Checkpoint::random(&config(), 8).unwrap(), KvDtype::Bf16, 200, gpu);
    let prompts = [tokens(140, 1), tokens(90, 2), tokens(33, 3)];
    let feed = |prompt: &Vec<u32>| on_gpu.feed(&mut on_gpu.cache.sequence(), prompt, prompt.len());
    let alone: Vec<Vec<f32>> = prompts.iter().map(feed).collect();
    let mut sequences = [(); 3].map(|()| on_gpu.cache.sequence());
    let together = interleave(&prompts, |batch| {
        let [a, b, c] = &mut sequences;
        let rows = on_gpu.step(batch, &mut [a, b, c]);
        rows.chunks(96).map(<[f32]>::to_vec).collect()
    });
    for s in 0..3 {
        // BF16 pages round values near a tie either way.
        let (error, row) = relative_error(&together[s].concat(), &alone[s], 96);
        assert!(error <= 1e-2, "sequence {s}: row {row} is off by {error}");
    }
}

#[test]
fn forks_go_on_apart_and_truncated_sequences_go_back() {
    let Some(gpu) = gpu() else { return };
    let on_gpu = OnGpu::new(&Checkpoint::random(&config(), 9).unwrap(), KvDtype::F32, 100, gpu);
    let (past, left, right) = (tokens(90, 1), tokens(20, 2), tokens(20, 3));
    let alone = |ending: &[u32]| {
        let mut sequence = on_gpu.cache.sequence();
        on_gpu.feed(&mut sequence, &past, 90);
        on_gpu.feed(&mut sequence, ending, 20)
    };
    let (want_left, want_right) = (alone(&left), alone(&right));
    let mut first = on_gpu.cache.sequence();
    on_gpu.feed(&mut first, &past, 90);
    let mut second = first.fork();
    // Each writes to the half-filled page that both hold: whoever is first takes a copy.
    assert_close(&on_gpu.feed(&mut second, &right, 20), &want_right, "the fork");
    assert_close(&on_gpu.feed(&mut first, &left, 20), &want_left, "the origin");
    first.truncate(90).unwrap();
    assert_close(&on_gpu.feed(&mut first, &right, 20), &want_right, "after going back");
}

#[test]
fn threads_share_one_model_and_one_cache() {
    let Some(gpu) = gpu() else { return };
    let on_gpu = OnGpu::new(&Checkpoint::random(&config(), 13).unwrap(), KvDtype::F32, 200, gpu);
    let ending = |seed: usize| tokens(8, 20 + seed as u32);
    let mut first = on_gpu.cache.sequence();
    on_gpu.feed(&mut first, &tokens(40, 1), 40);
    let alone: Vec<_> =
        (0..3).map(|seed| on_gpu.feed(&mut first.fork(), &ending(seed), 4)).collect();
    // All go on in the same half-filled pages; whoever is last need not copy them.
    let mut sequences: Vec<_> = (0..2).map(|_| first.fork()).collect();
    sequences.push(first);
    std::thread::scope(|scope| {
        for (seed, mut sequence) in sequences.into_iter().enumerate() {
            let (on_gpu, want) = (&on_gpu, &alone[seed]);
            scope.spawn(move || {
                let got = on_gpu.feed(&mut sequence, &ending(seed), 4);
                assert_close(&got, want, &format!("thread {seed}"));
            });
        }
    });
    assert_eq!(on_gpu.cache.free_pages(), 200, "every page came back");
}

#[test]
fn only_the_rows_asked_for_come_back() {
    let Some(gpu) = gpu() else { return };
    let on_gpu = OnGpu::new(&Checkpoint::random(&config(), 10).unwrap(), KvDtype::F32, 60, gpu);
    let mut sequence = on_gpu.cache.sequence();
    let batch = Batch::single(&sequence, &[1, 2, 3], LogitRows::None);
    assert!(on_gpu.step(&batch, &mut [&mut sequence]).is_empty());
    let batch = Batch::single(&sequence, &[4, 5], LogitRows::Last);
    let last = on_gpu.step(&batch, &mut [&mut sequence]);
    let all = on_gpu.feed(&mut on_gpu.cache.sequence(), &[1, 2, 3, 4, 5], 5);
    assert_close(&last, &all[4 * 96..], "the last row");
}

#[test]
fn a_chat_on_the_gpu_is_the_chat_on_the_cpu() {
    let Some(_) = gpu() else { return };
    // From tests/golden, which is elsewhere for a binary that was carried to another machine.
    let puzzle_tiny = root().join("../../examples/models/puzzle-tiny");
    let answer = |device: &str| {
        let model = Model::builder(&puzzle_tiny)
            .device(device.parse().unwrap())
            .kv_dtype(KvDtype::F32)
            .context(512)
            .load()
            .unwrap();
        let request = ChatRequest::user("What is 2 + 3?")
            .sampling(SamplingParams::default().temperature(0.0))
            .max_tokens(12);
        let response = model.chat(&request).unwrap();
        (
            model.transformer().kernels(),
            response.reasoning().to_string(),
            response.text().to_string(),
        )
    };
    let ((cpu, thought, said), (gpu, gpu_thought, gpu_said)) = (answer("cpu"), answer("cuda"));
    assert!(gpu.starts_with("cuda:0 "), "{gpu}");
    assert!(!cpu.contains("cuda"), "{cpu}");
    assert_eq!((gpu_thought, gpu_said), (thought, said));
}

#[test]
fn greedy_text_is_the_cpus() {
    let Some(_) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 3).unwrap();
    let options = GenerateOptions::default()
        .sampling(SamplingParams::default().temperature(0.0))
        .max_tokens(24);
    let ids = |device: DeviceName| {
        let builder = Model::builder(dir.path()).device(device).kv_dtype(KvDtype::F32);
        let model = builder.context(256).prefill_chunk(16).load().unwrap();
        let tokens =
            model.generate("The quick brown fox jumps over the lazy dog", &options).unwrap();
        tokens.map(|t| t.unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(ids(DeviceName::Cuda(0)), ids(DeviceName::Cpu));
}

#[test]
fn tokens_are_drawn_on_the_gpu_by_the_rules_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = Checkpoint::random(&config(), 13).unwrap();
    let on_gpu = OnGpu::new(&checkpoint, KvDtype::F32, 200, gpu);
    let cpu = GptOss::new(&checkpoint, 1).unwrap();
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 200, scales: None };
    let host = KvCache::new(cpu.config(), &pool, &Device::Cpu).unwrap();
    let generator = |model, cache: &KvCache, options: &GenerateOptions| {
        let stop = StopTokens::new(&[], &[], &[]);
        Generator::new(model, cache.sequence(), &tokens(20, 2), stop, options).unwrap()
    };
    let ids = |generator: Generator| generator.map(|t| t.unwrap().id).collect::<Vec<_>>();
    let options =
        |sampling| GenerateOptions::default().max_tokens(10).prefill_chunk(32).sampling(sampling);
    let drawn = |sampling| ids(generator(&on_gpu.model, &on_gpu.cache, &options(sampling)));

    // Without chance: what the CPU gives, and what the GPU's logits give on the host.
    let greedy = SamplingParams::greedy();
    let penalised = greedy.clone().presence_penalty(2.0).repetition_penalty(1.5).logit_bias(7, 0.5);
    // What was drawn is drawn again, and sooner each time.
    let encouraged = greedy.clone().presence_penalty(-2.0).frequency_penalty(-2.0);
    for sampling in [greedy, penalised, encouraged] {
        let want = ids(generator(&cpu, &host, &options(sampling.clone())));
        assert_eq!(drawn(sampling.clone()), want);
        let options = options(sampling).logprobs(0);
        assert_eq!(ids(generator(&on_gpu.model, &on_gpu.cache, &options)), want);
    }
    assert_eq!(drawn(SamplingParams::default().top_k(1)), drawn(SamplingParams::greedy()));

    // With chance: the seed's.
    let by_seed = |seed| drawn(SamplingParams::default().temperature(2.0).seed(seed));
    assert_eq!(by_seed(1), by_seed(1));
    assert_ne!(by_seed(1), by_seed(2));

    // Among some.
    let hot = options(SamplingParams::default().temperature(5.0));
    let mut few = generator(&on_gpu.model, &on_gpu.cache, &hot);
    for (allowed, forbidden, want) in [(&[5, 64][..], &[5][..], 64), (&[95], &[], 95)] {
        few.allow(allowed.iter().copied().collect::<TokenSet>());
        few.forbid(forbidden).unwrap();
        assert_eq!(few.next().unwrap().unwrap().id, want);
    }
    few.forbid(&(0..95).collect::<Vec<_>>()).unwrap();
    assert_eq!(few.next().unwrap().unwrap().id, 95, "all but one are forbidden");
    few.allow([5].into_iter().collect());
    few.forbid(&[5]).unwrap();
    let error = few.next().unwrap().unwrap_err().to_string();
    assert!(error.ends_with("no token is both allowed and not forbidden"), "{error}");
}

#[test]
fn a_row_that_begins_a_part_of_its_positions_sees_itself() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = Checkpoint::random(&config(), 14).unwrap();
    let on_gpu = OnGpu::new(&checkpoint, KvDtype::F32, 30, gpu);
    let cpu = GptOss::new(&checkpoint, 1).unwrap();
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 30, scales: None };
    let on_cpu = KvCache::new(cpu.config(), &pool, &Device::Cpu).unwrap();
    // Where decode parts a row's positions, and one beyond; the pages before are zeros on both.
    for depth in [256, 257] {
        let (mut here, mut there) = (on_gpu.cache.sequence(), on_cpu.sequence());
        here.extend_unwritten(depth).unwrap();
        there.extend_unwritten(depth).unwrap();
        let batch = Batch::single(&here, &[7], LogitRows::Last);
        let want = cpu.forward(&batch, &mut [&mut there]).unwrap();
        let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
        assert_close(&on_gpu.step(&batch, &mut [&mut here]), &want, &format!("position {depth}"));
    }
}
