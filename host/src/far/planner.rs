//! Which requests' queries travel.

use std::cmp::Reverse;
use std::fmt;

use serde::Serialize;

use super::costs::{FarCosts, Prediction, Reads};

/// Where a request's KV lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestBytes {
    /// Bytes of K and V in home's memory.
    pub near: u64,
    /// In the memory of each owner.
    pub far: Vec<u64>,
    /// In pinned host memory, which home reads in any case.
    pub host: u64,
}

/// What is known of a device that has far pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Owner {
    /// Share of its time that it spends on work of its own, below 1: how much slower it reads.
    pub busy: f64,
}

/// A step's plan: data, which [prints](fmt::Display).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FarPlan {
    /// Of each request, whether its query travels to the owners of its far pages; if not, they are
    /// pulled.
    pub travels: Vec<bool>,
    /// Who reads what then.
    pub reads: Reads,
    /// What that takes.
    pub chosen: Prediction,
    /// What it would take to pull all far pages.
    pub all_pulled: Prediction,
    /// What it would take if every query with far pages travelled.
    pub all_travel: Prediction,
}

/// What a step must save, at least, in which some queries travel and other far pages are pulled.
///
/// The pages of few requests are pulled by few blocks, and from memory that the owner is reading
/// as fast as it goes; the model knows neither.
const MIXED_MUST_SAVE: f64 = 0.2;

/// Decides for every request of a step.
///
/// Either all far pages are pulled, or all queries with far pages travel, whichever is shorter; or,
/// if that saves much, only those queries travel that have the most far bytes.
///
/// # Panics
/// If a request does not have as many `far` as there are owners.
pub fn plan(costs: &FarCosts, requests: &[RequestBytes], owners: &[Owner]) -> FarPlan {
    let busy: Vec<f64> = owners.iter().map(|owner| owner.busy).collect();
    let far_bytes = |request: usize| requests[request].far.iter().sum::<u64>();
    let mut by_far_bytes: Vec<usize> = (0..requests.len()).collect();
    by_far_bytes.sort_by_key(|&request| Reverse(far_bytes(request)));
    let num_far = by_far_bytes.iter().filter(|&&request| far_bytes(request) > 0).count();

    let mut reads =
        Reads { travelling_bytes: vec![0; owners.len()], ..pulled_reads(requests, owners.len()) };
    let all_pulled = costs.predict(&reads, &busy);
    let mut steps = vec![(all_pulled.clone(), reads.clone())];
    for &request in &by_far_bytes[..num_far] {
        for (travelling, &bytes) in reads.travelling_bytes.iter_mut().zip(&requests[request].far) {
            *travelling += bytes;
            reads.pulled_bytes -= bytes;
        }
        steps.push((costs.predict(&reads, &busy), reads.clone()));
    }
    let all_travel = steps[num_far].0.clone();
    // Steps by the number of queries that travel; of equals the first.
    let shortest = |numbers: &mut dyn Iterator<Item = usize>| {
        numbers.min_by(|&a, &b| steps[a].0.step_us.total_cmp(&steps[b].0.step_us))
    };
    let fixed = shortest(&mut [0, num_far].into_iter()).unwrap_or(0);
    let mixed = shortest(&mut (1..num_far)).unwrap_or(fixed);
    let must_save = (1.0 - MIXED_MUST_SAVE) * steps[fixed].0.step_us;
    let num_travelling = if steps[mixed].0.step_us < must_save { mixed } else { fixed };
    let (chosen, reads) = steps.swap_remove(num_travelling);
    let mut travels = vec![false; requests.len()];
    by_far_bytes[..num_travelling].iter().for_each(|&request| travels[request] = true);
    FarPlan { travels, reads, chosen, all_pulled, all_travel }
}

fn pulled_reads(requests: &[RequestBytes], num_owners: usize) -> Reads {
    let mut reads = Reads::default();
    for request in requests {
        assert_eq!(request.far.len(), num_owners, "far bytes of every owner");
        reads.near_bytes += request.near;
        reads.pulled_bytes += request.far.iter().sum::<u64>();
        reads.host_bytes += request.host;
    }
    reads
}

