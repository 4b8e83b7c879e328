//! `host expectations` as its users run it, with a run made up for tests.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const SAMPLE: &str = "host/src/harness/report/sample.json";

fn expectations(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_host"))
        .args(["expectations", "--folder"])
        .arg(folder)
        .args(arguments)
        .output()
        .expect("the command starts");
    (output.status.code(), text(&output))
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// The sample without its failed entry, the ratio of `batch 16 x 4096` changed by a factor.
fn run_in(folder: &Path, factor: f64) -> String {
    let mut run: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(SAMPLE).unwrap()).unwrap();
    let entries = run["entries"].as_array_mut().unwrap();
    entries.retain(|entry| entry["outcome"]["kind"] != "failed");
    let ratio = &mut entries[2]["outcome"]["ratio"];
    for field in ["low", "median", "high"] {
        ratio[field] = (ratio[field].as_f64().unwrap() * factor).into();
    }
    let path = folder.join(format!("run-{factor}.json"));
    fs::write(&path, run.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_update_and_show() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (good, bad) = (run_in(folder, 1.0), run_in(folder, 0.9));

    let (code, told) = expectations(folder, &["check", "--results", &good]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("hardware 'h200_x2'"), "{told}");

    let (code, told) = expectations(folder, &["update", "--results", &good]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.lines().last().unwrap().ends_with("h200_x2.json"), "{told}");

    for results in [&good, &good] {
        let (code, told) = expectations(folder, &["check", "--results", results]);
        assert_eq!(code, Some(0), "{told}");
        assert!(told.ends_with("11 held, 1 skipped\n"), "{told}");
    }

    let (code, told) = expectations(folder, &["check", "--results", &bad]);
    assert_eq!(code, Some(1), "{told}");
    let line = told.lines().find(|line| line.starts_with("REGRESSED")).unwrap();
    assert!(line.contains("ratio 4.267") && line.contains("stored 4.741"), "{line}");
    assert!(told.ends_with("10 held, 1 regressed, 1 skipped\n"), "{told}");

    let (code, told) = expectations(folder, &["show"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("4.74× (4.72–4.76)"), "{told}");
    let (code, told) = expectations(folder, &["show", "--hardware", "h200"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("it has h200_x2"), "{told}");
}

#[test]
fn an_interrupted_update_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    expectations(folder, &["update", "--results", &run_in(folder, 1.0)]);
    let path = folder.join("h200_x2.json");
    let old = fs::read(&path).unwrap();
    let better = run_in(folder, 2.0);

    // The system ends a process that makes a file longer than this, here in the middle of it.
    let limited = |blocks: usize| {
        Command::new("bash")
            .arg("-c")
            .arg(format!("ulimit -c 0; ulimit -f {blocks}; exec \"$@\""))
            .args(["bash", env!("CARGO_BIN_EXE_host"), "expectations", "--folder"])
            .arg(folder)
            .args(["update", "--results", &better])
            .output()
            .expect("bash starts")
    };
    let output = limited(2);
    assert_eq!(output.status.code(), None, "ended by a signal: {}", text(&output));
    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(expectations(folder, &["show"]).0, Some(0), "what it left over does not matter");

    let output = limited(2000);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_ne!(fs::read(&path).unwrap(), old);
}

#[test]
fn bad_files_and_arguments_exit_with_2_and_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let good = run_in(folder, 1.0);
    fs::write(folder.join("h200_x2.json"), r#"{"schema": 7}"#).unwrap();
    for (arguments, problem) in [
        (&["check", "--results", &good][..], "h200_x2.json: schema 7"),
        (&["update", "--results", &good], "h200_x2.json: schema 7"),
        (&["check", "--results", "no/such.json"], "no/such.json: cannot be read"),
        (&["check", "--device", "cpu"], "hardware 'cpu'"),
        (&["check", "paged_attention", "--results", &good], "cannot be used with"),
        (&["update"], "--results"),
        (&["raise"], "raise"),
    ] {
        let (code, told) = expectations(folder, arguments);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains(problem), "{told}");
    }
}
