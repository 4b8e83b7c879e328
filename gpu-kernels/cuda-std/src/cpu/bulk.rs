//! Bulk copies and mbarriers.
//!
//! A barrier's phase completes when someone waits for it, or arrives after it, and its counts are
//! met; its loads land then and not earlier. Stores land at the thread's wait, or when it returns.

use std::panic::Location;

use super::async_copy::Copy;
use super::block::Block;
use super::cluster;
use super::fault::{BlockIdx, Violation};
use super::global::RawGlobal;
use super::groups::Groups;
use super::lane::{self, Caller, Wait};
use super::race::{self, Act, AsyncOperation, Epoch, Knowledge};
use super::shared::RawShared;

/// Addresses and sizes of bulk copies are multiples of this.
const UNIT: usize = 16;
const MBARRIER_BYTES: usize = 8;
const MAX_ARRIVALS: u32 = (1 << 20) - 1;

/// Bytes that lie together in shared memory and in global memory; both sides were checked when
/// their copy was issued.
pub(super) struct Piece {
    pub shared: RawShared,
    pub global: RawGlobal,
    pub bytes: usize,
    /// Whether there is something to copy: a load of what nothing wrote leaves it so.
    pub is_written: bool,
}

/// A copy from global to shared memory that has not landed.
pub(super) struct Load {
    /// All of it in shared memory, for its bytes that no piece has: they become 0.
    pub dst: RawShared,
    pub bytes: usize,
    pub pieces: Vec<Piece>,
    /// Who issued it.
    pub block: BlockIdx,
    pub thread: u32,
    pub site: Caller,
}

impl Load {
    fn land(self) {
        if self.pieces.iter().map(|piece| piece.bytes).sum::<usize>() < self.bytes {
            self.dst.land(&vec![0; self.bytes]);
        }
        for Piece { shared, global, bytes, is_written } in self.pieces {
            if is_written {
                // SAFETY: checked when issued, and memory stays for the launch.
                shared.land(unsafe { std::slice::from_raw_parts(global.place(), bytes) });
            } else {
                shared.forget(bytes);
            }
        }
    }
}

struct Mbarrier {
    address: u32,
    /// Arrivals that a phase needs.
    arrivals: u32,
    phase: u32,
    /// Arrivals that this phase still needs.
    missing: u32,
    /// Bytes that arrivals of this phase announced.
    expected_bytes: usize,
    loads: Vec<Load>,
    /// Copies of threads that arrive when these land.
    copies: Vec<Copy>,
    /// Threads that wait for this phase.
    waiting: Vec<u32>,
    /// Whether [`fence_init`] followed its set-up.
    is_published: bool,
    /// When the loads of the last phase were done; those of this phase are at the next time.
    loaded: Epoch,
    /// What those learn who wait for this phase, and who waited for the last.
    knowledge: Knowledge,
    known: Knowledge,
}

impl Mbarrier {
    fn loaded_bytes(&self) -> usize {
        self.loads.iter().map(|load| load.bytes).sum()
    }

    fn is_met(&self) -> bool {
        self.missing == 0 && self.expected_bytes == self.loaded_bytes()
    }

    /// Completes the phase if its counts are met: lands its loads, wakes who waits.
    fn settle(&mut self, block: &Block) {
        if !self.is_met() {
            return;
        }
        self.loads.drain(..).for_each(Load::land);
        self.copies.drain(..).for_each(Copy::land);
        self.loaded.time += 1;
        self.known = self.knowledge.clone();
        for thread in self.waiting.drain(..) {
            block.lanes[thread as usize].acquire(&self.known);
            block.make_ready(thread as usize / 32, 1 << (thread % 32));
        }
        self.phase = self.phase.wrapping_add(1);
        self.missing = self.arrivals;
        self.expected_bytes = 0;
    }
}

/// The mbarriers of a block.
#[derive(Default)]
pub(super) struct Mbarriers(Vec<Mbarrier>);

impl Mbarriers {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// A load that has not landed, if there is one.
    pub fn load_in_flight(&self) -> Option<&Load> {
        self.0.iter().find_map(|barrier| barrier.loads.first())
    }

    /// The state of the barrier at `address`, in words.
    pub fn describe(&self, address: u32) -> String {
        let Some(barrier) = self.0.iter().find(|barrier| barrier.address == address) else {
            return "gone".to_owned();
        };
        format!(
            "phase {}: {} of {} arrivals missing, {} bytes expected, {} in loads",
            barrier.phase,
            barrier.missing,
            barrier.arrivals,
            barrier.expected_bytes,
            barrier.loaded_bytes()
        )
    }

