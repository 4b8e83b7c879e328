//! The issuing thread of a block that sends: rows through the stages of shared memory.

use cuda_std::prelude::*;

use super::super::{NUM_LOADS_AHEAD, NUM_STORES_IN_FLIGHT, NUM_UNTOLD_STORES};
use super::chunks::Chunks;
use super::ring::{Turn, bytes_of, first_rows, full, stage};
use crate::dispatch::ExchangeParams;
use crate::dispatch::device::signals::Signals;

/// Signal: the sender's own staging area is free.
pub(super) const READY: u32 = 0;
/// Signal: how many chunks of the sender have arrived.
pub(super) const PROGRESS: u32 = 1;

/// What a block tells after `num_chunks` chunks of call `epoch`.
#[inline(always)]
pub(super) fn progress_of(epoch: u32, num_chunks: u32, shift: u32, params: &ExchangeParams) -> u32 {
    let all = params.num_max_tokens.div_ceil(1 << shift);
    epoch.wrapping_mul(all.div_ceil(params.num_senders) + 1).wrapping_add(num_chunks)
}

/// A piece of a row on its way to a peer.
#[derive(Clone, Copy)]
struct Place {
    chunk: u32,
    step: u32,
    row: u32,
    piece: u32,
}

impl Place {
    #[inline(always)]
    fn next_row(&mut self, chunks: Chunks, ep_size: u32) {
        self.piece = 0;
        self.row += 1;
        if self.row == chunks.tokens_per_chunk() {
            self.row = 0;
            self.step += 1;
            if self.step == ep_size {
                self.step = 1;
                self.chunk += 1;
            }
        }
    }
}

pub(super) struct Sender<'a> {
    partial: Global<u32>,
    chunks: Chunks,
    signals: Signals<'a>,
    epoch: u32,
    first: u32,
    end: u32,
    load: Place,
    store: Place,
    load_turn: Turn,
    store_turn: Turn,
    num_loaded: u32,
    num_stored: u32,
    /// Chunks that the peers have not been told of, and the stores up to their end; 0 for none.
    num_untold: u32,
    untold_at: u32,
}

impl<'a> Sender<'a> {
    #[inline(always)]
    pub(super) fn new(
        partial: Global<u32>,
        chunks: Chunks,
        signals: Signals<'a>,
        epoch: u32,
    ) -> Self {
        let start = Place { chunk: 0, step: 1, row: 0, piece: 0 };
        Self {
            partial,
            chunks,
            signals,
            epoch,
            first: 0,
            end: 0,
            load: start,
            store: start,
            load_turn: Turn::sending(),
            store_turn: Turn::sending(),
            num_loaded: 0,
            num_stored: 0,
            num_untold: 0,
            untold_at: 0,
        }
    }

    /// Begins with what the marks of the round from chunk `first` on say.
    #[inline(always)]
    pub(super) unsafe fn begin_round(&mut self, first: u32) {
        self.first = first;
        self.end = match self.signals.params.ep_size {
            1 => first,
            _ => first + self.chunks.in_round(first),
        };
        let start = Place { chunk: first, step: 1, row: 0, piece: 0 };
        self.load = self.seek(start);
        self.store = self.load;
        self.load_ahead();
    }

    /// The first row from `place` on that there is.
    #[inline(always)]
    unsafe fn seek(&self, mut place: Place) -> Place {
        while place.chunk < self.end
            && self.chunks.mark(self.first, place.chunk, place.row) >> place.step & 1 == 0
        {
            place.next_row(self.chunks, self.signals.params.ep_size);
        }
        place
    }

    #[inline(always)]
    unsafe fn after(&self, mut place: Place) -> Place {
        place.piece += 1;
        if place.piece < self.signals.params.pieces_per_row {
            return place;
        }
        place.next_row(self.chunks, self.signals.params.ep_size);
        self.seek(place)
    }

    /// Bytes before a piece, from the row of the rank's token 0 on.
    #[inline(always)]
    fn offset(&self, place: Place) -> u64 {
        let params = self.signals.params;
        let token = self.chunks.token(place.chunk, place.row);
        u64::from(token) * 16 * u64::from(params.row_units)
            + u64::from(place.piece * params.piece_bytes)
    }

    /// Loads as far ahead as stages are free.
    #[inline(always)]
    unsafe fn load_ahead(&mut self) {
        let params = self.signals.params;
        while self.load.chunk < self.end && self.num_loaded < self.num_stored + NUM_LOADS_AHEAD {
            // The stage's last store, NUM_STORES_IN_FLIGHT pieces back, has read it.
            bulk::wait_group_read::<NUM_STORES_IN_FLIGHT>();
            let source = params.rank_after(self.load.step);
            let bytes = bytes_of(self.load.piece, params);
            let area = u64::from(source)
                * u64::from(params.num_max_tokens)
                * u64::from(16 * params.row_units);
            let piece = self.partial.offset(((area + self.offset(self.load)) / 4) as usize);
            let full = full(self.load_turn.stage);
            full.arrive_expect_bytes(bytes);
            bulk::load(stage(self.load_turn.stage), piece, bytes, full);
            self.load_turn.next();
            self.num_loaded += 1;
            self.load = self.after(self.load);
        }
    }

    /// Stores a round's pieces, and tells the peers how many chunks have come.
    #[inline(always)]
    pub(super) unsafe fn pass_on(&mut self, first: u32) {
        let params = self.signals.params;
        while self.store.chunk < self.end {
            self.load_ahead();
            full(self.store_turn.stage).wait(self.store_turn.parity);
            let bytes = bytes_of(self.store.piece, params);
            let peer = params.rank_after(self.store.step);
            let address = first_rows().load(peer as usize) + self.offset(self.store);
            let place = GlobalMut::<u8>::from_address(address, bytes as usize);
            bulk::store(place, stage(self.store_turn.stage), bytes);
            bulk::commit_group();
            self.store_turn.next();
            self.num_stored += 1;
            if self.num_untold > 0 && self.num_stored - self.untold_at >= NUM_UNTOLD_STORES {
                bulk::wait_group::<NUM_UNTOLD_STORES>();
                self.tell(self.num_untold);
            }
            let chunk = self.store.chunk;
            self.store = self.after(self.store);
            if self.store.chunk != chunk && self.num_untold == 0 {
                (self.num_untold, self.untold_at) = (chunk + 1, self.num_stored);
            }
        }
        bulk::wait_group::<0>();
        self.tell(first + self.chunks.in_round(first));
    }

    #[inline(always)]
    unsafe fn tell(&mut self, num_chunks: u32) {
        let params = self.signals.params;
        let shift = self.chunks.tokens_per_chunk().trailing_zeros();
        atomic::fence_acq_rel_sys();
        for step in 1..params.ep_size {
            let progress = progress_of(self.epoch, num_chunks, shift, params);
            self.signals.tell(PROGRESS, step, self.chunks.block(), progress);
        }
        self.num_untold = 0;
    }

    /// Waits for loads that nobody will store.
    #[inline(always)]
    pub(super) unsafe fn drain(&mut self) {
        while self.num_stored < self.num_loaded {
            full(self.store_turn.stage).wait(self.store_turn.parity);
            self.store_turn.next();
            self.num_stored += 1;
        }
    }
}
