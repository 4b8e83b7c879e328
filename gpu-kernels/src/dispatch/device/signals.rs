//! Flags between the same blocks of two ranks.

use cuda_std::prelude::*;

use super::super::ExchangeParams;
use super::deadline::Deadline;

/// Words on each rank that its peers write: of several kinds, one for each peer and each block that
/// sends. // [kinds, ep_size - 1, num_senders]
#[derive(Clone, Copy)]
pub(crate) struct Signals<'a> {
    pub(crate) signal_ptrs: Global<u64>,
    pub(crate) deadline: Deadline,
    pub(crate) params: &'a ExchangeParams,
}

impl Signals<'_> {
    #[inline(always)]
    unsafe fn word(self, of: u32, kind: u32, area: u32, block: u32) -> GlobalMut<u32> {
        let base = self.signal_ptrs.load(of as usize);
        let areas = kind * (self.params.ep_size - 1) + area;
        let word = areas * self.params.num_senders + block;
        GlobalMut::from_address(base + 4 * u64::from(word), 1)
    }

    /// The word that `block` of this rank writes on the rank `step` after it.
    #[inline(always)]
    pub(crate) unsafe fn told(self, kind: u32, step: u32, block: u32) -> GlobalMut<u32> {
        self.word(self.params.rank_after(step), kind, self.params.ep_size - step - 1, block)
    }

    /// The word that `block` of the rank `step` after this one writes here.
    #[inline(always)]
    pub(crate) unsafe fn heard(self, kind: u32, step: u32, block: u32) -> GlobalMut<u32> {
        self.word(self.params.ep_rank, kind, step - 1, block)
    }

    /// Tells the rank `step` after this one.
    #[inline(always)]
    pub(crate) unsafe fn tell(self, kind: u32, step: u32, block: u32, value: u32) {
        atomic::store_relaxed_sys(self.told(kind, step, block), 0, value);
    }

    /// Waits until the rank `step` after this one has told `value`, or a later one; whether it was
    /// in time. If not, `num_messages` of its are late.
    #[inline(always)]
    pub(crate) unsafe fn wait(
        self,
        kind: u32,
        step: u32,
        block: u32,
        value: u32,
        num_messages: u32,
    ) -> bool {
        let word = self.heard(kind, step, block).as_const();
        let mut num_looks = 0;
        // Values wrap around: compared by their difference.
        while (atomic::load_relaxed_sys(word, 0).wrapping_sub(value) as i32) < 0 {
            num_looks += 1;
            if self.deadline.has_passed(num_looks) {
                self.is_late(step, num_messages);
                return false;
            }
        }
        atomic::load_acquire_sys(word, 0);
        true
    }

    /// Counts messages of the rank `step` after this one that did not come.
    #[inline(always)]
    pub(crate) unsafe fn is_late(self, step: u32, num_messages: u32) {
        self.deadline.count_late(self.params.rank_after(step), num_messages);
    }
}