    fn at(&mut self, place: RawShared) -> Option<&mut Mbarrier> {
        self.0.iter_mut().find(|barrier| barrier.address == place.address())
    }
}

/// Calls `act` with the barrier at `place` in `block`, after its phase has completed if it can.
#[inline]
#[track_caller]
fn with_barrier<R>(
    block: &Block,
    place: RawShared,
    act: impl FnOnce(&mut Mbarrier) -> Result<R, String>,
) -> R {
    let mut barriers = block.mbarriers.borrow_mut();
    let done = match barriers.at(place) {
        Some(barrier) => {
            if !(barrier.is_published && block.has_met_cluster()) {
                race::check_set_up(place.in_block(block));
            }
            barrier.settle(block);
            act(barrier)
        }
        None => Err(format!("no mbarrier was set up at shared byte {}", place.address())),
    };
    drop(barriers);
    match done {
        Ok(result) => result,
        Err(rule) => lane::raise(Violation::Bulk(rule)),
    }
}

#[track_caller]
pub unsafe fn mbarrier_init(place: RawShared, arrivals: u32) {
    place.check_store(MBARRIER_BYTES, MBARRIER_BYTES);
    race::note(Act::Store, place, MBARRIER_BYTES);
    if !(1..=MAX_ARRIVALS).contains(&arrivals) {
        let rule = format!("an mbarrier counts 1 to {MAX_ARRIVALS} arrivals, not {arrivals}");
        lane::raise(Violation::Bulk(rule));
    }
    let fresh = |loaded| Mbarrier {
        address: place.address(),
        arrivals,
        phase: 0,
        missing: arrivals,
        expected_bytes: 0,
        loads: Vec::new(),
        copies: Vec::new(),
        waiting: Vec::new(),
        is_published: false,
        loaded,
        knowledge: Knowledge::default(),
        known: Knowledge::default(),
    };
    let block = lane::current().block();
    let mut barriers = block.mbarriers.borrow_mut();
    let in_use = match barriers.at(place) {
        Some(before) if before.loads.is_empty() && before.waiting.is_empty() => {
            *before = fresh(before.loaded);
            false
        }
        Some(_) => true,
        None => {
            barriers.0.push(fresh(block.timelines().begin(AsyncOperation::BulkLoad)));
            false
        }
    };
    drop(barriers);
    if in_use {
        lane::raise(Violation::Bulk(format!(
            "the mbarrier at shared byte {} is set up again while it is in use",
            place.address()
        )));
    }
}

#[track_caller]
pub unsafe fn mbarrier_arrive(place: RawShared) {
    arrive(lane::current().block(), place, 0, Vec::new(), None);
}

#[track_caller]
pub unsafe fn mbarrier_arrive_in(place: RawShared, rank: u32) {
    arrive(cluster::reach(rank), place, 0, Vec::new(), None);
}

#[track_caller]
pub unsafe fn mbarrier_arrive_expect_bytes(place: RawShared, bytes: u32) {
    arrive(lane::current().block(), place, bytes as usize, Vec::new(), None);
}

/// Arrives when `copies`, the last of which is done at `done`, have landed: they land with the phase.
#[track_caller]
pub(super) fn mbarrier_arrive_with(place: RawShared, copies: Vec<Copy>, done: Option<Epoch>) {
    arrive(lane::current().block(), place, 0, copies, done);
}

#[track_caller]
fn arrive(
    block: &Block,
    place: RawShared,
    bytes: usize,
    mut copies: Vec<Copy>,
    copied: Option<Epoch>,
) {
    with_barrier(block, place, |barrier| {
        barrier.missing = barrier.missing.checked_sub(1).ok_or_else(|| {
            format!(
                "the mbarrier at shared byte {} has all {} arrivals of its phase already",
                barrier.address, barrier.arrivals
            )
        })?;
        barrier.expected_bytes += bytes;
        lane::current().release(&mut barrier.knowledge);
        if let Some(copied) = copied {
            barrier.knowledge.learn(copied);
        }
        barrier.copies.append(&mut copies);
        if !barrier.waiting.is_empty() {
            barrier.settle(block);
        }
        Ok(())
    });
}

/// Returns when the phase has completed; the executor runs other lanes meanwhile.
#[track_caller]
pub unsafe fn mbarrier_try_wait(place: RawShared, parity: u32) -> bool {
    let site = Location::caller();
    let lane = lane::current();
    let waits = with_barrier(lane.block(), place, |barrier| {
        if parity > 1 {
            return Err(format!("a parity is 0 or 1, not {parity}"));
        }
        let waits = barrier.phase & 1 == parity;
        match waits {
            true => barrier.waiting.push(lane.linear),
            false => lane.acquire(&barrier.known),
        }
        Ok(waits)
    });
    if waits {
        lane.wait.set(Wait::Mbarrier { address: place.address(), parity, site });
        lane.suspend();
    }
    true
}

