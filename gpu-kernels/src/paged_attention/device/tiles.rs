//! Equal shares of the batch for all blocks: tiles by tensor maps, warps that never wait for all.

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::handshake::Handshake;
use super::kv_format::{Halves, KvFormat};
use super::output::{DecodeOutput, OutputElement};
use super::softmax::{Softmax, WarpResult, load_q};
use super::tile_loader::{TileLoader, TilePages};
use super::work_item::{WorkList, load_item};
use crate::paged_attention::{
    AttentionParams, NUM_WARPS, TILE_TOKENS, TilesLayout, WorkItem, merge_bytes, num_result_slots,
    num_stages,
};

/// Where the warps leave their results of an item: slots in turn, so that a warp goes on with the
/// next item while others still work on this one.
#[derive(Clone, Copy)]
struct Slots<const D: usize> {
    results: Shared<u8>,
    /// `[slots]`: all warps have left their results.
    filled: Shared<u64>,
    /// `[slots]`: all warps have merged them.
    drained: Shared<u64>,
    head_tiles: u32,
}

impl<const D: usize> Slots<D> {
    #[inline(always)]
    fn num_slots(&self) -> u32 {
        num_result_slots(self.head_tiles)
    }

    /// The barrier of item number `idx` of the block, and the parity of its phase.
    #[inline(always)]
    unsafe fn barrier(&self, barriers: Shared<u64>, idx: u32) -> (Mbarrier, u32) {
        let barrier = Mbarrier::at(barriers.offset((idx % self.num_slots()) as usize));
        (barrier, idx / self.num_slots() % 2)
    }

    #[inline(always)]
    unsafe fn init(&self) {
        for slot in 0..self.num_slots() as usize {
            Mbarrier::at(self.filled.offset(slot)).init(NUM_WARPS);
            Mbarrier::at(self.drained.offset(slot)).init(NUM_WARPS);
        }
    }

    #[inline(always)]
    unsafe fn result(&self, idx: u32, warp_idx: u32) -> WarpResult<D> {
        let slot = idx % self.num_slots() * NUM_WARPS + warp_idx;
        let place = self.results.offset((slot * merge_bytes(D as u32, self.head_tiles)) as usize);
        WarpResult { place: place.cast(), num_heads: 8 * self.head_tiles }
    }

    /// Leaves this warp's result of item `idx`, once the slot is free.
    #[inline(always)]
    unsafe fn fill<F: KvFormat, const HT: usize>(&self, idx: u32, softmax: &Softmax<HT>) {
        if idx >= self.num_slots() {
            let (drained, parity) = self.barrier(self.drained, idx - self.num_slots());
            drained.wait(parity);
        }
        let result = self.result(idx, thread::thread_idx_x() / WARP_SIZE);
        softmax.store::<F, D>(result, 1.0);
        warp::sync_warp(FULL_MASK);
        if warp::lane_id() == 0 {
            self.barrier(self.filled, idx).0.arrive();
        }
    }

    /// Merges this warp's heads of item `idx` over all warps, once all results are there. Returns
    /// the places of its rows among those of their pair's parts, in the order of arrival.
    #[inline(always)]
    unsafe fn drain<O: OutputElement, const HT: usize>(
        &self,
        idx: u32,
        params: &AttentionParams,
        item: &WorkItem,
        output: &DecodeOutput<O>,
    ) -> [u32; HT] {
        let (filled, parity) = self.barrier(self.filled, idx);
        filled.wait(parity);
        let mut arrivals = [0; HT];
        for h in 0..HT {
            let head = head_of_warp(h);
            if head < params.group_size {
                let (values, log_sum) = self.merge(idx, head);
                if item.num_parts == 1 {
                    output.store_row::<D>(params, item, head, values, log_sum);
                } else {
                    arrivals[h] = output.store_part_row::<D>(params, item, head, values, log_sum);
                }
            }
        }
        warp::sync_warp(FULL_MASK);
        if warp::lane_id() == 0 {
            self.barrier(self.drained, idx).0.arrive();
        }
        arrivals
    }

