//! A warpgroup that multiplies: 64 queries against all keys that they see.

use cuda_std::prelude::*;
use cuda_std::wgmma::{SwizzledTile, TransposedTile};

use super::output::Output;
use super::ring::{D, Half, KV_ROWS, Q_ROWS, Turn, q_is_empty, q_is_full, q_tile};
use super::softmax::{Softmax, mask};
use super::{Items, WARPGROUP};
use crate::paged_prefill::PrefillItem;

/// Registers of a thread that multiplies.
pub(super) const REGISTERS: u32 = 208;

/// Queries of a warpgroup, and of a warp.
const ROWS: u32 = 64;
const WARP_ROWS: u32 = 16;
/// Columns, or rows, that one multiplication sums over.
const K: usize = 16;
/// Threads of the two warpgroups that take turns.
const NUM_TURNING: u32 = 2 * WARPGROUP;

/// The scores of a tile, then its weights.
type Scores = [f32; KV_ROWS / 2];
type Weights = [[u32; 4]; KV_ROWS / K];
type Outputs = [f32; D / 2];

/// `BY_ROWS` tells how tiles came.
pub(super) struct Consumer<T, const BY_ROWS: bool> {
    sm_scale_log2: f32,
    output: Output<T>,
    /// Which of the two warpgroups.
    idx: u32,
    /// The next tile whose K, and whose V, is used.
    k_turn: Turn,
    v_turn: Turn,
}

impl<T: HalfFloat, const BY_ROWS: bool> Consumer<T, BY_ROWS> {
    #[inline(always)]
    pub(super) unsafe fn new(sm_scale_log2: f32, output: Output<T>) -> Self {
        let idx = thread::thread_idx_x() / WARPGROUP - 1;
        Self { sm_scale_log2, output, idx, k_turn: Turn::FIRST, v_turn: Turn::FIRST }
    }

    #[inline(always)]
    pub(super) unsafe fn run(mut self, items: Items) {
        if self.idx == 1 {
            self.give_turn();
        }
        let (mut scores, mut outputs) = ([0.0; KV_ROWS / 2], [0.0; D / 2]);
        let mut q_parity = 0;
        let (mut idx, end) = items.of_block();
        while idx < end {
            let item = items.load(idx);
            self.attend(&item, q_parity, &mut scores, &mut outputs);
            q_parity ^= 1;
            idx += 1;
        }
    }

    /// Attends for one item; what the accumulators hold before does not count.
    #[inline(always)]
    unsafe fn attend(
        &mut self,
        item: &PrefillItem,
        q_parity: u32,
        scores: &mut Scores,
        outputs: &mut Outputs,
    ) {
        let mut softmax = Softmax::new(self.sm_scale_log2);
        let mut tile = item.num_keys().div_ceil(KV_ROWS as u32) - 1;
        q_is_full(self.idx).wait(q_parity);
        bulk::fence_proxy_async();
        self.wait_for(self.k_turn, Half::K);
        wgmma::fence(scores);
        self.multiply_q_k(scores);
        wgmma::wait_group::<0, _>(scores);
        self.give_back_k();
        mask(scores, self.position(item, tile));
        softmax.raise(scores);
        softmax.weigh(scores);
        let mut weights = rounded::<T>(scores);

        let mut accumulate = false;
        // The first tile whose keys the first query sees all.
        let num_unmasked = (item.first_position + 1) / KV_ROWS as u32;
        while tile > num_unmasked {
            tile -= 1;
            let position = self.position(item, tile);
            self.step::<true>(position, &mut softmax, scores, &mut weights, outputs, accumulate);
            accumulate = true;
        }
        while tile > 0 {
            tile -= 1;
            self.step::<false>(0, &mut softmax, scores, &mut weights, outputs, accumulate);
            accumulate = true;
        }
        if self.is_speaker() {
            q_is_empty(self.idx).arrive();
        }

        self.wait_for(self.v_turn, Half::V);
        wgmma::lend(&mut weights);
        wgmma::fence(outputs);
        self.multiply_p_v(outputs, &weights, accumulate);
        wgmma::wait_group::<0, _>(outputs);
        wgmma::take_back(&mut weights);
        self.give_back_v();
        let warp_of_group = thread::thread_idx_x() % WARPGROUP / 32;
        let first_row = ROWS * self.idx + WARP_ROWS * warp_of_group;
        self.output.write::<D, _>(item, first_row, &softmax, outputs);
    }

