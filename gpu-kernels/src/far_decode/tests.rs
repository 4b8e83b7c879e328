use std::vec;
use std::vec::Vec;

use half::bf16;
use proptest::prelude::*;

use super::WaitReport;
use super::contract::FarDecodeShape;
use super::device::{
    far_decode_ask, far_decode_attend_split_bf16_d128_g8, far_decode_gate, far_decode_merge_bf16,
};
use super::sides::deal_pages;
use crate::paged_attention::contract::{PageLists, PageTable};
use crate::paged_attention::plan::{Dealing, DecodePlan, SplitPolicy};
use crate::paged_attention::reference::{DecodeProblem, ScatteredTable, Tolerance, cases};
use crate::testing::{DeviceMemory, TestDevice};

const DEADLINE_NS: u64 = 20_000_000;

/// One side: its table, plan and workspace.
struct Side {
    kv_indices: DeviceMemory<i32>,
    kv_page_rank: DeviceMemory<i32>,
    plan: DecodePlan,
    items: DeviceMemory<u32>,
    partial_out: DeviceMemory<f32>,
    partial_lse: DeviceMemory<f32>,
    arrived: DeviceMemory<u32>,
}

/// Home, side 0, and one owner, with what they tell each other.
struct Sides {
    shape: FarDecodeShape,
    sides: Vec<Side>,
    /// Held for the table of pointers.
    _pools: Vec<DeviceMemory<bf16>>,
    peer_kv_ptrs: DeviceMemory<u64>,
    q: DeviceMemory<bf16>,
    states_out: DeviceMemory<f32>,
    states_lse: DeviceMemory<f32>,
    out: DeviceMemory<bf16>,
    lse: DeviceMemory<f32>,
    calls: DeviceMemory<u32>,
    asked: DeviceMemory<u32>,
    asked_ptrs: DeviceMemory<u64>,
    served: DeviceMemory<u32>,
    answered: DeviceMemory<u32>,
    reports: [DeviceMemory<u32>; 2],
}

const NUM_BLOCKS: u32 = 3;

impl Sides {
    fn new(problem: &DecodeProblem<bf16>) -> Self {
        let (shape, page) = (problem.shape, problem.shape.page);
        let shape = FarDecodeShape { decode: shape, num_states: 2, num_owners: 1 };
        shape.check().unwrap();
        let side = |side: PageLists| {
            let lens = side.table().kv_lens(page.page_size);
            let policy = SplitPolicy::Balanced;
            let plan = DecodePlan::new(
                &lens,
                page.page_size,
                page.num_kv_heads,
                NUM_BLOCKS,
                policy,
                Dealing::Planned,
            );
            Side {
                kv_indices: DeviceMemory::from_slice(&side.kv_indices),
                kv_page_rank: DeviceMemory::from_slice(&side.kv_page_rank),
                items: DeviceMemory::from_slice(bytemuck::cast_slice(&plan.items)),
                partial_out: DeviceMemory::poisoned(shape.decode.partial_elements(plan.num_parts)),
                partial_lse: DeviceMemory::poisoned(
                    shape.decode.partial_lse_elements(plan.num_parts),
                ),
                arrived: DeviceMemory::from_slice(&vec![0; plan.num_meetings as usize]),
                plan,
            }
        };
        let table = problem.table.table();
        let sides = deal_pages(&table, page.page_size, 2, |_, location| usize::from(location == 1));
        let pools: Vec<_> =
            problem.pools.iter().map(|pool| DeviceMemory::from_slice(pool)).collect();
        let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
        let asked = DeviceMemory::from_slice(&[0]);
        Self {
            sides: sides.into_iter().map(side).collect(),
            _pools: pools,
            peer_kv_ptrs: DeviceMemory::from_slice(&addresses),
            q: DeviceMemory::from_slice(&problem.q),
            states_out: DeviceMemory::poisoned(shape.merge().states_out_elements()),
            states_lse: DeviceMemory::poisoned(shape.merge().states_lse_elements()),
            out: DeviceMemory::poisoned(shape.merge().out_elements()),
            lse: DeviceMemory::poisoned(shape.merge().lse_elements()),
            calls: DeviceMemory::from_slice(&[0]),
            asked_ptrs: DeviceMemory::from_slice(&[asked.address()]),
            asked,
            served: DeviceMemory::from_slice(&[0; NUM_BLOCKS as usize]),
            answered: DeviceMemory::from_slice(&[0; NUM_BLOCKS as usize]),
            reports: [(); 2].map(|()| DeviceMemory::from_slice(&[0; WaitReport::WORDS])),
            shape,
        }
    }

    fn ask(&self, device: &TestDevice) {
        let kernel = far_decode_ask {
            calls: self.calls.view_mut(),
            asked_ptrs: self.asked_ptrs.view(),
            num_owners: 1,
        };
        device.launch(self.shape.ask_dims(), kernel);
    }

    fn gate(&self, device: &TestDevice) {
        let kernel = far_decode_gate {
            asked: self.asked.view(),
            served: self.served.view(),
            deadline_ns: DEADLINE_NS,
            report: self.reports[1].view_mut(),
        };
        device.launch(self.shape.gate_dims(), kernel);
    }

