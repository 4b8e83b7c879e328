//! What becomes of the sums of rows, and whose rows they are.

use cuda_std::prelude::*;
use half::bf16;

use super::Product;
use crate::gemm::device::activation::silu;
use crate::gemv::GemvParams;

/// Adds to two neighbours of the residual stream.
#[inline(always)]
unsafe fn add_pair(x: GlobalMut<bf16>, first: u32, sums: [f32; 2]) {
    let place = x.offset(first as usize).cast::<u32>();
    let [low, high] = bf16::unpack(place.load(0));
    place.store(0, bf16::pack(low + sums[0], high + sums[1]));
}

#[inline(always)]
unsafe fn store_gated(h: GlobalMut<bf16>, place: usize, [gate, up]: [f32; 2]) {
    let product = bf16::pack(silu(gate) * up, 0.0);
    h.store(place, bf16::from_bits(product as u16));
}

/// A unit is two neighbours of the results.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub n: u32,
    pub k: u32,
    pub out: GlobalMut<bf16>, // [n]
    pub adds: bool,
}

impl Product for Rows {
    #[inline(always)]
    fn num_units(&self) -> u32 {
        self.n / 2
    }

    #[inline(always)]
    unsafe fn rows(&self, unit: u32, _: u32) -> [usize; 2] {
        let first = 2 * unit as usize * self.k as usize;
        [first, first + self.k as usize]
    }

    #[inline(always)]
    unsafe fn store(&self, unit: u32, sums: [f32; 2]) {
        if self.adds {
            add_pair(self.out, 2 * unit, sums);
        } else {
            let pair = bf16::pack(sums[0], sums[1]);
            self.out.offset(2 * unit as usize).cast::<u32>().store(0, pair);
        }
    }
}

/// A unit is a gate and what it scales.
#[derive(Clone, Copy)]
pub(super) struct Gated {
    pub n: u32,
    pub k: u32,
    pub h: GlobalMut<bf16>, // [n]
}

impl Product for Gated {
    #[inline(always)]
    fn num_units(&self) -> u32 {
        self.n
    }

    #[inline(always)]
    unsafe fn rows(&self, unit: u32, _: u32) -> [usize; 2] {
        let first = unit as usize * self.k as usize;
        [first, first + self.n as usize * self.k as usize]
    }

    #[inline(always)]
    unsafe fn store(&self, unit: u32, sums: [f32; 2]) {
        store_gated(self.h, unit as usize, sums);
    }
}

/// Whose weights a token is multiplied with: those of experts that every token visits come first, as
/// they are known first.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub topk_ids: Global<i32>,     // [top_k + num_shared]
    pub topk_weights: Global<f32>, // [top_k + num_shared], or null
    pub params: GemvParams,
}

impl Choice {
    /// The slot that comes at `turn`.
    #[inline(always)]
    fn slot(&self, turn: u32) -> u32 {
        let GemvParams { top_k, num_shared, .. } = self.params;
        if turn < num_shared { top_k + turn } else { turn - num_shared }
    }

    #[inline(always)]
    fn is_known(&self, turn: u32) -> bool {
        turn < self.params.num_shared
    }

    /// The expert that comes at `turn`; an id that is none's reaches the last one's weights.
    #[inline(always)]
    unsafe fn expert(&self, turn: u32) -> usize {
        let GemvParams { num_experts, .. } = self.params;
        if self.is_known(turn) {
            return (num_experts + turn) as usize;
        }
        let id = self.topk_ids.load(self.slot(turn) as usize) as u32;
        id.min(num_experts - 1) as usize
    }

    /// What the expert counts.
    #[inline(always)]
    unsafe fn weight(&self, turn: u32) -> f32 {
        let slot = self.slot(turn) as usize;
        if self.topk_ids.load(slot) < 0 { 0.0 } else { self.topk_weights.load(slot) }
    }
}

/// A unit is a gate of an expert and what it scales.
#[derive(Clone, Copy)]
pub(super) struct ExpertsGated {
    pub choice: Choice,
    pub h: GlobalMut<bf16>, // [top_k + num_shared, n]
}

impl Product for ExpertsGated {
    const HAS_TIME: bool = true;

    #[inline(always)]
    fn num_units(&self) -> u32 {
        self.choice.params.num_slots() * self.choice.params.n
    }

    #[inline(always)]
    fn is_known(&self, unit: u32, _: u32) -> bool {
        self.choice.is_known(unit / self.choice.params.n)
    }

    #[inline(always)]
    unsafe fn rows(&self, unit: u32, _: u32) -> [usize; 2] {
        let GemvParams { n, k, .. } = self.choice.params;
        let (turn, row) = (unit / n, unit % n);
        let (n, k) = (n as usize, k as usize);
        let first = (self.choice.expert(turn) * 2 * n + row as usize) * k;
        [first, first + n * k]
    }

    #[inline(always)]
    unsafe fn store(&self, unit: u32, sums: [f32; 2]) {
        let n = self.choice.params.n;
        let slot = self.choice.slot(unit / n);
        store_gated(self.h, (slot * n + unit % n) as usize, sums);
    }
}

/// A unit is two neighbours of the residual stream, a segment an expert.
#[derive(Clone, Copy)]
pub(super) struct ExpertsAdded {
    pub choice: Choice,
    pub x: GlobalMut<bf16>, // [n]
}

impl Product for ExpertsAdded {
    #[inline(always)]
    fn num_units(&self) -> u32 {
        self.choice.params.n / 2
    }

    #[inline(always)]
    fn num_segments(&self) -> u32 {
        self.choice.params.num_slots()
    }

    #[inline(always)]
    fn is_known(&self, _: u32, segment: u32) -> bool {
        self.choice.is_known(segment)
    }

    #[inline(always)]
    unsafe fn rows(&self, unit: u32, segment: u32) -> [usize; 2] {
        let GemvParams { n, k, .. } = self.choice.params;
        let row = self.choice.expert(segment) * n as usize + 2 * unit as usize;
        [row * k as usize, (row + 1) * k as usize]
    }

    #[inline(always)]
    unsafe fn segment(&self, segment: u32) -> (u32, f32) {
        (self.choice.slot(segment), self.choice.weight(segment))
    }

    #[inline(always)]
    unsafe fn store(&self, unit: u32, sums: [f32; 2]) {
        add_pair(self.x, 2 * unit, sums);
    }
}
