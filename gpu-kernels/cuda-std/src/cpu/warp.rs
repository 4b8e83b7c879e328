//! Warp operations: the lanes of a mask meet, and the last to come computes for all.

use std::cell::{Cell, UnsafeCell};
use std::panic::Location;

use super::fault::Violation;
use super::lane::{self, Caller, Lane, Wait};
use super::mma;

/// What lanes of a warp do together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Sync,
    ShuffleIdx,
    ShuffleXor,
    ShuffleDown,
    ShuffleUp,
    Ballot,
    ReduceMax,
    MatchAny,
    MmaBf16,
    MmaF16,
    LoadMatrix,
    LoadMatrixTransposed,
    StoreMatrix,
    StoreMatrixTransposed,
    Transpose,
    WgmmaFence,
    WgmmaCommitGroup,
    WgmmaWaitGroup,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync_warp",
            Self::ShuffleIdx => "warp_shuffle_idx",
            Self::ShuffleXor => "warp_shuffle_xor",
            Self::ShuffleDown => "warp_shuffle_down",
            Self::ShuffleUp => "warp_shuffle_up",
            Self::Ballot => "warp_vote_ballot",
            Self::ReduceMax => "warp_reduce_max",
            Self::MatchAny => "warp_match_any",
            Self::MmaBf16 | Self::MmaF16 => "m16n8k16",
            Self::LoadMatrix => "load_matrix_x4",
            Self::LoadMatrixTransposed => "load_matrix_x4_transposed",
            Self::StoreMatrix => "store_matrix_x4",
            Self::StoreMatrixTransposed => "store_matrix_x4_transposed",
            Self::Transpose => "transpose_8x8",
            Self::WgmmaFence => "wgmma::fence",
            Self::WgmmaCommitGroup => "wgmma::commit_group",
            Self::WgmmaWaitGroup => "wgmma::wait_group",
        }
    }
}

/// Registers that a lane brings to an operation; the results come back in the first of them.
pub(super) type Registers = [u32; 10];

/// What a waiting lane has brought.
struct Arrival {
    operation: Operation,
    mask: u32,
    site: Caller,
    registers: Registers,
}

pub(super) struct Warp {
    /// Lanes that exist.
    pub lanes: u32,
    /// Lanes that the scheduler may run.
    pub ready: Cell<u32>,
    /// Lanes that poll.
    pub spinning: Cell<u32>,
    pub returned: Cell<u32>,
    /// Lanes that wait in an operation.
    waiting: Cell<u32>,
    arrivals: Box<[UnsafeCell<Arrival>; 32]>,
}

impl Warp {
    /// The warp of the first 32 of `num_lanes` lanes.
    pub fn new(num_lanes: usize) -> Self {
        let site = Location::caller();
        let nothing = || {
            UnsafeCell::new(Arrival {
                operation: Operation::Sync,
                mask: 0,
                site,
                registers: [0; 10],
            })
        };
        Self {
            lanes: u32::MAX >> (32 - num_lanes.min(32)),
            ready: Cell::new(0),
            spinning: Cell::new(0),
            returned: Cell::new(0),
            waiting: Cell::new(0),
            arrivals: Box::new(std::array::from_fn(|_| nothing())),
        }
    }

    pub fn reset(&self) {
        for lanes in [&self.ready, &self.spinning, &self.returned, &self.waiting] {
            lanes.set(0);
        }
    }

    /// The registers of lane `lane`.
    #[inline(always)]
    pub fn registers(&self, lane: u32) -> &mut Registers {
        &mut self.arrival(lane).registers
    }

    /// Arrivals are touched by the running lane alone: its own when it arrives, those of the
    /// lanes that wait for it when it completes the operation.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "lanes of a warp run one at a time, on one OS thread")]
    fn arrival(&self, lane: u32) -> &mut Arrival {
        // SAFETY: one reference at a time, as callers use it within one expression or loop body.
        unsafe { &mut *self.arrivals[lane as usize].get() }
    }
}

