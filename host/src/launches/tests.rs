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
    let other = find("memory_read_16").unwrap();
    let launch = KernelLaunch { kernel: "memory_write_16", ..other };
    let error = launch.run(&[Device::cpu()], Size::Tiny, 1).unwrap_err().to_string();
    assert_eq!(error, "`memory_write_16` was not launched, but memory_read_16");
}

#[test]
fn an_unknown_kernel_is_refused_with_the_near_names() {
    assert_eq!(find("memory_read_16").unwrap().kernel, "memory_read_16");
    let unknown = |kernel| find(kernel).err().expect("no such kernel");
    let error = unknown("memory_reed_16").to_string();
    assert!(error.contains("got `memory_reed_16`; did you mean `memory_read_16`"), "{error}");
    assert!(unknown("zzz").near.is_empty());
}
