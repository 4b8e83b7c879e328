//! Multiplications of a warpgroup.
//!
//! The threads of a warpgroup meet in each, so that one which does not come, or names other tiles,
//! shows. There they learn what of A the others hold in registers. Each thread computes its own
//! share of a product, at its wait, and goes on when all have.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::rc::Rc;

use crate::float::{E4m3, HalfFloat};
use crate::wgmma::{NUM_THREADS, OperandA, OperandB, SwizzledTile, TransposedTile, place_of};

use super::element::{Element, K, K_BYTES, Row};
use super::fault::Violation;
use super::groups::Groups;
use super::lane::{self, Caller, Lane, Wait};
use super::race::{self, AsyncClock, AsyncOperation, Epoch};
use super::shared::RawShared;
use super::tile::{PIECE_BYTES, bytes_of, check_tile, check_transposed, start_of};
use super::warp::{Operation, collective};

/// Rows of A.
const M: usize = 64;

/// What an accumulator holds while multiplications own it: a signaling NaN, which arithmetic
/// changes.
const IN_FLIGHT: f32 = f32::from_bits(0x7fa0_0000);

const FULL_MASK: u32 = u32::MAX;
const WARPS: usize = NUM_THREADS as usize / 32;

/// What a thread holds of A.
type Fragment = [u32; 4];
/// What each thread of a warpgroup holds of A.
type Fragments = [Fragment; NUM_THREADS as usize];

/// Where the threads of a warpgroup meet.
pub(super) struct Warpgroup {
    num_arrived: Cell<u32>,
    /// The call that the first of them made.
    call: Cell<Option<Call>>,
    /// What they bring to this meeting, and what they brought to the last one: until all have come
    /// again, all have taken it from there.
    brought: RefCell<Fragments>,
    met: RefCell<Rc<Met>>,
    /// Where races are looked for, when its multiplications are done.
    clock: AsyncClock,
}

/// What the threads of a warpgroup have from a meeting.
struct Met {
    fragments: Fragments,
    /// When the multiplication that they start is done.
    done: Option<Epoch>,
}

#[derive(Clone, Copy, PartialEq)]
struct Call {
    operation: &'static str,
    element: Element,
    /// `None` for registers.
    a_address: Option<u32>,
    b_address: u32,
    is_transposed: bool,
    accumulate: bool,
    site: Caller,
}

impl Warpgroup {
    fn reset(&self) {
        self.num_arrived.set(0);
        self.call.set(None);
    }

    /// Readies it for the next block.
    pub fn clear(&self) {
        self.reset();
        self.clock.clear();
    }
}

/// The complete warpgroups of a block.
pub(super) fn warpgroups(num_lanes: usize) -> Vec<Warpgroup> {
    let nothing = [Fragment::default(); NUM_THREADS as usize];
    let warpgroup = |_| Warpgroup {
        num_arrived: Cell::new(0),
        call: Cell::new(None),
        brought: RefCell::new(nothing),
        met: RefCell::new(Rc::new(Met { fragments: nothing, done: None })),
        clock: AsyncClock::default(),
    };
    (0..num_lanes / NUM_THREADS as usize).map(warpgroup).collect()
}

/// Coroutines have no registers to share.
#[inline(always)]
pub unsafe fn give_registers<const REGISTERS: u32>() {}

/// Sums are made where they stand.
#[inline(always)]
pub unsafe fn settle<const REGISTERS: usize>(_sums: &mut [f32; REGISTERS]) {}

#[inline(always)]
pub unsafe fn take_registers<const REGISTERS: u32>() {}

