//! What a profiler has to be asked for: Nsight Compute about a kernel, Nsight Systems about the
//! command that launches it.
//!
//! Profilers run in a pass of their own, after what was measured: under them times are not the
//! program's. Clocks are left alone, so that what they show is what users get.

mod kernels;
mod tool;

pub use kernels::{around, launching};
pub use tool::{Invocation, ProfileError, Tool};

use std::path::Path;

/// The kernels that a profile is about.
#[derive(Clone, Copy, Debug)]
pub enum Kernels<'a> {
    /// The one of this name.
    Named(&'a str),
    /// All of these rooms.
    OfRooms(&'a [&'static str]),
}

/// Nsight Compute on the first `num_launches` launches of some kernels by a command; its report is
/// `report` with `.ncu-rep`.
pub fn ncu(
    kernels: Kernels<'_>,
    num_launches: usize,
    report: &Path,
    command: &[String],
) -> Invocation {
    let kernels = match kernels {
        Kernels::Named(name) => name.to_owned(),
        Kernels::OfRooms(rooms) => format!("regex:^({})_", rooms.join("|")),
    };
    let num_launches = num_launches.to_string();
    let arguments = [
        "--clock-control",
        "none",
        "--set",
        "full",
        "--kernel-name",
        &kernels,
        "--launch-count",
        &num_launches,
        "--force-overwrite",
        "--export",
    ];
    Invocation::new(Tool::Ncu, &arguments, report, command)
}

/// Nsight Systems on a command; its report is `report` with `.nsys-rep`.
pub fn nsys(report: &Path, command: &[String]) -> Invocation {
    let arguments = [
        "profile",
        "--trace",
        "cuda,nvtx",
        "--cuda-graph-trace",
        "node",
        "--sample",
        "none",
        "--cpuctxsw",
        "none",
        "--force-overwrite",
        "true",
        "--output",
    ];
    Invocation::new(Tool::Nsys, &arguments, report, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Vec<String> {
        ["target/debug/host", "run", "a pair"].map(str::to_owned).to_vec()
    }

    #[test]
    fn commands_can_be_copied_into_a_shell() {
        let report = Path::new("out/paged_attention");
        let rooms = ["paged_attention", "kv_append"];
        insta::assert_snapshot!(
            [
                ncu(
                    Kernels::Named("paged_attention_decode_baseline_f16_d64"),
                    3,
                    report,
                    &command()
                ),
                ncu(Kernels::OfRooms(&rooms), 12, report, &command()),
                nsys(report, &command()),
            ]
            .map(|invocation| invocation.to_string())
            .join("\n")
        );
    }

    #[test]
    fn clocks_are_left_alone() {
        let text = ncu(Kernels::Named("k"), 1, Path::new("k"), &command()).to_string();
        assert!(text.contains("--clock-control none"), "{text}");
    }
}
