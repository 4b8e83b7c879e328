//! One GPU thread of a block: a coroutine, and what it waits for.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, Location};
use std::ptr;
use std::sync::Once;

use corosensei::Yielder;

use super::async_copy::Copies;
use super::block::Block;
use super::bulk::{Piece, Stores, Writes};
use super::fault::{Site, Violation};
use super::grid;
use super::race::{Abroad, AsyncClock, Epoch, Fences, Knowledge, ThreadClock};
use super::warp::Operation;
use super::wgmma::Multiplications;

/// The source line of an operation, as `#[track_caller]` gives it.
pub(super) type Caller = &'static Location<'static>;

thread_local! {
    /// The lane that runs on this OS thread; null between lanes and outside of launches.
    static CURRENT: Cell<*const Lane> = const { Cell::new(ptr::null()) };
    /// Whether that lane is of an early kernel and has not waited for what is before it.
    static EARLY: Cell<bool> = const { Cell::new(false) };
    /// Where and why the lane that panics does so, from the panic hook to the lane's end.
    static PANIC: RefCell<Option<(Option<Site>, String)>> = const { RefCell::new(None) };
}

/// What a lane that does not run waits for. Stale while the lane is ready.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    Start,
    Block(Caller),
    Cluster(Caller),
    NamedBarrier(u32, Caller),
    Warp(Operation, u32, Caller),
    Warpgroup(&'static str, Caller),
    Mbarrier { address: u32, parity: u32, site: Caller },
    Others(Caller),
    Returned,
}

/// The body of a kernel with its arguments; every lane of a launch runs it.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub kernel: *const (),
    pub run: unsafe fn(*const ()),
}

pub(super) struct Lane {
    block: *const Block,
    /// Index in the block, x fastest.
    pub linear: u32,
    pub thread_idx: [u32; 3],
    pub wait: Cell<Wait>,
    pub copies: RefCell<Copies>,
    pub stores: RefCell<Stores>,
    pub writes: RefCell<Writes>,
    pub multiplications: RefCell<Multiplications>,
    /// Where races are looked for, what the lane knows, and when its copies and stores are done: bulk
    /// stores twice, when they have read shared memory and when they have written device memory.
    pub clock: RefCell<ThreadClock>,
    pub copies_clock: AsyncClock,
    pub stores_clock: AsyncClock,
    pub writes_clock: AsyncClock,
    pub fences: RefCell<Fences>,
    /// As [`is_early`] tells while this lane runs.
    early: Cell<bool>,
    yielder: Cell<*const Yielder<(), ()>>,
}

impl Lane {
    pub fn new(block: *const Block, linear: u32, thread_idx: [u32; 3]) -> Self {
        Self {
            block,
            linear,
            thread_idx,
            wait: Cell::new(Wait::Start),
            copies: RefCell::default(),
            stores: RefCell::default(),
            writes: RefCell::default(),
            multiplications: RefCell::default(),
            clock: RefCell::new(ThreadClock::new(0, Abroad::nothing())),
            copies_clock: AsyncClock::default(),
            stores_clock: AsyncClock::default(),
            writes_clock: AsyncClock::default(),
            fences: RefCell::default(),
            early: Cell::new(false),
            yielder: Cell::new(ptr::null()),
        }
    }

    /// Readies the lane for the next block.
    pub fn reset(&self) {
        self.wait.set(Wait::Start);
        self.copies.borrow_mut().clear();
        self.stores.borrow_mut().clear();
        self.writes.borrow_mut().clear();
        self.multiplications.borrow_mut().clear();
        let launch = self.block().launch();
        let timeline = self.block().timeline_of(self.linear);
        self.clock.replace(ThreadClock::new(timeline, launch.known.clone()));
        self.copies_clock.clear();
        self.stores_clock.clear();
        self.writes_clock.clear();
        self.fences.replace(Fences::new(launch.known.clone()));
        self.early.set(launch.is_early);
    }

    #[inline(always)]
    pub fn block(&self) -> &Block {
        // SAFETY: a block outlives its lanes and never moves.
        unsafe { &*self.block }
    }

