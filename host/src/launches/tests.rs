use std::collections::BTreeSet;

use super::*;
use crate::comm::World;
use crate::device::ptx::kernel_names;

#[test]
fn every_kernel_of_the_build_has_a_launch_and_every_launch_a_kernel() {
    let listed: Vec<&str> = all().iter().map(|launch| launch.kernel).collect();
    let names: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(names.len(), listed.len(), "a kernel has two launches: {listed:?}");
    if kernel_names().is_empty() {
        eprintln!("not compared with the PTX: this build holds none");
        return;
    }
    let embedded = kernel_names().into_iter().collect();
    let without_launch: Vec<_> = BTreeSet::difference(&embedded, &names).collect();
    assert!(without_launch.is_empty(), "add a line in host/src/launches for {without_launch:?}");
    let without_kernel: Vec<_> = names.difference(&embedded).collect();
    assert!(without_kernel.is_empty(), "no such kernels: {without_kernel:?}");
}

#[test]
fn every_launch_launches_its_kernel() {
    for launch in all() {
        let world = World::cpu(launch.num_gpus);
        let done = launch.run(world.devices(), Size::Tiny, 2);
        done.unwrap_or_else(|error| panic!("{}: {error:#}", launch.kernel));
    }
}

#[test]
fn a_launch_of_something_else_is_noticed() {
    let other = select("memory_read_16").unwrap().remove(0);
    let launch = KernelLaunch { kernel: "memory_write_16", ..other };
    let error = launch.run(&[Device::cpu()], Size::Tiny, 1).unwrap_err().to_string();
    assert_eq!(error, "`memory_write_16` was not launched, but memory_read_16");
}

#[test]
fn kernels_are_selected_by_name_by_how_it_begins_or_all_together() {
    let selected = |kernels| -> Vec<&str> {
        select(kernels).unwrap().iter().map(|launch| launch.kernel).collect()
    };
    assert_eq!(selected("memory_read_16"), ["memory_read_16"]);
    assert_eq!(selected("memory_write"), ["memory_write_16", "memory_write_check_16"]);
    // One that others begin with is itself.
    assert_eq!(selected("rms_norm_add_bf16"), ["rms_norm_add_bf16"]);
    assert_eq!(selected(ALL).len(), all().len());
}

#[test]
fn an_unknown_kernel_is_refused_with_the_near_names() {
    let unknown = |kernels| select(kernels).err().expect("no such kernel");
    let error = unknown("memory_reed_16").to_string();
    assert!(error.contains("got `memory_reed_16`; did you mean `memory_read_16`"), "{error}");
    assert!(unknown("zzz").near.is_empty());
    // Names begin with whole words.
    assert_eq!(unknown("memory_rea").got, "memory_rea");
}
