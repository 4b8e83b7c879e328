//! What a decode kernel tells, and is told by, whoever asked for it.

use cuda_std::grid;

/// Calls that the split kernel makes around its work.
pub(crate) trait Handshake: Copy {
    /// Returns when the pages may be read. All threads call it, before any reads them.
    unsafe fn await_pages(self);

    /// Returns when the queries may be read. All threads call it, before any reads them.
    unsafe fn await_queries(self);

    /// Says that this block has written all its results. All threads call it, after they have.
    unsafe fn tell_done(self);
}

/// Queries and results of this device: the order of the stream is enough, in which the kernel starts
/// [early](cuda_std::grid).
#[derive(Clone, Copy)]
pub(crate) struct AtHome;

impl Handshake for AtHome {
    #[inline(always)]
    unsafe fn await_pages(self) {
        grid::wait_prerequisites();
    }

    #[inline(always)]
    unsafe fn await_queries(self) {}

    #[inline(always)]
    unsafe fn tell_done(self) {}
}