    /// Index in the warp.
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.linear % 32
    }

    /// This lane's bit in masks of its warp.
    #[inline(always)]
    pub fn bit(&self) -> u32 {
        1 << self.index()
    }

    /// What is done at `epoch` is known to be done.
    #[inline(always)]
    pub fn learn(&self, epoch: Option<Epoch>) {
        if let Some(epoch) = epoch {
            self.clock.borrow_mut().learn(epoch);
        }
    }

    /// Tells `to` what the lane knows and did, where races are looked for.
    #[inline(always)]
    pub fn release(&self, to: &mut Knowledge) {
        if self.block().launch().check_races {
            self.clock.borrow_mut().release(to);
        }
    }

    /// Takes over what was told.
    #[inline(always)]
    pub fn acquire(&self, from: &Knowledge) {
        self.clock.borrow_mut().acquire(from);
    }

    /// From here on the lane may do all that kernels do.
    #[inline(always)]
    pub fn wait_prerequisites(&self) {
        self.early.set(false);
        EARLY.set(false);
    }

    /// Lets other lanes run, until one of them or the scheduler makes this one ready.
    #[inline(always)]
    pub fn suspend(&self) {
        // SAFETY: only the running lane suspends itself, and `main` has set its yielder.
        unsafe { (*self.yielder.get()).suspend(()) };
    }

    /// What the coroutine runs: the kernel, from its first line to its return or fault.
    pub fn main(&self, yielder: &Yielder<(), ()>, entry: Entry) {
        self.yielder.set(yielder);
        let body = || {
            // SAFETY: `Executor::launch` made the entry from a kernel that outlives the launch,
            // and its caller vouches for the arguments.
            unsafe { (entry.run)(entry.kernel) };
            if self.early.get() {
                grid::raise_early("the thread returned");
            }
            self.stores.borrow_mut().land_all(Piece::store);
        };
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(body)) {
            self.end_by_panic(payload);
        }
        self.wait.set(Wait::Returned);
    }

    /// A fault, a tear-down and a panic of the kernel all end in unwinding; only the last is news.
    fn end_by_panic(&self, payload: Box<dyn Any + Send>) {
        let said = PANIC.take();
        if self.block().is_ending() {
            return;
        }
        let (site, message) = said.unwrap_or_else(|| (None, message_of(&*payload)));
        let unknown = Site { file: "unknown", line: 0, column: 0 };
        self.block().end(self.violation(Violation::Panic(message), site.unwrap_or(unknown)));
    }

    fn violation(&self, violation: Violation, site: Site) -> super::Fault {
        super::Fault::Violation {
            kernel: self.block().launch().kernel,
            block: self.block().idx(),
            thread: self.linear,
            site,
            violation,
        }
    }
}

/// Makes `lane` the one whose operations this OS thread executes.
#[inline(always)]
pub(super) fn set_current(lane: *const Lane) {
    CURRENT.set(lane);
    // SAFETY: null, or a lane that is about to run.
    EARLY.set(unsafe { lane.as_ref() }.is_some_and(|lane| lane.early.get()));
}

/// Whether the lane that runs on this OS thread is of an early kernel, and has not waited yet.
#[inline(always)]
pub(super) fn is_early() -> bool {
    EARLY.get()
}

/// The lane that runs on this OS thread, if one does.
#[inline(always)]
pub(super) fn try_current<'lane>() -> Option<&'lane Lane> {
    // SAFETY: set to a lane only while it runs, and lanes outlive that. What is made of the
    // reference lives on that lane's own stack.
    unsafe { CURRENT.get().as_ref() }
}

/// The lane that runs on this OS thread.
#[inline(always)]
#[track_caller]
pub(super) fn current<'lane>() -> &'lane Lane {
    match try_current() {
        Some(lane) => lane,
        None => outside(),
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn outside() -> ! {
    panic!("an operation of GPU threads, called outside of a kernel")
}

/// The payload of a lane's unwinding after a fault.
struct Raised;

/// Ends the running lane, and with it the launch.
#[cold]
#[inline(never)]
#[track_caller]
pub(super) fn raise(violation: Violation) -> ! {
    raise_at(violation, Location::caller())
}

/// As [`raise`], for an operation that `site` started earlier.
#[cold]
#[inline(never)]
pub(super) fn raise_at(violation: Violation, site: Caller) -> ! {
    let Some(lane) = try_current() else {
        panic!("at {}: {violation}", Site::from(site));
    };
    lane.block().end(lane.violation(violation, site.into()));
    // Unlike `panic!`, without the panic hook.
    panic::resume_unwind(Box::new(Raised))
}

/// Keeps panics of kernels off stderr: the launch returns them. Other panics go to the hook that
/// was there before.
pub(super) fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if try_current().is_none() {
                return before(info);
            }
            // The location of a panic is `'static` in fact, not by its signature.
            let site = info.location().map(|at| Site {
                file: String::leak(at.file().to_owned()),
                line: at.line(),
                column: at.column(),
            });
            PANIC.set(Some((site, message_of(info.payload()))));
        }));
    });
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let literal = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    literal
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with a payload that is no text".to_owned())
}
