//! How long a call waits for its peers, and what it leaves behind if in vain.

use cuda_std::prelude::*;

use super::super::{ExchangeParams, Half};

/// Looks at what is waited for between two at the clock.
const LOOKS_PER_CLOCK: u32 = 64;
/// Nanoseconds of a tick as a power of two: half of 2^32 ticks are longer than any wait.
const TICK_SHIFT: u32 = 12;

/// When a call's waiting ends.
///
/// The first call of an exchange that waits in vain is the last one that waits: those that are in
/// the stream behind it, of both halves, end at their first look at the clock and count nothing. So
/// a model of many layers ends in the time of one wait, and the counts are those of the first.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    late: GlobalMut<u32>, // [2 * ep_size + 1]
    ep_size: u32,
    half: Half,
    epoch: u32,
    end_tick: u32,
}

impl Deadline {
    /// Of the call of this epoch, from now on.
    #[inline(always)]
    pub(crate) fn of_call(
        half: Half,
        epoch: u32,
        late: GlobalMut<u32>,
        params: &ExchangeParams,
    ) -> Self {
        let ticks = (1000 * u64::from(params.timeout_us)) >> TICK_SHIFT;
        let end_tick = tick().wrapping_add(ticks as u32 + 1);
        Self { late, ep_size: params.ep_size, half, epoch, end_tick }
    }

    /// Whether to give up, asked for the `num_looks`-th time; lets others run.
    #[inline(always)]
    pub(crate) unsafe fn has_passed(self, num_looks: u32) -> bool {
        thread::spin_pause();
        num_looks.is_multiple_of(LOOKS_PER_CLOCK)
            && (self.end_tick.wrapping_sub(tick()) as i32 <= 0 || self.follows_a_failure())
    }

    /// Counts messages of rank `peer` that did not come.
    #[inline(always)]
    pub(crate) unsafe fn count_late(self, peer: u32, num_messages: u32) {
        if !self.follows_a_failure() {
            atomic::store_relaxed_gpu(self.late, self.failed_at(), self.call());
            let place = self.half as u32 * self.ep_size + peer;
            atomic::fetch_add_relaxed_gpu(self.late, place as usize, num_messages);
        }
    }

    /// Whether an earlier call has waited in vain.
    #[inline(always)]
    unsafe fn follows_a_failure(self) -> bool {
        let failed = atomic::load_relaxed_gpu(self.late.as_const(), self.failed_at());
        failed != 0 && failed != self.call()
    }

    /// Where the first call that waited in vain is named.
    #[inline(always)]
    fn failed_at(self) -> usize {
        2 * self.ep_size as usize
    }

    /// Which call of the exchange: never 0.
    #[inline(always)]
    fn call(self) -> u32 {
        (self.epoch << 2) + self.half as u32 + 1
    }
}

#[inline(always)]
fn tick() -> u32 {
    (thread::global_timer_ns() >> TICK_SHIFT) as u32
}
