//! The kernels: ask, gate, attend, merge.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::prelude::*;
use half::{bf16, f16};

use super::{NUM_MAX_OWNERS, WaitReport};
use crate::merge_states::device::merge_rows;
use crate::merge_states::{MergeParams, NUM_THREADS};
use crate::paged_attention::device::handshake::Handshake;
use crate::paged_attention::device::kv_format::{E4m3s, Halves};
use crate::paged_attention::device::merge::Parts;
use crate::paged_attention::device::output::DecodeOutput;
use crate::paged_attention::device::split::{Pages, decode_split};
use crate::paged_attention::device::tile_loader::{POOL_RANK, TilePages};
use crate::paged_attention::device::tiles::decode_tiles;
use crate::paged_attention::{AttentionParams, MAX_TILE_LOCATIONS};

/// Waits that end.
#[derive(Clone, Copy)]
struct Waits {
    deadline_ns: u64,
    report: GlobalMut<u32>, // [WaitReport::WORDS]
}

impl Waits {
    /// Whether count `idx` came to be `expected`; if not, that is in the report.
    #[inline(always)]
    unsafe fn wait(self, counts: Global<u32>, idx: u32, expected: u32) -> bool {
        match atomic::wait_acquire_sys(counts, idx as usize, expected, self.deadline_ns) {
            Ok(()) => true,
            Err(seen) => {
                let WaitReport { timed_out, flag_idx, expected, seen } =
                    WaitReport { timed_out: 1, flag_idx: idx, expected, seen };
                atomic::store_relaxed_sys(self.report, 1, flag_idx);
                atomic::store_relaxed_sys(self.report, 2, expected);
                atomic::store_relaxed_sys(self.report, 3, seen);
                atomic::store_release_sys(self.report, 0, timed_out);
                false
            }
        }
    }
}

/// Numbers the next call, and tells every owner: the queries may be read.
#[kernel(threads = 32)]
pub unsafe fn far_decode_ask(
    calls: GlobalMut<u32>,   // [1]
    asked_ptrs: Global<u64>, // [num_owners], each of [1] in an owner's memory
    num_owners: u32,
) {
    let call = calls.load(0) + 1;
    warp::sync_warp(warp::FULL_MASK);
    let owner = thread::thread_idx_x().min(NUM_MAX_OWNERS - 1);
    if owner < num_owners {
        let asked = GlobalMut::<u32>::from_address(asked_ptrs.load(owner as usize), 1);
        atomic::store_release_sys(asked, 0, call);
    }
    if owner == 0 {
        calls.store(0, call);
    }
}

/// Waits until home has asked for the next call.
#[kernel(threads = 1)]
pub unsafe fn far_decode_gate(
    asked: Global<u32>,  // [1]
    served: Global<u32>, // [blocks of attend]
    deadline_ns: u64,
    report: GlobalMut<u32>, // [WaitReport::WORDS]
) {
    Waits { deadline_ns, report }.wait(asked, 0, served.load(0) + 1);
}

/// What an owner's block and home tell each other; at home all of it is null.
#[derive(Clone, Copy)]
struct WithHome {
    asked: Global<u32>,       // [1]
    served: GlobalMut<u32>,   // [blocks]
    answered: GlobalMut<u32>, // [blocks], at home
    waits: Waits,
}

impl Handshake for WithHome {
    #[inline(always)]
    unsafe fn await_pages(self) {}

    #[inline(always)]
    unsafe fn await_queries(self) {
        if self.asked.is_null() {
            return;
        }
        if thread::thread_idx_x() == 0 {
            let call = self.served.load(thread::block_idx_x() as usize) + 1;
            if self.waits.wait(self.asked, 0, call) {
                self.served.store(thread::block_idx_x() as usize, call);
            }
        }
        thread::sync_threads();
    }

    #[inline(always)]
    unsafe fn tell_done(self) {
        if self.asked.is_null() {
            return;
        }
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            // After a wait that failed this is an old call, which nobody waits for.
            let call = self.served.load(thread::block_idx_x() as usize);
            atomic::store_release_sys(self.answered, thread::block_idx_x() as usize, call);
        }
    }
}

