//! `cp.async`: copies wait in the thread's queue, and land at the wait that covers them.

use std::panic::Location;

use super::bulk;
use super::global::RawGlobal;
use super::groups::Groups;
use super::lane;
use super::race::{self, Act, AsyncOperation};
use super::shared::RawShared;

const BYTES: usize = 16;

/// Copies that a thread has issued and not waited for.
pub(super) type Copies = Groups<Copy>;

pub(super) struct Copy {
    dst: RawShared,
    /// Checked when issued; null for zeros.
    src: *const [u8; BYTES],
}

impl Copy {
    pub fn land(self) {
        // SAFETY: checked when issued, and memory stays for the launch.
        let bytes = unsafe { self.src.as_ref() }.copied().unwrap_or_default();
        self.dst.land(&bytes);
    }
}

#[inline(always)]
pub fn evict_first_policy() -> u64 {
    0
}

#[inline(always)]
#[track_caller]
pub unsafe fn copy_16(dst: RawShared, src: RawGlobal, policy: u64) {
    copy_16_or_zero(dst, src, true, policy);
}

#[inline(always)]
#[track_caller]
pub unsafe fn copy_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool, _policy: u64) {
    dst.check_store(BYTES, BYTES);
    let done = race::note_copy(dst, BYTES);
    let src = match copies {
        true => {
            let bytes = src.check_load(0, BYTES, BYTES).cast();
            let site = Location::caller();
            race::note_device_async(AsyncOperation::Copy, done, Act::Load, src, BYTES, site);
            bytes
        }
        false => std::ptr::null(),
    };
    lane::current().copies.borrow_mut().push(Copy { dst, src }, done);
}

#[inline(always)]
#[track_caller]
pub unsafe fn copy_shared_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool) {
    copy_16_or_zero(dst, src, copies, 0);
}

#[inline(always)]
#[track_caller]
pub unsafe fn copy_reused_16_or_zero(dst: RawShared, src: RawGlobal, copies: bool) {
    copy_16_or_zero(dst, src, copies, 0);
}

#[track_caller]
pub unsafe fn arrive_when_landed(barrier: RawShared) {
    let mut copies = Vec::new();
    let done = lane::current().copies.borrow_mut().land_all(|copy| copies.push(copy));
    bulk::mbarrier_arrive_with(barrier, copies, done);
}

#[inline(always)]
pub unsafe fn commit_group() {
    lane::current().copies.borrow_mut().close();
}

#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    let lane = lane::current();
    lane.learn(lane.copies.borrow_mut().land(N, Copy::land));
}