/// Waits until the whole warpgroup has made the same call; returns what each thread brought. The last
/// to come calls `start` for all, with the threads.
fn meet(
    lane: &Lane,
    call: Call,
    fragment: Fragment,
    start: impl FnOnce(&Warpgroup, &[Lane]) -> Option<Epoch>,
) -> Rc<Met> {
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
    warpgroup.brought.borrow_mut()[(lane.linear % NUM_THREADS) as usize] = fragment;
    warpgroup.num_arrived.set(warpgroup.num_arrived.get() + 1);
    if warpgroup.num_arrived.get() < NUM_THREADS {
        lane.wait.set(Wait::Warpgroup(call.operation, call.site));
        lane.suspend();
    } else {
        warpgroup.reset();
        let threads = NUM_THREADS as usize;
        let done = start(warpgroup, &block.lanes[threads * idx..threads * (idx + 1)]);
        let fragments: Fragments = *warpgroup.brought.borrow();
        *warpgroup.met.borrow_mut() = Rc::new(Met { fragments, done });
        let own_warp = lane.linear as usize / 32;
        for warp in WARPS * idx..WARPS * (idx + 1) {
            block.make_ready(warp, if warp == own_warp { !lane.bit() } else { FULL_MASK });
        }
    }
    warpgroup.met.borrow().clone()
}