    /// Side `rank` writes state `rank`; the owner waits and answers.
    fn attend(&self, device: &TestDevice, rank: usize) {
        use cuda_std::global::GlobalMut;
        let (side, decode) = (&self.sides[rank], self.shape.decode);
        let of_owner = |memory: &DeviceMemory<u32>| {
            if rank == 1 { memory.view_mut() } else { GlobalMut::null() }
        };
        // SAFETY: there is a state for each side.
        let (state_out, state_lse) = unsafe {
            (
                self.states_out.view_mut().offset(rank * decode.q_elements()),
                self.states_lse.view_mut().offset(rank * decode.lse_elements()),
            )
        };
        let kernel = far_decode_attend_split_bf16_d128_g8 {
            kv_indices: side.kv_indices.view(),
            kv_page_rank: side.kv_page_rank.view(),
            peer_kv_ptrs: self.peer_kv_ptrs.view(),
            params: decode.params(self._pools.len()),
            items: side.items.view(),
            q: self.q.view(),
            state_out,
            state_lse,
            partial_out: side.partial_out.view_mut(),
            partial_lse: side.partial_lse.view_mut(),
            arrived: side.arrived.view_mut(),
            asked: of_owner(&self.asked).as_const(),
            served: of_owner(&self.served),
            answered: of_owner(&self.answered),
            deadline_ns: DEADLINE_NS,
            report: of_owner(&self.reports[1]),
        };
        device.launch(decode.split_dims(&side.plan), kernel);
    }

    fn merge(&self, device: &TestDevice) {
        let kernel = far_decode_merge_bf16 {
            params: self.shape.merge().params(),
            states_out: self.states_out.view(),
            states_lse: self.states_lse.view(),
            out: self.out.view_mut(),
            lse: self.lse.view_mut(),
            calls: self.calls.view(),
            answered: self.answered.view(),
            num_answers: NUM_BLOCKS,
            deadline_ns: DEADLINE_NS,
            report: self.reports[0].view_mut(),
        };
        device.launch(self.shape.merge().dims(), kernel);
    }

    fn report(&self, rank: usize) -> WaitReport {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&self.reports[rank].to_vec()))
    }
}

fn problem() -> DecodeProblem<bf16> {
    cases().iter().find(|case| case.name == "pages in three places").unwrap().problem(7)
}

#[test]
fn calls_in_a_row_are_the_oracle_whatever_the_lane_order() {
    let problem = problem();
    let (oracle, sides) = (problem.oracle(), Sides::new(&problem));
    for device in TestDevice::lane_orders() {
        sides.ask(&device);
        sides.gate(&device);
        sides.attend(&device, 1);
        sides.attend(&device, 0);
        sides.merge(&device);
        oracle.check(&sides.out.to_vec(), &sides.lse.to_vec(), Tolerance::BF16).unwrap();
    }
    let counts = [sides.calls.to_vec(), sides.asked.to_vec(), sides.served.to_vec()];
    assert_eq!(counts, [vec![4], vec![4], vec![4; 3]]);
    assert_eq!([0, 1].map(|rank| sides.report(rank)), [WaitReport::default(); 2]);
}

#[test]
fn an_owner_that_was_not_asked_reports_and_answers_nothing() {
    let sides = Sides::new(&problem());
    let device = TestDevice::ascending();
    sides.attend(&device, 1);
    let waited = WaitReport { timed_out: 1, flag_idx: 0, expected: 1, seen: 0 };
    assert_eq!(sides.report(1), waited);
    assert_eq!((sides.served.to_vec(), sides.answered.to_vec()), (vec![0; 3], vec![0; 3]));

    let sides = Sides::new(&problem());
    sides.gate(&device);
    assert_eq!(sides.report(1), waited);
}

#[test]
fn home_reports_the_answers_that_are_missing() {
    let sides = Sides::new(&problem());
    let device = TestDevice::ascending();
    for _ in 0..2 {
        sides.ask(&device);
        sides.attend(&device, 1);
        sides.attend(&device, 0);
    }
    // Asked for once more, and not attended again.
    sides.ask(&device);
    sides.merge(&device);
    let WaitReport { timed_out, expected, seen, .. } = sides.report(0);
    assert_eq!((timed_out, expected, seen), (1, 3, 2));
}

#[test]
fn pages_are_dealt_as_reviewed() {
    let table = PageTable {
        kv_indptr: &[0, 3, 3, 5],
        kv_indices: &[7, 0, 9, 1, 2],
        kv_page_rank: &[0, 1, 0, 1, 1],
        kv_last_page_len: &[4, 0, 16],
    };
    let sides = deal_pages(&table, 16, 2, |request, location| location.min(request));
    insta::assert_debug_snapshot!(sides);
}

proptest! {
    #[test]
    fn every_page_is_dealt_to_one_side(
        kv_lens in proptest::collection::vec(0u32..200, 1..8),
        (page_size, num_sides, seed) in (1u32..20, 1usize..4, any::<u64>()),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut locations = rng.fork();
        let scattered = ScatteredTable::new(
            &kv_lens, page_size, num_sides + 1, |_| locations.usize(..=num_sides), &mut rng,
        );
        let side_of = |request: usize, location: usize| (location + request) % num_sides;
        let sides = deal_pages(&scattered.table(), page_size, num_sides, side_of);

        let lens: Vec<Vec<u32>> =
            sides.iter().map(|side| side.table().kv_lens(page_size)).collect();
        let mut next = vec![0; num_sides];
        for request in 0..kv_lens.len() {
            prop_assert_eq!(lens.iter().map(|of| of[request]).sum::<u32>(), kv_lens[request]);
            for entry in scattered.lists.entries(request) {
                let place = scattered.lists.place(entry);
                let side = side_of(request, place.rank as usize);
                prop_assert_eq!(sides[side].place(next[side]), place);
                next[side] += 1;
            }
        }
        for (side, next) in sides.iter().zip(next) {
            prop_assert_eq!(side.kv_indices.len(), next);
            let pages = scattered.pages_of.clone();
            prop_assert_eq!(side.table().check(kv_lens.len() as u32, page_size, &pages), Ok(()));
        }
    }
}
