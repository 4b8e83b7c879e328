//! Who serves which request, and what becomes of those whose rank has stopped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::wire::{Link, Message, News};
use crate::serve::Clock;
use crate::serve::request::{Answer, Ending, Request, RequestId};
use crate::serve::timeline::Timeline;

pub(super) struct Router {
    pub clock: Clock,
    pub news: Receiver<News>,
    /// To each rank.
    pub links: Vec<Link>,
    /// Ranks that compute prompts, and are there.
    pub prefill: Vec<usize>,
    /// Ranks that decode, and are there.
    pub decode: Vec<usize>,
}

/// A request under way.
struct Underway {
    request: Request,
    prefill: usize,
    decode: usize,
}

impl Router {
    /// Gives requests to ranks as they arrive, and collects answers until each has one.
    pub fn run(mut self, mut requests: Vec<Request>) -> Vec<(Answer, Timeline)> {
        requests.sort_by(|a, b| a.arrival_us.total_cmp(&b.arrival_us));
        let mut coming = VecDeque::from(requests);
        let mut underway: BTreeMap<RequestId, Underway> = BTreeMap::new();
        let mut ended = Vec::new();
        while !(coming.is_empty() && underway.is_empty()) {
            let now_us = self.clock.now_us();
            while coming.front().is_some_and(|next| next.due_us(now_us) <= now_us) {
                let request = coming.pop_front().expect("it was looked at");
                self.route(request, "no rank", &mut underway, &mut ended);
            }
            let wait_us = coming.front().map_or(1e5, |next| next.arrival_us - self.clock.now_us());
            match self.news.recv_timeout(Duration::from_secs_f64(wait_us.clamp(0.0, 1e5) / 1e6)) {
                Ok(news) => self.learn(news, &mut underway, &mut ended),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody is left, not even to say so.
                    (self.prefill, self.decode) = Default::default();
                    for (_, gone) in std::mem::take(&mut underway) {
                        self.route(gone.request, "all ranks stopped", &mut underway, &mut ended);
                    }
                }
            }
        }
        self.links.iter_mut().for_each(|link| link.send(Message::End));
        ended.sort_by_key(|(answer, _): &(Answer, Timeline)| answer.id);
        ended
    }

    /// Gives a request to the ranks that have the fewest.
    fn route(
        &mut self,
        request: Request,
        why_not: &str,
        underway: &mut BTreeMap<RequestId, Underway>,
        ended: &mut Vec<(Answer, Timeline)>,
    ) {
        let load =
            |count: &dyn Fn(&Underway) -> bool| underway.values().filter(|u| count(u)).count();
        let prefill = self.prefill.iter().min_by_key(|&&rank| load(&|u| u.prefill == rank));
        let decode = self.decode.iter().min_by_key(|&&rank| load(&|u| u.decode == rank));
        let arrival_us = request.due_us(self.clock.now_us());
        let num_prompt_tokens = request.prompt.len();
        let timeline = Timeline { arrival_us, num_prompt_tokens, ..Timeline::default() };
        let (Some(&prefill), Some(&decode)) = (prefill, decode) else {
            let ending = Ending::Failed(format!("{why_not}, and no other is left for its part"));
            let answer = Answer { id: request.id.0, tokens: Vec::new(), ending };
            ended.push((answer, Timeline { ended_us: self.clock.now_us(), ..timeline }));
            return;
        };
        if underway.contains_key(&request.id) {
            let ending = Ending::Refused(format!(
                "id: needs one that no request under way has, got {}",
                request.id
            ));
            let answer = Answer { id: request.id.0, tokens: Vec::new(), ending };
            ended.push((answer, Timeline { ended_us: self.clock.now_us(), ..timeline }));
            return;
        }
        self.links[prefill].send(Message::Prefill { request: request.clone(), timeline, decode });
        underway.insert(request.id, Underway { request, prefill, decode });
    }

    fn learn(
        &mut self,
        news: News,
        underway: &mut BTreeMap<RequestId, Underway>,
        ended: &mut Vec<(Answer, Timeline)>,
    ) {
        match news {
            News::Ended(answer, timeline) => {
                let Some(gone) = underway.remove(&RequestId(answer.id)) else { return };
                // The other rank may hold something of it if this one did not serve it.
                for rank in [gone.prefill, gone.decode] {
                    self.links[rank].send(Message::Forget { request: gone.request.id });
                }
                ended.push((answer, timeline));
            }
            News::Down { rank, reason } => {
                self.prefill.retain(|&other| other != rank);
                self.decode.retain(|&other| other != rank);
                let why_not = format!("rank {rank} stopped ({reason})");
                for &decode in &self.decode {
                    self.links[decode].send(Message::Stopped { prefill: rank });
                }
                let of_rank = |u: &Underway| u.prefill == rank || u.decode == rank;
                let gone = underway.iter().filter(|(_, u)| of_rank(u)).map(|(&id, _)| id);
                for id in gone.collect::<Vec<_>>() {
                    let Some(gone) = underway.remove(&id) else { continue };
                    for other in [gone.prefill, gone.decode] {
                        if other != rank {
                            self.links[other].send(Message::Forget { request: id });
                        }
                    }
                    self.route(gone.request, &why_not, underway, ended);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn requests_end_when_all_ranks_are_gone_without_a_word() {
        let clock = Clock::wall();
        let (senders, _inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel()).unzip();
        let link = |sender| Link::new(sender, None, clock.clone());
        let router = Router {
            clock: clock.clone(),
            news: mpsc::channel().1,
            links: senders.into_iter().map(link).collect(),
            prefill: vec![0],
            decode: vec![1],
        };
        let ended = router.run(vec![Request::new(0, vec![1], 1)]);
        let reason = "all ranks stopped, and no other is left for its part".to_owned();
        assert_eq!(ended[0].0.ending, Ending::Failed(reason));
    }
}
