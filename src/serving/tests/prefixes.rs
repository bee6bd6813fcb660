//! What is read once is not read again.

use super::{World, asked, calm, least_pages};
use crate::cache::PAGE_TOKENS;
use crate::generation::SamplingParams;
use crate::serving::Priority;

const NORMAL: Priority = Priority::Normal;

/// Four choices of one prompt: the first reads it, the others wait for that.
#[test]
fn equal_prompts_at_once_are_read_once() {
    let mut world = World::new(400, calm());
    let requests: Vec<_> = (0..4).map(|seed| super::Asked { seed, ..asked(1, 200, 5) }).collect();
    let answers: Vec<_> = requests.iter().map(|asked| world.ask(asked, NORMAL, None)).collect();
    world.settle();
    for (asked, answer) in requests.iter().zip(answers) {
        assert_eq!(answer.finish().unwrap().tokens, asked.alone());
    }
    let stats = world.scheduler.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (800, 3 * 192));
    // The last token of an answer is not fed.
    assert_eq!(stats.step_tokens, 200 + 3 * 8 + 4 * 4);
    assert_eq!((stats.prefix_hits, stats.prefix_misses), (3, 1));
    world.close();
}

/// Not by those who have nothing in common with it, or may not know of it.
#[test]
fn others_do_not_wait_for_a_prompt() {
    let mut world = World::new(400, calm().max_step_tokens(512));
    let first = world.ask(&asked(1, 200, 5), NORMAL, None);
    let others = [
        world.ask(&asked(1, 200, 5), NORMAL, Some("a")),
        world.ask(&asked(2, 200, 5), NORMAL, None),
    ];
    world.turn().unwrap();
    let stats = world.scheduler.stats();
    assert_eq!(stats.running, 3, "there is room for all of them in a step: {stats:?}");
    world.settle();
    drop((first, others));
    assert_eq!(world.scheduler.stats().cached_tokens, 0);
    world.close();
}

/// Whatever is resumed, at and around the ends of pages, sees what its windows are to see.
#[test]
fn what_is_gone_on_from_is_whole() {
    for (pages, share) in [(1000, 1.0), (2 * least_pages(), 1.0), (2 * least_pages(), 0.4)] {
        let mut world = World::new(pages, calm().prefix_cache(share));
        let text = asked(1, 340, 3);
        for length in [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 194, 255, 256, 257, 321] {
            let one = super::Asked { prompt: text.prompt[..length].to_vec(), ..text.clone() };
            for answer in [4, 70] {
                let asked = super::Asked { max_tokens: answer, ..one.clone() };
                // Twice as it is, then as a conversation that goes on from its answer.
                let mut said = asked.alone().iter().map(|token| token.id).collect::<Vec<_>>();
                said.truncate(answer - 1);
                let prompt = [&asked.prompt[..], &said, &[3, 4]].concat();
                let next = super::Asked { prompt, max_tokens: 5, ..asked.clone() };
                for asked in [&asked, &asked, &next, &next] {
                    let answer = world.ask(asked, NORMAL, None);
                    world.settle();
                    let whole = answer.finish().unwrap();
                    assert_eq!(whole.tokens, asked.alone(), "a prompt of {}", asked.prompt.len());
                }
            }
            if pages == 1000 {
                let again = world.ask(&one, NORMAL, None);
                world.settle();
                let cached = again.finish().unwrap().usage.cached_tokens;
                assert_eq!(cached, (length - 1) / PAGE_TOKENS * PAGE_TOKENS);
            }
        }
        world.close();
    }
}

/// Its draws go on where they were.
#[test]
fn a_seed_does_not_begin_anew_after_a_place_was_lost() {
    let asked = super::asked(1, 70, 60);
    let alone = asked.alone();
    let ids: std::collections::HashSet<u32> = alone.iter().map(|token| token.id).collect();
    assert!(ids.len() > 10 && SamplingParams::default().temperature != Some(0.0), "it draws");
    for at in [1, 2, 30, 59] {
        let mut world = World::new(400, calm().max_sequences(1));
        let mut answer = world.ask(&asked, NORMAL, None);
        let mut read = Vec::new();
        while read.len() < at {
            world.turn().unwrap();
            read.extend(super::read_all(&mut answer));
        }
        let other = world.ask(&super::asked(2, 9, 3), Priority::High, None);
        world.settle();
        assert_eq!(world.scheduler.stats().preempted, 1);
        drop(other);
        read.extend(super::read_all(&mut answer));
        assert_eq!(read, alone, "after {at} tokens");
        let whole = answer.take_whole().unwrap();
        assert_eq!((whole.usage.completion_tokens, whole.usage.cached_tokens), (60, 0));
        world.close();
    }
}

/// Without a prefix cache nothing is kept and nobody waits for another's prompt.
#[test]
fn without_a_prefix_cache_every_page_comes_back() {
    let mut world = World::new(400, calm().max_step_tokens(512).prefix_cache(0.0));
    let answers: Vec<_> = (0..3).map(|_| world.ask(&asked(1, 200, 5), NORMAL, None)).collect();
    for _ in 0..3 {
        world.turn().unwrap();
    }
    assert_eq!(world.scheduler.stats().running, 3);
    world.settle();
    let stats = world.scheduler.stats();
    assert_eq!((stats.cached_pages, stats.free_pages, stats.cached_tokens), (0, 400, 0));
    drop(answers);
    world.close();
}

/// A mark that a step goes far beyond is whole all the same: others go on from what is common.
#[test]
fn a_prefix_in_the_middle_of_a_step_is_kept() {
    let mut world = World::new(400, calm().max_step_tokens(512));
    let first = asked(1, 400, 3);
    let mut prompt = first.prompt.clone();
    prompt[150..].iter_mut().for_each(|token| *token = 1 + *token % 23);
    let other = super::Asked { prompt, ..first.clone() };
    for (asked, cached) in [(&first, 0), (&other, 128)] {
        let answer = world.ask(asked, NORMAL, None);
        world.settle();
        let whole = answer.finish().unwrap();
        assert_eq!((&whole.tokens, whole.usage.cached_tokens), (&asked.alone(), cached));
    }
    world.close();
}

/// What goes on from an answer does not read it again.
#[test]
fn an_answer_is_part_of_what_is_kept() {
    let mut world = World::new(400, calm());
    let first = asked(1, 100, 70);
    let answer = world.ask(&first, NORMAL, None);
    world.settle();
    let said = answer.finish().unwrap().tokens;
    let prompt = [&first.prompt[..], &said.iter().map(|t| t.id).collect::<Vec<_>>(), &[3]].concat();
    let next = super::Asked { prompt, ..first };
    let answer = world.ask(&next, NORMAL, None);
    world.settle();
    let whole = answer.finish().unwrap();
    assert_eq!((whole.usage.cached_tokens, whole.tokens), (128, next.alone()));
    world.close();
}
