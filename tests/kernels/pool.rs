//! The thread pool: every task once, whoever calls, whatever happens.

use gpt_oss_puzzle::kernels::cpu::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn count(pool: &Pool, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|i| {
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{tasks} tasks");
}

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for round in 0..300 {
            count(&pool, round % 37);
        }
        // Long enough for the workers to fall asleep.
        std::thread::sleep(Duration::from_millis(2));
        count(&pool, 1000);
    }
}

#[test]
fn nested_and_concurrent_calls_finish() {
    let pool = Pool::new(4);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(5, &|_| {
                        pool.run(3, &|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 4 * 200 * 5 * 3);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    for round in 0..100 {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, &|i| assert!(i != round % 20, "task {i} fails"));
        }));
        let payload = outcome.unwrap_err();
        let message = payload.downcast_ref::<String>().expect("a message");
        assert_eq!(*message, format!("task {} fails", round % 20));
        count(&pool, 50);
    }
}

#[test]
fn dropping_a_pool_ends_its_threads() {
    for _ in 0..50 {
        let pool = Pool::new(4);
        count(&pool, 8);
    }
    // Asleep when dropped.
    let pool = Pool::new(4);
    std::thread::sleep(Duration::from_millis(2));
    drop(pool);
}
