//! Copies in groups, of which a thread waits for all but the newest.

use std::collections::VecDeque;

/// Copies of one thread that have not landed, oldest first.
pub(super) struct Groups<Copy> {
    /// Each with the number of its group.
    pending: VecDeque<(u32, Copy)>,
    /// The group that copies join until it is closed.
    open: u32,
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

    pub fn push(&mut self, copy: Copy) {
        self.pending.push_back((self.open, copy));
    }

    pub fn close(&mut self) {
        self.open += 1;
    }

    /// Calls `land` with the copies of closed groups, but for the `num_newest` newest groups.
    pub fn land(&mut self, num_newest: u32, mut land: impl FnMut(Copy)) {
        let end = self.open.saturating_sub(num_newest);
        while self.pending.front().is_some_and(|&(group, _)| group < end) {
            let (_, copy) = self.pending.pop_front().expect("just seen");
            land(copy);
        }
    }

    /// Calls `land` with all copies, of the open group too.
    pub fn land_all(&mut self, mut land: impl FnMut(Copy)) {
        self.pending.drain(..).for_each(|(_, copy)| land(copy));
    }
}
