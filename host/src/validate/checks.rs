//! Checks of pages and of the pool.

use super::replay::{End, Replay};
use super::report::ViolationKind;
use crate::kv::{Location, PageId};

/// Says yes once in `every` calls, the first time included.
#[derive(Debug)]
pub(super) struct Sampler {
    every: u64,
    calls: u64,
}

impl Sampler {
    pub fn new(every: u64) -> Self {
        Self { every, calls: 0 }
    }

    pub fn next(&mut self) -> bool {
        self.calls += 1;
        (self.calls - 1).is_multiple_of(self.every)
    }
}

impl Replay<'_> {
    /// Compares the bytes of full pages with what their tokens say.
    pub(super) fn check_pages(
        &mut self,
        pages: &[(PageId, Location)],
        when: impl Fn(usize) -> String,
    ) -> Result<(), End> {
        if pages.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = pages.iter().map(|&(_, at)| at).collect();
        let found = self.plane.checksums(&places)?;
        for (i, (&(page, _), found)) in pages.iter().zip(found).enumerate() {
            let (number, position) = self.origins.get(page);
            let sources =
                self.tokens(number).page_sources(position as u32, self.plan.options.page_size);
            let expected = self.plane.expected_checksum(&sources);
            if found != expected {
                self.violate(
                    ViolationKind::PageChecksum,
                    format!(
                        "{page} (page {position} of request {number}) sums up to {found:#018x} {}, \
                         but its tokens to {expected:#018x}",
                        when(i)
                    ),
                );
            }
        }
        Ok(())
    }

    pub(super) fn check_invariants(&mut self) {
        self.tally.checks.invariants += 1;
        if let Err(error) = self.pool.check_invariants() {
            self.violate(ViolationKind::Invariant, error.to_string());
        }
    }

    /// Everything has ended: nothing may be held, and what is cached must still be right.
    pub(super) fn wind_up(&mut self) -> Result<(), End> {
        while !self.in_flight.is_empty() {
            self.wait_for_a_migration()?;
        }
        let mut cached = Vec::new();
        let mut sampler = Sampler::new(self.plan.sample_pages);
        let pages: Vec<PageId> = self.pool.pages().collect();
        for page in pages {
            let references = self.pool.num_references(page)?;
            if references > 0 {
                self.violate(
                    ViolationKind::Reference,
                    format!("{page} still has {references} references at the end"),
                );
            } else if sampler.next() {
                cached.push((page, self.pool.location(page)?));
            }
        }
        self.tally.checks.cached_pages += cached.len() as u64;
        self.check_pages(&cached, |_| "at the end".to_string())?;
        self.check_invariants();
        Ok(())
    }
}