/// Publishes the barriers that the block has by then.
pub unsafe fn fence_init() {
    let mut barriers = lane::current().block().mbarriers.borrow_mut();
    barriers.0.iter_mut().for_each(|barrier| barrier.is_published = true);
}

#[inline(always)]
pub unsafe fn fence_proxy_async() {
    if let Some(lane) = race::watched() {
        lane.clock.borrow_mut().fence_proxy();
    }
}

#[track_caller]
fn check_size(bytes: u32) -> usize {
    let bytes = bytes as usize;
    if bytes == 0 || !bytes.is_multiple_of(UNIT) {
        let rule = format!("a bulk copy moves a multiple of {UNIT} bytes, and not {bytes}");
        lane::raise(Violation::Bulk(rule));
    }
    bytes
}

#[track_caller]
pub unsafe fn load(dst: RawShared, src: RawGlobal, bytes: u32, barrier: RawShared) {
    let bytes = check_size(bytes);
    dst.check_store(bytes, UNIT);
    src.check_load(0, bytes, UNIT);
    let pieces = vec![Piece { shared: dst, global: src, bytes, is_written: true }];
    issue_load(lane::current().block(), dst, bytes, pieces, barrier);
}

/// Puts a load of `bytes` bytes to `dst` in `block`, made of checked pieces, on its way.
#[track_caller]
pub(super) fn issue_load(
    block: &Block,
    dst: RawShared,
    bytes: usize,
    pieces: Vec<Piece>,
    barrier: RawShared,
) {
    let (lane, site) = (lane::current(), Location::caller());
    let (thread, by_block) = (lane.linear, lane.block().idx());
    with_barrier(block, barrier, |barrier| {
        let done = Epoch { time: barrier.loaded.time + 1, ..barrier.loaded };
        if race::note_bulk_load(dst, bytes, done, site) {
            for Piece { global, bytes, .. } in &pieces {
                let operation = AsyncOperation::BulkLoad;
                race::note_device_async(operation, Some(done), Act::Load, *global, *bytes, site);
            }
            barrier.knowledge.learn(done);
        }
        barrier.loads.push(Load { dst, bytes, pieces, block: by_block, thread, site });
        if !barrier.waiting.is_empty() {
            barrier.settle(block);
        }
        Ok(())
    });
}

/// Bulk stores that a thread has issued and that have not landed.
pub(super) type Stores = Groups<Piece>;

/// The same, until the thread has waited for more than that they have read shared memory.
pub(super) type Writes = Groups<()>;

impl Piece {
    /// Copies from shared to global memory.
    pub fn store(self) {
        // SAFETY: checked when issued; memory stays for the launch, and shared memory for the
        // block.
        unsafe {
            std::ptr::copy_nonoverlapping(self.shared.place(), self.global.place(), self.bytes);
        }
    }
}

#[track_caller]
pub unsafe fn store(dst: RawGlobal, src: RawShared, bytes: u32) {
    let bytes = check_size(bytes);
    src.check_load(bytes, UNIT);
    dst.check_store(0, bytes, UNIT);
    issue_store(Piece { shared: src, global: dst, bytes, is_written: true });
}

/// Puts a store, whose sides were checked, on its way.
#[track_caller]
pub(super) fn issue_store(piece: Piece) {
    let (lane, site) = (lane::current(), Location::caller());
    let Piece { shared, global, bytes, .. } = piece;
    let done = race::note_bulk_store(shared, bytes);
    let written =
        done.map(|_| lane.writes_clock.next(lane.block().timelines(), AsyncOperation::BulkWrite));
    let operation = AsyncOperation::BulkWrite;
    race::note_device_async(operation, written, Act::Store, global, bytes, site);
    lane.stores.borrow_mut().push(piece, done);
    lane.writes.borrow_mut().push((), written);
}

#[inline(always)]
pub unsafe fn commit_group() {
    let lane = lane::current();
    lane.stores.borrow_mut().close();
    lane.writes.borrow_mut().close();
}

/// The last moment to read shared memory; what was read is also written then.
#[inline(always)]
pub unsafe fn wait_group_read<const N: u32>() {
    let lane = lane::current();
    lane.learn(lane.stores.borrow_mut().land(N, Piece::store));
}

#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    wait_group_read::<N>();
    let lane = lane::current();
    lane.learn(lane.writes.borrow_mut().land(N, |()| ()));
}
