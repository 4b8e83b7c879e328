//! Multiplications of a warpgroup.
//!
//! The threads of a warpgroup meet in each, so that one which does not come, or names other tiles,
//! shows. Nothing else passes between them: a thread's share of a product depends on the tiles
//! alone, and each thread computes its own, at its wait.

use std::cell::Cell;
use std::panic::Location;

use crate::float::HalfFloat;
use crate::wgmma::{NUM_THREADS, SwizzledTile, place_of};

use super::fault::Violation;
use super::groups::Groups;
use super::lane::{self, Caller, Lane, Wait};
use super::warp::{Operation, collective};

/// Rows of A, columns of a multiplication, and elements of a 16-byte piece.
const M: usize = 64;
const K: usize = 16;
const PIECE: usize = 8;

/// What a tile's first row is aligned to, as the hardware swizzles addresses.
const TILE_ALIGNMENT: u32 = 1024;
const ROW_BYTES: u32 = 128;

/// What an accumulator holds while multiplications own it: a signaling NaN, which arithmetic
/// changes.
const IN_FLIGHT: f32 = f32::from_bits(0x7fa0_0000);

const FULL_MASK: u32 = u32::MAX;
const WARPS: usize = NUM_THREADS as usize / 32;

/// Where the threads of a warpgroup meet.
#[derive(Default)]
pub(super) struct Warpgroup {
    num_arrived: Cell<u32>,
    /// The call that the first of them made.
    call: Cell<Option<Call>>,
}

#[derive(Clone, Copy, PartialEq)]
struct Call {
    operation: &'static str,
    is_bf16: bool,
    a_address: u32,
    b_address: u32,
    accumulate: bool,
    site: Caller,
}

impl Warpgroup {
    pub fn reset(&self) {
        self.num_arrived.set(0);
        self.call.set(None);
    }
}

/// The complete warpgroups of a block.
pub(super) fn warpgroups(num_lanes: usize) -> Vec<Warpgroup> {
    (0..num_lanes / NUM_THREADS as usize).map(|_| Warpgroup::default()).collect()
}

/// Coroutines have no registers to share.
#[inline(always)]
pub unsafe fn give_registers<const REGISTERS: u32>() {}

#[inline(always)]
pub unsafe fn take_registers<const REGISTERS: u32>() {}

/// Waits until the whole warpgroup has made the same call.
fn meet(lane: &Lane, call: Call) {
    let block = lane.block();
    let idx = (lane.linear / NUM_THREADS) as usize;
    let Some(warpgroup) = block.warpgroups.get(idx) else {
        raise(call.operation, call.site, "the block's last warpgroup has no four warps".into());
    };
    match warpgroup.call.get() {
        None => warpgroup.call.set(Some(call)),
        Some(first) if first == call => {}
        Some(first) => raise(call.operation, call.site, difference(&call, &first)),
    }
    warpgroup.num_arrived.set(warpgroup.num_arrived.get() + 1);
    if warpgroup.num_arrived.get() < NUM_THREADS {
        lane.wait.set(Wait::Warpgroup(call.operation, call.site));
        return lane.suspend();
    }
    warpgroup.reset();
    let own_warp = lane.linear as usize / 32;
    for warp in WARPS * idx..WARPS * (idx + 1) {
        block.make_ready(warp, if warp == own_warp { !lane.bit() } else { FULL_MASK });
    }
}

fn difference(call: &Call, first: &Call) -> String {
    if call.site != first.site {
        let (file, line) = (first.site.file(), first.site.line());
        format!("others of the warpgroup are in {} at {file}:{line}", first.operation)
    } else {
        let said = |call: &Call| {
            let Call { a_address, b_address, accumulate, .. } = call;
            format!(
                "a at shared byte {a_address}, b at shared byte {b_address}, accumulate {accumulate}"
            )
        };
        format!("it has {}; others of the warpgroup have {}", said(call), said(first))
    }
}

#[cold]
#[inline(never)]
fn raise(operation: &'static str, site: Caller, problem: String) -> ! {
    lane::raise_at(Violation::Warpgroup { operation, problem }, site)
}

