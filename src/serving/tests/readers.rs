//! Those who read answers, stop reading, cancel, or come too late.

use super::{World, asked, calm, options, read_all};
use crate::ErrorKind;
use crate::chat::ChatEvent;
use crate::generation::FinishReason;
use crate::serving::Priority;
use crate::serving::answer::{Event, stopped};
use crate::serving::job::Continuation;
use crate::serving::request::Terms;
use std::task::Poll;
use std::time::{Duration, Instant};

const NORMAL: Priority = Priority::Normal;
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn tokens_are_told_of_together_after_the_first() {
    let mut world = World::new(400, calm().stream_interval(4));
    let asked = asked(1, 30, 11);
    let mut answer = world.ask(&asked, NORMAL, None);
    let mut counts = Vec::new();
    let mut read = Vec::new();
    while !world.scheduler.is_idle() {
        world.turn().unwrap();
        let some = read_all(&mut answer);
        counts.push(some.len());
        read.extend(some);
    }
    assert_eq!(counts, [1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 2]);
    assert_eq!(read, asked.alone());
    world.close();
}

/// Nobody else needs its place: it keeps it, for as long as it may.
#[test]
fn a_slow_reader_keeps_its_place_and_then_loses_nothing() {
    for grace in [HOUR, Duration::ZERO] {
        let mut world = World::new(400, options().unread(6).reader_grace(grace));
        let asked = asked(1, 100, 60);
        let mut answer = world.ask(&asked, NORMAL, None);
        let (mut read, mut pauses) = (Vec::new(), 0);
        while !world.scheduler.is_idle() {
            // Nothing goes on while nobody reads; those few that are ahead come first.
            while world.turn().unwrap() {}
            let stats = world.scheduler.stats().clone();
            if world.scheduler.is_idle() {
                break;
            }
            match grace.is_zero() {
                false => assert_eq!((stats.running, stats.paused, stats.waiting), (1, 1, 0)),
                true => assert_eq!((stats.running, stats.paused, stats.waiting), (0, 0, 1)),
            }
            pauses += 1;
            let some = read_all(&mut answer);
            assert!((4..=8).contains(&some.len()), "{} were ahead", some.len());
            read.extend(some);
        }
        read.extend(read_all(&mut answer));
        assert_eq!(read, asked.alone());
        assert!(pauses >= 7, "{pauses}");
        assert_eq!(world.scheduler.stats().preempted > 0, grace.is_zero());
        world.close();
    }
}

/// It goes on once half of what was ahead is read, not with every event.
#[test]
fn a_reader_who_reads_one_event_stays_paused() {
    let mut world = World::new(400, options().unread(6).reader_grace(HOUR));
    let mut answer = world.ask(&asked(1, 100, 60), NORMAL, None);
    while world.turn().unwrap() {}
    let mut read = 0;
    while !world.turn().unwrap() {
        assert!(matches!(answer.next_within(Duration::ZERO), Poll::Ready(Some(Ok(_)))));
        read += 1;
    }
    assert_eq!(read, 4, "of seven, until three are left");
    drop(answer);
    world.close();
}

/// Its place goes to the first who needs it.
#[test]
fn a_place_that_nobody_reads_is_given_to_who_waits() {
    let mut world = World::new(400, calm().max_sequences(1).unread(6).reader_grace(HOUR));
    let (slow, other) = (asked(1, 100, 60), asked(2, 100, 5));
    let mut reader = world.ask(&slow, Priority::High, None);
    while world.turn().unwrap() {}
    let quick = world.ask(&other, Priority::Low, None);
    while world.turn().unwrap() {}
    assert_eq!(quick.finish().unwrap().tokens, other.alone());
    let mut read = Vec::new();
    while !world.scheduler.is_idle() {
        read.extend(read_all(&mut reader));
        world.turn().unwrap();
    }
    read.extend(read_all(&mut reader));
    assert_eq!(read, slow.alone());
    world.close();
}

