//! By grouped sends and receives: a plan of fixed size, whatever the routing.

use std::rc::Rc;

use gpu_kernels::dispatch::contract::ExchangeShape;
use half::bf16;

use super::{CombineArgs, DispatchArgs, ExchangeError, ReceivedViews};
use crate::comm::{Communicator, Rank};
use crate::device::{Buffer, Stream};
use crate::kernels::combine::CombineSum;
use crate::kernels::dispatch::DispatchPack;

pub(super) struct NcclExchange {
    shape: ExchangeShape,
    communicator: Rc<Communicator>,
    pack: DispatchPack,
    sum: CombineSum,
    recv_x: Buffer<bf16>,
    recv_topk_ids: Buffer<i32>,
    recv_topk_weights: Buffer<f32>,
    parts: Buffer<bf16>,
}

impl NcclExchange {
    pub(super) fn new(rank: &Rank, shape: ExchangeShape) -> Result<Self, ExchangeError> {
        let device = rank.device();
        Ok(Self {
            communicator: rank.communicator()?.clone(),
            pack: DispatchPack::new(rank, shape)?,
            sum: CombineSum::new(rank, shape)?,
            recv_x: device.alloc_zeroed(shape.slot_elements())?,
            recv_topk_ids: device.alloc_zeroed(shape.slot_entries())?,
            recv_topk_weights: device.alloc_zeroed(shape.slot_entries())?,
            parts: device.alloc_zeroed(shape.slot_elements())?,
            shape,
        })
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.received().num_bytes() + self.pack.packed().num_bytes() + self.parts.num_bytes()
    }

    pub(super) fn received(&self) -> ReceivedViews<'_> {
        ReceivedViews {
            x: &self.recv_x,
            topk_ids: &self.recv_topk_ids,
            topk_weights: &self.recv_topk_weights,
        }
    }

    pub(super) fn dispatch(
        &self,
        stream: &Stream,
        args: &DispatchArgs<'_>,
    ) -> Result<(), ExchangeError> {
        let (packed, received) = (self.pack.packed(), self.received());
        self.pack.run(stream, args, received)?;
        let rows = self.shape.num_max_tokens_per_rank as usize;
        let (hidden, topk) = (self.shape.hidden as usize, self.shape.topk as usize);
        let of = |rank: usize, width: usize| rank * rows * width..(rank + 1) * rows * width;
        Ok(self.communicator.group(stream, |group| {
            for peer in self.peers() {
                group.send(packed.x.slice(of(peer, hidden)), peer)?;
                group.recv(received.x.slice(of(peer, hidden)), peer)?;
                group.send(packed.topk_ids.slice(of(peer, topk)), peer)?;
                group.recv(received.topk_ids.slice(of(peer, topk)), peer)?;
                group.send(packed.topk_weights.slice(of(peer, topk)), peer)?;
                group.recv(received.topk_weights.slice(of(peer, topk)), peer)?;
            }
            Ok(())
        })?)
    }

    pub(super) fn combine(
        &self,
        stream: &Stream,
        args: &CombineArgs<'_>,
    ) -> Result<(), ExchangeError> {
        args.check(&self.shape)?;
        let part = self.shape.num_max_tokens_per_rank as usize * self.shape.hidden as usize;
        self.communicator.group(stream, |group| {
            for peer in self.peers() {
                let slots = peer * part..(peer + 1) * part;
                group.send(args.partial.slice(slots.clone()), peer)?;
                group.recv(self.parts.slice(slots), peer)?;
            }
            Ok(())
        })?;
        Ok(self.sum.run(stream, &self.parts, args)?)
    }

    pub(super) fn synchronize(&self, stream: &Stream) -> Result<(), ExchangeError> {
        Ok(self.communicator.synchronize(stream)?)
    }

    /// The other ranks, the next one first.
    fn peers(&self) -> impl Iterator<Item = usize> {
        let (rank, size) = (self.communicator.rank(), self.communicator.size());
        (1..size).map(move |step| (rank + step) % size)
    }
}