/// A thread's share of a multiplication that was issued and has not been computed.
struct Multiplication {
    accumulator: usize,
    a: SwizzledTile<u16>,
    b: SwizzledTile<u16>,
    accumulate: bool,
    unpack: fn(u32) -> [f32; 2],
}

/// An accumulator from its fence to the wait that gives it back.
struct Accumulator {
    /// Who it is; nothing is read or written there.
    address: usize,
    values: Vec<f32>,
    num_in_flight: u32,
}

/// What a thread's warpgroup has issued for it.
#[derive(Default)]
pub(super) struct Multiplications {
    groups: Groups<Multiplication>,
    accumulators: Vec<Accumulator>,
}

impl Multiplications {
    pub fn clear(&mut self) {
        self.groups.clear();
        self.accumulators.clear();
    }

    fn position(&self, address: usize) -> Option<usize> {
        self.accumulators.iter().position(|accumulator| accumulator.address == address)
    }

    fn hand_over(&mut self, address: usize, values: &[f32]) {
        match self.position(address) {
            Some(idx) if self.accumulators[idx].num_in_flight > 0 => {}
            Some(idx) => self.accumulators[idx].values = values.to_vec(),
            None => self.accumulators.push(Accumulator {
                address,
                values: values.to_vec(),
                num_in_flight: 0,
            }),
        }
    }

    /// Takes the accumulator `values`, or says why it cannot be had.
    fn issue(&mut self, values: &mut [f32], multiplication: Multiplication) -> Result<(), String> {
        let accumulator = self
            .position(multiplication.accumulator)
            .map(|idx| &mut self.accumulators[idx])
            .filter(|accumulator| accumulator.values.len() == values.len())
            .ok_or("no fence has handed over this accumulator since it was last waited for")?;
        let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits();
        if accumulator.num_in_flight > 0 {
            if !values.iter().all(|value| same((value, &IN_FLIGHT))) {
                return Err("the accumulator was changed while multiplications own it".into());
            }
        } else if !values.iter().zip(&accumulator.values).all(same) {
            return Err("the accumulator was changed after its fence".into());
        }
        accumulator.num_in_flight += 1;
        values.fill(IN_FLIGHT);
        self.groups.push(multiplication);
        Ok(())
    }

    /// Computes what is in closed groups but for the `num_newest` newest, as thread `thread` of
    /// its warpgroup.
    #[track_caller]
    fn compute(&mut self, num_newest: u32, thread: u32) {
        let mut due = Vec::new();
        self.groups.land(num_newest, |multiplication| due.push(multiplication));
        for multiplication in due {
            let idx = self.position(multiplication.accumulator).expect("in flight");
            let accumulator = &mut self.accumulators[idx];
            accumulator.num_in_flight -= 1;
            multiplication.compute(&mut accumulator.values, thread);
        }
    }

    /// The values of an accumulator that nothing in flight owns, which thereby goes back.
    fn take_back(&mut self, address: usize) -> Option<Vec<f32>> {
        let idx = self.position(address)?;
        let done = self.accumulators[idx].num_in_flight == 0;
        done.then(|| self.accumulators.swap_remove(idx).values)
    }
}

impl Multiplication {
    /// Products are exact in f32; each element of D adds them to itself in the order of k.
    #[track_caller]
    fn compute(&self, d: &mut [f32], thread: u32) {
        // The tiles' rows that this thread multiplies, each read once.
        let mut a_rows = [[0.0; K]; 2];
        for (i, a_row) in a_rows.iter_mut().enumerate() {
            *a_row = self.row(self.a, place_of(thread, 2 * i).0);
        }
        for (j, d) in d.chunks_exact_mut(4).enumerate() {
            let mut b_rows = [[0.0; K]; 2];
            for (i, b_row) in b_rows.iter_mut().enumerate() {
                *b_row = self.row(self.b, place_of(thread, 4 * j + i).1);
            }
            for (i, d) in d.iter_mut().enumerate() {
                let start = if self.accumulate { *d } else { 0.0 };
                let products = a_rows[i / 2].iter().zip(&b_rows[i % 2]).map(|(a, b)| a * b);
                *d = products.fold(start, |sum, product| sum + product);
            }
        }
    }

