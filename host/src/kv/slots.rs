//! The slots of one memory: which are free, and which page owns each of the others.

use super::PageId;

/// Who has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Free,
    /// The page lies here, or is moving here.
    Page(PageId),
    /// Its page has moved away, but a kernel may still read here.
    Retiring,
}

#[derive(Debug)]
pub(super) struct Slots {
    owners: Vec<Owner>,
    free: Vec<u32>,
}

impl Slots {
    pub fn new(capacity: u32) -> Self {
        Self {
            owners: vec![Owner::Free; capacity as usize],
            // Popped from the end: low slots first, so that pages taken together lie together.
            free: (0..capacity).rev().collect(),
        }
    }

    pub fn capacity(&self) -> u32 {
        self.owners.len() as u32
    }

    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn owners(&self) -> &[Owner] {
        &self.owners
    }

    pub fn free_list(&self) -> &[u32] {
        &self.free
    }

    pub fn take(&mut self, page: PageId) -> Option<u32> {
        let slot = self.free.pop()?;
        self.owners[slot as usize] = Owner::Page(page);
        Some(slot)
    }

    pub fn retire(&mut self, slot: u32) {
        self.owners[slot as usize] = Owner::Retiring;
    }

    pub fn give_back(&mut self, slot: u32) {
        self.owners[slot as usize] = Owner::Free;
        self.free.push(slot);
    }
}
