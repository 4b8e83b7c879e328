//! The commands over pairs, as their users run them, on the CPU.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use farpage::harness::ShapeSet;
use farpage::harness::files::read_results;
use farpage::harness::results::Outcome;
use farpage::pairs;

/// Tiny shapes of all pairs.
fn num_tiny_shapes() -> usize {
    pairs::ALL.iter().map(|pair| pair.shapes(ShapeSet::Tiny).len()).sum()
}

fn host() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
    command.args(["--device", "cpu"]);
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = host().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn list_shows_every_pair_with_shapes_and_what_is_missing() {
    let (code, text, _) = run(&["list", "all", "--world-size", "1"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("device: CPU, "), "{text}");
    for expected in [
        "paged_attention: decode over",
        "kv_cache_nvlink_pool: decode over",
        "baseline: local only, or copied first; optimized: peer pool",
        "needs 2 GPUs, found 1 within `--world-size`",
        "| seed_parity | none",
        "| tiny        | batch 3 x 100",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
}

#[test]
fn list_alone_is_a_line_for_each_pair() {
    let (code, text, _) = run(&["list", "--world-size", "1"]);
    assert_eq!(code, Some(0), "{text}");
    for pair in pairs::ALL {
        assert_eq!(text.matches(&format!("| {} ", pair.name)).count(), 1, "{text}");
    }
    assert!(text.contains("| kv_cache_nvlink_pool    | local only, or copied first |"), "{text}");
    assert!(text.contains("0 of 3") && text.lines().count() < 30, "{text}");
}

#[test]
fn run_keeps_results_and_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("results.json");
    let (file, out) = (json.to_str().unwrap(), folder.path().to_str().unwrap());
    let (code, text, errors) =
        run(&["run", "all", "--shapes", "tiny", "--iterations", "2", "--json", file, "--out", out]);
    assert_eq!(code, Some(0), "{text}{errors}");
    let results = read_results(&json).unwrap();
    assert!(!results.interrupted && results.entries.len() == num_tiny_shapes(), "{text}");
    for entry in &results.entries {
        let Outcome::Measured(found) = &entry.outcome else { panic!("{entry:?}") };
        assert_eq!(found.ratio.n, 2);
    }
    let is_run = |name: &str| name.ends_with("Z-all");
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let run_folder = names.map(|name| name.into_string().unwrap()).find(|name| is_run(name));
    let run_folder = folder.path().join(run_folder.expect("a folder for the run"));
    assert!(read_results(&run_folder).is_ok() && run_folder.join("manifest.json").exists());
}

#[test]
fn rounds_and_parts_of_a_second_limit_a_run_together() {
    let compare = |limits: &[&str]| run(&[&["compare", "kv_append"], limits].concat());
    let (code, text, errors) = compare(&["--iterations", "3", "--max-seconds", "1e6"]);
    assert_eq!(code, Some(0), "{text}{errors}");
    let (code, text, errors) = compare(&["--iterations", "4000000", "--max-seconds", "0.05"]);
    assert_eq!(code, Some(0), "{text}{errors}");
    for none in ["0", "-1", "inf", "NaN", "1e-12", "soon"] {
        let (code, _, errors) = compare(&[&format!("--max-seconds={none}")]);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(none) && errors.contains("must be seconds above 0"), "{errors}");
    }
}

#[test]
fn compare_puts_both_sides_beside_each_other_also_in_the_old_spelling() {
    for target in [&["paged_attention"][..], &["--examples", "paged_attention"]] {
        let (code, text, errors) = run(&[&["compare", "--iterations", "2"], target].concat());
        assert_eq!(code, Some(0), "{text}{errors}");
        assert!(text.contains("| paged_attention | batch 3 x 100"), "{text}");
        assert!(!text.contains("kv_cache_nvlink_pool"), "{text}");
        assert!(text.contains("steady calls, rotated inputs; times are the CPU"), "{text}");
    }
}

#[test]
fn verify_takes_fresh_seeds_and_corrupts() {
    let (code, text, _) = run(&["verify"]);
    assert_eq!(code, Some(0), "{text}");
    let seed = |text: &str| text.lines().nth(1).unwrap().to_owned();
    assert_eq!(text.matches("a corrupted input was noticed").count(), num_tiny_shapes(), "{text}");
    let (_, again, _) = run(&["verify", "paged_attention"]);
    assert_ne!(seed(&text), seed(&again));
}

#[test]
fn only_skipped_is_no_success() {
    for command in ["run", "compare", "verify"] {
        let (code, text, _) = run(&[command, "kv_cache_nvlink_pool", "--world-size", "1"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("skipped: needs 2 GPUs, found 1"), "{text}");
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let (code, _, error) = run(&["run", "paged_atention"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("`TARGETS`") && error.contains("`paged_attention`"), "{error}");

    for (arguments, named) in [
        (&["run", "--shapes", "huge"][..], "--shapes"),
        (&["run", "gemm", "--only", "40 x 136x72", "--out", "no/such/folder"], "`40 x 136 x 72`"),
        (&["run", "--iterations", "0"], "--iterations"),
        (&["run", "--world-size", "0"], "--world-size"),
        (&["run", "--json", "no/such/folder/file.json"], "no/such/folder/file.json"),
        (&["ceilings"], "CPU"),
    ] {
        let (code, _, error) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn ctrl_c_leaves_a_readable_partial_result() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("results.json");
    let mut child = host()
        .args(["run", "paged_attention", "--iterations", "1000000000", "--json"])
        .arg(&json)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&json);
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let results = read_results(&json).unwrap();
    assert!(results.interrupted && results.entries.is_empty());
}

fn wait_for(file: &Path) {
    let begun = Instant::now();
    while !file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {}", file.display());
        thread::sleep(Duration::from_millis(20));
    }
}