    /// A head over all warps: `D / 32` dimensions a lane, in pairs 64 apart, and the log-sum-exp.
    #[inline(always)]
    unsafe fn merge(&self, idx: u32, head: u32) -> ([[f32; 2]; 2], f32) {
        let lane = warp::lane_id();
        // Lane `w % 8` looks at warp `w`.
        let of_lane = self.result(idx, lane % NUM_WARPS);
        let maximum_of_warp = of_lane.maximum(head).load(0);
        let maximum = warp::reduce_max(maximum_of_warp, NUM_WARPS);
        if maximum == f32::NEG_INFINITY {
            return ([[0.0; 2]; 2], maximum);
        }
        let weight_of_warp = float::exp2(maximum_of_warp - maximum);
        let sum = warp::reduce_sum(weight_of_warp * of_lane.sum(head).load(0), NUM_WARPS);
        let mut values = [[0.0f32; 2]; 2];
        for warp_idx in 0..NUM_WARPS {
            let (weight, _) =
                warp::warp_shuffle_idx(FULL_MASK, weight_of_warp, warp_idx, WARP_SIZE);
            for i in 0..D / 64 {
                let place = self.result(idx, warp_idx).output(head, 64 * i as u32 + 2 * lane);
                let [low, high] = place.load_x2(0);
                values[i][0] += weight * f32::from_bits(low);
                values[i][1] += weight * f32::from_bits(high);
            }
        }
        let normalize = float::reciprocal(sum);
        for i in 0..D / 64 {
            values[i] = [values[i][0] * normalize, values[i][1] * normalize];
        }
        (values, maximum + float::log2(sum))
    }
}

/// The heads that a warp merges: of each tile of 8 one.
#[inline(always)]
fn head_of_warp(head_tile: usize) -> u32 {
    head_tile as u32 * NUM_WARPS + thread::thread_idx_x() / WARP_SIZE
}

impl<O: OutputElement> DecodeOutput<O> {
    /// Writes a head of the result.
    #[inline(always)]
    unsafe fn store_row<const D: usize>(
        &self,
        params: &AttentionParams,
        item: &WorkItem,
        head: u32,
        values: [[f32; 2]; 2],
        log_sum: f32,
    ) {
        for i in 0..D / 64 {
            let d = 64 * i as u32 + 2 * warp::lane_id();
            self.store::<D>(params, item, head, d, values[i], log_sum);
        }
    }

    /// Writes a head of a part. Returns, in lane 0, how many of the pair's parts of it were before
    /// it, if the plan leaves open who merges them.
    #[inline(always)]
    unsafe fn store_part_row<const D: usize>(
        &self,
        params: &AttentionParams,
        item: &WorkItem,
        head: u32,
        values: [[f32; 2]; 2],
        log_sum: f32,
    ) -> u32 {
        self.parts.store_row::<D>(item.part, head, values, log_sum);
        if item.merged == WorkItem::BY_LAST_PART || warp::lane_id() != 0 {
            return 0;
        }
        // Ordered with nothing: rows say by themselves that they are there.
        let meeting = (item.meeting * params.group_size + head) as usize;
        atomic::fetch_add_relaxed_gpu(self.parts.arrived, meeting, 1)
    }

    /// Merges those of this warp's heads whose parts arrived last with this item's.
    #[inline(always)]
    unsafe fn merge_rows_if_last<const D: usize, const HT: usize>(
        &self,
        params: &AttentionParams,
        item: &WorkItem,
        arrivals: [u32; HT],
    ) {
        if item.num_parts <= 1 || item.merged == WorkItem::BY_LAST_PART {
            return;
        }
        for h in 0..HT {
            let head = head_of_warp(h);
            let (before, _) = warp::warp_shuffle_idx(FULL_MASK, arrivals[h], 0, WARP_SIZE);
            if head < params.group_size && before + 1 == item.num_parts {
                if warp::lane_id() == 0 {
                    let meeting = (item.meeting * params.group_size + head) as usize;
                    atomic::store_relaxed_gpu(self.parts.arrived, meeting, 0);
                }
                self.merge_row::<D>(params, item, head);
            }
        }
    }

    /// Merges a head of all parts, as soon as they are there.
    #[inline(always)]
    unsafe fn merge_row<const D: usize>(
        &self,
        params: &AttentionParams,
        item: &WorkItem,
        head: u32,
    ) {
        let (values, log_sum) = self.parts.take_row::<D>(item.part_begin, item.num_parts, head);
        self.store_row::<D>(params, item, head, values, log_sum);
    }
}

