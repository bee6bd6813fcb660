//! Weights on their way to a device, the room they take there, and what does not fit.

use super::graph::{OnGpu, RANDOM_BOUND, config, gpu};
use crate::golden::{relative_error, root};
use gpt_oss_puzzle::ErrorKind;
use gpt_oss_puzzle::cache::{KvCache, KvCacheConfig, KvDtype};
use gpt_oss_puzzle::chat::{ChatRequest, Model};
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::model::{Batch, DenseDtype, Device, DeviceName, GptOss, LogitRows};
use gpt_oss_puzzle::weights::{Checkpoint, write_tiny_checkpoint};

#[test]
fn dense_weights_in_8_bits_take_half_the_room() {
    let Some(_) = gpu() else { return };
    // From tests/golden, which is elsewhere for a binary that was carried to another machine.
    let puzzle_tiny = root().join("../../examples/models/puzzle-tiny");
    let reported = |dtype| {
        let (send, progress) = std::sync::mpsc::channel();
        let builder = Model::builder(&puzzle_tiny).device(DeviceName::Cuda(0)).context(512);
        let warm = move |done, total| send.send((done, total)).unwrap();
        let model = builder.dense_dtype(dtype).warm(warm).load().unwrap();
        (progress.into_iter().last().unwrap(), model)
    };
    let ((_, stored), model) = reported(DenseDtype::Bf16);
    let ((done, total), q8) = reported(DenseDtype::Q8);
    assert_eq!(stored, model.checkpoint().total_bytes());
    let config = model.config();
    let heads = config.num_attention_heads + config.num_key_value_heads;
    let attention = config.num_hidden_layers() * 2 * config.head_dim * heads;
    let dense = config.hidden_size * (attention + config.vocab_size);
    assert_eq!(stored - total, dense as u64 * 30 / 32, "8.5 bits, not 16");
    assert_eq!(done, total, "all of it is reported");
    let request = ChatRequest::user("What is the capital of France?").date("2026-01-02");
    let answer = q8.chat(&request.sampling(SamplingParams::greedy())).unwrap();
    assert_eq!(answer.text(), "The capital of France is Paris.");
}

#[test]
fn what_does_not_fit_is_an_error_that_says_what_would() {
    let Some(gpu) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    write_tiny_checkpoint(dir.path(), 1).unwrap();
    let builder = || Model::builder(dir.path()).device(DeviceName::Cuda(0));
    // Terabytes of cache, more than any GPU has.
    let error = builder().context(131_072).sequences(2_000).load().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    let text = error.to_string();
    assert!(text.starts_with("cuda:0 has ") && text.contains("2000 conversations"), "{text}");
    assert!(text.contains("; a context of ") && text.ends_with(" fits"), "{text}");

    let error = builder().device(DeviceName::Cuda(99)).load().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    assert!(error.to_string().starts_with("cuda:99 cannot be used: "), "{error}");

    // A shape that the CPU takes and the kernels do not.
    let mut wide = config();
    wide.head_dim = 256;
    let model = GptOss::new(&Checkpoint::random(&wide, 14).unwrap(), 1).unwrap();
    let error = model.on_device(gpu, |_| {}).err().unwrap();
    assert_eq!(error.to_string(), "head_dim is 256, expected at most 128 on a CUDA device");

    // A terabyte of pages, asked for without looking at the memory first.
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 1 << 24, scales: None };
    let error = KvCache::new(&config(), &pool, gpu).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    assert!(
        error.to_string().starts_with(
            "the device has no room for a key-value cache of 16777216 pages of 65536 bytes: "
        ),
        "{error}"
    );

    // A cache that is somewhere else.
    let checkpoint = Checkpoint::random(&config(), 11).unwrap();
    let on_gpu = OnGpu::new(&checkpoint, KvDtype::F32, 10, gpu);
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 10, scales: None };
    let mut sequence = KvCache::new(&config(), &pool, &Device::Cpu).unwrap().sequence();
    let batch = Batch::single(&sequence, &[1], LogitRows::Last);
    let error = on_gpu.model.forward(&batch, &mut [&mut sequence]).unwrap_err();
    assert_eq!(error.to_string(), "the key-value cache is on another device than the model");
}

#[test]
fn weights_arrive_whole_and_are_reported() {
    let Some(gpu) = gpu() else { return };
    // An embedding of more than one pinned buffer, and of no whole number of them.
    let mut config = config();
    config.vocab_size = 160_001;
    config.hidden_size = 128;
    config.block_configs.truncate(1);
    let checkpoint = Checkpoint::random(&config, 12).unwrap();
    let mut reported = Vec::new();
    let model = GptOss::new(&checkpoint, 1).unwrap();
    let model = model.on_device(gpu, |bytes| reported.push(bytes)).unwrap();
    assert!(reported.is_sorted(), "{reported:?}");
    let (done, total) = (*reported.last().unwrap(), checkpoint.total_bytes());
    // Vectors are widened to f32.
    assert!((total..total + 65_536).contains(&done), "{done} of {total}");
    let cpu = GptOss::new(&checkpoint, 1).unwrap();
    let pool = KvCacheConfig { dtype: KvDtype::F32, pages: 10, scales: None };
    let logits = |model: &GptOss, device: &Device| {
        let mut sequence = KvCache::new(&config, &pool, device).unwrap().sequence();
        let batch = Batch::single(&sequence, &[0, 65_536, 131_073, 160_000], LogitRows::Last);
        let logits = model.forward(&batch, &mut [&mut sequence]).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (error, _) = relative_error(&logits(&model, gpu), &logits(&cpu, &Device::Cpu), 160_001);
    assert!(error <= RANDOM_BOUND, "{error}");
}
