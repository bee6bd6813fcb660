//! Conversations as harmony renders them: once a turn is over its analysis is left out, so that the next
//! prompt parts from what was computed where the answer began.

use super::*;
use crate::cache::Marks;

/// `<|start|>assistant`, after which the answer is drawn.
const HEADER: [u32; 2] = [1, 2];

/// `<|call|>`
const CALL: u32 = 3;

const CHUNK: usize = 512;

struct Chat {
    random: Random,
    salt: Option<&'static str>,
    /// What the next prompt begins with.
    history: Vec<u32>,
    system: usize,
    /// Of the turn that runs: what is rendered after it.
    kept: Vec<u32>,
}

impl Chat {
    fn new(salt: Option<&'static str>, seed: u64) -> Chat {
        // The same for all.
        let history = words(&mut Random(9), 700);
        Chat { random: Random(seed), salt, system: history.len(), history, kept: Vec::new() }
    }

    /// Goes on with `answer`, as an engine does, `inner` a turn or at its begin. Returns how many tokens of
    /// the prompt were computed.
    fn answer(&mut self, prefixes: &mut PrefixCache, inner: bool, answer: &[u32]) -> usize {
        let mut tokens = self.history.clone();
        let mut sequence = prefixes.resume(self.salt, &tokens);
        let cached = sequence.len();
        let last = if inner { Mark::Inner } else { Mark::Turn };
        let wanted = [(self.system, Mark::Turn), (tokens.len() - 1, last)];
        let mut marks = Marks::new(prefixes, self.salt, &tokens, cached, &wanted);
        let mut feed = |tokens: &[u32], count| {
            marks.before_step(&mut sequence, count);
            assert!(prefixes.make_free(sequence.pages_to_append(count)), "it fits alone");
            grow(&mut sequence, count);
            marks.after_step(prefixes, tokens, &mut sequence);
            let held = sequence.cache().windows().held(sequence.len());
            assert_eq!(sequence.pages(), held, "nothing is held that windows have left");
            sequence.len()
        };
        let mut fed = cached;
        while fed < tokens.len() {
            fed = feed(&tokens, CHUNK.min(tokens.len() - fed));
        }
        tokens.extend(answer);
        // The last that is drawn is not fed.
        (fed + 1..tokens.len()).for_each(|_| fed = feed(&tokens, 1));
        if answer.last() == Some(&CALL) {
            marks.end(prefixes, &tokens, &mut sequence);
        }
        tokens.len() - answer.len() - cached
    }

    /// A turn of the user, with so many tool calls. Asserts what is computed for it.
    fn turn(&mut self, prefixes: &mut PrefixCache, calls: usize) {
        let known = self.history.len();
        let asked = 10 + self.random.below(200);
        self.say(asked);
        let mut new = self.history.len() - known;
        let begin = self.history.len();
        for call in 0..=calls {
            let analysis = words_of(&mut self.random, 600);
            let mut said = words_of(&mut self.random, 200);
            if call < calls {
                said.push(CALL);
            }
            let answer = [&analysis[..], &said].concat();
            let computed = self.answer(prefixes, call > 0, &answer);
            assert!(computed <= new + PAGE_TOKENS, "{computed} for {new} new ones");
            // Within the turn all is rendered, beyond it all but the analysis.
            self.kept.extend(&said);
            self.history.extend(&answer);
            if call < calls {
                let before = self.history.len();
                let result = words_of(&mut self.random, 300);
                self.kept.extend(&result);
                self.kept.extend(HEADER);
                self.history.extend(&result);
                self.history.extend(HEADER);
                // And the call's last token, which was not fed.
                new = 1 + self.history.len() - before;
            }
        }
        self.history.truncate(begin);
    }

    /// The begin of the conversation, which nothing is known of.
    fn first_turn(&mut self, prefixes: &mut PrefixCache) {
        assert_eq!(prefixes.cached(self.salt, &self.history), 0);
        self.say(50);
        let answer = words_of(&mut self.random, 600);
        let computed = self.answer(prefixes, false, &answer);
        assert_eq!(computed, self.history.len(), "nothing was known");
        self.kept = answer[answer.len() / 2..].to_vec();
    }

    /// What was kept of the last turn, and a message of `count` tokens.
    fn say(&mut self, count: usize) {
        self.history.append(&mut self.kept);
        self.history.extend(words(&mut self.random, count));
        self.history.extend(HEADER);
    }
}

fn words(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| 10 + random.below(1000) as u32).collect()
}

fn words_of(random: &mut Random, most: usize) -> Vec<u32> {
    let count = 1 + random.below(most);
    words(random, count)
}

const WINDOWS: [Option<usize>; 3] = [Some(64), Some(512), None];

/// At most the answer as it is rendered, the new message, and a page.
#[test]
fn twenty_turns_compute_what_is_new_and_a_page() {
    for most in [4000, 400] {
        let pool = cache(&WINDOWS, most);
        let mut prefixes = PrefixCache::new(&pool, most);
        let mut chat = Chat::new(None, 1);
        chat.first_turn(&mut prefixes);
        for turn in 1..20 {
            chat.turn(&mut prefixes, [0, 0, 3, 1][turn % 4]);
        }
        // After the system prompt, before each answer, and the last inside each of ten turns.
        let marks = prefixes.listed().len();
        assert!(marks <= 1 + 20 + 10 && (most < 4000 || marks > 25), "{marks} marks");
        assert!(chat.history.len() > 4000, "longer than any window: {}", chat.history.len());
        drop(prefixes);
        assert_eq!(pool.free_pages(), most);
    }
}

/// Each of them goes on from its last boundary, and a new one from the end of the system prompt.
#[test]
fn conversations_beside_each_other_keep_their_boundaries() {
    let pool = cache(&WINDOWS, 6000);
    let mut prefixes = PrefixCache::new(&pool, 6000);
    let mut chats: Vec<Chat> = (0..4).map(|n| Chat::new(None, 10 + n)).collect();
    chats.push(Chat::new(Some("tenant"), 20));
    for chat in [0, 4] {
        chats[chat].first_turn(&mut prefixes);
    }
    for round in 0..10 {
        for chat in &mut chats {
            chat.turn(&mut prefixes, round % 3);
        }
    }
}
