//! The harness with a pair made for its tests, on the CPU.

use std::cell::RefCell;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use farpage::device::{Buffer, Device, DeviceChoice, Stream};
use farpage::harness::files::read_results;
use farpage::harness::protocol::{Protocol, Rounds};
use farpage::harness::results::{Manifest, Outcome, RunResults};
use farpage::harness::{
    Batch, Demand, Finding, Machine, Pair, Plan, Prepared, Sampler, Shape, ShapeSet, Silent,
    Variant, Watch, run, stream_sampler, verify, write_json,
};
use farpage::pairs;
use gpu_kernels::contract::Work;

const LEN: usize = 64;

/// What is wrong with a pair.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The optimized side leaves out the last element.
    WrongResult,
    /// The check looks at the first half only.
    CarelessCheck,
    /// A call changes the inputs.
    InputsChange,
    /// It cannot be set up.
    NoMemory,
}

/// Copies numbers: the baseline in two halves, the optimized side at once.
const GOOD: Pair = Pair {
    name: "copy",
    about: "copies numbers",
    sides: ["halves", "whole"],
    rooms: &[],
    shapes: |set| shapes(set, 1, Fault::None),
};
const ON_FOUR: Pair =
    Pair { name: "copy_on_four", shapes: |set| shapes(set, 4, Fault::None), ..GOOD };
const WRONG: Pair =
    Pair { name: "copy_wrong", shapes: |set| shapes(set, 1, Fault::WrongResult), ..GOOD };
const CARELESS: Pair =
    Pair { name: "copy_careless", shapes: |set| shapes(set, 1, Fault::CarelessCheck), ..GOOD };
const CHANGING: Pair =
    Pair { name: "copy_changing", shapes: |set| shapes(set, 1, Fault::InputsChange), ..GOOD };
const WITHOUT_MEMORY: Pair =
    Pair { name: "copy_without_memory", shapes: |set| shapes(set, 1, Fault::NoMemory), ..GOOD };

fn shapes(set: ShapeSet, num_gpus: usize, fault: Fault) -> Vec<Shape> {
    let shape = |name: &str| {
        Shape::new(name, num_gpus, move |devices, seed| Copies::new(&devices[0], seed, fault))
            .published(&[("B200", 1.5)])
            .sizes(&serde_json::json!({ "len": LEN }))
    };
    match set {
        ShapeSet::Tiny => vec![shape("first"), shape("second")],
        ShapeSet::Real | ShapeSet::SeedParity => Vec::new(),
    }
}

struct Copies {
    stream: Stream,
    oracle: Vec<u64>,
    inputs: Vec<Buffer<u64>>,
    output: Buffer<u64>,
    fault: Fault,
}

impl Copies {
    fn new(device: &Device, seed: u64, fault: Fault) -> Result<Self> {
        ensure!(fault != Fault::NoMemory, "no memory for it");
        let mut rng = fastrand::Rng::with_seed(seed);
        let oracle: Vec<u64> = (0..LEN).map(|_| rng.u64(1..)).collect();
        let stream = device.new_stream()?;
        let inputs = (0..3).map(|_| Buffer::from_slice(&stream, &oracle));
        Ok(Self {
            inputs: inputs.collect::<Result<_, _>>()?,
            output: device.alloc(LEN)?,
            stream,
            oracle,
            fault,
        })
    }

    fn enqueue(&self, variant: Variant, input: usize) -> Result<()> {
        let input = &self.inputs[input];
        let copy = |from: usize, to: usize| {
            self.stream.copy(input.slice(from..to), self.output.slice(from..to))
        };
        match (variant, self.fault) {
            (Variant::Baseline, _) => copy(0, LEN / 2).and_then(|()| copy(LEN / 2, LEN))?,
            (Variant::Optimized, Fault::WrongResult) => copy(0, LEN - 1)?,
            (Variant::Optimized, _) => copy(0, LEN)?,
        }
        Ok(())
    }
}

impl Prepared for Copies {
    fn work(&self, _variant: Variant) -> Work {
        let bytes = 8 * LEN as u64;
        Work { read_bytes: bytes, written_bytes: bytes, flops: 0 }
    }

    fn demands(&self) -> Vec<Demand> {
        Vec::new()
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        // Runs as any pair does, and then says a time that tests know: the ratio is 2.
        let mut real =
            stream_sampler(&self.stream, batch, move |input| self.enqueue(variant, input))?;
        let us = if variant == Variant::Baseline { 200.0 } else { 100.0 };
        Ok(Box::new(move || {
            ensure!(real()? >= 0.0);
            if self.fault == Fault::InputsChange {
                self.stream.fill(&self.inputs[0], 0)?;
            }
            Ok(us)
        }))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let checked = if self.fault == Fault::CarelessCheck { LEN / 2 } else { LEN };
        for input in 0..self.inputs.len() {
            self.stream.fill(&self.output, 0)?;
            self.enqueue(variant, input)?;
            let output = self.stream.download(&self.output)?;
            for (i, (got, want)) in output.iter().zip(&self.oracle).take(checked).enumerate() {
                ensure!(got == want, "output[{i}] is {got}, should be {want}");
            }
        }
        Ok(format!("{checked} numbers are equal"))
    }

