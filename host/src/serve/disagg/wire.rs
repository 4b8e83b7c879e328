//! What ranks tell each other, and how long it takes.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use serde::Serialize;

use crate::kv::Location;
use crate::model::engine::RequestId;
use crate::model::{PageWindow, StagedPages};
use crate::serve::Clock;
use crate::serve::request::{Answer, Request};
use crate::serve::timeline::Timeline;

/// A network that there is not: bytes take time on the wall's clock, one after the other on each
/// link from a rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SimulatedNetwork {
    /// Of each link, in one direction.
    pub gb_s: f64,
    /// Until the first byte is there.
    pub latency_us: f64,
}

/// From rank to rank, or from the router.
#[derive(Debug)]
pub(super) enum Message {
    /// Router to prefill: compute this prompt, for this rank to go on with.
    Prefill { request: Request, timeline: Timeline, decode: usize },
    /// Router to both: nobody waits for it any more, or it starts again elsewhere.
    Forget { request: RequestId },
    /// Prefill to decode: nothing more is written to the pages of this one.
    Abandoned { request: RequestId, from: usize },
    /// Prefill to decode: make room for this prompt.
    Reserve { request: Request, from: usize },
    /// Decode to prefill: there is room, in these pages, which others may be able to reach.
    Granted { request: RequestId, by: usize, room: Room },
    /// Prefill to decode: pages of one layer, from this page of the request on.
    Layer { request: RequestId, from: usize, layer: usize, first_page: usize, bytes: Vec<u8> },
    /// Prefill to decode: all pages, in the host's memory.
    Staged { request: RequestId, from: usize, pages: StagedPages },
    /// Prefill to decode: all pages were sent, and this is the first token.
    Handed { request: RequestId, from: usize, token: u32, timeline: Timeline },
    /// Router to decode: this rank has stopped; requests that were to come from it do not.
    Stopped { prefill: usize },
    /// Router to all: there is nothing more to do.
    End,
}

/// Pages of a rank that decodes, for a request that is to come.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub pages: Vec<Location>,
    /// None where bytes are sent.
    pub window: Option<PageWindow>,
}

impl Message {
    fn num_bytes(&self) -> usize {
        match self {
            Self::Layer { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }
}

/// To the router.
#[derive(Debug)]
pub(super) enum News {
    /// A request has ended.
    Ended(Answer, Timeline),
    /// A rank has stopped before its time.
    Down { rank: usize, reason: String },
}

/// A message, and when it is there.
#[derive(Debug)]
pub(super) struct Envelope {
    ready_us: f64,
    message: Message,
}

/// The way from one rank, or the router, to another.
pub(super) struct Link {
    sender: Sender<Envelope>,
    network: Option<SimulatedNetwork>,
    clock: Clock,
    free_us: f64,
}

impl Link {
    pub fn new(sender: Sender<Envelope>, network: Option<SimulatedNetwork>, clock: Clock) -> Self {
        Self { sender, network, clock, free_us: 0.0 }
    }

    /// Sends; does not wait. What goes to a rank that has stopped is lost: the router knows.
    pub fn send(&mut self, message: Message) {
        let mut ready_us = 0.0;
        if let Some(SimulatedNetwork { gb_s, latency_us }) = self.network {
            let start_us = self.clock.now_us().max(self.free_us);
            self.free_us = start_us + message.num_bytes() as f64 / (gb_s * 1e3);
            ready_us = self.free_us + latency_us;
        }
        let _ = self.sender.send(Envelope { ready_us, message });
    }
}

/// What has come to a rank.
pub(super) struct Inbox {
    receiver: Receiver<Envelope>,
    clock: Clock,
    /// By when they are there.
    coming: VecDeque<Envelope>,
}

/// How long an idle rank waits before it looks again, µs.
const IDLE_US: f64 = 50e3;

impl Inbox {
    pub fn new(receiver: Receiver<Envelope>, clock: Clock) -> Self {
        Self { receiver, clock, coming: VecDeque::new() }
    }

    /// The next message that is there by now.
    pub fn take(&mut self) -> Option<Message> {
        while let Ok(envelope) = self.receiver.try_recv() {
            self.keep(envelope);
        }
        let is_there = self.coming.front()?.ready_us <= self.clock.now_us();
        is_there.then(|| self.coming.pop_front().expect("it was looked at").message)
    }

    /// Waits a while for a message; returns early when there may be one.
    pub fn wait(&mut self) {
        let next = self.coming.front();
        let left_us = next.map_or(IDLE_US, |next| next.ready_us - self.clock.now_us());
        let left = Duration::from_secs_f64(left_us.clamp(0.0, IDLE_US) / 1e6);
        match self.receiver.recv_timeout(left) {
            Ok(envelope) => self.keep(envelope),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left to say that it is over.
            Err(RecvTimeoutError::Disconnected) => {
                self.coming.push_back(Envelope { ready_us: 0.0, message: Message::End });
            }
        }
    }

    fn keep(&mut self, envelope: Envelope) {
        let place = self.coming.partition_point(|other| other.ready_us <= envelope.ready_us);
        self.coming.insert(place, envelope);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn bytes_on_a_network_that_is_too_slow_do_not_come_and_the_wait_ends() {
        let clock = Clock::wall();
        let (sender, receiver) = mpsc::channel();
        let stopped = SimulatedNetwork { gb_s: f64::MIN_POSITIVE, latency_us: 0.0 };
        let mut link = Link::new(sender, Some(stopped), clock.clone());
        let (request, bytes) = (RequestId(0), vec![0; 1 << 20]);
        link.send(Message::Layer { request, from: 0, layer: 0, first_page: 0, bytes });
        let mut inbox = Inbox::new(receiver, clock);
        for _ in 0..2 {
            inbox.wait();
            assert!(inbox.take().is_none());
        }
    }
}
