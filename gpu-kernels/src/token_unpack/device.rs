//! Weighted sums of rows: element by element, then 16 bytes of eight rows at once.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::{bf16, f16};

use super::{BASELINE_THREADS, NUM_THREADS, SCALE_BLOCK, UnpackParams};

/// Rows of a token whose loads are on their way at once.
const ROWS_IN_FLIGHT: usize = 8;

macro_rules! entries {
    ($threads:literal, $($(#[$doc:meta])* $name:ident: $body:expr, $T:ty;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = $threads)]
        pub unsafe fn $name(
            rows: Global<$T>,          // [num_max_rows, hidden]
            row_scales: Global<f32>,   // [num_max_rows, num_scales]
            pair_rows: Global<i32>,    // [num_tokens, top_k]
            topk_weights: Global<f32>, // [num_tokens, top_k]
            addend: Global<bf16>,      // [num_tokens, hidden], or null
            params: UnpackParams,
            out: GlobalMut<bf16>,      // [num_tokens, hidden]
        ) {
            let rows = Rows { rows, row_scales, pair_rows, topk_weights, params };
            $body(rows, addend, out);
        }
    )*};
}

entries! {
    256,
    /// A block per token, element by element.
    token_unpack_sum_baseline_bf16: sum_baseline, bf16;
    /// A block per token, element by element.
    token_unpack_sum_baseline_fp8: sum_baseline, E4m3;
}

entries! {
    128,
    /// A thread per 16 bytes of a row.
    token_unpack_sum_wide_bf16: sum_wide::<bf16, 8>, bf16;
    /// A thread per 16 bytes of a row.
    token_unpack_sum_wide_fp8: sum_wide::<E4m3, 16>, E4m3;
}

/// What is added up.
#[derive(Clone, Copy)]
struct Rows<T> {
    rows: Global<T>,           // [num_max_rows, hidden]
    row_scales: Global<f32>,   // [num_max_rows, num_scales]
    pair_rows: Global<i32>,    // [num_tokens, top_k]
    topk_weights: Global<f32>, // [num_tokens, top_k]
    params: UnpackParams,
}

impl<T: Element> Rows<T> {
    /// Row of a pair; -1 is beyond all rows, too.
    #[inline(always)]
    unsafe fn row(&self, pair: u32) -> u32 {
        self.pair_rows.load(pair as usize) as u32
    }

    #[inline(always)]
    unsafe fn is_there(&self, row: u32) -> bool {
        row < self.params.num_max_rows
    }

    #[inline(always)]
    fn place(&self, row: u32, i: u32) -> usize {
        row as usize * self.params.hidden as usize + i as usize
    }

    /// What element `i` of a pair's row, and those that share its scale, are multiplied with.
    #[inline(always)]
    unsafe fn weight(&self, pair: u32, row: u32, i: u32) -> f32 {
        let weight = self.topk_weights.load(pair as usize);
        if !T::IS_SCALED {
            return weight;
        }
        let scale = row as usize * self.params.num_scales as usize + (i / SCALE_BLOCK) as usize;
        weight * self.row_scales.load(scale)
    }
}

/// A type of rows.
trait Element: bytemuck::Pod {
    const IS_SCALED: bool;

    fn to_f32(self) -> f32;

    /// The elements of 16 bytes, of which there are `N`.
    fn unpack<const N: usize>(words: [u32; 4]) -> [f32; N];
}

impl Element for bf16 {
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn unpack<const N: usize>(words: [u32; 4]) -> [f32; N] {
        let mut elements = [0.0; N];
        for i in 0..4 {
            [elements[2 * i], elements[2 * i + 1]] = <Self as HalfFloat>::unpack(words[i]);
        }
        elements
    }
}

impl Element for E4m3 {
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        E4m3::to_f32(self)
    }

    #[inline(always)]
    fn unpack<const N: usize>(words: [u32; 4]) -> [f32; N] {
        let mut elements = [0.0; N];
        for i in 0..4 {
            let [low, high] = float::unpack_e4m3(words[i]);
            [elements[4 * i], elements[4 * i + 1]] = f16::unpack(low);
            [elements[4 * i + 2], elements[4 * i + 3]] = f16::unpack(high);
        }
        elements
    }
}

#[inline(always)]
unsafe fn sum_baseline<T: Element>(
    rows: Rows<T>,
    addend: Global<bf16>, // [num_tokens, hidden], or null
    out: GlobalMut<bf16>, // [num_tokens, hidden]
) {
    let (token, params) = (thread::block_idx_x(), rows.params);
    let mut i = thread::thread_idx_x();
    while i < params.hidden {
        let place = rows.place(token, i);
        let mut sum = if addend.is_null() { 0.0 } else { Element::to_f32(addend.load(place)) };
        for pair in token * params.top_k..(token + 1) * params.top_k {
            let row = rows.row(pair);
            if rows.is_there(row) {
                sum += rows.weight(pair, row, i) * rows.rows.load(rows.place(row, i)).to_f32();
            }
        }
        out.store(place, bf16::from_bits(bf16::pack(sum, 0.0) as u16));
        i += BASELINE_THREADS;
    }
}

/// `N` elements a thread, those of 16 bytes.
#[inline(always)]
unsafe fn sum_wide<T: Element, const N: usize>(
    rows: Rows<T>,
    addend: Global<bf16>, // [num_tokens, hidden], or null
    out: GlobalMut<bf16>, // [num_tokens, hidden]
) {
    let params = rows.params;
    let token = thread::block_idx_x() / params.pieces_of_row;
    let piece = thread::block_idx_x() - token * params.pieces_of_row;
    let first = N as u32 * (piece * NUM_THREADS + thread::thread_idx_x());
    if first >= params.hidden {
        return;
    }
    let place = rows.place(token, first);
    let mut sums = [0.0; N];
    if !addend.is_null() {
        for eighth in 0..N / 8 {
            let words = addend.load_x4(place + 8 * eighth);
            let elements = <bf16 as Element>::unpack::<8>(words);
            for i in 0..8 {
                sums[8 * eighth + i] = elements[i];
            }
        }
    }
    let mut begin = 0;
    while begin < params.top_k {
        let mut weights = [0.0; ROWS_IN_FLIGHT];
        let mut is_there = [false; ROWS_IN_FLIGHT];
        let mut words = [[0; 4]; ROWS_IN_FLIGHT];
        for i in 0..ROWS_IN_FLIGHT {
            let slot = begin + i as u32;
            if slot < params.top_k {
                let pair = token * params.top_k + slot;
                let row = rows.row(pair);
                is_there[i] = rows.is_there(row);
                if is_there[i] {
                    weights[i] = rows.weight(pair, row, first);
                    words[i] = rows.rows.load_x4(rows.place(row, first));
                }
            }
        }
        for i in 0..ROWS_IN_FLIGHT {
            if is_there[i] {
                let elements = T::unpack::<N>(words[i]);
                for j in 0..N {
                    sums[j] += weights[i] * elements[j];
                }
            }
        }
        begin += ROWS_IN_FLIGHT as u32;
    }
    for eighth in 0..N / 8 {
        let mut packed = [0; 4];
        for i in 0..4 {
            packed[i] = bf16::pack(sums[8 * eighth + 2 * i], sums[8 * eighth + 2 * i + 1]);
        }
        out.store_x4(place + 8 * eighth, packed);
    }
}
