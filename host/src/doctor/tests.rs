//! Reports of machines that this one is not.

use insta::assert_snapshot;

use super::*;
use crate::device::{MemoryBytes, PtxModule};

const EMBEDDED: [&str; 2] = ["sm_80", "sm_90a"];

fn without_a_driver() -> Report {
    Report {
        device: Ok(Chosen {
            is_gpu: false,
            line: "device: CPU, 2 workers (no CUDA driver library was found)".to_owned(),
        }),
        driver: Ok(None),
        gpus: Vec::new(),
        nccl: Err("none was found".to_owned()),
        ptx: EMBEDDED.to_vec(),
    }
}

fn h200() -> DeviceProperties {
    DeviceProperties {
        name: "NVIDIA H200".to_owned(),
        num_multiprocessors: 132,
        memory: Some(MemoryBytes { free: 139 << 30, total: 140 << 30 }),
        l2_bytes: Some(60 << 20),
        compute_capability: Some((9, 0)),
        ptx: Some(PtxModule::named("sm_90a")),
    }
}

fn with_two_h200() -> Report {
    let link = PeerLink { access: true, native_atomics: true, performance_rank: 0 };
    let gpu = |links| GpuReport { properties: Ok(h200()), links };
    Report {
        device: Ok(Chosen {
            is_gpu: true,
            line: format!("device: GPU 0, {} (the first GPU found)", h200()),
        }),
        driver: Ok(Some(DriverReport { cuda: (13, 0), module: Some("580.65.06".to_owned()) })),
        gpus: vec![gpu(vec![None, Some(Ok(link))]), gpu(vec![Some(Ok(link)), None])],
        nccl: Ok((nccl::NcclVersion::of(2, 28, 3), Some("/usr/lib/libnccl.so.2.28.3".into()))),
        ptx: EMBEDDED.to_vec(),
    }
}

#[test]
fn a_machine_without_a_driver() {
    assert_snapshot!(without_a_driver());
}

#[test]
fn a_build_without_kernels() {
    assert_snapshot!(Report { ptx: Vec::new(), ..without_a_driver() });
}

#[test]
fn two_h200() {
    assert_snapshot!(with_two_h200());
}

#[test]
fn two_gpus_apart_and_no_nccl() {
    let mut report = with_two_h200();
    report.gpus[1].links[0] =
        Some(Ok(PeerLink { access: false, native_atomics: false, performance_rank: 0 }));
    report.nccl = Err("none was found".to_owned());
    assert_snapshot!(report);
}

#[test]
fn a_driver_that_does_not_start() {
    let error = "a CUDA driver is installed but does not start: cuInit: CUDA_ERROR_UNKNOWN (999)";
    let report = Report {
        device: Err(error.to_owned()),
        driver: Err(error.to_owned()),
        ..without_a_driver()
    };
    assert!(!report.is_healthy());
    assert_snapshot!(report);
}

#[test]
fn this_machine_has_a_report() {
    let report = Report::gather(DeviceChoice::Cpu);
    assert!(report.is_healthy());
    assert!(report.to_string().starts_with("device: CPU, "), "{report}");
}
