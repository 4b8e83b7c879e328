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
    /// Each whose name begins with this and a `_`.
    Beginning(&'a str),
    /// Each.
    All,
    /// All of these rooms, as they come.
    OfRooms(&'a [&'static str]),
}

impl Kernels<'_> {
    /// What Nsight Compute is told to look at: the first `num_launches` launches of all of them
    /// together, or of each.
    fn filter(self, num_launches: usize) -> Vec<String> {
        let together = |kernels: String| {
            let count = num_launches.to_string();
            vec!["--kernel-name".to_owned(), kernels, "--launch-count".to_owned(), count]
        };
        let each = |kernels: String| {
            let calls: Vec<String> = (1..=num_launches).map(|call| call.to_string()).collect();
            vec!["--kernel-id".to_owned(), format!("::{kernels}:{}", calls.join("|"))]
        };
        match self {
            Self::Named(name) => together(name.to_owned()),
            Self::OfRooms(rooms) => together(format!("regex:^({})_", rooms.join("|"))),
            Self::Beginning(begin) => each(format!("regex:^{begin}_")),
            Self::All => each(String::new()),
        }
    }
}

/// What Nsight Compute does again for each of its passes over a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The kernel alone, memory put back before it.
    Kernel,
    /// The same, each launch finished before the next one is issued: for kernels that find what they
    /// wait for where those before them have ended.
    KernelAfterKernel,
    /// The whole command, looking at the first GPU and at few counters, as each pass
    /// starts the command anew: for kernels that wait for others that run at the same time.
    Command,
}

/// What is counted where every pass is dear: how long, how many bytes and instructions, how many
/// warps were there.
const FEW_COUNTERS: &str = "gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,\
                            sm__inst_executed.sum,sm__cycles_active.avg,sm__cycles_active.max,\
                            sm__warps_active.avg.per_cycle_active";

/// Nsight Compute on the first `num_launches` launches of some kernels by a command; its report is
/// `report` with `.ncu-rep`.
pub fn ncu(
    kernels: Kernels<'_>,
    num_launches: usize,
    replay: Replay,
    report: &Path,
    command: &[String],
) -> Invocation {
    let filter = kernels.filter(num_launches);
    let mut arguments = vec!["--clock-control", "none"];
    match replay {
        Replay::Kernel | Replay::KernelAfterKernel => arguments.extend(["--set", "full"]),
        Replay::Command => {
            arguments.extend(["--section", "LaunchStats", "--metrics", FEW_COUNTERS]);
            arguments.extend(["--replay-mode", "application", "--devices", "0"]);
        }
    }
    arguments.extend(filter.iter().map(String::as_str));
    arguments.extend(["--force-overwrite", "--export"]);
    let invocation = Invocation::new(Tool::Ncu, &arguments, report, command);
    match replay {
        Replay::KernelAfterKernel => invocation.one_by_one(),
        Replay::Kernel | Replay::Command => invocation,
    }
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
                    Replay::Kernel,
                    report,
                    &command()
                ),
                ncu(Kernels::OfRooms(&rooms), 12, Replay::Kernel, report, &command()),
                ncu(
                    Kernels::Beginning("far_decode"),
                    2,
                    Replay::KernelAfterKernel,
                    report,
                    &command()
                ),
                ncu(Kernels::Named("combine_push_bulk"), 1, Replay::Command, report, &command()),
                ncu(Kernels::All, 1, Replay::Kernel, report, &command()),
                nsys(report, &command()),
            ]
            .map(|invocation| invocation.to_string())
            .join("\n")
        );
    }

    #[test]
    fn clocks_are_left_alone() {
        for replay in [Replay::Kernel, Replay::KernelAfterKernel, Replay::Command] {
            let text = ncu(Kernels::Named("k"), 1, replay, Path::new("k"), &command()).to_string();
            assert!(text.contains("--clock-control none"), "{text}");
        }
    }
}
