//! `host far-grid`, as its users run it, on the CPU.

use std::process::{Command, Output};

fn far_grid(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
    let Output { status, stdout, stderr } =
        command.args(["--device", "cpu", "far-grid"]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn every_way_is_checked_and_measured() {
    let arguments = ["--batches", "2x40,1x70", "--far", "0,50", "--heads", "8x1", "--check"];
    let (code, text, said) = far_grid(&arguments);
    assert_eq!(code, Some(0), "{text}{said}");
    let rows: Vec<&str> = text.lines().filter(|line| line.contains(" % |")).collect();
    assert_eq!(rows.len(), 4, "{text}");
    for (row, start) in rows.iter().zip(["| 2 x 40 | 0 %", "| 2 x 40 | 50 %", "| 1 x 70 | 0 %"]) {
        assert!(row.starts_with(start), "{row}");
    }
    assert!(text.contains("costs: near 4400 GB/s"), "{text}");
    // What the model says of GPUs stands beside no time of a CPU.
    assert!(!rows.concat().contains("(+") && !rows.concat().contains("(-"), "{text}");
}

#[test]
fn bad_arguments_are_refused_in_words() {
    let (code, _, said) = far_grid(&["--far", "120"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("'120' for '--far") && said.contains("0 to 100"), "{said}");
    let (code, _, said) = far_grid(&["--batches", "16"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("must be two numbers above 0, such as 16x4096"), "{said}");
}