    /// Multiplies the last tile's weights with its values, while it looks for the maxima of the next
    /// tile's scores; then makes weights of these.
    #[inline(always)]
    unsafe fn step<const MASKED: bool>(
        &mut self,
        position: i32,
        softmax: &mut Softmax,
        scores: &mut Scores,
        weights: &mut Weights,
        outputs: &mut Outputs,
        accumulate: bool,
    ) {
        self.wait_for(self.k_turn, Half::K);
        self.wait_for(self.v_turn, Half::V);
        self.take_turn();
        wgmma::lend(weights);
        wgmma::fence(scores);
        wgmma::fence(outputs);
        self.multiply_q_k(scores);
        self.multiply_p_v(outputs, weights, accumulate);
        self.give_turn();
        wgmma::wait_group::<1, _>(scores);
        self.give_back_k();
        if MASKED {
            mask(scores, position);
        }
        let rescale = softmax.raise(scores);
        wgmma::wait_group::<0, _>(outputs);
        wgmma::take_back(weights);
        self.give_back_v();
        if let Some(rescale) = rescale {
            for i in 0..D / 2 {
                outputs[i] *= rescale[i / 2 % 2];
            }
        }
        softmax.weigh(scores);
        *weights = rounded::<T>(scores);
    }

    /// Position of this lane's first row among this lane's first keys of a tile.
    #[inline(always)]
    unsafe fn position(&self, item: &PrefillItem, tile: u32) -> i32 {
        let (row, column) = wgmma::place_of(thread::thread_idx_x() % WARPGROUP, 0);
        let position = item.first_position + ROWS * self.idx + row as u32;
        position as i32 - (tile * KV_ROWS as u32) as i32 - column as i32
    }

    /// Issues `scores = Q K^T` for the next K, and closes its group.
    #[inline(always)]
    unsafe fn multiply_q_k(&self, scores: &mut Scores) {
        let q = q_tile::<T>().offset((self.idx * ROWS) as usize * SwizzledTile::<T>::ROW_ELEMENTS);
        let (q, k) = (SwizzledTile::at(q), SwizzledTile::at(self.k_turn.tile(Half::K)));
        for panel in 0..D / SwizzledTile::<T>::ROW_ELEMENTS {
            // Panels follow each other as rows do.
            let (q, k) = (q.from_row(panel * Q_ROWS), k.from_row(panel * KV_ROWS));
            for column in (0..SwizzledTile::<T>::ROW_ELEMENTS).step_by(K) {
                let accumulate = panel > 0 || column > 0;
                wgmma::m64n128k16(scores, q.from_column(column), k.from_column(column), accumulate);
            }
        }
        wgmma::commit_group();
    }

    /// Issues `outputs += P V` for the next V, and closes its group.
    #[inline(always)]
    unsafe fn multiply_p_v(&self, outputs: &mut Outputs, weights: &Weights, accumulate: bool) {
        let first_panel = SwizzledTile::<T>::at(self.v_turn.tile(Half::V));
        let v = TransposedTile::at(first_panel, SwizzledTile::<T>::bytes(KV_ROWS));
        for step in 0..KV_ROWS / K {
            let accumulate = accumulate || step > 0;
            wgmma::m64n128k16(outputs, &weights[step], v.from_row(K * step), accumulate);
        }
        wgmma::commit_group();
    }

    /// Waits for a turn's tile.
    #[inline(always)]
    unsafe fn wait_for(&self, turn: Turn, half: Half) {
        turn.is_full(half).wait(turn.parity());
        if BY_ROWS {
            // Threads wrote it, though by `cp.async`.
            bulk::fence_proxy_async();
        }
    }

    /// Gives the tile of keys back, and goes on to the next.
    #[inline(always)]
    unsafe fn give_back_k(&mut self) {
        if self.is_speaker() {
            self.k_turn.is_empty(Half::K).arrive();
        }
        self.k_turn = self.k_turn.next();
    }

    /// Gives the tile of values back, and goes on to the next.
    #[inline(always)]
    unsafe fn give_back_v(&mut self) {
        if self.is_speaker() {
            self.v_turn.is_empty(Half::V).arrive();
        }
        self.v_turn = self.v_turn.next();
    }

    /// Whether this thread says for its warpgroup what all have done.
    #[inline(always)]
    fn is_speaker(&self) -> bool {
        thread::thread_idx_x().is_multiple_of(WARPGROUP)
    }

    /// Waits until the other warpgroup has issued its multiplications.
    #[inline(always)]
    fn take_turn(&self) {
        thread::sync_some(1 + self.idx, NUM_TURNING);
    }

    /// Lets the other warpgroup issue its multiplications.
    #[inline(always)]
    fn give_turn(&self) {
        thread::arrive_some(2 - self.idx, NUM_TURNING);
    }
}

/// Weights as the second product takes them: of each two neighbouring accumulators of eight columns
/// a fragment of sixteen.
#[inline(always)]
fn rounded<T: HalfFloat>(scores: &Scores) -> Weights {
    let mut weights = [[0; 4]; KV_ROWS / K];
    for step in 0..KV_ROWS / K {
        for pair in 0..4 {
            let register = 8 * step + 2 * pair;
            weights[step][pair] = T::pack(scores[register], scores[register + 1]);
        }
    }
    weights
}