/// Does `operation` together with the other lanes of `mask`; returns this lane's registers.
#[inline]
pub(super) fn collective<const IN: usize, const OUT: usize>(
    operation: Operation,
    mask: u32,
    site: Caller,
    registers: [u32; IN],
) -> [u32; OUT] {
    let lane = lane::current();
    let block = lane.block();
    let idx = lane.linear as usize / 32;
    let warp = &block.warps[idx];
    check_mask(operation, mask, site, lane, warp);

    let arrival = warp.arrival(lane.index());
    arrival.operation = operation;
    arrival.mask = mask;
    arrival.site = site;
    arrival.registers[..IN].copy_from_slice(&registers);

    let waiting = warp.waiting.get() | lane.bit();
    if waiting & mask == mask {
        check_same(operation, mask, site, warp);
        complete(operation, mask, site, warp);
        if operation == Operation::Sync {
            block.share_knowledge(
                lanes_of(mask).map(|other| &block.lanes[32 * idx + other as usize]),
            );
        }
        warp.waiting.set(waiting & !mask);
        let others = mask & !lane.bit();
        if others != 0 {
            block.make_ready(idx, others);
        }
    } else {
        warp.waiting.set(waiting);
        lane.wait.set(Wait::Warp(operation, mask, site));
        lane.suspend();
    }
    let results = warp.registers(lane.index());
    std::array::from_fn(|i| results[i])
}

#[inline(always)]
fn check_mask(operation: Operation, mask: u32, site: Caller, lane: &Lane, warp: &Warp) {
    let usable = warp.lanes & !warp.returned.get();
    if mask & !usable != 0 || mask & lane.bit() == 0 {
        refuse_mask(operation, mask, site, lane, warp);
    }
}

#[cold]
#[inline(never)]
fn refuse_mask(operation: Operation, mask: u32, site: Caller, lane: &Lane, warp: &Warp) -> ! {
    let absent = mask & !warp.lanes;
    let returned = mask & warp.returned.get();
    let problem = if absent != 0 {
        format!("it names lanes {absent:#010x}, and the block's last warp has no such threads")
    } else if returned != 0 {
        format!("it names lanes {returned:#010x}, which have returned")
    } else {
        format!("it does not name lane {}, which calls it", lane.index())
    };
    raise(operation, mask, site, problem)
}

#[cold]
#[inline(never)]
fn raise(operation: Operation, mask: u32, site: Caller, problem: String) -> ! {
    lane::raise_at(Violation::Warp { operation: operation.name(), mask, problem }, site)
}

/// Refuses lanes that met in different operations, or at different lines.
#[inline(always)]
fn check_same(operation: Operation, mask: u32, site: Caller, warp: &Warp) {
    let mut rest = mask;
    while rest != 0 {
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        let other = warp.arrival(lane);
        let same_site = std::ptr::eq(other.site, site) || other.site == site;
        if other.operation != operation || other.mask != mask || !same_site {
            let (name, other_mask, other_site) = (other.operation.name(), other.mask, other.site);
            let problem = format!(
                "lane {lane} is in {name} with mask {other_mask:#010x} at {}:{}",
                other_site.file(),
                other_site.line()
            );
            raise(operation, mask, site, problem);
        }
    }
}