fn difference(call: &Call, first: &Call) -> String {
    if call.site != first.site {
        let (file, line) = (first.site.file(), first.site.line());
        format!("others of the warpgroup are in {} at {file}:{line}", first.operation)
    } else {
        let said = |call: &Call| {
            let Call { a_address, b_address, accumulate, .. } = call;
            let a = match a_address {
                Some(address) => format!("at shared byte {address}"),
                None => "in registers".to_owned(),
            };
            format!("a {a}, b at shared byte {b_address}, accumulate {accumulate}")
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
    a: RowsOfA,
    b: OperandB<u8>,
    accumulate: bool,
    element: Element,
}

/// The two rows of A that a thread multiplies.
enum RowsOfA {
    InTile(SwizzledTile<u8>),
    /// From the registers of four threads, one of which, at `lent`, are this thread's.
    InRegisters {
        lent: usize,
        rows: Box<[Row; 2]>,
    },
}

/// Registers of A from `lend` to `take_back`.
struct Lent {
    /// Who they are; nothing is read or written there.
    address: usize,
    values: Fragment,
    is_fenced: bool,
    num_in_flight: u32,
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
    lent: Vec<Lent>,
}

impl Multiplications {
    pub fn clear(&mut self) {
        self.groups.clear();
        self.accumulators.clear();
        self.lent.clear();
    }

    fn lend(&mut self, address: usize, values: Fragment) -> Result<(), String> {
        if self.lent.iter().any(|lent| lent.address == address) {
            return Err("the registers are lent already".into());
        }
        self.lent.push(Lent { address, values, is_fenced: false, num_in_flight: 0 });
        Ok(())
    }

    fn take_back_lent(&mut self, address: usize, values: Fragment) -> Result<(), String> {
        let idx = self.lent.iter().position(|lent| lent.address == address);
        let lent = self.lent.swap_remove(idx.ok_or("the registers are not lent")?);
        if lent.num_in_flight > 0 {
            return Err("multiplications that no wait has covered read these registers".into());
        }
        if lent.values != values {
            return Err("the registers were changed while they were lent".into());
        }
        Ok(())
    }

    /// Notes that a multiplication reads registers of A, or says why it cannot.
    fn read_lent(&mut self, address: usize, values: Fragment) -> Result<(), String> {
        let mut lent = self.lent.iter_mut().filter(|lent| lent.is_fenced);
        let lent = lent
            .find(|lent| lent.address == address)
            .ok_or("`a` is in registers that were not lent before the last fence")?;
        if lent.values != values {
            return Err("`a` is in registers that were changed while they were lent".into());
        }
        lent.num_in_flight += 1;
        Ok(())
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
    fn issue(
        &mut self,
        values: &mut [f32],
        multiplication: Multiplication,
        done: Option<Epoch>,
    ) -> Result<(), String> {
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
        self.groups.push(multiplication, done);
        Ok(())
    }

    /// Computes what is in closed groups but for the `num_newest` newest, as thread `thread` of
    /// its warpgroup; returns when the last of it is done.
    #[track_caller]
    fn compute(&mut self, num_newest: u32, thread: u32) -> Option<Epoch> {
        let mut due = Vec::new();
        let done = self.groups.land(num_newest, |multiplication| due.push(multiplication));
        for multiplication in due {
            if let RowsOfA::InRegisters { lent: address, .. } = multiplication.a
                && let Some(lent) = self.lent.iter_mut().find(|lent| lent.address == address)
            {
                lent.num_in_flight -= 1;
            }
            let idx = self.position(multiplication.accumulator).expect("in flight");
            let accumulator = &mut self.accumulators[idx];
            accumulator.num_in_flight -= 1;
            multiplication.compute(&mut accumulator.values, thread);
        }
        done
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
        let a_rows = match &self.a {
            RowsOfA::InRegisters { rows, .. } => **rows,
            // Written out: a closure would not be tracked to the kernel's line.
            RowsOfA::InTile(tile) => {
                let [first, second] = [place_of(thread, 0).0, place_of(thread, 2).0];
                [self.row(*tile, first), self.row(*tile, second)]
            }
        };
        let num_columns = self.element.num_columns();
        for (j, d) in d.chunks_exact_mut(4).enumerate() {
            let column = place_of(thread, 4 * j).1;
            let b_rows = match self.b {
                OperandB::Tile(tile) => [self.row(tile, column), self.row(tile, column + 1)],
                OperandB::Transposed(tile) => self.columns(tile, column),
            };
            for (i, d) in d.iter_mut().enumerate() {
                let start = if self.accumulate { *d } else { 0.0 };
                let (a_row, b_row) = (&a_rows[i / 2][..num_columns], &b_rows[i % 2][..num_columns]);
                let products = a_row.iter().zip(b_row).map(|(a, b)| a * b);
                *d = products.fold(start, |sum, product| sum + product);
            }
        }
    }

    #[track_caller]
    fn row(&self, tile: SwizzledTile<u8>, row: usize) -> Row {
        let mut elements = [0.0; K_BYTES];
        let in_word = self.element.num_columns() / (K_BYTES / size_of::<u32>());
        for (i, piece) in elements.chunks_exact_mut(4 * in_word).take(2).enumerate() {
            // SAFETY: bounds and initialisation are checked.
            let words: [u32; 4] = unsafe { tile.place(row, i * PIECE_BYTES).raw.peek() };
            for (elements, word) in piece.chunks_exact_mut(in_word).zip(words) {
                self.element.unpack(word, elements);
            }
        }
        elements
    }

    /// Column `column`, which is even, and the next.
    #[track_caller]
    fn columns(&self, tile: TransposedTile<u8>, column: usize) -> [Row; 2] {
        let mut columns = [[0.0; K_BYTES]; 2];
        let [left, right] = &mut columns;
        for (k, (left, right)) in left.iter_mut().zip(right).take(K).enumerate() {
            // SAFETY: bounds and initialisation are checked.
            let word = unsafe { tile.place(k, column).raw.peek() };
            [*left, *right] = self.element.pair(word);
        }
        columns
    }
}

/// What a multiplication reads of A in shared memory.
fn pieces_of_a(a: OperandA<'_, u8>) -> impl Iterator<Item = (RawShared, usize)> {
    let tile = match a {
        OperandA::Tile(tile) => Some(tile),
        OperandA::Registers(_) => None,
    };
    tile.into_iter().flat_map(|tile| pieces_of_rows(tile, M))
}

/// What a multiplication of `columns` columns reads of B.
fn pieces_of_b(b: OperandB<u8>, columns: usize) -> impl Iterator<Item = (RawShared, usize)> {
    let (rows, panels) = match b {
        OperandB::Tile(tile) => (Some(tile), None),
        OperandB::Transposed(tile) => (None, Some(tile)),
    };
    let of_rows = rows.into_iter().flat_map(move |tile| pieces_of_rows(tile, columns));
    of_rows.chain(panels.into_iter().flat_map(move |tile| {
        let columns = (0..columns).step_by(PIECE_BYTES / size_of::<u16>());
        let places = (0..K).flat_map(move |k| columns.clone().map(move |column| (k, column)));
        // SAFETY: an address, which was checked.
        places.map(move |(k, column)| (unsafe { tile.place(k, column) }.raw, PIECE_BYTES))
    }))
}

fn pieces_of_rows(tile: SwizzledTile<u8>, rows: usize) -> impl Iterator<Item = (RawShared, usize)> {
    (0..rows).flat_map(move |row| {
        // SAFETY: an address, which was checked.
        [0, PIECE_BYTES].map(|byte| (unsafe { tile.place(row, byte) }.raw, PIECE_BYTES))
    })
}

/// Rows of A that thread `thread` multiplies, from what the threads of its row hold.
fn rows_of(thread: u32, fragments: &Fragments, element: Element) -> [Row; 2] {
    let mut rows = [[0.0; K_BYTES]; 2];
    for t in 0..4 {
        let fragment = fragments[(thread / 4 * 4 + t) as usize];
        for (register, word) in fragment.into_iter().enumerate() {
            let column = 2 * t as usize + register / 2 * 8;
            element.unpack(word, &mut rows[register % 2][column..column + 2]);
        }
    }
    rows
}

#[track_caller]
pub unsafe fn fence<const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
    sync_warp(Operation::WgmmaFence, Location::caller());
    let mut multiplications = lane::current().multiplications.borrow_mut();
    multiplications.hand_over(address_of(d), d);
    multiplications.lent.iter_mut().for_each(|lent| lent.is_fenced = true);
}

fn sync_warp(operation: Operation, site: Caller) {
    collective::<0, 0>(operation, FULL_MASK, site, []);
}

fn address_of<E, const LEN: usize>(registers: &[E; LEN]) -> usize {
    registers.as_ptr().addr()
}

#[track_caller]
pub unsafe fn lend<const STEPS: usize>(a: &mut [Fragment; STEPS]) {
    for_each_lent("lend", a, Multiplications::lend);
}

#[track_caller]
pub unsafe fn take_back<const STEPS: usize>(a: &mut [Fragment; STEPS]) {
    for_each_lent("take_back", a, Multiplications::take_back_lent);
}

#[track_caller]
fn for_each_lent<const STEPS: usize>(
    operation: &'static str,
    a: &[Fragment; STEPS],
    act: impl Fn(&mut Multiplications, usize, Fragment) -> Result<(), String>,
) {
    let site = Location::caller();
    for fragment in a {
        let done =
            act(&mut lane::current().multiplications.borrow_mut(), address_of(fragment), *fragment);
        if let Err(problem) = done {
            raise(operation, site, problem);
        }
    }
}

#[track_caller]
pub unsafe fn multiply<T: HalfFloat, const REGISTERS: usize>(
    d: &mut [f32; REGISTERS],
    a: OperandA<'_, T>,
    b: OperandB<T>,
    accumulate: bool,
) {
    let a = match a {
        OperandA::Tile(tile) => OperandA::Tile(bytes_of(tile)),
        OperandA::Registers(registers) => OperandA::Registers(registers),
    };
    let b = match b {
        OperandB::Tile(tile) => OperandB::Tile(bytes_of(tile)),
        OperandB::Transposed(TransposedTile { first_panel, panel_bytes }) => {
            OperandB::Transposed(TransposedTile { first_panel: bytes_of(first_panel), panel_bytes })
        }
    };
    multiply_elements(d, Element::of::<T>(), a, b, accumulate);
}

#[track_caller]
pub unsafe fn multiply_e4m3<const REGISTERS: usize>(
    d: &mut [f32; REGISTERS],
    a: SwizzledTile<E4m3>,
    b: SwizzledTile<E4m3>,
    accumulate: bool,
) {
    let (a, b) = (OperandA::Tile(bytes_of(a)), OperandB::Tile(bytes_of(b)));
    multiply_elements(d, Element::E4m3, a, b, accumulate);
}

#[track_caller]
unsafe fn multiply_elements<const REGISTERS: usize>(
    d: &mut [f32; REGISTERS],
    element: Element,
    a: OperandA<'_, u8>,
    b: OperandB<u8>,
    accumulate: bool,
) {
    let site = Location::caller();
    let operation = element.multiplication(REGISTERS);
    let (b_start, b_problem) = match b {
        OperandB::Tile(tile) => (start_of(tile), check_tile(tile, 2 * REGISTERS)),
        OperandB::Transposed(tile) => {
            (start_of(tile.first_panel), check_transposed(tile, 2 * REGISTERS))
        }
    };
    let a_problem = match a {
        OperandA::Tile(tile) => check_tile(tile, M),
        OperandA::Registers(_) => Ok(()),
    };
    for (name, problem) in [("a", a_problem), ("b", b_problem)] {
        if let Err(problem) = problem {
            let column_bytes = K_BYTES / element.num_columns();
            raise(operation, site, format!("`{name}` {}", problem.in_words(column_bytes)));
        }
    }
    let (a_address, fragment) = match a {
        OperandA::Tile(tile) => (Some(start_of(tile)), Fragment::default()),
        OperandA::Registers(registers) => (None, *registers),
    };
    let call = Call {
        operation,
        element,
        a_address,
        b_address: b_start,
        is_transposed: matches!(b, OperandB::Transposed(_)),
        accumulate,
        site,
    };
    let lane = lane::current();
    let met = meet(lane, call, fragment, |warpgroup, threads| {
        race::watched()?;
        let timelines = lane.block().timelines();
        let done = warpgroup.clock.next(timelines, AsyncOperation::Multiplication);
        let pieces = pieces_of_a(a).chain(pieces_of_b(b, 2 * REGISTERS));
        race::note_multiplication(threads, pieces, done, site);
        Some(done)
    });
    let mut multiplications = lane.multiplications.borrow_mut();
    let a = match a {
        OperandA::Tile(tile) => Ok(RowsOfA::InTile(tile)),
        OperandA::Registers(registers) => {
            let rows = Box::new(rows_of(lane.linear % NUM_THREADS, &met.fragments, element));
            let lent = address_of(registers);
            multiplications.read_lent(lent, fragment).map(|()| RowsOfA::InRegisters { lent, rows })
        }
    };
    let issued = a.and_then(|a| {
        let accumulator = address_of(d);
        let multiplication = Multiplication { accumulator, a, b, accumulate, element };
        multiplications.issue(d, multiplication, met.done)
    });
    drop(multiplications);
    if let Err(problem) = issued {
        raise(operation, site, problem);
    }
}

#[track_caller]
pub unsafe fn commit_group() {
    sync_warp(Operation::WgmmaCommitGroup, Location::caller());
    lane::current().multiplications.borrow_mut().groups.close();
}

#[track_caller]
pub unsafe fn wait_group<const N: u32, const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
    let site = Location::caller();
    sync_warp(Operation::WgmmaWaitGroup, site);
    let lane = lane::current();
    let mut multiplications = lane.multiplications.borrow_mut();
    lane.learn(multiplications.compute(N, lane.linear % NUM_THREADS));
    if let Some(values) = multiplications.take_back(address_of(d)) {
        d.copy_from_slice(&values);
    }
    drop(multiplications);
    let call = Call {
        operation: "wait_group",
        element: Element::Bf16,
        a_address: None,
        b_address: 0,
        is_transposed: false,
        accumulate: false,
        site,
    };
    meet(lane, call, Fragment::default(), |_, _| None);
}
