//! Who goes first, and that nobody waits for long.

use super::{World, asked, calm, least_pages, read_all};
use crate::cache::PAGE_TOKENS;
use crate::cache::testing::cache;
use crate::generation::FinishReason;
use crate::serving::Priority;
use crate::serving::request::Terms;
use std::time::{Duration, Instant};

const NORMAL: Priority = Priority::Normal;

/// Whoever is being answered gets a token in every step, however long a prompt is read beside.
#[test]
fn a_long_prompt_holds_nobody_up_for_longer_than_a_step() {
    for budget in [96, 512] {
        let mut world = World::new(2000, calm().max_step_tokens(budget));
        let requests: Vec<_> = (0..5).map(|kind| asked(kind, 20, 150)).collect();
        let mut answers: Vec<_> =
            requests.iter().map(|asked| world.ask(asked, NORMAL, None)).collect();
        (0..2).for_each(|_| assert!(world.turn().unwrap()));
        assert!(answers.iter_mut().all(|answer| !read_all(answer).is_empty()));
        let mut long = world.ask(&asked(9, 3000, 5), NORMAL, None);
        let mut steps = 0;
        while read_all(&mut long).is_empty() {
            let before = world.scheduler.stats().step_tokens;
            world.turn().unwrap();
            let tokens = (world.scheduler.stats().step_tokens - before) as usize;
            assert!(tokens <= budget, "{tokens} tokens in a step of at most {budget}");
            for answer in &mut answers {
                assert_eq!(read_all(answer).len(), 1, "step {steps}");
            }
            steps += 1;
        }
        // And it gets what they leave, but for a page that has no room.
        assert!(steps <= 3000 / (budget - 5 - PAGE_TOKENS + 1) + 1, "{steps} steps");
        world.close();
    }
}

/// Also one that comes when a long prompt has all of the step to itself.
#[test]
fn short_prompts_pass_long_ones() {
    let mut world = World::new(4000, calm().max_step_tokens(512));
    let mut long: Vec<_> =
        (0..2).map(|kind| world.ask(&asked(kind, 3500, 3), NORMAL, None)).collect();
    (0..2).for_each(|_| assert!(world.turn().unwrap()));
    for kind in 2..6 {
        let mut short = world.ask(&asked(kind, 60, 2), NORMAL, None);
        assert!(world.turn().unwrap());
        assert!(!read_all(&mut short).is_empty(), "it waits behind {:?}", world.scheduler.stats());
    }
    assert!(long.iter_mut().all(|answer| read_all(answer).is_empty()));
    world.close();
    let mut world = World::new(4000, calm().max_step_tokens(512));
    let mut long = world.ask(&asked(0, 3500, 3), NORMAL, None);
    assert!(world.turn().unwrap());
    let mut short = world.ask(&asked(1, 60, 2), NORMAL, None);
    assert!(world.turn().unwrap());
    assert!(read_all(&mut long).is_empty() && !read_all(&mut short).is_empty());
    world.close();
}

