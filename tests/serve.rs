//! `host serve` as its users run it.

use std::fs;
use std::process::{Command, Output};

use farpage::kv::trace::{GeneratorOptions, generate};

fn serve(arguments: &[&str]) -> Output {
    let arguments = ["serve", "--device", "cpu"].iter().chain(arguments);
    Command::new(env!("CARGO_BIN_EXE_host")).args(arguments).output().expect("the command starts")
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&text(&serve(&[&["--json"], arguments].concat()))).unwrap()
}

const SMALL: [&str; 9] = [
    "--simulated",
    "--requests",
    "24",
    "--slots",
    "6",
    "--prompts",
    "64x256",
    "--answers",
    "24x96",
];

#[test]
fn says_first_that_it_is_simulated() {
    let text = text(&serve(&SMALL));
    assert!(text.starts_with("device: none, a simulated engine"), "{text}");
    for row in ["tokens/s", "TTFT p50 / p90 / p99, ms", "goodput, requests/s", "batch fill"] {
        assert!(text.lines().any(|line| line.starts_with(row)), "no {row} in\n{text}");
    }
}

#[test]
fn continuous_batches_give_more_tokens_a_second_and_runs_repeat() {
    let continuous = json(&SMALL);
    let repeated = json(&SMALL);
    let fixed = json(&[&SMALL[..], &["--batching", "static"]].concat());
    assert_eq!(continuous, repeated);
    assert_eq!(continuous["engine"], "simulated engine");
    assert_eq!(continuous["requests"].as_array().unwrap().len(), 24);
    let tokens_per_s = |report: &serde_json::Value| report["summary"]["tokens_per_s"].as_f64();
    assert!(tokens_per_s(&continuous) > tokens_per_s(&fixed));
}

#[test]
fn traces_are_served_and_broken_ones_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.jsonl");
    let options = GeneratorOptions { num_requests: 20, ..GeneratorOptions::default() };
    let lines = generate(&options).into_iter();
    let lines: String = lines.map(|line| serde_json::to_string(&line).unwrap() + "\n").collect();
    fs::write(&file, &lines).unwrap();
    let path = file.to_str().unwrap();
    let report = json(&["--simulated", "--trace", path, "--shrink", "8"]);
    assert_eq!(report["summary"]["num_served"], 20);
    assert!(report["summary"]["page_hit_rate"].as_f64().unwrap() > 0.1, "prompts begin alike");

    fs::write(&file, "{}\n").unwrap();
    let output = serve(&["--simulated", "--trace", path]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("line 1: field 'timestamp' is missing"), "{error}");
}

#[test]
fn plans_can_be_read_and_what_does_not_fit_is_refused() {
    let few =
        ["--simulated", "--requests", "2", "--prompts", "40x40", "--answers", "3x3", "--plans"];
    let said = text(&serve(&few));
    assert!(said.contains("admit 0: 0 of 40 tokens cached"), "{said}");
    let refused =
        text(&serve(&["--simulated", "--requests", "1", "--pages", "2", "--prompts", "100x100"]));
    assert!(refused.contains("requests served, refused, failed"), "{refused}");
    assert!(refused.contains("request 0 refused: KV: "), "{refused}");
    let output = serve(&["--simulated", "--slots", "8", "--step-tokens", "8"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn ranks_serve_in_every_role_and_worlds_of_halves_are_even() {
    let few = ["--simulated", "--requests", "4", "--prompts", "32x32", "--answers", "4x4"];
    for roles in ["monolithic", "disaggregated", "in-series"] {
        let ranks = ["--world-size", "2", "--roles", roles, "--simulate-network", "10x20"];
        let report = json(&[&few[..], &ranks].concat());
        assert_eq!(report["summary"]["num_served"], 4, "{roles}");
    }
    let output = serve(&["--simulated", "--world-size", "3"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("`--world-size` must be even") && error.contains("got 3"), "{error}");
}

#[test]
fn models_are_served_alone_and_on_ranks() {
    let folder = "tests/checkpoints/llama";
    let few = [
        "--requests",
        "3",
        "--prompts",
        "20x30",
        "--answers",
        "3x4",
        "--slots",
        "4",
        "--pages",
        "16",
    ];
    let report = json(&[&["--model", folder, "--step-tokens", "24"], &few[..]].concat());
    assert_eq!(report["summary"]["num_served"], 3);
    assert_eq!(report["engine"], folder);
    let of_shape = [&["--shape", "tiny", "--batch-invariant"], &few[..]].concat();
    let printed = text(&serve(&of_shape));
    assert!(printed.contains("model: tiny, seeded"), "{printed}");
    let on_ranks = json(&[&of_shape[..], &["--world-size", "2"]].concat());
    assert_eq!(on_ranks["summary"]["num_served"], 3);
}

#[test]
fn an_engine_must_be_named_and_only_one() {
    for engine in [&[][..], &["--shape", "tiny", "--simulated"]] {
        let output = serve(engine);
        assert_eq!(output.status.code(), Some(2), "{engine:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("--simulated"), "{error}");
    }
}
