//! The command as its users run it: first line and exit code.

use std::process::{Command, Output};

fn host(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host")).args(arguments).output().expect("the command starts")
}

#[test]
fn doctor_says_first_which_device_and_why() {
    let output = host(&["doctor", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("device: CPU, ") && first.ends_with("(asked for)"), "{first}");
    for line in ["driver", "NCCL", "kernels", "what follows:"] {
        assert!(text.lines().any(|found| found.starts_with(line)), "no {line} in\n{text}");
    }
}

#[test]
fn bad_arguments_exit_with_2() {
    for arguments in [&[][..], &["no-such-command"], &["doctor", "--device", "tpu"]] {
        assert_eq!(host(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
