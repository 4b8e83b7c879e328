//! Copies in groups, of which a thread waits for all but the newest.

use std::collections::VecDeque;

use super::race::Epoch;

/// Copies of one thread that have not landed, oldest first.
pub(super) struct Groups<Copy> {
    pending: VecDeque<Pending<Copy>>,
    /// The group that copies join until it is closed.
    open: u32,
}

struct Pending<Copy> {
    group: u32,
    copy: Copy,
    done: Option<Epoch>,
}

impl<Copy> Default for Groups<Copy> {
    fn default() -> Self {
        Self { pending: VecDeque::new(), open: 0 }
    }
}

impl<Copy> Groups<Copy> {
    pub fn clear(&mut self) {
        self.pending.clear();
        self.open = 0;
    }

    /// Adds a copy, with the time at which it is done where races are looked for.
    pub fn push(&mut self, copy: Copy, done: Option<Epoch>) {
        self.pending.push_back(Pending { group: self.open, copy, done });
    }

    pub fn close(&mut self) {
        self.open += 1;
    }

    /// Calls `land` with the copies of closed groups, but for the `num_newest` newest groups. Returns
    /// when the last of them is done.
    pub fn land(&mut self, num_newest: u32, land: impl FnMut(Copy)) -> Option<Epoch> {
        let end = self.open.saturating_sub(num_newest);
        let num_due = self.pending.partition_point(|pending| pending.group < end);
        self.land_first(num_due, land)
    }

    /// As [`land`](Self::land), with all copies, of the open group too.
    pub fn land_all(&mut self, land: impl FnMut(Copy)) -> Option<Epoch> {
        self.land_first(self.pending.len(), land)
    }

    fn land_first(&mut self, num_copies: usize, mut land: impl FnMut(Copy)) -> Option<Epoch> {
        let mut last = None;
        for Pending { copy, done, .. } in self.pending.drain(..num_copies) {
            land(copy);
            last = done;
        }
        last
    }
}
