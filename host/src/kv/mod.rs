//! The KV pool: which page of which request lies where, over three kinds of memory.
//!
//! One GPU decodes (rank 0, [`Tier::Local`]). Other GPUs of the host lend memory that its kernels
//! read over NVLink ([`Tier::Peer`]), and behind them stands pinned host memory read over PCIe
//! ([`Tier::Host`]). The pool is pure bookkeeping: it owns no byte of KV, knows no device, and
//! says what to copy as data ([`Migration`]), which somebody else carries out.
//!
//! # The life of a page
//! ```text
//!            open / extend / append                 release (last reference)
//!   free slot ───────────────────▶ referenced ─────────────────────────▶ cached ──▶ dropped
//!                                   ▲       │         prefix hit          │  │
//!                                   │       │◀───────────────────────────┘  │
//!                                   └ promote / demote: copies between tiers ┘
//! ```
//! - *Referenced*: one or more sequences hold it. It may move between tiers, and is never dropped.
//! - *Cached*: no sequence holds it, but its [`PageKey`] says what it contains, so that a later
//!   request with the same prefix can share it. Cached pages are what eviction works on: they go
//!   local → peer (while it has room) → host → dropped.
//! - A page without a key (it holds decoded tokens, or is only partly filled) is private to its
//!   sequence and free as soon as it is released.
//!
//! Only full pages carry a key, from when they are given out ([`KvPool::extend`]) or have been
//! written ([`KvPool::publish`]), and a full page is never written again. So nothing shared is ever
//! written, and the pool needs no copy-on-write.
//!
//! # Moving pages under running kernels
//! Three rules keep a kernel from reading a slot that changes under it:
//! 1. A kernel's reads are a [`ReadLease`], taken when its page table is built and retired when
//!    its event has fired. A lease covers every page that is referenced when it is taken.
//! 2. A leased page is not chosen to move, and a cached page is not evicted before every lease
//!    that may cover it has retired.
//! 3. A move has two phases. While it is *planned*, the page owns both slots and is read at its
//!    source. Once *completed*, it is read at its destination, and its source slot becomes free
//!    when the leases that were open at that moment have retired.
//!
//! All operations on a page cost O(1) or O(log pages).
#![forbid(unsafe_code)]

mod costs;
mod error;
mod lease;
pub mod memory;
mod migration;
mod page;
pub mod policy;
mod pool;
mod sequence;
mod slots;
mod stats;
mod table;
mod tiers;
pub mod trace;

pub use costs::{CostModel, Rates};
pub use error::{InvariantError, PoolError, TierUsage};
pub use lease::ReadLease;
pub use migration::{CopyGroup, Migration, MigrationId, Move};
pub use page::{PageId, PageKey, prefix_page_keys};
pub use pool::KvPool;
pub use sequence::{Sequence, SequenceId};
pub use stats::{PoolStats, PrefixHits};
pub use tiers::{Budgets, Location, Tier};