    fn corrupt(&mut self) -> Result<()> {
        Ok(self.stream.fill(self.inputs[2].slice(LEN - 1..), 0)?)
    }
}

fn machine(world_size: usize) -> Machine {
    Machine::open(DeviceChoice::Cpu, Some(world_size)).unwrap()
}

fn plan(pairs: &[&'static Pair], shape_set: ShapeSet) -> Plan {
    let protocol = Protocol { rounds: Rounds::exactly(7), ..Protocol::usual(false) };
    Plan { pairs: pairs.to_vec(), shape_set, only: Vec::new(), protocol, seed: 5 }
}

fn run_on(machine: &Machine, plan: &Plan) -> RunResults {
    let manifest = Manifest::gather(machine, plan.seed).unwrap();
    run(machine, plan, manifest, &Silent, &mut |_| Ok(())).unwrap()
}

fn failure(results: &RunResults, entry: usize) -> &str {
    match &results.entries[entry].outcome {
        Outcome::Failed { error } => error,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_right_pair_is_measured_as_the_plan_says() {
    let results = run_on(&machine(1), &plan(&[&GOOD], ShapeSet::Tiny));
    assert!(!results.interrupted && results.ceilings.is_empty());
    let names: Vec<_> = results.entries.iter().map(|entry| entry.shape.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let Outcome::Measured(found) = &results.entries[0].outcome else { panic!("{results:?}") };
    assert_eq!((found.ratio.median, found.ratio.n), (2.0, 7));
    assert_eq!((found.mode.as_str(), found.inputs.as_str()), ("steady", "rotated"));
    assert_eq!((found.baseline.name.as_str(), found.optimized.name.as_str()), ("halves", "whole"));
    assert_eq!(found.baseline.read_bytes, 512);
    assert_eq!(found.parity, "64 numbers are equal");
    assert_eq!(found.published[0].hardware, "B200");
    assert!(found.conditions.is_none() && found.ceiling.is_none());
}

#[test]
fn a_planted_wrong_result_fails_and_the_others_still_run() {
    let results = run_on(&machine(1), &plan(&[&WRONG, &GOOD], ShapeSet::Tiny));
    let error = failure(&results, 0);
    assert!(
        error.starts_with("optimized (whole) is wrong: output[63] is 0, should be "),
        "{error}"
    );
    assert!(matches!(results.entries[2].outcome, Outcome::Measured(_)));
}

#[test]
fn what_turns_wrong_while_it_is_measured_fails() {
    let results = run_on(&machine(1), &plan(&[&CHANGING], ShapeSet::Tiny));
    let error = failure(&results, 0);
    assert!(error.starts_with("after it was measured: baseline (halves) is wrong"), "{error}");
}

#[test]
fn what_cannot_be_set_up_fails() {
    let results = run_on(&machine(1), &plan(&[&WITHOUT_MEMORY], ShapeSet::Tiny));
    assert_eq!(failure(&results, 0), "no memory for it");
}

#[test]
fn only_the_shapes_asked_for_are_measured() {
    let all = plan(&[&GOOD, &ON_FOUR], ShapeSet::Tiny);
    let results = run_on(&machine(1), &Plan { only: vec!["econ".to_owned()], ..all.clone() });
    let names: Vec<_> = results.entries.iter().map(|entry| entry.shape.as_str()).collect();
    assert_eq!(names, ["second", "second"]);
    assert_eq!(results.entries[0].sizes.as_ref().unwrap()["len"], LEN);

    let check = |only: &[&str]| {
        let only = only.iter().map(|&part| part.to_owned()).collect();
        Plan { only, ..all.clone() }.check().map_err(|unknown| unknown.to_string())
    };
    assert_eq!((check(&[]), check(&["econ", "=first"])), (Ok(()), Ok(())));
    assert!(check(&["=econ"]).unwrap_err().ends_with("got `=econ`; did you mean `second`?"));
    let error = check(&["first", "secnod"]).unwrap_err();
    assert_eq!(
        error,
        "`--only` must be a part of the name of a tiny shape that `host list all` shows, got \
         `secnod`; did you mean `second`?"
    );
}

#[test]
fn what_lacks_gpus_or_shapes_is_skipped_and_never_measured() {
    let results = run_on(&machine(1), &plan(&[&ON_FOUR], ShapeSet::Tiny));
    for entry in &results.entries {
        let Outcome::Skipped { reason } = &entry.outcome else { panic!("{entry:?}") };
        assert_eq!(reason, "needs 4 GPUs, found 1 within `--world-size`");
    }
    assert!(matches!(
        run_on(&machine(4), &plan(&[&ON_FOUR], ShapeSet::Tiny)).entries[0].outcome,
        Outcome::Measured(_)
    ));
    let results = run_on(&machine(1), &plan(&[&GOOD], ShapeSet::SeedParity));
    let Outcome::Skipped { reason } = &results.entries[0].outcome else { panic!("{results:?}") };
    assert_eq!((reason.as_str(), results.entries.len()), ("has no seed_parity shapes", 1));
}

#[test]
fn verification_wants_corrupted_inputs_to_be_noticed() {
    let pairs: [&'static Pair; 4] = [&GOOD, &CARELESS, &WRONG, &ON_FOUR];
    let verdicts = verify(&machine(1), &pairs, ShapeSet::Tiny, 9, &Silent);
    let findings: Vec<_> = verdicts.iter().step_by(2).map(|verdict| &verdict.finding).collect();
    assert_eq!(findings[0], &Finding::Right("64 numbers are equal".to_owned()));
    assert_eq!(
        findings[1],
        &Finding::Wrong("baseline (halves): a corrupted input went unnoticed".to_owned())
    );
    assert!(matches!(findings[2], Finding::Wrong(error) if error.contains("output[63]")));
    assert!(matches!(findings[3], Finding::Skipped(_)));
}

/// Interrupts in the second shape's measurement.
#[derive(Default)]
struct InSecondShape {
    entries: AtomicUsize,
    warmed_up: AtomicUsize,
}

impl Watch for InSecondShape {
    fn entry(&self, _: usize, total: usize, _: &str) {
        assert_eq!(total, 2);
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    fn step(&self, what: &str) {
        if what == "warming up" {
            self.warmed_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.warmed_up.load(Ordering::Relaxed) == 2
    }
}

#[test]
fn an_interrupted_run_leaves_what_it_had_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results.json");
    let machine = machine(1);
    let watch = InSecondShape::default();
    let saved_entries = RefCell::new(Vec::new());
    let results = run(
        &machine,
        &plan(&[&GOOD], ShapeSet::Tiny),
        Manifest::gather(&machine, 5).unwrap(),
        &watch,
        &mut |results| {
            saved_entries.borrow_mut().push((results.entries.len(), results.interrupted));
            Ok(write_json(&file, results)?)
        },
    )
    .unwrap();
    assert_eq!(watch.entries.load(Ordering::Relaxed), 2);
    assert!(results.interrupted);
    assert_eq!(saved_entries.into_inner(), [(0, true), (1, true)]);
    let read = read_results(&file).unwrap();
    assert!(read.interrupted && matches!(read.entries[0].outcome, Outcome::Measured(_)));
}

#[test]
fn every_pair_has_its_bench_and_names_that_are_unique() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    for pair in pairs::ALL {
        let name = pair.name;
        let bench = fs::read_to_string(format!("benches/{name}.rs")).unwrap();
        assert!(bench.contains(&format!("bench_main(\"{name}\")")), "benches/{name}.rs");
        assert!(manifest.contains(&format!("[[bench]]\nname = \"{name}\"")), "{name}");
        for set in ShapeSet::ALL {
            let mut shapes: Vec<_> = pair.shapes(set).into_iter().map(|shape| shape.name).collect();
            let count = shapes.len();
            shapes.sort();
            shapes.dedup();
            assert_eq!(shapes.len(), count, "{name}, {set}");
        }
        assert!(!pair.shapes(ShapeSet::Tiny).is_empty(), "{name} has nothing for the CPU");
    }
}

fn measured_on_gpus(num_gpus: usize, target: &str) {
    let machine = Machine::open(DeviceChoice::Cuda, Some(num_gpus)).expect("GPUs for this test");
    let pairs = pairs::select(&[target.to_owned()]).unwrap();
    let plan = Plan {
        pairs,
        shape_set: ShapeSet::Real,
        only: Vec::new(),
        protocol: Protocol::usual(true),
        seed: fastrand::u64(..),
    };
    let results = run_on(&machine, &plan);
    assert_eq!(results.ceilings.len(), if num_gpus == 1 { 4 } else { 6 }, "{results:#?}");
    for entry in &results.entries {
        let Outcome::Measured(found) = &entry.outcome else { panic!("{entry:#?}") };
        let share = found.ceiling.as_ref().expect("every demand has a ceiling").share;
        assert!((0.05..1.1).contains(&share), "{entry:#?}");
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_pair_is_measured_on_a_gpu() {
    measured_on_gpus(1, "paged_attention");
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_pair_is_measured_on_two_gpus() {
    measured_on_gpus(2, "kv_cache_nvlink_pool");
}
