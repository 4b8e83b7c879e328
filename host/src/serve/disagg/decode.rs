//! A rank that goes on with prompts that others have computed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::Sender;

use super::wire::{Inbox, Link, Message, News, Room};
use super::{RankReport, StopRank};
use crate::kv::Location;
use crate::model::engine::{Engine, EngineError, RequestId, Sampled};
use crate::serve::request::{Answer, Ending, Request};
use crate::serve::scheduler::{Adopted, Ended, Scheduler};
use crate::serve::step_plan::StepPlan;
use crate::serve::summary::Totals;
use crate::serve::timeline::Timeline;
use crate::serve::{Clock, ServeError};

pub(super) struct Decode<'a> {
    pub engine: &'a mut dyn Engine,
    pub scheduler: Scheduler,
    pub clock: Clock,
    pub rank: usize,
    pub inbox: Inbox,
    /// By rank: those that prefill.
    pub links: BTreeMap<usize, Link>,
    pub news: Sender<News>,
    pub stop: Option<StopRank>,
    /// Requests that want room, in order, and who asks.
    pub wanting: VecDeque<(Request, usize)>,
    /// Requests that have room here, who sends them, and their pages.
    pub coming: BTreeMap<RequestId, (usize, Vec<Location>)>,
    pub timelines: BTreeMap<RequestId, Timeline>,
    pub stopped: BTreeSet<usize>,
    /// Whether others write its pages themselves, where they can.
    pub shows_pages: bool,
    /// Since when nobody decodes.
    pub idle_since_us: f64,
    pub totals: Totals,
}

