//! A rank that computes prompts, and pushes their KV to those that decode.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use super::wire::{Inbox, Link, Message, News, Room};
use super::{HandOver, RankReport, StopRank};
use crate::model::engine::{Engine, EngineError, KvPages, RequestId, Sampled, Step, StepSequence};
use crate::serve::request::{Answer, Ending, Request};
use crate::serve::scheduler::Scheduler;
use crate::serve::step_plan::StepPlan;
use crate::serve::summary::Totals;
use crate::serve::timeline::Timeline;
use crate::serve::{Clock, ServeError};

pub(super) struct Prefill<'a> {
    pub engine: &'a mut dyn Engine,
    pub scheduler: Scheduler,
    pub clock: Clock,
    pub rank: usize,
    pub inbox: Inbox,
    /// By rank: those that decode.
    pub links: BTreeMap<usize, Link>,
    pub news: Sender<News>,
    pub hand_over: HandOver,
    pub stop: Option<StopRank>,
    /// Requests that are here.
    pub parcels: BTreeMap<RequestId, Parcel>,
    pub totals: Totals,
}

/// A request on its way through here.
pub(super) struct Parcel {
    request: Request,
    timeline: Timeline,
    decode: usize,
    /// This rank.
    from: usize,
    /// Tokens whose KV was sent.
    num_sent: usize,
    /// Where its pages go, once there is room.
    room: Option<Room>,
}