/// Computes the results of all lanes of `mask`, which have arrived.
#[inline(never)]
fn complete(operation: Operation, mask: u32, site: Caller, warp: &Warp) {
    match operation {
        Operation::Sync
        | Operation::WgmmaFence
        | Operation::WgmmaCommitGroup
        | Operation::WgmmaWaitGroup => {}
        Operation::ShuffleIdx
        | Operation::ShuffleXor
        | Operation::ShuffleDown
        | Operation::ShuffleUp => shuffle(operation, mask, site, warp),
        Operation::Ballot => {
            let votes =
                lanes_of(mask).fold(0, |votes, lane| votes | warp.registers(lane)[0] << lane);
            lanes_of(mask).for_each(|lane| warp.registers(lane)[0] = votes);
        }
        Operation::ReduceMax => {
            let maximum = lanes_of(mask).map(|lane| warp.registers(lane)[0]).max().unwrap_or(0);
            lanes_of(mask).for_each(|lane| warp.registers(lane)[0] = maximum);
        }
        Operation::MatchAny => {
            let values: [u32; 32] = std::array::from_fn(|lane| warp.registers(lane as u32)[0]);
            for lane in lanes_of(mask) {
                let is_same = |&other: &u32| values[other as usize] == values[lane as usize];
                let same =
                    lanes_of(mask).filter(is_same).fold(0, |lanes, other| lanes | 1 << other);
                warp.registers(lane)[0] = same;
            }
        }
        Operation::MmaBf16 => mma::multiply::<half::bf16>(warp),
        Operation::MmaF16 => mma::multiply::<half::f16>(warp),
        Operation::LoadMatrix => mma::distribute_matrices(warp),
        Operation::LoadMatrixTransposed => mma::distribute_transposed(warp),
        Operation::StoreMatrix => mma::gather_matrices(warp),
        Operation::StoreMatrixTransposed => mma::gather_transposed(warp),
        Operation::Transpose => mma::transpose(warp),
    }
}

fn lanes_of(mask: u32) -> impl Iterator<Item = u32> + Clone {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// Registers in: value, operand (lane, lane mask or delta), width.
fn shuffle(operation: Operation, mask: u32, site: Caller, warp: &Warp) {
    let values: [u32; 32] = std::array::from_fn(|lane| warp.registers(lane as u32)[0]);
    for lane in lanes_of(mask) {
        let &mut [_, operand, width, ..] = warp.registers(lane);
        let source = source_lane(operation, lane, operand, width).unwrap_or(lane);
        if mask >> source & 1 == 0 {
            let problem = format!("lane {lane} reads lane {source}, which the mask does not name");
            raise(operation, mask, site, problem);
        }
        warp.registers(lane)[0] = values[source as usize];
    }
}

/// Which lane's value a shuffle gives to `lane`, or `None` where that would leave its group.
fn source_lane(operation: Operation, lane: u32, operand: u32, width: u32) -> Option<u32> {
    let first = lane & !(width - 1);
    let last = first + width - 1;
    let operand = operand % 32;
    match operation {
        Operation::ShuffleIdx => Some(first | operand & (width - 1)),
        Operation::ShuffleXor => Some(lane ^ operand).filter(|&source| source <= last),
        Operation::ShuffleDown => Some(lane + operand).filter(|&source| source <= last),
        _ => lane.checked_sub(operand).filter(|&source| source >= first),
    }
}

#[inline(always)]
pub fn lane_id() -> u32 {
    lane::current().index()
}

#[inline(always)]
#[track_caller]
pub unsafe fn sync_warp(mask: u32) {
    collective::<0, 0>(Operation::Sync, mask, Location::caller(), []);
}

macro_rules! shuffles {
    ($($name:ident: $operation:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(mask: u32, value: u32, operand: u32, width: u32) -> u32 {
            let site = Location::caller();
            if !width.is_power_of_two() || width > 32 {
                let problem = format!("a width of {width}: it is a power of two up to 32");
                raise(Operation::$operation, mask, site, problem);
            }
            let [value] = collective(Operation::$operation, mask, site, [value, operand, width]);
            value
        }
    )*};
}

shuffles! {
    shuffle_idx: ShuffleIdx;
    shuffle_xor: ShuffleXor;
    shuffle_down: ShuffleDown;
    shuffle_up: ShuffleUp;
}

#[inline(always)]
#[track_caller]
pub unsafe fn ballot(mask: u32, predicate: bool) -> u32 {
    let [votes] = collective(Operation::Ballot, mask, Location::caller(), [u32::from(predicate)]);
    votes
}

macro_rules! reductions {
    ($($name:ident: $operation:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(mask: u32, value: u32) -> u32 {
            let [result] =
                collective(Operation::$operation, mask, Location::caller(), [value]);
            result
        }
    )*};
}

reductions! {
    reduce_max: ReduceMax;
    match_any: MatchAny;
}
