//! Where requests come in.

use super::{asked, calm};
use crate::serving::Priority;
use crate::serving::answer::Queue;
use crate::serving::inbox::{Closed, Inbox};
use crate::serving::job::{Continuation, Told};
use crate::serving::request::Request;
use crate::serving::stats::Stats;
use crate::{ErrorKind, Result};
use std::time::{Duration, Instant};

fn submit(inbox: &Inbox) -> Result<()> {
    let asked = asked(1, 10, 10);
    let told = Told::new(Continuation::new(asked.lane()), Queue::new(), 1, calm().unread);
    inbox.submit(Request::new(Box::new(told), asked.terms(Priority::Normal)))
}

#[test]
fn there_is_room_for_so_many_until_some_have_ended() {
    let inbox = Inbox::new(3);
    (0..3).for_each(|_| submit(&inbox).unwrap());
    assert_eq!(submit(&inbox).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(inbox.stats().waiting, 3);
    // That the thread has them makes no room, that one has ended does.
    assert_eq!(inbox.take(None).0.len(), 3);
    assert_eq!(submit(&inbox).unwrap_err().kind(), ErrorKind::Busy);
    inbox.publish(&Stats { running: 1, waiting: 1, ..Stats::default() }, 0);
    submit(&inbox).unwrap();
    assert_eq!(inbox.stats().waiting, 2);
    assert!(submit(&inbox).is_err());
}

/// Tokens that wait, at the rate of all steps so far.
#[test]
fn who_is_refused_is_told_for_how_long() {
    let inbox = Inbox::new(0);
    let retry_after = |steps: u64, seconds: u64, queued: usize| {
        let in_model = Duration::from_secs(seconds);
        let stats = Stats { step_tokens: steps, in_model, ..Stats::default() };
        inbox.publish(&stats, queued);
        submit(&inbox).unwrap_err().retry_after().unwrap().as_secs_f64().round()
    };
    assert_eq!(retry_after(1000, 10, 2000), 20.0);
    assert_eq!(retry_after(1000, 10, 0), 1.0);
    assert_eq!(retry_after(0, 0, 2000), 600.0, "nothing is known yet");
}

#[test]
fn the_first_reason_to_stop_counts_and_a_lost_device_most() {
    let inbox = Inbox::new(3);
    let (soon, late) = (Instant::now(), Instant::now() + Duration::from_secs(9));
    let end = |inbox: &Inbox| match inbox.closed() {
        Some(Closed::Shutdown(end)) => Some(end),
        _ => None,
    };
    inbox.close(Closed::Unowned);
    inbox.close(Closed::Shutdown(late));
    assert_eq!(end(&inbox), Some(late));
    inbox.close(Closed::Shutdown(soon));
    inbox.close(Closed::Shutdown(late));
    inbox.close(Closed::Unowned);
    assert_eq!(end(&inbox), Some(soon), "the earlier one");
    assert_eq!(submit(&inbox).unwrap_err().kind(), ErrorKind::Stopped);
    inbox.close(Closed::Lost("it fell".into()));
    inbox.close(Closed::Shutdown(soon));
    let error = submit(&inbox).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().ends_with("it fell"), "{error}");
}

/// Whoever closes it or wakes it ends the wait.
#[test]
fn a_thread_that_waits_is_woken_up() {
    for action in [|inbox: &Inbox| inbox.wake(), |inbox: &Inbox| inbox.close(Closed::Unowned)] {
        let inbox = Inbox::new(3);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| inbox.take(Some(Duration::from_secs(20))).0.len());
            std::thread::sleep(Duration::from_millis(5));
            let began = Instant::now();
            action(&inbox);
            assert_eq!(waits.join().unwrap(), 0);
            assert!(began.elapsed() < Duration::from_secs(10));
        });
    }
}
