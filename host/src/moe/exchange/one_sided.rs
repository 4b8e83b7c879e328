//! Straight into the peers' memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu_kernels::dispatch::contract::{ExchangeLaunch, ExchangeShape, OVERLAP_SENDERS};
use gpu_kernels::dispatch::reference::ranks_of;

use super::{CombineArgs, DispatchArgs, ExchangeError, ExchangeOptions, Phase, ReceivedViews, Way};
use super::{MAX_PULLING_SMS, usual_way};
use crate::comm::Rank;
use crate::device::{Extent, Stream};
use crate::kernels::combine::CombineDirect;
use crate::kernels::dispatch::DispatchPush;

/// Memory of the last combine, should a rank be late in it.
struct LastCombine {
    /// What it expects follows from them.
    topk_ids: Extent,
    /// Peers may still read it.
    partial: Extent,
}

pub(super) struct OneSidedExchange {
    shape: ExchangeShape,
    rank: usize,
    timeout: Duration,
    dispatch: DispatchPush,
    combine: CombineDirect,
    last_combine: Mutex<Option<LastCombine>>,
}

impl OneSidedExchange {
    pub(super) fn new(
        rank: &Rank,
        shape: ExchangeShape,
        options: ExchangeOptions,
    ) -> Result<Self, ExchangeError> {
        let device = rank.device();
        let num_sms = match options.num_sms {
            Some(num_sms) => num_sms,
            None => device.num_multiprocessors()?,
        };
        let timeout_us = u32::try_from(options.timeout.as_micros()).unwrap_or(u32::MAX);
        let launch =
            |num_blocks, num_senders| ExchangeLaunch { num_blocks, num_senders, timeout_us };
        let way = options.way.unwrap_or(usual_way(&shape, device.has_hopper_kernels()));
        let dispatch = match way {
            Way::Bulk => {
                let num_senders = senders_of((num_sms / 2).max(1));
                DispatchPush::bulk(rank, shape, launch(2 * num_senders, num_senders))?
            }
            Way::Packets => {
                let num_blocks = num_sms.clamp(1, shape.num_max_tokens_per_rank);
                DispatchPush::packets(rank, shape, launch(num_blocks, num_blocks))?
            }
        };
        let combine = match way {
            Way::Bulk if num_sms <= MAX_PULLING_SMS => {
                CombineDirect::pull(rank, &dispatch, launch(num_sms, num_sms))?
            }
            Way::Bulk => {
                let num_senders = num_sms / 2;
                CombineDirect::push(rank, &dispatch, launch(num_sms, num_senders))?
            }
            Way::Packets => {
                let num_blocks = num_sms.clamp(1, shape.num_max_tokens_per_rank);
                CombineDirect::packets(rank, &dispatch, launch(num_blocks, num_blocks))?
            }
        };
        Ok(Self {
            shape,
            rank: rank.index(),
            timeout: options.timeout,
            dispatch,
            combine,
            last_combine: Mutex::new(None),
        })
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.dispatch.num_bytes() + self.combine.num_bytes()
    }

    pub(super) fn received(&self) -> ReceivedViews<'_> {
        self.dispatch.received()
    }

    pub(super) fn dispatch(
        &self,
        stream: &Stream,
        args: &DispatchArgs<'_>,
    ) -> Result<(), ExchangeError> {
        Ok(self.dispatch.run(stream, args)?)
    }

    pub(super) fn combine(
        &self,
        stream: &Stream,
        args: &CombineArgs<'_>,
    ) -> Result<(), ExchangeError> {
        self.combine.run(stream, self.received().topk_ids, args)?;
        *self.last_combine() = Some(LastCombine {
            topk_ids: args.topk_ids.slice(..).extent("combine")?,
            partial: args.partial.slice(..).extent("combine")?,
        });
        Ok(())
    }

    pub(super) fn synchronize(&self, stream: &Stream) -> Result<(), ExchangeError> {
        stream.synchronize()?;
        let late = stream.download(self.dispatch.late())?;
        let (dispatch, combine) = late.split_at(self.shape.ep_size as usize);
        self.check_late(stream, Phase::Dispatch, dispatch)?;
        self.check_late(stream, Phase::Combine, &combine[..dispatch.len()])
    }

    fn check_late(
        &self,
        stream: &Stream,
        phase: Phase,
        late: &[u32], // [ep_size]
    ) -> Result<(), ExchangeError> {
        // Ranks that gave up on the one that died are late, too, with less than that one.
        let Some(&most) = late.iter().max().filter(|&&most| most > 0) else { return Ok(()) };
        let peer = late.iter().position(|&num_late| num_late == most).unwrap_or(0);
        let expected = match phase {
            Phase::Dispatch => self.dispatch.expected_messages(),
            Phase::Combine => {
                // A peer that comes too late pulls from here: this memory stays for good.
                std::mem::forget(self.last_combine().as_ref().map(|last| last.partial.clone()));
                self.combine.expected_messages(&self.tokens_of(stream, peer)?)
            }
        };
        Err(ExchangeError::Late {
            rank: self.rank,
            phase,
            peer,
            expected,
            seen: expected.saturating_sub(late[peer]),
            timeout: self.timeout,
        })
    }

    fn last_combine(&self) -> MutexGuard<'_, Option<LastCombine>> {
        self.last_combine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the tokens combined last, those that `peer` has experts of.
    fn tokens_of(&self, stream: &Stream, peer: usize) -> Result<Vec<u32>, ExchangeError> {
        let last = self.last_combine();
        let Some(LastCombine { topk_ids, .. }) = &*last else { return Ok(Vec::new()) };
        let ids = stream.download(topk_ids.as_bytes())?;
        let ids: Vec<i32> = ids.as_chunks().0.iter().map(|&id| i32::from_ne_bytes(id)).collect();
        let tokens = (0..).zip(ids.chunks(self.shape.topk as usize));
        let is_theirs = |ids: &[i32]| ranks_of(&self.shape, ids).contains(&(peer as u32));
        Ok(tokens.filter(|(_, ids)| is_theirs(ids)).map(|(token, _)| token).collect())
    }
}

/// How many of `num_blocks` send: between 8 and 17, fewer are faster.
fn senders_of(num_blocks: u32) -> u32 {
    if num_blocks > 2 * OVERLAP_SENDERS { num_blocks } else { num_blocks.min(OVERLAP_SENDERS) }
}