#[test]
fn cancelling_one_that_waits_ends_no_other() {
    let mut world = World::new(400, calm().max_sequences(1));
    let requests: Vec<_> = (0..4).map(|kind| asked(kind, 50, 9)).collect();
    let mut answers: Vec<_> = requests.iter().map(|asked| world.ask(asked, NORMAL, None)).collect();
    (0..3).for_each(|_| assert!(world.turn().unwrap()));
    answers[2].cancel_handle().cancel();
    drop(answers.remove(1));
    world.turn().unwrap();
    let stats = world.scheduler.stats();
    assert_eq!((stats.cancelled, stats.running, stats.waiting), (2, 1, 1), "at once");
    world.settle();
    let cancelled = answers.remove(1).finish().unwrap();
    assert_eq!(cancelled.finish_reason, FinishReason::Cancelled);
    assert!(cancelled.tokens.is_empty());
    for (answer, asked) in answers.into_iter().zip([&requests[0], &requests[3]]) {
        assert_eq!(answer.finish().unwrap().tokens, asked.alone());
    }
    world.close();
}

/// Nothing more of its prompt is read.
#[test]
fn a_request_that_is_cancelled_in_its_prompt_ends_before_the_next_step() {
    let mut world = World::new(400, calm().prefix_cache(0.0));
    let answer = world.ask(&asked(1, 1000, 9), NORMAL, None);
    (0..3).for_each(|_| assert!(world.turn().unwrap()));
    let read = world.scheduler.stats().step_tokens;
    assert!((100..300).contains(&read), "{read}");
    drop(answer);
    assert!(!world.turn().unwrap());
    let stats = world.scheduler.stats();
    assert_eq!((stats.step_tokens, stats.free_pages, stats.cancelled), (read, 400, 1));
    world.close();
}

#[test]
fn deadlines_end_what_waits_with_an_error_and_what_runs_as_it_is() {
    let mut world = World::new(400, calm().max_sequences(1));
    let (long, late) = (asked(1, 50, 500), asked(2, 50, 9));
    let until =
        |asked: &super::Asked, deadline| Terms { deadline: Some(deadline), ..asked.terms(NORMAL) };
    let soon = Instant::now() + Duration::from_millis(30);
    let mut running = world.submit(Continuation::new(long.lane()), until(&long, soon));
    let waiting = world.submit(Continuation::new(late.lane()), until(&late, soon));
    let patient = world.submit(Continuation::new(late.lane()), until(&late, soon + HOUR));
    let mut read = Vec::new();
    while Instant::now() < soon {
        world.turn().unwrap();
        read.extend(read_all(&mut running));
        std::thread::sleep(Duration::from_millis(1));
    }
    world.settle();
    assert_eq!(waiting.finish().unwrap_err().kind(), ErrorKind::Deadline);
    assert_eq!(patient.finish().unwrap().tokens, late.alone());
    let whole = running.finish().unwrap();
    assert_eq!(whole.finish_reason, FinishReason::Deadline);
    assert!(!whole.tokens.is_empty() && long.alone().starts_with(&whole.tokens));
    assert_eq!(whole.tokens[..read.len()], read);
    world.close();
}

/// One that had to give up its place had begun: it ends as it is, not with an error.
#[test]
fn a_deadline_that_passes_while_a_place_is_lost_keeps_what_was_said() {
    let mut world = World::new(400, calm().max_sequences(1));
    let (long, high) = (asked(1, 50, 500), asked(2, 50, 400));
    let soon = Instant::now() + Duration::from_millis(30);
    let terms = Terms { deadline: Some(soon), ..long.terms(Priority::Low) };
    let low = world.submit(Continuation::new(long.lane()), terms);
    (0..5).for_each(|_| assert!(world.turn().unwrap()));
    let other = world.ask(&high, Priority::High, None);
    world.turn().unwrap();
    assert_eq!(world.scheduler.stats().preempted, 1);
    std::thread::sleep(soon.saturating_duration_since(Instant::now()));
    world.turn().unwrap();
    drop(other);
    let whole = low.finish().unwrap();
    assert_eq!(whole.finish_reason, FinishReason::Deadline);
    assert_eq!(whole.tokens, long.alone()[..5]);
    world.close();
}