macro_rules! attend_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal, $HT:literal, $STAGES:literal, $AHEAD:literal, $Format:ty = $format:expr, [$($scale:ident),*];)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256, min_blocks = 1)]
        pub unsafe fn $name(
            kv_indices: Global<i32>,     // [entries]
            kv_page_rank: Global<i32>,   // [entries]
            peer_kv_ptrs: Global<u64>,   // [num_locations]
            params: AttentionParams,
            $($scale: Global<f32>,)*     // [num_kv_heads]
            items: Global<u32>,          // [items, WorkItem::WORDS]
            q: Global<$T>,               // [batch, num_qo_heads, head_dim], at home
            state_out: GlobalMut<f32>,   // [batch, num_qo_heads, head_dim], at home
            state_lse: GlobalMut<f32>,   // [batch, num_qo_heads], at home
            partial_out: GlobalMut<f32>, // [parts, group_size, head_dim]
            partial_lse: GlobalMut<f32>, // [parts, group_size]
            arrived: GlobalMut<u32>,     // [meetings], 0 before and after
            asked: Global<u32>,          // [1], null at home
            served: GlobalMut<u32>,      // [blocks], null at home
            answered: GlobalMut<u32>,    // [blocks] at home, null at home itself
            deadline_ns: u64,
            report: GlobalMut<u32>,      // [WaitReport::WORDS], null at home
        ) {
            let pages = Pages::new(kv_indices, kv_page_rank, peer_kv_ptrs, params);
            let group_size = params.group_size;
            let parts = Parts { out: partial_out, lse: partial_lse, arrived, group_size };
            let output = DecodeOutput { out: state_out, lse: state_lse, parts };
            let with_home = WithHome { asked, served, answered, waits: Waits { deadline_ns, report } };
            decode_split::<$T, $D, $HT, $STAGES, $AHEAD, f32, WithHome, $Format>(pages, $format, items, q, output, with_home);
        }
    )*};
}

attend_entries! {
    /// A state of groups of up to 8 heads.
    far_decode_attend_split_bf16_d64_g8: bf16, 64, 1, 4, 3, Halves<bf16> = Halves::new(), [];
    /// A state of groups of up to 16 heads.
    far_decode_attend_split_bf16_d64_g16: bf16, 64, 2, 4, 3, Halves<bf16> = Halves::new(), [];
    /// A state of groups of up to 8 heads.
    far_decode_attend_split_bf16_d128_g8: bf16, 128, 1, 2, 1, Halves<bf16> = Halves::new(), [];
    /// A state of groups of up to 16 heads.
    far_decode_attend_split_bf16_d128_g16: bf16, 128, 2, 2, 1, Halves<bf16> = Halves::new(), [];
    /// A state of groups of up to 8 heads.
    far_decode_attend_split_f16_d64_g8: f16, 64, 1, 4, 3, Halves<f16> = Halves::new(), [];
    /// A state of groups of up to 16 heads.
    far_decode_attend_split_f16_d64_g16: f16, 64, 2, 4, 3, Halves<f16> = Halves::new(), [];
    /// A state of groups of up to 8 heads.
    far_decode_attend_split_f16_d128_g8: f16, 128, 1, 2, 1, Halves<f16> = Halves::new(), [];
    /// A state of groups of up to 16 heads.
    far_decode_attend_split_f16_d128_g16: f16, 128, 2, 2, 1, Halves<f16> = Halves::new(), [];
    /// A state of groups of up to 8 heads, over e4m3.
    far_decode_attend_split_bf16_e4m3_d64_g8: bf16, 64, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 16 heads, over e4m3.
    far_decode_attend_split_bf16_e4m3_d64_g16: bf16, 64, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 8 heads, over e4m3.
    far_decode_attend_split_bf16_e4m3_d128_g8: bf16, 128, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 16 heads, over e4m3.
    far_decode_attend_split_bf16_e4m3_d128_g16: bf16, 128, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 8 heads, over e4m3.
    far_decode_attend_split_f16_e4m3_d64_g8: f16, 64, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 16 heads, over e4m3.
    far_decode_attend_split_f16_e4m3_d64_g16: f16, 64, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 8 heads, over e4m3.
    far_decode_attend_split_f16_e4m3_d128_g8: f16, 128, 1, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
    /// A state of groups of up to 16 heads, over e4m3.
    far_decode_attend_split_f16_e4m3_d128_g16: f16, 128, 2, 4, 3, E4m3s = E4m3s { k_scale, v_scale }, [k_scale, v_scale];
}