impl Decode<'_> {
    pub fn run(mut self) -> Result<RankReport, String> {
        self.serve().map_err(|error| error.to_string())?;
        Ok(RankReport::of(&self.scheduler, self.totals))
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        loop {
            while let Some(message) = self.inbox.take() {
                if matches!(message, Message::End) {
                    // All have answers: what is still to come is of no use to anybody.
                    for id in self.coming.keys().copied().collect::<Vec<_>>() {
                        self.forget(id)?;
                    }
                    return Ok(());
                }
                self.receive(message)?;
            }
            self.make_room()?;
            let now_us = self.clock.now_us();
            let plan = match self.scheduler.is_idle() {
                true => StepPlan::default(),
                false => self.scheduler.plan(now_us)?,
            };
            self.record(&plan);
            if plan.is_empty() {
                self.copy(&plan.copies)?;
                self.inbox.wait();
            } else {
                StopRank::check(self.stop, self.rank, self.totals.num_steps)
                    .map_err(|reason| ServeError::Step(EngineError::failed(reason)))?;
                self.step(plan, now_us)?;
            }
        }
    }

    fn receive(&mut self, message: Message) -> Result<(), ServeError> {
        match message {
            Message::Reserve { request, from } if !self.stopped.contains(&from) => {
                match self.scheduler.check(&request) {
                    Ok(()) => self.wanting.push_back((request, from)),
                    Err(refusal) => {
                        let timeline = Timeline {
                            arrival_us: request.arrival_us,
                            num_prompt_tokens: request.prompt.len(),
                            ..Timeline::default()
                        };
                        self.timelines.insert(request.id, timeline);
                        let ending = Ending::Refused(refusal.to_string());
                        self.answer(Ended { id: request.id, tokens: Vec::new(), ending });
                    }
                }
            }
            Message::Layer { request, from, layer, first_page, bytes } => {
                if let Some((_, pages)) = self.coming.get(&request).filter(|it| it.0 == from) {
                    let num_pages = bytes.len() / self.engine.limits().layer_page_bytes;
                    let pages = &pages[first_page..first_page + num_pages];
                    self.engine.pages().import(layer, pages, &bytes).map_err(ServeError::Step)?;
                }
            }
            Message::Handed { request, from, token, timeline }
                if self.coming.get(&request).is_some_and(|coming| coming.0 == from) =>
            {
                self.adopt(request, token, timeline)?;
            }
            Message::Stopped { prefill } => {
                self.stopped.insert(prefill);
                self.wanting.retain(|(_, from)| *from != prefill);
            }
            Message::Staged { request, from, pages: staged } => {
                if let Some((_, pages)) = self.coming.get(&request).filter(|it| it.0 == from) {
                    self.engine.pages().unstage(&staged, pages).map_err(ServeError::Step)?;
                }
            }
            Message::Forget { request } => {
                // While somebody may still write its pages, that one says when it does not.
                let writer = self.coming.get(&request).map(|coming| coming.0);
                if writer.is_none_or(|writer| self.stopped.contains(&writer)) {
                    self.forget(request)?;
                }
            }
            Message::Abandoned { request, from } => {
                let is_asked =
                    |(wanting, by): &(Request, usize)| wanting.id == request && *by == from;
                let is_his = self.coming.get(&request).is_some_and(|coming| coming.0 == from);
                if is_his || self.wanting.iter().any(is_asked) {
                    self.forget(request)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives back what a request has here.
    fn forget(&mut self, id: RequestId) -> Result<(), ServeError> {
        self.wanting.retain(|(request, _)| request.id != id);
        self.coming.remove(&id);
        self.timelines.remove(&id);
        self.scheduler.end(id, Ending::Failed("nobody waits for it".to_owned()))?;
        Ok(())
    }

    /// Grants room to those who want it, in order, as far as there is.
    fn make_room(&mut self) -> Result<(), ServeError> {
        while let Some((request, from)) = self.wanting.front() {
            let Some(room) = self.scheduler.reserve(request)? else { break };
            let (id, from) = (request.id, *from);
            self.copy(&room.copies)?;
            // What is still read from these pages is read before another rank writes them.
            let pages = self.engine.pages();
            pages.settle().map_err(ServeError::Step)?;
            let window = pages.window().filter(|_| self.shows_pages);
            self.coming.insert(id, (from, room.pages.clone()));
            self.wanting.pop_front();
            let link = self.links.get_mut(&from).expect("who asks is a rank that prefills");
            let room = Room { pages: room.pages, window };
            link.send(Message::Granted { request: id, by: self.rank, room });
        }
        Ok(())
    }

    fn adopt(
        &mut self,
        id: RequestId,
        token: u32,
        mut timeline: Timeline,
    ) -> Result<(), ServeError> {
        let now_us = self.clock.now_us();
        let handed_us = timeline.token_us.last().copied().unwrap_or(now_us);
        let was_idle = self.scheduler.num_running() == 0;
        self.coming.remove(&id);
        let adopted = self.scheduler.adopt(id, token)?;
        if adopted == Adopted::Unexpected {
            return Ok(());
        }
        timeline.stall_us = now_us - handed_us;
        self.timelines.insert(id, timeline);
        if was_idle {
            self.totals.fabric_stall_us += (now_us - handed_us.max(self.idle_since_us)).max(0.0);
        }
        if let Adopted::Ended(ended) = adopted {
            self.answer(ended);
        }
        Ok(())
    }

    fn step(&mut self, mut plan: StepPlan, start_us: f64) -> Result<(), ServeError> {
        self.copy(&plan.copies)?;
        let sampled = loop {
            if plan.is_empty() {
                break Vec::new();
            }
            match self.engine.step(&self.scheduler.step(&plan)?) {
                Ok(sampled) => break sampled,
                Err(error) => match error.request() {
                    Some(id) => {
                        plan.withdraw(id);
                        let ending = Ending::Failed(error.to_string());
                        if let Some(ended) = self.scheduler.end(id, ending)? {
                            self.answer(ended);
                        }
                    }
                    None => return Err(ServeError::Step(error)),
                },
            }
        };
        let now_us = self.clock.now_us();
        let num_slots = self.scheduler.policy().num_slots;
        self.totals.count_step(&plan, now_us - start_us);
        self.totals.fill_us += plan.feeds.len() as f64 / num_slots as f64 * (now_us - start_us);
        for Sampled { request, .. } in &sampled {
            self.timelines.entry(*request).or_default().token_us.push(now_us);
        }
        for ended in self.scheduler.complete(&plan, &sampled)? {
            self.answer(ended);
        }
        self.idle_since_us = now_us;
        Ok(())
    }

    fn copy(&mut self, copies: &[Vec<crate::model::engine::PageCopy>]) -> Result<(), ServeError> {
        copies.iter().try_for_each(|list| self.engine.pages().copy(list)).map_err(ServeError::Step)
    }

    fn record(&mut self, plan: &StepPlan) {
        for preemption in &plan.preempted {
            let timeline = self.timelines.entry(RequestId(preemption.request)).or_default();
            timeline.num_preemptions += 1;
        }
        for admission in &plan.admitted {
            let timeline = self.timelines.entry(RequestId(admission.request)).or_default();
            timeline.num_restored_pages += admission.num_restored_pages;
            timeline.num_recomputed_tokens += admission.num_tokens - admission.num_cached_tokens;
        }
    }

    fn answer(&mut self, Ended { id, tokens, ending }: Ended) {
        let mut timeline = self.timelines.remove(&id).unwrap_or_default();
        timeline.ended_us = self.clock.now_us();
        let _ = self.news.send(News::Ended(Answer { id: id.0, tokens, ending }, timeline));
    }
}
