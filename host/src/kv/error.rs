//! What the pool refuses, and why.

use std::fmt;

use super::{Location, PageId, SequenceId, Tier};

/// How the slots of one memory are used. Every slot counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierUsage {
    /// The memory.
    pub tier: Tier,
    /// Its slots.
    pub capacity: u32,
    /// Slots nobody has.
    pub free: u32,
    /// Cached pages that may be evicted now.
    pub cached: u32,
    /// Slots bound by a move, or by a kernel that may still read.
    pub bound: u32,
    /// Pages held by two or more sequences.
    pub shared: u32,
    /// Pages held by one sequence.
    pub private: u32,
}

impl fmt::Display for TierUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} of {} free, {} cached, {} bound, {} shared, {} private",
            self.tier, self.free, self.capacity, self.cached, self.bound, self.shared, self.private
        )
    }
}

struct Usages<'a>(&'a [TierUsage]);

impl fmt::Display for Usages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, usage) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{usage}")?;
        }
        Ok(())
    }
}

/// A call the pool refused. Nothing has changed, unless the variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No GPU to decode on.
    #[error("the pool needs at least one GPU, got 0")]
    NoRanks,
    /// A tier that exists but holds nothing.
    #[error("the {tier} tier needs a budget of at least 1 page, got 0")]
    ZeroBudget {
        /// The tier.
        tier: Tier,
    },
    /// Page indices are `i32` in the page table.
    #[error("the {tier} tier holds at most {} pages, got {pages}", i32::MAX)]
    BudgetTooLarge {
        /// The tier.
        tier: Tier,
        /// Its budget.
        pages: u32,
    },
    /// Pages of no tokens.
    #[error("page_size needs to be at least 1 token, got 0")]
    ZeroPageSize,
    /// Not enough pages can be had at once. More may come free when moves complete, leases retire
    /// or sequences are released.
    #[error("out of pages: {asked} asked for, {available} can be had at once ({})", Usages(.usage))]
    OutOfPages {
        /// Pages asked for.
        asked: u64,
        /// Free slots and droppable cached pages.
        available: u64,
        /// How each memory is used.
        usage: Vec<TierUsage>,
    },
    /// The sequence exists already.
    #[error("{0} is open already")]
    SequenceExists(SequenceId),
    /// The sequence does not exist: never opened, or released before.
    #[error("{0} is not open: it was never opened, or is released already")]
    UnknownSequence(SequenceId),
    /// Full pages can only follow full pages.
    #[error(
        "{sequence} holds {num_tokens} tokens, which is no whole number of pages of {page_size}: keyed pages cannot follow"
    )]
    UnalignedExtend {
        /// The sequence.
        sequence: SequenceId,
        /// Its tokens.
        num_tokens: u32,
        /// Tokens of a page.
        page_size: u32,
    },
    /// Only what is full has contents that others can share.
    #[error("page {position} of {sequence} is not full: its first {num_full} pages are")]
    NotFull {
        /// The sequence.
        sequence: SequenceId,
        /// The page's place in it.
        position: usize,
        /// Full pages of the sequence.
        num_full: usize,
    },
    /// A page that is known to contain something else.
    #[error("{0} is cached under another key already")]
    OtherKey(PageId),
    /// A sequence longer than `i32` tokens.
    #[error(
        "{sequence} holds {num_tokens} tokens and cannot grow by {more}: the limit is {}",
        i32::MAX
    )]
    SequenceTooLong {
        /// The sequence.
        sequence: SequenceId,
        /// Its tokens.
        num_tokens: u32,
        /// Tokens that were to be added.
        more: u64,
    },
    /// No such page.
    #[error("{0} does not exist: it was never filled, or is dropped already")]
    UnknownPage(PageId),
    /// A batch that no page table holds.
    #[error("a page table holds at most {} pages, the batch has {num_pages}", i32::MAX)]
    TooManyPages {
        /// Pages of the batch, a page counted as often as sequences hold it.
        num_pages: u64,
    },
    /// No such migration, or completed before.
    #[error("migration {0} is not under way: it was never planned, or is completed already")]
    UnknownMigration(u64),
    /// No such lease.
    #[error("read lease {0} is not open in this pool")]
    UnknownLease(u64),
    /// A page that may not move now.
    #[error("{page} at {location} cannot be moved: {reason}")]
    NotMovable {
        /// The page.
        page: PageId,
        /// Where it lies.
        location: Location,
        /// What holds it there.
        reason: &'static str,
    },
    /// The policy named a page that must not be evicted. The pool did not touch it.
    #[error("policy '{policy}' chose {page} for eviction, which {reason}")]
    UnsafeVictim {
        /// The policy's name.
        policy: &'static str,
        /// The page.
        page: PageId,
        /// Why it must stay.
        reason: &'static str,
    },
}

/// A rule of the pool's bookkeeping that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvariantError {
    /// A slot whose owner does not lie there: lost or leaked.
    #[error("{location} belongs to {page}, which does not lie there")]
    LeakedSlot {
        /// The slot.
        location: Location,
        /// Its recorded owner.
        page: PageId,
    },
    /// A page in a slot that is not its own: lost, or owned twice.
    #[error("{page} lies at {location}, which it does not own")]
    ForeignSlot {
        /// The page.
        page: PageId,
        /// Where it claims to lie.
        location: Location,
    },
    /// Free, owned and retiring slots do not add up to the budget.
    #[error(
        "{tier}: {free} free, {owned} owned and {retiring} retiring slots do not add up to {capacity}"
    )]
    SlotSum {
        /// The memory.
        tier: Tier,
        /// Slots marked free that the free list holds once.
        free: u32,
        /// Slots with an owner.
        owned: u32,
        /// Slots waiting for leases.
        retiring: u32,
        /// The budget.
        capacity: u32,
    },
    /// A reference count other than the number of sequences that hold the page.
    #[error("{page} counts {counted} references, but {held} sequences hold it")]
    References {
        /// The page.
        page: PageId,
        /// Its reference count.
        counted: u32,
        /// Sequences that hold it.
        held: u32,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}