macro_rules! tiles_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty, $D:literal, $HT:literal, $STAGES:literal;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256, min_blocks = 1, target = "sm_90a")]
        pub unsafe fn $name(
            pools: TensorMaps<$T, POOL_RANK, { MAX_TILE_LOCATIONS as usize }>, // [locations]
            kv_indices: Global<i32>,     // [entries]
            kv_page_rank: Global<i32>,   // [entries]
            params: AttentionParams,
            items: Global<u32>,          // [items, WorkItem::WORDS]
            q: Global<$T>,               // [batch, num_qo_heads, head_dim], at home
            state_out: GlobalMut<f32>,   // [batch, num_qo_heads, head_dim], at home
            state_lse: GlobalMut<f32>,   // [batch, num_qo_heads], at home
            partial_out: GlobalMut<f32>, // [parts, group_size, head_dim]
            partial_lse: GlobalMut<f32>, // [parts, group_size]
            arrived: GlobalMut<u32>,     // [1 + meetings * group_size], 0 before and after
            asked: Global<u32>,          // [1], null at home
            served: GlobalMut<u32>,      // [blocks], null at home
            answered: GlobalMut<u32>,    // [blocks] at home, null at home itself
            deadline_ns: u64,
            report: GlobalMut<u32>,      // [WaitReport::WORDS], null at home
        ) {
            let pages = TilePages { pools, kv_indices, kv_page_rank, params };
            let group_size = params.group_size;
            let (claimed, arrived) = (arrived, arrived.offset(1));
            let parts = Parts { out: partial_out, lse: partial_lse, arrived, group_size };
            let output = DecodeOutput { out: state_out, lse: state_lse, parts };
            let with_home = WithHome { asked, served, answered, waits: Waits { deadline_ns, report } };
            decode_tiles::<$T, $D, $HT, $STAGES, f32, WithHome>(pages, items, claimed, q, output, with_home);
        }
    )*};
}

tiles_entries! {
    /// A state, pages by tensor maps, groups of up to 8 heads.
    far_decode_attend_tiles_bf16_d64_g8: bf16, 64, 1, 4;
    /// A state, pages by tensor maps, groups of up to 16 heads.
    far_decode_attend_tiles_bf16_d64_g16: bf16, 64, 2, 4;
    /// A state, pages by tensor maps, groups of up to 8 heads.
    far_decode_attend_tiles_bf16_d128_g8: bf16, 128, 1, 2;
    /// A state, pages by tensor maps, groups of up to 16 heads.
    far_decode_attend_tiles_bf16_d128_g16: bf16, 128, 2, 2;
    /// A state, pages by tensor maps, groups of up to 8 heads.
    far_decode_attend_tiles_f16_d64_g8: f16, 64, 1, 4;
    /// A state, pages by tensor maps, groups of up to 16 heads.
    far_decode_attend_tiles_f16_d64_g16: f16, 64, 2, 4;
    /// A state, pages by tensor maps, groups of up to 8 heads.
    far_decode_attend_tiles_f16_d128_g8: f16, 128, 1, 2;
    /// A state, pages by tensor maps, groups of up to 16 heads.
    far_decode_attend_tiles_f16_d128_g16: f16, 128, 2, 2;
}

macro_rules! merge_entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256)]
        pub unsafe fn $name(
            params: MergeParams,
            states_out: Global<f32>, // [num_states, batch, num_qo_heads, head_dim]
            states_lse: Global<f32>, // [num_states, batch, num_qo_heads]
            out: GlobalMut<$T>,      // [batch, num_qo_heads, head_dim]
            lse: GlobalMut<f32>,     // [batch, num_qo_heads]
            calls: Global<u32>,      // [1]
            answered: Global<u32>,   // [num_answers]
            num_answers: u32,
            deadline_ns: u64,
            report: GlobalMut<u32>,  // [WaitReport::WORDS]
        ) {
            let (call, waits) = (calls.load(0), Waits { deadline_ns, report });
            let mut answer = thread::thread_idx_x();
            while answer < num_answers {
                waits.wait(answered, answer, call);
                answer += NUM_THREADS;
            }
            thread::sync_threads();
            merge_rows::<$T>(params, states_out, states_lse, out, lse);
        }
    )*};
}

merge_entries! {
    /// Waits for all answers, then merges the states of every row.
    far_decode_merge_bf16: bf16;
    /// Waits for all answers, then merges the states of every row.
    far_decode_merge_f16: f16;
}