impl Prefill<'_> {
    pub fn run(mut self) -> Result<RankReport, String> {
        loop {
            while let Some(message) = self.inbox.take() {
                match message {
                    Message::Prefill { request, timeline, decode } => {
                        self.accept(request, timeline, decode);
                    }
                    Message::Granted { request, by, room } => self.start(request, by, room),
                    Message::Forget { request } => {
                        self.forget(request).map_err(|error| error.to_string())?;
                    }
                    Message::End => return Ok(RankReport::of(&self.scheduler, self.totals)),
                    other => return Err(format!("rank {} decodes nothing: {other:?}", self.rank)),
                }
            }
            if self.scheduler.is_idle() {
                self.inbox.wait();
                continue;
            }
            StopRank::check(self.stop, self.rank, self.totals.num_steps)?;
            self.step().map_err(|error| error.to_string())?;
        }
    }

    /// Asks for room at the rank that decodes. Without it nothing starts: that is what holds
    /// prompts back when decoding is slower.
    fn accept(&mut self, request: Request, timeline: Timeline, decode: usize) {
        let alone = one_token(&request);
        if let Err(refusal) = self.scheduler.check(&alone) {
            let answer = Answer {
                id: request.id.0,
                tokens: Vec::new(),
                ending: Ending::Refused(refusal.to_string()),
            };
            self.tell(answer, timeline);
            return;
        }
        let link = self.links.get_mut(&decode).expect("the router names ranks that decode");
        link.send(Message::Reserve { request: request.clone(), from: self.rank });
        let (id, from) = (request.id, self.rank);
        self.parcels
            .insert(id, Parcel { request, timeline, decode, from, num_sent: 0, room: None });
    }

    /// Drops a request that nobody waits for.
    fn forget(&mut self, id: RequestId) -> Result<(), ServeError> {
        if let Some(parcel) = self.parcels.remove(&id) {
            self.abandon(&parcel)?;
        }
        let ending = Ending::Failed("nobody waits for it".to_owned());
        self.scheduler.end(id, ending)?;
        Ok(())
    }

    /// Tells the rank that was asked for room that its pages are its own again, after it was asked,
    /// and when nothing is on its way there any more.
    fn abandon(&mut self, parcel: &Parcel) -> Result<(), ServeError> {
        self.engine.pages().settle().map_err(ServeError::Step)?;
        if let Some(link) = self.links.get_mut(&parcel.decode) {
            link.send(Message::Abandoned { request: parcel.request.id, from: self.rank });
        }
        Ok(())
    }

    fn start(&mut self, id: RequestId, by: usize, room: Room) {
        let Some(parcel) = self.parcels.get_mut(&id).filter(|parcel| parcel.decode == by) else {
            return;
        };
        parcel.room = Some(room);
        self.scheduler.submit(one_token(&parcel.request)).expect("it was checked when it came");
    }

    fn step(&mut self) -> Result<(), ServeError> {
        let now_us = self.clock.now_us();
        let mut plan = self.scheduler.plan(now_us)?;
        for admission in &plan.admitted {
            if let Some(parcel) = self.parcels.get_mut(&RequestId(admission.request)) {
                parcel.timeline.started_us.get_or_insert(now_us);
                parcel.timeline.num_cached_tokens = admission.num_cached_tokens;
            }
        }
        for copies in &plan.copies {
            self.engine.pages().copy(copies).map_err(ServeError::Step)?;
        }
        let (step, sampled) = loop {
            let step = self.scheduler.step(&plan)?;
            if plan.is_empty() {
                break (step, Vec::new());
            }
            match self.compute(&step) {
                Ok(sampled) => break (step, sampled),
                Err(error) => match error.request() {
                    Some(request) => self.fail(request, &error, &mut plan)?,
                    None => return Err(ServeError::Step(error)),
                },
            }
        };
        for sequence in &step.sequences {
            if let Some(parcel) = self.parcels.get_mut(&sequence.request)
                && self.hand_over == HandOver::ByLayer
            {
                parcel.num_sent = parcel.num_sent.max(sequence.num_tokens_after());
            }
        }
        let after_us = self.clock.now_us();
        self.totals.count_step(&plan, after_us - now_us);
        self.hand_over(&step, &sampled, after_us)?;
        self.scheduler.complete(&plan, &sampled)?;
        Ok(())
    }

    /// The step, with each layer's new pages on their way as soon as they are written.
    fn compute(&mut self, step: &Step) -> Result<Vec<Sampled>, EngineError> {
        let (parcels, links) = (&self.parcels, &mut self.links);
        let page_size = self.engine.limits().page_size;
        let by_layer = self.hand_over == HandOver::ByLayer;
        self.engine.step_by_layer(step, &mut |layer, pages| {
            for sequence in step.sequences.iter().filter(|_| by_layer) {
                let Some(parcel) = parcels.get(&sequence.request) else { continue };
                let link = links.get_mut(&parcel.decode).expect("it was asked for room");
                push(link, parcel, sequence, layer, page_size, pages)?;
            }
            Ok(())
        })
    }

    /// Sends what is left of those who have their first token, and the token.
    fn hand_over(
        &mut self,
        step: &Step,
        sampled: &[Sampled],
        now_us: f64,
    ) -> Result<(), ServeError> {
        let limits = self.engine.limits();
        for &Sampled { request, token, .. } in sampled {
            let Some(mut parcel) = self.parcels.remove(&request) else { continue };
            let link = self.links.get_mut(&parcel.decode).expect("it was asked for room");
            let sequence = step.sequences.iter().find(|sequence| sequence.request == request);
            let sequence = sequence.expect("who was given a token was in the step");
            let pages = self.engine.pages();
            let has_window = parcel.room.as_ref().is_some_and(|room| room.window.is_some());
            let staged = match self.hand_over == HandOver::ThroughHost && has_window {
                true => pages.stage(&sequence.pages).map_err(ServeError::Step)?,
                false => None,
            };
            match staged {
                Some(pages) => link.send(Message::Staged { request, from: self.rank, pages }),
                None => {
                    for layer in 0..limits.num_layers {
                        push(link, &parcel, sequence, layer, limits.page_size, pages)
                            .map_err(ServeError::Step)?;
                    }
                    pages.settle().map_err(ServeError::Step)?;
                }
            }
            parcel.timeline.token_us.push(now_us);
            let timeline = parcel.timeline;
            link.send(Message::Handed { request, from: self.rank, token, timeline });
        }
        Ok(())
    }

    /// One request's fault ends that one; the room that was made for it is given back.
    fn fail(
        &mut self,
        id: RequestId,
        error: &EngineError,
        plan: &mut StepPlan,
    ) -> Result<(), ServeError> {
        plan.withdraw(id);
        let ending = Ending::Failed(error.to_string());
        self.scheduler.end(id, ending.clone())?;
        if let Some(parcel) = self.parcels.remove(&id) {
            self.abandon(&parcel)?;
            let answer = Answer { id: id.0, tokens: Vec::new(), ending };
            self.tell(answer, parcel.timeline);
        }
        Ok(())
    }

    fn tell(&mut self, answer: Answer, mut timeline: Timeline) {
        timeline.ended_us = self.clock.now_us();
        let _ = self.news.send(News::Ended(answer, timeline));
    }
}

/// The part of a request that is computed here: up to its first token.
fn one_token(request: &Request) -> Request {
    Request { num_max_new_tokens: 1, ..request.clone() }
}

/// What was pushed arrives before anybody hears that this rank is gone, and gives its pages away.
impl Drop for Prefill<'_> {
    fn drop(&mut self) {
        let _ = self.engine.pages().settle();
    }
}

/// Sends the pages of one layer that were not sent before.
fn push(
    link: &mut Link,
    parcel: &Parcel,
    sequence: &StepSequence,
    layer: usize,
    page_size: usize,
    pages: &mut dyn KvPages,
) -> Result<(), EngineError> {
    if sequence.num_tokens_after() <= parcel.num_sent {
        return Ok(());
    }
    // A page that was sent in part is sent again.
    let first_page = parcel.num_sent / page_size;
    let new = &sequence.pages[first_page..];
    if let Some(Room { pages: places, window: Some(window) }) = &parcel.room {
        return pages.push(layer, new, window, &places[first_page..sequence.pages.len()]);
    }
    let bytes = pages.export(layer, new)?;
    let (request, from) = (sequence.request, parcel.from);
    link.send(Message::Layer { request, from, layer, first_page, bytes });
    Ok(())
}
