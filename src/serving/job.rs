//! [`Job`]: an answer in the making, and who is told of it.

use super::answer::{Event, Generated, Queue, stopped};
use crate::Result;
use crate::chat::{ChatEvent, ChatResponse, Turn};
use crate::generation::{Drive, FinishReason, GeneratedToken, Lane, Plain};
use std::collections::VecDeque;
use std::sync::Arc;

/// A drive whose events go to an [`super::Answer`].
pub(super) trait Job: Drive {
    /// Sends the events so far, unless they wait for others.
    fn deliver(&mut self);

    /// Whether whoever reads the answer keeps up with it.
    fn is_read(&mut self) -> bool;

    /// Whether later prompts may begin with this answer as it was made.
    fn leads_on(&self) -> bool;

    /// Ends the answer: as it is, or with an error.
    fn conclude(self: Box<Self>, result: Result<()>);
}

/// What tells of its tokens by events.
pub(super) trait Tells: Drive {
    type Event: Event;

    /// The next event that nobody has taken.
    fn pop(&mut self) -> Option<Self::Event>;

    /// The whole answer, after its end.
    fn whole(&mut self) -> Option<<Self::Event as Event>::Whole>;

    /// See [`Job::leads_on`].
    fn leads_on(&self) -> bool;
}

impl Tells for Turn {
    type Event = ChatEvent;

    fn pop(&mut self) -> Option<ChatEvent> {
        Turn::pop(self)
    }

    fn whole(&mut self) -> Option<ChatResponse> {
        self.take_response()
    }

    fn leads_on(&self) -> bool {
        Turn::leads_on(self)
    }
}

/// A plain continuation that remembers its tokens.
pub(super) struct Continuation {
    plain: Plain,
    tokens: Vec<GeneratedToken>,
}

impl Continuation {
    pub(super) fn new(lane: Lane) -> Continuation {
        Continuation { plain: Plain::new(lane), tokens: Vec::new() }
    }
}

impl Drive for Continuation {
    fn lane(&self) -> &Lane {
        self.plain.lane()
    }

    fn lane_mut(&mut self) -> &mut Lane {
        self.plain.lane_mut()
    }

    fn follow(&mut self, token: GeneratedToken) -> Result<()> {
        self.plain.follow(token)
    }

    fn is_done(&self) -> bool {
        self.plain.is_done()
    }

    fn end(&mut self) -> Result<()> {
        self.plain.end()
    }
}

impl Tells for Continuation {
    type Event = GeneratedToken;

    fn pop(&mut self) -> Option<GeneratedToken> {
        let token = self.plain.pop()?;
        self.tokens.push(token.clone());
        Some(token)
    }

    fn whole(&mut self) -> Option<Generated> {
        let lane = self.plain.lane();
        Some(Generated {
            tokens: std::mem::take(&mut self.tokens),
            finish_reason: lane.finish_reason().unwrap_or(FinishReason::Stop),
            usage: lane.usage(),
            timings: lane.timings(),
            seed: lane.seed(),
        })
    }

    fn leads_on(&self) -> bool {
        true
    }
}

/// A drive and the queue that its events go to.
pub(super) struct Told<D: Tells> {
    drive: D,
    queue: Arc<Queue<D::Event>>,
    /// Events that wait for others.
    held: VecDeque<D::Event>,
    /// Tokens that are told of together.
    interval: usize,
    /// How many tokens had been made when events were last sent.
    sent: usize,
    /// Unread events at which it pauses.
    unread: usize,
    concluded: bool,
}

impl<D: Tells> Told<D> {
    pub(super) fn new(
        drive: D,
        queue: Arc<Queue<D::Event>>,
        interval: usize,
        unread: usize,
    ) -> Told<D> {
        let held = VecDeque::new();
        Told { drive, queue, held, interval, sent: 0, unread, concluded: false }
    }

    /// Takes the drive's events, those together that can be.
    fn collect(&mut self) {
        while let Some(event) = self.drive.pop() {
            let alone = match self.held.back_mut() {
                Some(last) if self.interval > 1 => last.append(event),
                _ => Some(event),
            };
            self.held.extend(alone);
        }
    }
}

impl<D: Tells> Drive for Told<D> {
    fn lane(&self) -> &Lane {
        self.drive.lane()
    }

    fn lane_mut(&mut self) -> &mut Lane {
        self.drive.lane_mut()
    }

    fn follow(&mut self, token: GeneratedToken) -> Result<()> {
        self.drive.follow(token)
    }

    fn has_mask(&self) -> bool {
        self.drive.has_mask()
    }

    fn mask(&mut self) -> Result<()> {
        self.drive.mask()
    }

    fn boundary(&self) -> Option<usize> {
        self.drive.boundary()
    }

    fn is_done(&self) -> bool {
        self.drive.is_done()
    }

    fn end(&mut self) -> Result<()> {
        self.drive.end()
    }
}

impl<D: Tells> Job for Told<D> {
    fn deliver(&mut self) {
        self.collect();
        let made = self.drive.lane().usage().completion_tokens;
        let is_due = self.sent == 0 || made - self.sent >= self.interval;
        if !self.held.is_empty() && (is_due || self.held.iter().any(Event::is_urgent)) {
            self.sent = made;
            self.queue.send(self.held.drain(..));
        }
    }

    fn is_read(&mut self) -> bool {
        self.queue.has_room(self.unread, self.unread / 2)
    }

    fn leads_on(&self) -> bool {
        self.drive.leads_on()
    }

    fn conclude(mut self: Box<Self>, result: Result<()>) {
        // An answer that failed is told of as far as it came.
        self.collect();
        let whole = result.and_then(|()| self.drive.whole().ok_or_else(stopped));
        self.concluded = true;
        self.queue.end(self.held.drain(..), whole);
    }
}

impl<D: Tells> Drop for Told<D> {
    /// Nobody is left to make it.
    fn drop(&mut self) {
        if !self.concluded {
            self.queue.end(std::iter::empty(), Err(stopped()));
        }
    }
}
