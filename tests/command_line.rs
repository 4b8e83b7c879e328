//! The command as its users run it: first line, exit code, and what it says of bad input.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
    // Who has this set must not see one either where only an argument is wrong.
    command.args(arguments).env("RUST_BACKTRACE", "1");
    command
}

fn host(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

/// Standard error of a command that could not run as asked.
fn refusal(arguments: &[&str]) -> String {
    let output = host(arguments);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
    assert!(told.starts_with("error: "), "{arguments:?}: {told}");
    assert!(!told.contains("panicked") && !told.contains("backtrace"), "{arguments:?}: {told}");
    told
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

#[test]
fn misspelled_names_are_answered_with_near_ones() {
    for (arguments, near) in [
        (&["list", "moe_topkk"][..], "`moe_topk`"),
        (&["run", "paged-attention"], "`paged_attention`"),
        (&["launch", "gemmm"], "gemm_"),
        (&["generat"], "'generate'"),
        (&["compare", "--shape", "tiny"], "'--shapes'"),
        (&["compare", "--shapes", "tny"], "'tiny'"),
        (&["generate", "--shape", "tinny", "--prompt", "x"], "tiny, qwen1.5-moe-a2.7b, llama-8b"),
    ] {
        let told = refusal(arguments);
        assert!(told.contains(near), "{arguments:?}: {told}");
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_the_name_of_their_option() {
    let simulated = |arguments: &[&'static str]| [&["serve", "--simulated"], arguments].concat();
    let tiny = |arguments: &[&'static str]| {
        [&["generate", "--shape", "tiny", "--prompt", "x"], arguments].concat()
    };
    for (arguments, named, needed) in [
        (tiny(&["--max-tokens", "-3"]), "--max-tokens", "1 to 2147483648"),
        (tiny(&["--max-tokens", "9999"]), "--max-tokens", "at most 512 tokens"),
        (tiny(&["--temperature", "-1"]), "temperature", "0 or a positive number"),
        (tiny(&["--kv-tier", "host", "--kv-far", "101"]), "--kv-far", "0 to 100"),
        (simulated(&["--slots", "-1"]), "--slots", "1 to 65536"),
        (simulated(&["--requests", "18446744073709551615"]), "--requests", "1 to 1000000"),
        (simulated(&["--requests", "9999", "--prompts", "1x1048576"]), "--requests", "4294967296"),
        (simulated(&["--pages", "18446744073709551615"]), "--pages", "1 to 1048576"),
        (simulated(&["--shared", "99999999999999"]), "--shared", "0 to 1048576"),
        (simulated(&["--prompts", "9x99999999999"]), "--prompts", "up to 1048576"),
        (simulated(&["--rate", "inf"]), "--rate", "a number above 0"),
        (simulated(&["--ttft-ms", "NaN"]), "--ttft-ms", "a number above 0"),
        (simulated(&["--tpot-ms", "-5"]), "--tpot-ms", "a number above 0"),
        (simulated(&["--world-size", "100000"]), "--world-size", "1 to 64"),
        (simulated(&["--simulate-network", "1e-300x1e300"]), "--simulate-network", "GB/s from"),
        (vec!["run", "--world-size", "99999999999999999999"], "--world-size", "1 to 64"),
        (vec!["run", "--iterations", "abc"], "--iterations", "1 to 4294967295"),
        (vec!["launch", "moe_topk", "--times", "0"], "--times", "1 to 1000000"),
        (vec!["profile", "moe_topk", "--launches", "0"], "--launches", "1 to 1000"),
        (vec!["far-grid", "--far", "-1"], "--far", "0 to 100"),
        (vec!["far-grid", "--batches", "999999999x999999999"], "--batches", "at most 268435456"),
    ] {
        let told = refusal(&arguments);
        assert!(told.contains(named) && told.contains(needed), "{arguments:?}: {told}");
    }
}

#[test]
fn what_would_be_left_unheard_is_refused() {
    for (arguments, needed) in [
        (&["serve", "--simulated", "--roles", "monolithic"][..], "--world-size"),
        (&["serve", "--simulated", "--simulate-network", "10x20"], "--world-size"),
        (&["serve", "--simulated", "--speed", "2"], "--trace"),
        (&["serve", "--simulated", "--trace", "x", "--rate", "2"], "--rate"),
        (&["generate", "--shape", "tiny", "--prompt", "x", "--kv-far", "50"], "--kv-tier"),
        (&["generate", "--prompt", "x"], "<--model <DIR>|--shape <SHAPE>>"),
    ] {
        let told = refusal(arguments);
        assert!(told.contains(needed), "{arguments:?}: {told}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_missed_by_every_command() {
    if Path::new("/dev/nvidia0").exists() {
        return;
    }
    for arguments in [
        &["list"][..],
        &["ceilings"],
        &["kv-validate"],
        &["run", "moe_topk"],
        &["launch", "moe_topk"],
        &["generate", "--shape", "tiny", "--prompt", "x"],
        &["serve", "--shape", "tiny"],
    ] {
        let told = refusal(&[arguments, &["--device", "cuda"]].concat());
        assert!(told.contains("a GPU was asked for") && told.contains("`--device cpu`"), "{told}");
    }
}

#[test]
fn broken_folders_of_models_are_told_by_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path();
    let from = Path::new("tests/checkpoints/llama");
    let whole = || {
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(from.join(file), model.join(file)).unwrap();
        }
    };
    let told = || refusal(&["generate", "--prompt", "x", "--model", model.to_str().unwrap()]);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        whole();
        fs::remove_file(model.join(file)).unwrap();
        let told = told();
        assert!(told.contains(file), "{told}");
        assert_eq!(told.matches("No such file or directory").count(), 1, "told twice: {told}");
    }
    whole();
    let weights = File::options().write(true).open(model.join("model.safetensors")).unwrap();
    weights.set_len(20_000).unwrap();
    let told_of_weights = told();
    assert!(told_of_weights.contains("a file that ends at"), "{told_of_weights}");
    whole();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let layers = config.lines().find(|line| line.contains("\"num_hidden_layers\"")).unwrap();
    let config = config.replace(layers, "\"num_hidden_layers\": 4000000000,");
    fs::write(model.join("config.json"), config).unwrap();
    let told = told();
    assert!(told.contains("num_hidden_layers: needs at most 1024, got 4000000000"), "{told}");
}

#[test]
fn output_that_nobody_reads_is_no_panic() {
    let mut child = command(&["list", "all"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn output_that_cannot_be_written_is_told() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command(&["list", "all"]).stdout(full).output().expect("the command starts");
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error: standard output cannot be written: No space left"), "{told}");
}

#[test]
fn folders_that_cannot_be_written_are_told_before_anything_is_measured() {
    for option in ["--out", "--json"] {
        let told = refusal(&["run", "moe_topk", option, "/dev/null/runs"]);
        assert!(told.contains("/dev/null/") && told.contains("cannot be written"), "{told}");
        assert_eq!(told.matches("Not a directory").count(), 1, "told twice: {told}");
    }
}
