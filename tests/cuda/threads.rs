//! Threads that record steps beside threads that open devices, build models and run steps; and beside code
//! that does not know of any recording.

use super::replay::{cache, config, feed, models};
use crate::batches::tokens;
use crate::device::device;
use gpt_oss_puzzle::cache::KvDtype;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::sys::CUresult;
use gpt_oss_puzzle::kernels::cuda::cudarc::driver::{CudaContext, CudaStream, result};
use gpt_oss_puzzle::kernels::cuda::{Cuda, CudaError, between_recordings};
use gpt_oss_puzzle::model::{Device, DeviceName, GptOss};
use gpt_oss_puzzle::weights::Checkpoint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// A device of its own, so that nothing of another test is in its stream.
fn open() -> Option<(Device, Cuda)> {
    device()?;
    let opened = DeviceName::Cuda(0).open().unwrap();
    let Device::Cuda(device) = &opened else { panic!("{opened:?}") };
    let cuda = Cuda::new(device.cuda_stream(), device.cublas_handle()).unwrap();
    Some((opened, cuda))
}

/// Whether this process runs the test `name` and no other; else one that does is started and must succeed.
/// Other tests would be disturbed, and disturb: what waits for a context waits for the whole process.
fn alone(name: &str) -> bool {
    const ALONE: &str = "TEST_RUNS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    if device().is_some() {
        let name = format!("cuda::threads::{name}");
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = again.args([&name, "--exact"]).env(ALONE, "1").output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    false
}

/// Waits for the whole context as code would that knows nothing of this crate: whether the driver let it.
fn wait_for_the_context() -> bool {
    std::thread::spawn(|| {
        CudaContext::new(0).unwrap();
        match result::ctx::synchronize() {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
                false
            }
        }
    })
    .join()
    .unwrap()
}

/// Something to record that needs memory while it runs.
fn work(stream: &Arc<CudaStream>) -> Result<(), CudaError> {
    stream.alloc_zeros::<u32>(100).map(drop).map_err(|e| CudaError::new("100 zeros", e))
}

/// While one thread records, another opens a device and builds a model: it waits, and both are well.
#[test]
fn opening_waits_for_a_recording() {
    if !alone("opening_waits_for_a_recording") {
        return;
    }
    let Some((_device, cuda)) = open() else { return };
    let checkpoint = Checkpoint::random(&config(), 1).unwrap();
    let (started, begin) = mpsc::channel();
    let (opened, was_opened) = mpsc::channel();
    std::thread::scope(|scope| {
        let checkpoint = &checkpoint;
        scope.spawn(move || {
            begin.recv().unwrap();
            let device = DeviceName::Cuda(0).open().unwrap();
            opened.send(()).unwrap();
            GptOss::new(checkpoint, 1).unwrap().on_device(&device, |_| {}).unwrap();
        });
        let mut calls = 0;
        let recording = cuda.record(|| {
            calls += 1;
            started.send(()).unwrap();
            let early = was_opened.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "a device was opened during a recording");
            work(cuda.stream())
        });
        assert!(recording.unwrap().is_some());
        assert_eq!(calls, 1, "it was spoilt");
    });
}

#[test]
fn threads_record_open_and_run() {
    if !alone("threads_record_open_and_run") {
        return;
    }
    let Some((device, _)) = open() else { return };
    let [replaying, plain] = models(&config(), &device, 2);
    let run = |model: &GptOss, device: &Device| {
        let mut sequence = cache(&config(), device, KvDtype::Bf16, 10).sequence();
        feed(model, &mut sequence, &tokens(4, 1), 1)
    };
    let want = run(&plain, &device);
    const ROUNDS: u64 = 8;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..ROUNDS).for_each(|_| assert!(run(&replaying, &device) == want));
            done.store(true, Ordering::Relaxed);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let device = DeviceName::Cuda(0).open().unwrap();
                    let [replaying, _] = models(&config(), &device, 2);
                    assert!(run(&replaying, &device) == want);
                    assert_eq!(replaying.replayed_steps(), 3);
                    drop(replaying);
                    // Its cuBLAS handle waits for the context.
                    between_recordings(|| drop(device));
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!(replaying.replayed_steps(), 3 * ROUNDS);
}

/// What other code spoils is begun anew, and what was refused meanwhile is told to nobody else.
#[test]
fn a_spoilt_recording_is_begun_anew() {
    if !alone("a_spoilt_recording_is_begun_anew") {
        return;
    }
    let Some((_device, cuda)) = open() else { return };
    for spoilt in [1, 2] {
        let mut calls = 0;
        let recording = cuda.record(|| {
            calls += 1;
            let memory = cuda.stream().alloc_zeros::<u32>(100);
            if calls <= spoilt {
                assert!(!wait_for_the_context(), "nothing is recorded");
                // Freed into the recording, which takes nothing more; then it asks for more.
                drop(memory);
                work(cuda.stream()).unwrap_err();
                return work(cuda.stream());
            }
            Ok(())
        });
        assert!(recording.unwrap().is_some());
        assert_eq!(calls, spoilt + 1);
        cuda.stream().context().check_err().unwrap();
    }
    assert!(wait_for_the_context(), "something is still recorded");
}

#[test]
fn a_recording_that_is_always_spoilt_is_left_for_later() {
    if !alone("a_recording_that_is_always_spoilt_is_left_for_later") {
        return;
    }
    let Some((_device, cuda)) = open() else { return };
    let mut calls = 0;
    let recording = cuda.record(|| {
        calls += 1;
        let memory = cuda.stream().alloc_zeros::<u32>(100);
        assert!(!wait_for_the_context());
        drop(memory);
        Ok::<_, CudaError>(())
    });
    assert!(recording.unwrap().is_none());
    assert!((2..10).contains(&calls), "{calls}");
    // Nobody is told, and the stream records and runs as before.
    cuda.stream().context().check_err().unwrap();
    let again = cuda.record(|| work(cuda.stream())).unwrap();
    // SAFETY: it has memory of its own alone.
    unsafe { again.unwrap().start(cuda.stream()) }.unwrap();
    cuda.stream().synchronize().unwrap();
}

/// Steps go on while other code spoils every recording, and are recorded when it is gone.
#[test]
fn steps_outlive_code_that_waits_for_the_context() {
    if !alone("steps_outlive_code_that_waits_for_the_context") {
        return;
    }
    let Some((device, _)) = open() else { return };
    let [replaying, plain] = models(&config(), &device, 3);
    let run = |model: &GptOss, steps: usize| {
        let mut sequence = cache(&config(), &device, KvDtype::Bf16, 10).sequence();
        feed(model, &mut sequence, &tokens(steps, 1), 1)
    };
    let want = run(&plain, 4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                CudaContext::new(0).unwrap();
                while !done.load(Ordering::Relaxed) {
                    let _ = result::ctx::synchronize();
                }
            });
        }
        // Until it was spoilt each time, which is likely but not certain.
        for rounds in 1..10 {
            assert!(run(&replaying, 4) == want);
            if replaying.replayed_steps() < 3 * rounds {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let before = replaying.replayed_steps();
    run(&replaying, 100);
    assert!(replaying.replayed_steps() >= before + 80, "it was given up");
}
