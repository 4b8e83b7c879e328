//! The replay on the CPU device: every byte goes through the kernels.

use super::faults::{Fault, FaultyPlane};
use super::*;
use crate::device::DeviceChoice;

/// Few requests in little memory, so that pages go round all tiers within seconds.
fn plan(gpus: u32) -> Plan {
    Plan::new(ValidateOptions {
        max_requests: Some(24),
        gpus,
        local_pages: Some(400),
        peer_pages: Some(200),
        host_pages: Some(300),
        page_size: 16,
        sample: Some(20),
        budget_us: Some(1e3),
        ..ValidateOptions::default()
    })
    .unwrap()
}

fn run(plan: &Plan, plane: &mut dyn DataPlane) -> Report {
    replay(plan, plan.policy(), plane, &mut |_| {}).unwrap()
}

fn cpu(plan: &Plan) -> DevicePlane {
    DevicePlane::new(DeviceChoice::Cpu, plan).unwrap()
}

#[test]
fn replays_through_the_kernels_pass() {
    for gpus in [1, 2] {
        let plan = plan(gpus);
        let report = run(&plan, &mut cpu(&plan));
        assert!(report.passed(), "{report}");
        assert_eq!(report.completed, 24);
        assert!(report.evictions > 0 && report.promotions > 0, "{report}");
        let checks = report.checks;
        assert!(checks.attention_outputs > 20 && checks.moved_pages > 20, "{report}");
    }
}

#[test]
fn the_kernels_decide_nothing() {
    let plan = plan(2);
    let through_kernels = run(&plan, &mut cpu(&plan));
    let mut mock = mock::MockPlane::new(&plan.budgets, plan.options.page_size);
    assert_eq!(through_kernels, run(&plan, &mut mock));
}

#[test]
fn planted_faults_show_in_what_the_kernels_read() {
    use ViolationKind::{Attention, PageChecksum};
    let plan = plan(2);
    for (fault, expected) in [
        (Fault::DroppedCopy, PageChecksum),
        (Fault::SwappedCopies, PageChecksum),
        (Fault::PageIndexOffByOne, Attention),
        (Fault::LastPageLenOffByOne, Attention),
    ] {
        let mut plane = FaultyPlane::new(cpu(&plan), fault, &plan);
        // Where a page was never written, the executor itself reports the read.
        match replay(&plan, plan.policy(), &mut plane, &mut |_| {}) {
            Ok(report) => {
                let found = report.violations_by_kind.contains_key(&expected);
                assert!(found, "{fault:?}: {report}");
            }
            Err(error) => {
                assert!(error.to_string().contains("nothing wrote"), "{fault:?}: {error}");
            }
        }
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn replays_on_gpus_pass() {
    for gpus in [1, 2] {
        let plan = plan(gpus);
        let mut plane = DevicePlane::new(DeviceChoice::Cuda, &plan).unwrap();
        let report = run(&plan, &mut plane);
        assert!(report.passed(), "{report}");
        assert_eq!(report.latency.source, LatencySource::Measured);
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn planted_faults_show_on_gpus() {
    let plan = plan(2);
    for fault in [Fault::DroppedCopy, Fault::SwappedCopies, Fault::PageIndexOffByOne] {
        let plane = DevicePlane::new(DeviceChoice::Cuda, &plan).unwrap();
        let mut plane = FaultyPlane::new(plane, fault, &plan);
        assert!(!run(&plan, &mut plane).passed(), "{fault:?}");
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn more_gpus_than_there_are_is_refused() {
    let Err(error) = DevicePlane::new(DeviceChoice::Cuda, &plan(64)) else {
        panic!("64 GPUs?");
    };
    assert!(error.to_string().contains("GPU"), "{error}");
}