impl FarPlan {
    /// Requests whose queries travel.
    pub fn num_travelling(&self) -> usize {
        self.travels.iter().filter(|&&travels| travels).count()
    }
}

impl fmt::Display for FarPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (num_travelling, num_requests) = (self.num_travelling(), self.travels.len());
        let Prediction { home_us, owner_us, step_us } = &self.chosen;
        write!(f, "{num_travelling} of {num_requests} queries travel: {step_us:.1} µs")?;
        write!(f, " (home {home_us:.1}")?;
        for (owner, us) in (1..).zip(owner_us) {
            write!(f, ", rank {owner} {us:.1}")?;
        }
        let (pulled, travel) = (self.all_pulled.step_us, self.all_travel.step_us);
        write!(f, "); all pulled {pulled:.1}, all travelling {travel:.1}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Owner = Owner { busy: 0.0 };

    /// `batch` requests of `context` tokens of 4 KiB, a share of them far.
    fn even(batch: usize, context: u64, far_percent: u64) -> Vec<RequestBytes> {
        let bytes = context * 4096;
        let far = bytes * far_percent / 100;
        vec![RequestBytes { near: bytes - far, far: vec![far], host: 0 }; batch]
    }

    #[test]
    fn plans_are_as_reviewed() {
        let costs = FarCosts::default();
        let mut text = String::new();
        for (batch, context, owner) in
            [(1, 1024, IDLE), (16, 4096, IDLE), (64, 8192, IDLE), (16, 4096, Owner { busy: 0.9 })]
        {
            for far_percent in [0, 2, 7, 25, 100] {
                let plan = plan(&costs, &even(batch, context, far_percent), &[owner]);
                let busy = 100.0 * owner.busy;
                text += &format!("{batch} x {context}, {far_percent} % far, owner {busy} % busy: ");
                text += &format!("{plan}\n");
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn queries_with_most_far_bytes_travel_to_a_busy_owner() {
        let mut requests = even(8, 4096, 0);
        for (request, mib) in [(1, 64), (3, 96), (5, 48), (6, 80)] {
            requests[request].far[0] = mib << 20;
        }
        let travelling = |owner| {
            let plan = plan(&FarCosts::default(), &requests, &[owner]);
            (0..8).filter(|&request| plan.travels[request]).collect::<Vec<_>>()
        };
        assert_eq!(travelling(IDLE), [1, 3, 5, 6]);
        assert_eq!(travelling(Owner { busy: 0.9 }), [3, 6]);
    }

    #[test]
    fn host_pages_are_homes_to_read_whatever_travels() {
        let mut requests = even(4, 4096, 50);
        requests.iter_mut().for_each(|request| request.host = 64 << 20);
        let plan = plan(&FarCosts::default(), &requests, &[IDLE]);
        assert_eq!(plan.num_travelling(), 0, "PCIe bounds the step: {plan}");
    }

    proptest! {
        #[test]
        fn no_choice_is_worse_than_a_fixed_one(
            bytes in proptest::collection::vec((0u64..1 << 26, 0u64..1 << 26, 0u64..1 << 26), 0..20),
            busy in 0.0..0.99f64,
        ) {
            let request = |&(near, a, b): &(u64, u64, u64)| {
                RequestBytes { near, far: vec![a, b], host: 0 }
            };
            let requests: Vec<_> = bytes.iter().map(request).collect();
            let plan = plan(&FarCosts::default(), &requests, &[Owner { busy }, IDLE]);
            prop_assert!(plan.chosen.step_us <= plan.all_pulled.step_us);
            prop_assert!(plan.chosen.step_us <= plan.all_travel.step_us);
            for (request, &travels) in requests.iter().zip(&plan.travels) {
                prop_assert!(!travels || request.far.iter().sum::<u64>() > 0);
            }
        }
    }
}