/// Each block works through its items; within an item its warps take tiles in turn, and each merges
/// one or two heads of it over all warps, while it has tiles of the next item on their way.
///
/// What the host wrote is read before the handshake waits for the pages, and the first pages are on
/// their way before it waits for the queries.
#[inline(always)]
pub(crate) unsafe fn decode_tiles<
    T: HalfFloat,
    const D: usize,
    const HT: usize,
    const STAGES: u32,
    O: OutputElement,
    H: Handshake,
>(
    pages: TilePages<T>,
    items: Global<u32>,      // [items, WorkItem::WORDS]
    claimed: GlobalMut<u32>, // [1], 0 before and after
    q: Global<T>,            // [batch, num_qo_heads, D]
    output: DecodeOutput<O>,
    handshake: H,
) {
    const { assert!(STAGES == num_stages(2 * D as u32)) };
    let params = pages.params;
    let (warp_idx, lane) = (thread::thread_idx_x() / WARP_SIZE, warp::lane_id());
    let layout = TilesLayout::new(D as u32, HT as u32, STAGES);
    let shared_mem = shared::dynamic_shared_mem::<u8>();
    let part = |first_byte: u32| shared_mem.offset(first_byte as usize);

    grid::launch_dependents();
    // On its way while the barriers are set up.
    let first = load_item(items, thread::block_idx_x());
    let full = part(layout.full(warp_idx)).cast();
    TileLoader::<T, D, STAGES>::init(full);
    let slots = Slots::<D> {
        results: part(layout.results()),
        filled: part(layout.filled()).cast(),
        drained: part(layout.drained()).cast(),
        head_tiles: HT as u32,
    };
    if thread::thread_idx_x() == 0 {
        slots.init();
    }
    let list = WorkList { items, claimed, claims: part(layout.claims()).cast() };
    list.init();
    if first.is_idle() {
        handshake.await_pages();
        handshake.await_queries();
        handshake.tell_done();
        return;
    }
    let ring = part(layout.ring(warp_idx));
    let mut loader = TileLoader::<T, D, STAGES>::start(pages, list, first, ring, full);
    if first.next == WorkItem::CLAIMED {
        thread::sync_threads();
    }
    handshake.await_pages();
    for tiles_ahead in 0..STAGES - 1 {
        loader.load_tile(tiles_ahead);
    }
    thread::sync_threads();
    handshake.await_queries();

    // The item before: its heads are merged over the warps after a tile of this one, and over the
    // parts, which takes an answer of other blocks, at its end. After the last item comes an idle
    // one, for that alone.
    let mut before = WorkItem::IDLE;
    let (mut is_drained, mut arrivals) = (false, [0; HT]);
    let mut item = first;
    let mut idx = 0;
    let mut q_fragments = load_q::<T, Halves<T>, D, HT>(&params, q, &first, lane);
    loop {
        let mut softmax = Softmax::<HT>::new();
        let mut tile = item.tile_begin + warp_idx;
        loop {
            if tile < item.tile_end {
                loader.load_tile(STAGES - 1);
                let num_tokens = item.kv_len - tile * TILE_TOKENS;
                let boxes = loader.take(num_tokens);
                softmax.add_tile::<Halves<T>, D>(
                    &q_fragments,
                    boxes,
                    num_tokens,
                    params.sm_scale_log2,
                );
                loader.release();
                tile += NUM_WARPS;
            }
            if !before.is_idle() && !is_drained {
                arrivals = slots.drain(idx - 1, &params, &before, &output);
                is_drained = true;
            }
            if tile >= item.tile_end {
                break;
            }
        }
        if !before.is_idle() {
            output.merge_rows_if_last::<D, HT>(&params, &before, arrivals);
            is_drained = false;
        }
        let next = list.item_after(&item, idx);
        // Without the condition 16 heads fit the registers, and the next item may be none.
        if HT > 1 || !next.is_idle() {
            // On its way while the result is stored.
            q_fragments = load_q::<T, Halves<T>, D, HT>(&params, q, &next, lane);
        }
        if item.is_idle() {
            break;
        }
        slots.fill::<Halves<T>, HT>(idx, &softmax);
        (before, item) = (item, next);
        idx += 1;
    }
    if first.merges_at_end() {
        for h in 0..HT {
            if head_of_warp(h) < params.group_size {
                output.merge_row::<D>(&params, &first, head_of_warp(h));
            }
        }
    }
    handshake.tell_done();
}
