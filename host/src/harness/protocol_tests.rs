use std::cell::{Cell, RefCell};

use super::*;
use crate::harness::watch::Silent;

fn protocol(rounds: Rounds) -> Protocol {
    Protocol { mode: Mode::Steady, inputs: Inputs::Rotated, warmup_rounds: 2, rounds }
}

fn constant(us: f64) -> Sampler<'static> {
    Box::new(move || Ok(us))
}

fn turns(
    sides: [Sampler<'_>; 2],
    protocol: &Protocol,
    watch: &dyn Watch,
) -> Result<Option<Timings>> {
    take_turns(Turns::of(sides), protocol, FIRST_LOOK, watch)
}

const ADAPTIVE: Rounds =
    Rounds::Adaptive { min_time: Duration::ZERO, max_rounds: 100, max_time: Duration::MAX };

#[test]
fn sides_take_turns_and_who_goes_first_alternates() {
    let order = RefCell::new(String::new());
    let side = |name: char| -> Sampler<'_> {
        let order = &order;
        Box::new(move || {
            order.borrow_mut().push(name);
            Ok(1.0)
        })
    };
    turns([side('b'), side('o')], &protocol(Rounds::exactly(3)), &Silent).unwrap();
    assert_eq!(order.into_inner(), "bo ob bo ob bo".replace(' ', ""));
}

#[test]
fn the_ratio_is_paired_round_by_round() {
    // Both sides slow down together: their medians' intervals are wide, the ratio's is not.
    let (baseline, optimized) = (Cell::new(0.0), Cell::new(0.0));
    let drifting = |of: &'static str, at: &Cell<f64>| {
        let us = at.get() + 1.0;
        at.set(us);
        Ok(if of == "baseline" { 3.0 * us } else { us })
    };
    let sides: [Sampler<'_>; 2] = [
        Box::new(|| drifting("baseline", &baseline)),
        Box::new(|| drifting("optimized", &optimized)),
    ];
    let found = turns(sides, &protocol(ADAPTIVE), &Silent).unwrap().unwrap();
    assert_eq!((found.ratio.low, found.ratio.median, found.ratio.high), (3.0, 3.0, 3.0));
    assert!(relative_width(&found.baseline_us) > 0.5);
    assert_eq!(found.ratio.n, FIRST_LOOK);
}

#[test]
fn an_unsure_ratio_gets_more_rounds_up_to_the_limit() {
    let mut rng = fastrand::Rng::with_seed(3);
    let noisy: Sampler<'_> = Box::new(move || Ok(1.0 + rng.f64()));
    let found = turns([noisy, constant(1.0)], &protocol(ADAPTIVE), &Silent).unwrap().unwrap();
    assert_eq!(found.ratio.n, 100);

    let min_time = Duration::MAX;
    let sure = Rounds::Adaptive { min_time, max_rounds: 100, max_time: Duration::MAX };
    let found = turns([constant(1.0), constant(1.0)], &protocol(sure), &Silent);
    assert_eq!(found.unwrap().unwrap().ratio.n, 100, "sure, but too early");

    let (min_time, max_time) = (Duration::ZERO, Duration::ZERO);
    let limit = Rounds::Adaptive { min_time, max_rounds: 100, max_time };
    let found = turns([constant(1.0), constant(1.0)], &protocol(limit), &Silent);
    assert_eq!(found.unwrap().unwrap().ratio.n, 1);
}

#[test]
fn of_rounds_and_seconds_those_count_that_end_first() {
    let rounds = |rounds: Rounds| {
        turns([constant(1.0), constant(1.0)], &protocol(rounds), &Silent)
            .map(|found| found.map(|timings| timings.ratio.n))
            .unwrap()
    };
    assert_eq!(rounds(Rounds::exactly(7)), Some(7));
    assert_eq!(rounds(Rounds::exactly(7).within(Duration::from_secs(60))), Some(7));
    assert_eq!(rounds(Rounds::exactly(7).within(Duration::ZERO)), Some(1));
    assert_eq!(rounds(ADAPTIVE.within(Duration::ZERO)), Some(1));
}

#[test]
fn an_interruption_ends_it_without_a_result() {
    struct AfterFive(Cell<usize>);
    impl Watch for AfterFive {
        fn entry(&self, _: usize, _: usize, _: &str) {}
        fn step(&self, _: &str) {}
        fn is_interrupted(&self) -> bool {
            self.0.set(self.0.get() + 1);
            self.0.get() > 5
        }
    }
    let sides = [constant(1.0), constant(1.0)];
    let found = turns(sides, &protocol(ADAPTIVE), &AfterFive(Cell::new(0)));
    assert_eq!(found.unwrap(), None);
}

#[test]
fn an_error_ends_it() {
    let failing: Sampler<'_> = Box::new(|| anyhow::bail!("no more"));
    assert!(turns([constant(1.0), failing], &protocol(ADAPTIVE), &Silent).is_err());
}

#[test]
fn samples_are_long_enough_and_use_all_inputs_equally() {
    assert_eq!(calls_per_sample(1e6, 1), 1);
    assert_eq!(calls_per_sample(1e6, 3), 3);
    assert_eq!(calls_per_sample(100.0, 1), 20);
    assert_eq!(calls_per_sample(100.0, 8), 24);
    assert_eq!(calls_per_sample(0.0, 1), MAX_CALLS);
}

/// Counts the calls of a pair whose calls are long, or are not.
struct Calls {
    is_long: bool,
    num_calls: Cell<usize>,
}

impl Prepared for Calls {
    fn work(&self, _: Variant) -> gpu_kernels::contract::Work {
        gpu_kernels::contract::Work { read_bytes: 0, written_bytes: 0, flops: 0 }
    }

    fn demands(&self) -> Vec<crate::harness::Demand> {
        Vec::new()
    }

    fn num_inputs(&self) -> usize {
        1
    }

    fn is_long(&self) -> bool {
        self.is_long
    }

    fn sampler(&self, _: Variant, batch: Batch) -> Result<Sampler<'_>> {
        Ok(Box::new(move || {
            self.num_calls.set(self.num_calls.get() + batch.num_calls);
            Ok(1e6)
        }))
    }

    fn verify(&self, _: Variant) -> Result<String> {
        Ok(String::new())
    }

    fn corrupt(&mut self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn long_calls_are_neither_tried_nor_warmed_up() {
    let num_calls = |is_long| {
        let calls = Calls { is_long, num_calls: Cell::new(0) };
        let found = measure(&calls, &protocol(ADAPTIVE), &Silent).unwrap().unwrap();
        (found.ratio.n, calls.num_calls.get())
    };
    // Two sides, of which each call is a round's.
    assert_eq!(num_calls(true), (FIRST_LOOK_OF_LONG, 2 * FIRST_LOOK_OF_LONG));
    // Two calls that tell how long one is, and two rounds of warm-up.
    assert_eq!(num_calls(false), (FIRST_LOOK, 2 * (2 + 2 + FIRST_LOOK)));
}
