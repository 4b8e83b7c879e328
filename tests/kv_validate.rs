//! `kv-validate` as its users run it: exit codes, first line, JSON, and what it says of bad input.

use std::process::{Command, Output};

fn kv_validate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host"))
        .args(["kv-validate", "--device", "cpu"])
        .args(arguments)
        .output()
        .expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_run_that_passes_says_on_what_and_exits_with_0() {
    let output = kv_validate(&["--max-requests", "8"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    assert!(text.starts_with("device: CPU, "), "{text}");
    assert!(text.contains("modelled, not measured"), "{text}");
    assert!(text.ends_with("no violations\n"), "{text}");
}

#[test]
fn json_is_one_object_with_device_and_result() {
    let output = kv_validate(&["--max-requests", "8", "--json", "--policy", "lru"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["device"].as_str().unwrap().starts_with("device: CPU"));
    assert_eq!(report["passed"], true);
    assert_eq!(report["policy"], "lru");
    assert_eq!(report["completed"], 8);
    assert_eq!(report["latency"]["source"], "modelled");
    assert_eq!(report["num_violations"], 0);
}

#[test]
fn a_violation_is_named_and_exits_with_1() {
    let output = kv_validate(&["--max-requests", "8", "--budget-us", "0.5"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("1 VIOLATIONS"), "{text}");
    assert!(text.contains("latency") && text.contains("the budget 0.5 µs"), "{text}");
}

#[test]
fn bad_input_is_named_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    std::fs::write(
        &path,
        "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [0]}\n\
         {\"timestamp\": 0, \"input_length\": -9, \"output_length\": 1, \"hash_ids\": [0]}\n",
    )
    .unwrap();
    let trace = path.to_str().unwrap();
    for (arguments, expected) in [
        (&["--trace", trace][..], "line 2: field 'input_length'"),
        (&["--trace", "no-such-file"], "cannot open trace no-such-file"),
        (&["--local-pages", "0"], "--local-pages: at least 1 is needed, got 0"),
        (&["--gpus", "0"], "--gpus: at least 1 is needed, got 0"),
        (&["--gpus", "4000000000"], "--gpus: at most 31 is needed, got 4000000000"),
        (&["--cadence-ms", "1e-300"], "--cadence-ms: a number from 0.001 is needed"),
        (&["--budget-us", "-1"], "--budget-us: a number above 0 is needed, got -1"),
        (&["--head-dim", "96"], "`head_dim` must be 64 or 128, got 96"),
        (&["--group-size", "17"], "at most 16, got 17"),
        (&["--page-size", "24"], "--page-size: 1, 2, 4, 8, 16, 32 or 64 is needed, got 24"),
        (&["--speed", "0"], "--speed: a number above 0 is needed, got 0"),
        (&["--policy", "magic"], "magic"),
    ] {
        let output = kv_validate(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = stderr(&output);
        assert!(told.contains(expected), "{arguments:?}: {told}");
        assert!(told.matches("line 2").count() <= 1, "told twice: {told}");
    }
}
