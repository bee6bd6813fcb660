//! A persistent thread pool.
//!
//! One call at a time owns the workers. A call that finds them taken (made by another user's thread,
//! or from inside a task) runs its tasks on its own thread instead: it can neither wait for itself nor
//! be starved, and because results do not depend on how work is split nobody can tell.
//!
//! Tasks are handed out by one shared counter. Workers join an open call and leave it; the caller
//! closes the call when the counter has run out and waits only for those that joined, so a worker that
//! the system has not scheduled delays nobody. Idle workers look for the next call for a short while,
//! because the kernels of a layer follow each other within microseconds, and then sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker looks for work, and a caller for the end of a task, before sleeping.
const SPIN: Duration = Duration::from_micros(50);

/// Set in [`Shared::state`] while workers may join; the bits below count those inside, the bits above
/// number the call.
const OPEN: u64 = 1 << 32;

/// A call's closure and task count, with the borrow's lifetime removed.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Number of the call · 2^33, [`OPEN`], workers inside.
    state: AtomicU64,
    /// Written only by the owner of the pool while nobody is inside and the state is not open.
    job: UnsafeCell<Option<Job>>,
    /// Next task of the call.
    next: AtomicUsize,
    /// The first panic of the call.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    busy: AtomicBool,
    shutdown: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    finish: Mutex<()>,
    finished: Condvar,
}

// SAFETY: `job` is the only field that is not Sync by itself. It is written by the one caller that
// holds `busy`, while `state` is closed with nobody inside, and read only after joining through `state`
// (acquire), which the caller opened after writing (release). The closure behind it is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer in `job` is used only between a call's opening and its end.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at `done` until it holds or the spinning time is over; says whether it held.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

impl Shared {
    /// Runs tasks of the current call until none is left. A panic ends the call early.
    fn work(&self, job: Job) {
        // SAFETY: the caller is inside the call that published `job`; its owner waits for everybody
        // inside before the borrow behind the pointer ends.
        let task = unsafe { &*job.task };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= job.tasks {
                    break;
                }
                task(i);
            }
        }));
        if let Err(payload) = outcome {
            self.next.store(job.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn worker(&self) {
        let mut last = 0;
        while !self.shutdown.load(Ordering::SeqCst) {
            let state = self.state.load(Ordering::SeqCst);
            let call = state >> 33;
            if state & OPEN != 0 && call != last {
                let joined = self.state.compare_exchange(
                    state,
                    state + 1,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                if joined.is_ok() {
                    last = call;
                    // SAFETY: joined an open call, so `job` was written before and is not written
                    // until this worker has left.
                    if let Some(job) = unsafe { *self.job.get() } {
                        self.work(job);
                    }
                    let left = self.state.fetch_sub(1, Ordering::SeqCst) - 1;
                    if left & (2 * OPEN - 1) == 0 {
                        // Closed and empty: the caller may be asleep.
                        drop(lock(&self.finish));
                        self.finished.notify_all();
                    }
                }
                continue;
            }
            let news = || {
                let state = self.state.load(Ordering::SeqCst);
                state & OPEN != 0 && state >> 33 != last || self.shutdown.load(Ordering::SeqCst)
            };
            if !spin_until(news) {
                // Announced before the last look, and the opener looks at `sleepers` after opening:
                // one of the two sees the other. The lock is held from the look until the wait.
                let mut guard = lock(&self.sleep);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !news() {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }
}

/// Threads that live as long as the pool. The calling thread is one of its `threads`.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 means one per core available to the
    /// process. Threads that the system refuses are done without.
    pub fn new(threads: usize) -> Pool {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { available() } else { threads };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            busy: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            finish: Mutex::new(()),
            finished: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                let name = format!("kernels-{i}");
                std::thread::Builder::new().name(name).spawn(move || shared.worker()).ok()
            })
            .collect();
        Pool { shared, workers }
    }

    /// Threads that work on a call, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) .. task(tasks − 1)`, each once, in no particular order, and returns when all are
    /// done.
    ///
    /// # Panics
    ///
    /// With the first panic of a task; tasks not yet started are then left out.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let alone = tasks <= 1 || self.workers.is_empty();
        if alone || shared.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes. The pointer is used by this call's `work` and by workers
        // inside the call, and this function does not return before they have left.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job { task, tasks };
        // SAFETY: `busy` is held, the state is closed and nobody is inside: the previous owner waited
        // for that before it gave `busy` back.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        let call = (shared.state.load(Ordering::SeqCst) >> 33) + 1;
        shared.state.store(call << 33 | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();

        shared.work(job);

        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let empty = || shared.state.load(Ordering::SeqCst) & (OPEN - 1) == 0;
        if !spin_until(empty) {
            let mut guard = lock(&shared.finish);
            while !empty() {
                guard = shared.finished.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let panic = lock(&shared.panic).take();
        shared.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `0..n` into pieces of `size` and runs `task` on each.
    pub fn run_chunks(&self, n: usize, size: usize, task: impl Fn(Range<usize>) + Sync) {
        self.run(n.div_ceil(size), &|i| task(i * size..n.min((i + 1) * size)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks throw, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}
