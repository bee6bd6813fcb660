//! The engine's thread.

use super::inbox::{Closed, Inbox};
use super::scheduler::Scheduler;
use crate::generation::FinishReason;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks after requests that nothing can be done for.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes the answers of all who ask, until nobody can any more.
pub(super) fn run(mut scheduler: Scheduler, inbox: &Arc<Inbox>) {
    let _guard = Guard(Arc::clone(inbox));
    let mut stepped = false;
    loop {
        let limit = match (stepped, scheduler.is_idle()) {
            (true, _) => Some(Duration::ZERO),
            (false, false) => Some(PAUSE),
            (false, true) => None,
        };
        let (arrivals, closed) = inbox.take(limit);
        arrivals.into_iter().for_each(|request| scheduler.add(request));
        if let Some(Closed::Shutdown(end)) = &closed {
            scheduler.refuse_waiting(super::answer::stopped);
            if Instant::now() >= *end {
                scheduler.end_all(|| Ok(FinishReason::Cancelled));
            }
        }
        if closed.is_some() && scheduler.is_idle() {
            inbox.publish(scheduler.stats(), 0);
            return;
        }
        match scheduler.turn() {
            Ok(made) => stepped = made,
            Err(lost) => {
                let closed = Closed::Lost(lost.to_string());
                inbox.close(closed.clone());
                // Those that came in meanwhile.
                inbox.take(Some(Duration::ZERO)).0.into_iter().for_each(|r| scheduler.add(r));
                scheduler.end_all(|| Err(closed.error()));
                inbox.publish(scheduler.stats(), 0);
                return;
            }
        }
        let queued_tokens = scheduler.queued_tokens();
        inbox.publish(scheduler.stats(), queued_tokens);
    }
}

/// Closes the inbox when the thread ends, however that comes about.
struct Guard(Arc<Inbox>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close(Closed::Lost("its thread panicked".into()));
        }
        // Whoever comes too late is told by what is dropped.
        drop(self.0.take(Some(Duration::ZERO)));
    }
}