#[test]
fn among_equals_the_first_goes_first() {
    let mut world = World::new(400, calm().max_sequences(2));
    let mut answers: Vec<_> =
        (0..8).map(|kind| world.ask(&asked(kind, 30, 9), NORMAL, None)).collect();
    let mut order = Vec::new();
    while !world.scheduler.is_idle() {
        world.turn().unwrap();
        for (number, answer) in answers.iter_mut().enumerate() {
            if !read_all(answer).is_empty() && !order.contains(&number) {
                order.push(number);
            }
        }
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
    world.close();
}

/// There is always one of a higher priority.
#[test]
fn whoever_can_wait_does_not_wait_for_ever() {
    let run = |aging: Duration| {
        let mut world = World::new(400, calm().max_sequences(1).aging(aging));
        let low = asked(1, 30, 9);
        let mut answer = world.ask(&low, Priority::Low, None);
        let until = Instant::now() + Duration::from_millis(400);
        let (mut kind, mut read) = (2, Vec::new());
        let mut others = Vec::new();
        while read.len() < 9 && Instant::now() < until {
            others.retain_mut(|other| read_all(other).is_empty());
            while others.len() < 3 {
                others.push(world.ask(&asked(kind % 23, 30, 2), Priority::High, None));
                kind += 1;
            }
            world.turn().unwrap();
            read.extend(read_all(&mut answer));
        }
        world.settle();
        (read.len(), read == low.alone())
    };
    assert_eq!(run(Duration::from_millis(4)), (9, true));
    // That is what it waited for.
    assert_eq!(run(Duration::from_secs(3600)).0, 0);
}

/// The same, once it has waited.
#[test]
fn a_priority_rises_with_age() {
    let aging = Duration::from_secs(10);
    let mut world = World::new(400, calm().max_sequences(1).aging(aging));
    let mut answers = Vec::new();
    for (kind, (priority, age)) in
        [(Priority::High, 0), (NORMAL, 9), (NORMAL, 11), (Priority::Low, 9), (Priority::Low, 21)]
            .into_iter()
            .enumerate()
    {
        let asked = asked(kind as u32, 30, 2);
        let submitted = Instant::now().checked_sub(Duration::from_secs(age)).unwrap();
        let terms = Terms { submitted, ..asked.terms(priority) };
        let drive = crate::serving::job::Continuation::new(asked.lane());
        answers.push(world.submit(drive, terms));
    }
    let mut order = Vec::new();
    while !world.scheduler.is_idle() {
        world.turn().unwrap();
        let done = (0..5).find(|at| !order.contains(at) && !read_all(&mut answers[*at]).is_empty());
        order.extend(done);
    }
    assert_eq!(order, [0, 2, 4, 1, 3]);
}

#[test]
fn a_higher_priority_takes_a_place_and_the_lower_goes_on() {
    let mut world = World::new(400, calm().max_sequences(2).max_step_tokens(512));
    let requests: Vec<_> = (0..4).map(|kind| asked(kind, 50 + kind as usize, 20)).collect();
    let mut answers: Vec<_> = [Priority::Low, NORMAL]
        .into_iter()
        .zip(&requests)
        .map(|(priority, asked)| world.ask(asked, priority, None))
        .collect();
    (0..5).for_each(|_| assert!(world.turn().unwrap()));
    answers.push(world.ask(&requests[2], Priority::High, None));
    assert!(world.turn().unwrap());
    assert_eq!(world.scheduler.stats().preempted, 1);
    let mut read: Vec<_> = answers.iter_mut().map(read_all).collect();
    assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [5, 6, 1], "the lowest went");
    // Another of the lowest stays behind it, and one as high as those that run takes nobody's place.
    answers.push(world.ask(&requests[3], Priority::Low, None));
    world.settle();
    assert_eq!(world.scheduler.stats().preempted, 1);
    read.push(Vec::new());
    for ((asked, answer), read) in requests.iter().zip(&mut answers).zip(&mut read) {
        read.extend(read_all(answer));
        assert_eq!(*read, asked.alone());
    }
    world.close();
}

/// Nobody loses a place for one who cannot have it.
#[test]
fn nobody_makes_room_in_vain() {
    let mut world = World::new(least_pages() + 8, calm());
    // Takes most pages, of the highest priority.
    let large = world.ask(&asked(0, 300, 60), Priority::High, None);
    (0..5).for_each(|_| assert!(world.turn().unwrap()));
    let low = world.ask(&asked(1, 20, 40), Priority::Low, None);
    (0..2).for_each(|_| assert!(world.turn().unwrap()));
    assert_eq!(world.scheduler.stats().running, 2);
    let other = world.ask(&asked(2, 300, 60), Priority::High, None);
    (0..9).for_each(|_| assert!(world.turn().unwrap()));
    let stats = world.scheduler.stats();
    assert_eq!((stats.preempted, stats.running), (0, 2), "{stats:?}");
    world.settle();
    for answer in [large, low, other] {
        assert_eq!(answer.finish().unwrap().finish_reason, FinishReason::Length);
    }
    world.close();
}

