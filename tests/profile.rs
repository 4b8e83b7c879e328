//! `host profile` as its users run it. Profilers and GPUs are not needed: what is tested is what it
//! prints, and what it refuses.

use std::process::Command;

use farpage::device::ptx::kernel_names;

/// Runs the command where no profiler is in PATH.
fn host(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_host"))
        .args(arguments)
        .env("PATH", "/no/such/folder")
        .output()
        .expect("the command starts");
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output.status.code(), text)
}

const KERNEL: &str = "paged_attention_decode_baseline_bf16_d128";

#[test]
fn both_commands_are_printed() {
    if kernel_names().is_empty() {
        eprintln!("not checked: this build holds no PTX");
        return;
    }
    let (code, told) = host(&["profile", KERNEL]);
    assert_eq!(code, Some(0), "{told}");
    let [ncu, nsys] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert!(ncu.starts_with("ncu --clock-control none ") && ncu.contains(KERNEL), "{ncu}");
    assert!(ncu.contains(&format!("host launch {KERNEL} --times 3")), "{ncu}");
    assert!(nsys.contains("host run paged_attention "), "{nsys}");
    let (_, told) = host(&["profile", "far_decode_merge_bf16", "--tool", "ncu"]);
    assert!(told.starts_with("CUDA_LAUNCH_BLOCKING=1 ncu --clock-control none "), "{told}");
    // A mirror waits for nobody.
    let (_, told) = host(&["profile", "combine_pull_bulk", "--tool", "ncu"]);
    assert!(told.starts_with("ncu --clock-control none "), "{told}");
    // A room's kernels share a report.
    let (_, told) = host(&["profile", "merge_states", "--tool", "ncu", "--launches", "1"]);
    assert!(told.contains("host launch merge_states --times 1 --alone"), "{told}");
    assert!(told.contains("'::regex:^merge_states_:1'"), "{told}");
    // One that waits for itself on another GPU is run with the whole command, again and again.
    let (_, told) = host(&["profile", "combine", "--tool", "ncu"]);
    let [together, apart] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert!(together.contains("host launch combine --times 3 --alone"), "{together}");
    assert!(apart.contains(" --replay-mode application --devices 0 "), "{apart}");
    assert!(apart.contains("host launch combine_push_bulk --times 3"), "{apart}");
    let (_, told) = host(&["profile", "memory_read_16", "--tool", "nsys"]);
    assert!(told.contains("host launch memory_read_16 "), "{told}");
    let (_, told) =
        host(&["profile", KERNEL, "--tool", "nsys", "--", "run", "all", "--shapes", "real"]);
    assert!(told.starts_with("nsys profile ") && told.contains("host run all --shapes real"));
}

#[test]
fn kernels_are_shown_and_launched_without_a_profiler() {
    let (code, told) = host(&["launch", "--device", "cpu"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains(KERNEL) && told.contains("memory_read_16"), "{told}");
    let (code, told) = host(&["launch", KERNEL, "--device", "cpu", "--times", "1"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.ends_with(&format!("launched 1 times: {KERNEL}\n")), "{told}");
    let (_, told) = host(&["launch", "memory_write", "--device", "cpu", "--times", "2"]);
    assert!(told.contains(": memory_write_16\n") && told.contains(": memory_write_check_16\n"));
    let (code, told) = host(&["launch", "memory_reed_16", "--device", "cpu"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("did you mean `memory_read_16`"), "{told}");
}

#[test]
fn unknown_kernels_and_missing_profilers_are_named() {
    let is_embedded = !kernel_names().is_empty();
    for (arguments, problem) in [
        (&["profile", "paged_attention_decode_baseline_bf16_d12"][..], KERNEL),
        (&["profile", KERNEL, "--run"], "`ncu` is not installed"),
        (&["profile", KERNEL, "--run", "--tool", "nsys"], "`nsys` is not installed"),
    ] {
        let (code, told) = host(arguments);
        assert_eq!(code, Some(2), "{told}");
        let problem = if is_embedded { problem } else { "this build has no GPU kernels" };
        assert!(told.contains(problem), "{told}");
    }
    for (arguments, problem) in [
        (&["run", "--profile", "deep"][..], "--out"),
        (&["run", "--device", "cpu", "--profile", "minimal", "--out", "/no/such"], "`nsys` is not"),
    ] {
        let (code, told) = host(arguments);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains(problem), "{told}");
    }
}
