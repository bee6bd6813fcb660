//! What goes wrong ends one answer, or says that all have ended.

use super::touchy::{Touchy, sleeper};
use super::{World, asked, calm, read_all};
use crate::generation::GeneratedToken;
use crate::serving::{Answer, Priority};
use crate::{Error, ErrorKind};
use std::task::Poll;
use std::time::Duration;

/// Its tokens and how it ended.
fn ended(mut answer: Answer<GeneratedToken>) -> (Vec<GeneratedToken>, Option<Error>) {
    let (mut read, mut error) = (Vec::new(), None);
    loop {
        match answer.next_within(Duration::ZERO) {
            Poll::Ready(Some(Ok(token))) => read.push(token),
            Poll::Ready(Some(Err(e))) => error = Some(e),
            Poll::Ready(None) => return (read, error),
            Poll::Pending => panic!("it never ends"),
        }
    }
}

/// Its tokens, all of them.
fn whole(answer: Answer<GeneratedToken>) -> Vec<GeneratedToken> {
    let (read, error) = ended(answer);
    assert!(error.is_none(), "{error:?}");
    read
}

#[test]
fn a_lost_device_ends_everyone_and_says_so() {
    let mut world = World::new(400, calm());
    let answers: Vec<_> =
        (0..12).map(|kind| world.ask(&asked(kind, 100, 30), Priority::Normal, None)).collect();
    (0..9).for_each(|_| assert!(world.turn().unwrap()));
    assert!(world.scheduler.stats().cached_pages > 0);
    world.model.faults.lock().unwrap().fail_in = Some((0, 2));
    world.turn().expect("once is no loss");
    let lost = world.turn().unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Device);
    for answer in answers {
        let error = ended(answer).1.expect("those that ran and those that waited");
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("lost its device"), "{error}");
    }
    let stats = world.scheduler.stats();
    assert_eq!((stats.failed, stats.running, stats.waiting), (12, 0, 0));
    assert_eq!((stats.cached_pages, stats.free_pages), (0, stats.pages));
}

#[test]
fn a_step_that_fails_once_is_made_again_and_nobody_sees_it() {
    for panics in [false, true] {
        for steps in 0..20 {
            let mut world = World::new(400, calm());
            let requests: Vec<_> =
                (0..12).map(|kind| asked(kind, 60 + 9 * kind as usize, 6)).collect();
            let answers: Vec<_> =
                requests.iter().map(|asked| world.ask(asked, Priority::Normal, None)).collect();
            {
                let mut faults = world.model.faults.lock().unwrap();
                match panics {
                    false => faults.fail_in = Some((steps, 1)),
                    true => faults.panic_in = Some(steps + 1),
                }
            }
            world.settle();
            for (asked, answer) in requests.iter().zip(answers) {
                assert_eq!(whole(answer), asked.alone(), "step {steps}");
            }
            assert_eq!(world.scheduler.stats().failed, 0);
            world.close();
        }
    }
}

/// Two failures that are far apart are none in a row.
#[test]
fn a_device_that_fails_now_and_then_is_not_lost() {
    let mut world = World::new(400, calm());
    let asked = asked(1, 60, 60);
    let answer = world.ask(&asked, Priority::Normal, None);
    while !world.scheduler.is_idle() {
        if world.turns.is_multiple_of(9) {
            world.model.faults.lock().unwrap().fail_in = Some((0, 1));
        }
        world.turn().unwrap();
    }
    assert_eq!(whole(answer), asked.alone());
}

/// A step of this crate that panics again and again: what is in it ends, what waits goes on.
#[test]
fn steps_that_panic_end_what_is_in_them() {
    let mut world = World::new(400, calm().max_sequences(2));
    let requests: Vec<_> = (0..4).map(|kind| asked(kind, 40, 6)).collect();
    let answers: Vec<_> =
        requests.iter().map(|asked| world.ask(asked, Priority::Normal, None)).collect();
    for _ in 0..2 {
        world.model.faults.lock().unwrap().panic_in = Some(1);
        world.turn().unwrap();
    }
    world.settle();
    for (number, (asked, answer)) in requests.iter().zip(answers).enumerate() {
        match number < 2 {
            true => assert_eq!(ended(answer).1.unwrap().kind(), ErrorKind::Panic),
            false => assert_eq!(whole(answer), asked.alone()),
        }
    }
    world.close();
}