    #[track_caller]
    fn row(&self, tile: SwizzledTile<u16>, row: usize) -> [f32; K] {
        let mut elements = [0.0; K];
        for (i, piece) in elements.chunks_exact_mut(PIECE).enumerate() {
            // SAFETY: bounds and initialisation are checked.
            let words = unsafe { tile.place(row, i * PIECE).load_x4(0) };
            for (pair, word) in piece.chunks_exact_mut(2).zip(words) {
                pair.copy_from_slice(&(self.unpack)(word));
            }
        }
        elements
    }
}

#[track_caller]
pub unsafe fn fence<const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
    sync_warp(Operation::WgmmaFence, Location::caller());
    lane::current().multiplications.borrow_mut().hand_over(address_of(d), d);
}

fn sync_warp(operation: Operation, site: Caller) {
    collective::<0, 0>(operation, FULL_MASK, site, []);
}

fn address_of<const REGISTERS: usize>(d: &[f32; REGISTERS]) -> usize {
    d.as_ptr().addr()
}

#[track_caller]
pub unsafe fn multiply<T: HalfFloat, const REGISTERS: usize>(
    d: &mut [f32; REGISTERS],
    a: SwizzledTile<T>,
    b: SwizzledTile<T>,
    accumulate: bool,
) {
    let site = Location::caller();
    let operation = match REGISTERS {
        8 => "m64n16k16",
        16 => "m64n32k16",
        24 => "m64n48k16",
        32 => "m64n64k16",
        40 => "m64n80k16",
        48 => "m64n96k16",
        56 => "m64n112k16",
        64 => "m64n128k16",
        _ => "m64n256k16",
    };
    for (name, tile, rows) in [("a", a, M), ("b", b, 2 * REGISTERS)] {
        if let Err(problem) = check_tile(tile, rows) {
            raise(operation, site, format!("`{name}` {problem}"));
        }
    }
    let call = Call {
        operation,
        is_bf16: T::IS_BF16,
        a_address: a.start().address(),
        b_address: b.start().address(),
        accumulate,
        site,
    };
    let lane = lane::current();
    meet(lane, call);
    let multiplication = Multiplication {
        accumulator: address_of(d),
        a: bits_of(a),
        b: bits_of(b),
        accumulate,
        unpack: T::unpack,
    };
    let issued = lane.multiplications.borrow_mut().issue(d, multiplication);
    if let Err(problem) = issued {
        raise(operation, site, problem);
    }
}

fn bits_of<T: HalfFloat>(tile: SwizzledTile<T>) -> SwizzledTile<u16> {
    let SwizzledTile { first_row, first_column } = tile;
    SwizzledTile { first_row: first_row.cast(), first_column }
}

/// Refuses a tile that the hardware would read elsewhere; `Err` holds what is wrong with it.
#[track_caller]
unsafe fn check_tile<T: HalfFloat>(tile: SwizzledTile<T>, rows: usize) -> Result<(), String> {
    let byte = tile.start().address() % TILE_ALIGNMENT;
    if byte >= ROW_BYTES {
        let row = tile.start().address() - byte % ROW_BYTES;
        return Err(format!("begins at shared byte {row}, which is not aligned to 1024"));
    }
    let column = byte as usize / size_of::<T>();
    if !column.is_multiple_of(K) {
        return Err(format!("begins at column {column}, which is not a multiple of {K}"));
    }
    // The last row's first piece lies last.
    tile.place(rows - 1, 0).raw.check_load(PIECE * size_of::<T>(), PIECE * size_of::<T>());
    Ok(())
}

#[track_caller]
pub unsafe fn commit_group() {
    sync_warp(Operation::WgmmaCommitGroup, Location::caller());
    lane::current().multiplications.borrow_mut().groups.close();
}

#[track_caller]
pub unsafe fn wait_group<const N: u32, const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
    sync_warp(Operation::WgmmaWaitGroup, Location::caller());
    let lane = lane::current();
    let mut multiplications = lane.multiplications.borrow_mut();
    multiplications.compute(N, lane.linear % NUM_THREADS);
    if let Some(values) = multiplications.take_back(address_of(d)) {
        d.copy_from_slice(&values);
    }
}