/// Pages run out: the last goes, the pages it had are there in the same step, and it comes back when there is room
/// for it.
#[test]
fn one_makes_room_for_another_and_no_more_do() {
    // From room for one of them to room for all.
    for pages in 12..40 {
        let mut world = World::new(pages, calm().prefix_cache(0.0));
        let requests: Vec<_> = (0..3).map(|kind| asked(kind, 10, 150)).collect();
        let answers: Vec<_> = requests.iter().map(|asked| world.ask(asked, NORMAL, None)).collect();
        let mut most = 0;
        while !world.scheduler.is_idle() {
            let before = world.scheduler.stats().clone();
            assert!(world.turn().unwrap());
            let after = world.scheduler.stats().clone();
            most = most.max(after.running);
            let preempted = after.preempted - before.preempted;
            assert!(preempted <= 1, "{before:?} {after:?}");
            if preempted == 1 {
                assert!(after.waiting > before.waiting && after.running < before.running);
            }
        }
        let preempted = world.scheduler.stats().preempted;
        assert!(preempted <= 4, "{pages} pages: {preempted}");
        assert!(pages != 24 || (most, preempted > 0) == (3, true), "{most} at a time, {preempted}");
        for (asked, answer) in requests.iter().zip(answers) {
            assert_eq!(answer.finish().unwrap().tokens, asked.alone());
        }
        world.close();
    }
}

/// Also if it was there before all others.
#[test]
fn pages_are_taken_from_the_lowest_priority() {
    let mut world = World::new(24, calm().prefix_cache(0.0));
    let requests: Vec<_> = (0..3).map(|kind| asked(kind, 10, 150)).collect();
    let low = world.ask(&requests[0], Priority::Low, None);
    world.turn().unwrap();
    let mut others: Vec<_> =
        requests[1..].iter().map(|asked| world.ask(asked, Priority::High, None)).collect();
    while world.scheduler.stats().preempted == 0 {
        others.iter_mut().for_each(|other| drop(read_all(other)));
        assert!(world.turn().unwrap());
    }
    assert!(others.iter_mut().all(|other| !read_all(other).is_empty()), "they go on");
    drop((low, others));
    world.close();
}

/// Two whose beginnings are cached, in a pool that has room for one of them.
#[test]
fn two_that_hold_their_beginnings_do_not_wait_for_each_other() {
    for pages in [least_pages(), least_pages() + 3, least_pages() + 9] {
        let mut world = World::new(pages, calm());
        let requests = [asked(0, 300, 60), asked(1, 300, 60)];
        for _ in 0..2 {
            let answers = requests.each_ref().map(|asked| world.ask(asked, NORMAL, None));
            world.settle();
            for (asked, answer) in requests.iter().zip(answers) {
                assert_eq!(answer.finish().unwrap().tokens, asked.alone());
            }
        }
        world.close();
    }
}

/// The whole of what a step takes would not fit, a page at a time does.
#[test]
fn a_prompt_that_fits_in_parts_is_read_in_parts() {
    let pages = cache(&super::WINDOWS, 1).windows().most(610, PAGE_TOKENS);
    let mut world = World::new(pages, calm().max_step_tokens(512));
    let asked = asked(1, 600, 10);
    let answer = world.ask(&asked, NORMAL, None);
    world.settle();
    assert_eq!(answer.finish().unwrap().tokens, asked.alone());
    assert_eq!(world.scheduler.stats().preempted, 0);
    world.close();
}

/// As many places as there are, and no more.
#[test]
fn places_are_as_many_as_asked_for() {
    let mut world = World::new(400, calm().max_sequences(3));
    let answers: Vec<_> = (0..7).map(|kind| world.ask(&asked(kind, 10, 5), NORMAL, None)).collect();
    while !world.scheduler.is_idle() {
        world.turn().unwrap();
        let stats = world.scheduler.stats();
        assert!(stats.running <= 3, "{stats:?}");
    }
    drop(answers);
    world.close();
}