#[test]
fn logits_that_are_no_numbers_end_one_answer_and_are_not_gone_on_from() {
    let mut world = World::new(400, calm());
    let (sick, other) = (asked(1, 200, 20), asked(2, 40, 20));
    let mut company = world.ask(&other, Priority::Normal, None);
    world.turn().unwrap();
    let mut read = read_all(&mut company);
    assert_eq!(read.len(), 1);
    // Of the rows to come, the first of `sick`: its prompt takes two steps or three.
    let answer = world.ask(&sick, Priority::Normal, None);
    while world.scheduler.stats().cached_pages == 0 {
        world.turn().unwrap();
        read.extend(read_all(&mut company));
    }
    world.model.faults.lock().unwrap().nan_of = Some(sick.prompt[0]);
    world.settle();
    let (none, error) = ended(answer);
    assert_eq!((none.len(), error.unwrap().kind()), (0, ErrorKind::Numeric));
    read.extend(ended(company).0);
    assert_eq!(read, other.alone());
    assert_eq!(world.scheduler.stats().cached_tokens, 0);
    // What it has left is not begun with.
    let again = world.ask(&sick, Priority::Normal, None);
    world.settle();
    assert_eq!(whole(again), sick.alone());
    assert_eq!(world.scheduler.stats().cached_tokens, 0);
    world.close();
}

/// What is cached went wrong unseen. It fails whoever begins with it once, not for ever.
#[test]
fn a_prefix_that_fails_an_answer_is_given_up() {
    let mut world = World::new(400, calm());
    let asked = asked(1, 200, 5);
    let first = world.ask(&asked, Priority::Normal, None);
    world.settle();
    assert_eq!(whole(first), asked.alone());
    let second = world.ask(&asked, Priority::Normal, None);
    world.model.faults.lock().unwrap().nan_of = Some(asked.prompt[0]);
    world.settle();
    assert_eq!(world.scheduler.stats().cached_tokens, 192);
    assert_eq!(ended(second).1.unwrap().kind(), ErrorKind::Numeric);
    let third = world.ask(&asked, Priority::Normal, None);
    world.settle();
    assert_eq!(world.scheduler.stats().cached_tokens, 192, "it was read anew");
    assert_eq!(whole(third), asked.alone());
    world.close();
}

#[test]
fn a_panic_in_what_an_answer_does_ends_it_alone() {
    for (follow_in, mask_in, made) in [(0, 99, 0), (4, 99, 4), (99, 0, 0), (99, 4, 4), (99, 99, 12)]
    {
        let mut world = World::new(400, calm());
        let (its, other) = (asked(1, 100, 12), asked(2, 40, 12));
        let before = world.ask(&other, Priority::Normal, None);
        let touchy = Touchy { follow_in, mask_in, ..Touchy::new(&its) };
        let touchy = world.submit(touchy, its.terms(Priority::Normal));
        let after = world.ask(&other, Priority::Normal, None);
        world.settle();
        let (read, error) = ended(touchy);
        assert_eq!(read, its.alone()[..made], "as far as it came");
        assert_eq!(error.map(|e| e.kind()), (made < 12).then_some(ErrorKind::Panic));
        for answer in [before, after] {
            assert_eq!(whole(answer), other.alone());
        }
        world.close();
    }
}

/// Whoever is woken up may panic, at the first token, in the middle or at the end.
#[test]
fn a_reader_whose_waker_panics_ends_its_own_answer() {
    // One by one, and all but the first with the end.
    for (interval, at) in [(1, 0), (1, 1), (1, 3), (1, 5), (9, 0), (9, 1)] {
        let mut world = World::new(400, calm().stream_interval(interval));
        let (its, other) = (asked(1, 100, 5), asked(2, 40, 12));
        let mut touchy = world.ask(&its, Priority::Normal, None);
        let company = world.ask(&other, Priority::Normal, None);
        let mut read = Vec::new();
        while read.len() < at {
            world.turn().unwrap();
            read.extend(read_all(&mut touchy));
        }
        touchy.queue().wake_next(sleeper());
        world.settle();
        // It does end: nobody is left waiting.
        let (more, error) = ended(touchy);
        read.extend(more);
        assert!(its.alone().starts_with(&read));
        // Before the last token was there.
        let is_early = at == 0 || interval == 1 && at < 5;
        assert_eq!(error.is_some(), is_early, "after {at} of {interval} tokens: {error:?}");
        assert_eq!(whole(company), other.alone());
        world.close();
    }
}