#[test]
fn an_engine_that_stops_refuses_what_has_not_begun_and_goes_on_with_the_rest() {
    let mut world = World::new(400, calm().max_sequences(1));
    let requests: Vec<_> = (0..3).map(|kind| asked(kind, 50, 20)).collect();
    let low = world.ask(&requests[0], Priority::Low, None);
    (0..5).for_each(|_| assert!(world.turn().unwrap()));
    let high = world.ask(&requests[1], Priority::High, None);
    world.turn().unwrap();
    let waiting = world.ask(&requests[2], Priority::High, None);
    world.turn().unwrap();
    world.scheduler.refuse_waiting(stopped);
    assert_eq!(waiting.finish().unwrap_err().kind(), ErrorKind::Stopped);
    world.settle();
    assert_eq!(high.finish().unwrap().tokens, requests[1].alone());
    assert_eq!(low.finish().unwrap().tokens, requests[0].alone(), "it had begun, and waited");
    world.close();
}

/// Pages run out: who is not read goes before who came later.
#[test]
fn who_is_not_read_goes_first() {
    let options = options().unread(6).reader_grace(HOUR).prefix_cache(0.0);
    let mut world = World::new(24, options);
    let requests: Vec<_> = (0..3).map(|kind| asked(kind, 10, 150)).collect();
    let mut answers: Vec<_> = requests.iter().map(|asked| world.ask(asked, NORMAL, None)).collect();
    let mut read = vec![Vec::new(); 3];
    while world.scheduler.stats().preempted == 0 {
        assert!(world.turn().unwrap());
        [0, 2].into_iter().for_each(|at| read[at].extend(read_all(&mut answers[at])));
    }
    let said = read[2].len();
    assert!(world.turn().unwrap());
    assert_eq!(read_all(&mut answers[2]).len(), 1, "after {said} tokens");
    drop(answers);
    world.close();
}

/// From the call on, not from when the model gets to it.
#[test]
fn the_time_to_the_first_token_has_the_wait_in_it() {
    let mut world = World::new(400, calm());
    let answer = world.ask(&asked(1, 50, 3), NORMAL, None);
    std::thread::sleep(Duration::from_millis(20));
    world.settle();
    let timings = answer.finish().unwrap().timings;
    assert!(timings.first_token >= Duration::from_millis(20), "{timings:?}");
    assert!(timings.prefill < timings.first_token);
    let stats = world.scheduler.stats();
    assert_eq!((stats.first_token.count(), stats.between_tokens.count()), (1, 2));
    assert!(stats.first_token.sum() >= 0.02);
    assert_eq!(stats.completion_tokens, 3);
    world.close();
}

/// Its thread has died, or nobody runs it any more.
#[test]
fn an_answer_that_nobody_makes_any_more_says_so() {
    let mut world = World::new(400, calm().max_sequences(1));
    let answers = [1, 2].map(|kind| world.ask(&asked(kind, 50, 30), NORMAL, None));
    world.turn().unwrap();
    drop(world);
    for mut answer in answers {
        let mut last = None;
        while let Poll::Ready(Some(event)) = answer.next_within(Duration::ZERO) {
            last = Some(event);
        }
        assert_eq!(last.unwrap().unwrap_err().kind(), ErrorKind::Stopped);
    }
}

#[test]
fn what_is_told_together_is_of_one_kind() {
    use ChatEvent::{Reasoning, Text, ToolCallDelta, ToolCallDone};
    let delta = |index, text: &str| ToolCallDelta { index, arguments: text.into() };
    let mut text = Text("a".into());
    assert_eq!(text.append(Text("b".into())), None);
    assert_eq!(text, Text("ab".into()));
    assert_eq!(text.append(Reasoning("c".into())), Some(Reasoning("c".into())));
    let mut call = delta(0, "x");
    assert_eq!(call.append(delta(1, "y")), Some(delta(1, "y")));
    assert_eq!((call.append(delta(0, "z")), call), (None, delta(0, "xz")));
    assert!(!text.is_urgent() && ToolCallDone { index: 0 }.is_urgent());
}
