//! Kernels by name, and what launches them.

use crate::harness::Registry;
use crate::harness::near::{meant, near};

/// A name that no kernel of this build has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`KERNEL` must be one of the {num_kernels} kernels of this build, got `{got}`{}", meant(.near))]
pub struct UnknownKernel {
    /// What was asked for.
    pub got: String,
    /// Names like it, the likest first.
    pub near: Vec<&'static str>,
    /// How many there are.
    pub num_kernels: usize,
}

/// The kernel called `got` among those of [`kernel_names`](crate::device::ptx::kernel_names).
///
/// # Errors
/// A name that is none's.
pub fn find_kernel(got: &str, names: &[&'static str]) -> Result<&'static str, UnknownKernel> {
    names.iter().find(|name| **name == got).copied().ok_or_else(|| UnknownKernel {
        got: got.to_owned(),
        near: near(got, names.iter().copied()),
        num_kernels: names.len(),
    })
}

/// Commands other than those of pairs, and the rooms whose kernels they launch. A budget would fail:
/// latencies under a profiler mean nothing.
const COMMANDS: [(&[&str], &[&str]); 2] = [
    (&["ceilings"], &["memory_read", "memory_write", "tensor_peak", "kv_page_copy"]),
    (&["kv-validate", "--budget-us", "1e9"], &["kv_append", "kv_page_pattern"]),
];

/// Arguments of the command that launches a kernel: `run` of the first pair that has its room, or
/// another one; none if no command does.
pub fn launcher(kernel: &str, registry: &Registry) -> Option<Vec<String>> {
    let has_room = |rooms: &[&str]| {
        let of_kernel =
            |room: &&str| kernel.strip_prefix(room).is_some_and(|variant| variant.starts_with('_'));
        rooms.iter().any(of_kernel)
    };
    if let Some(pair) = registry.pairs().iter().find(|pair| has_room(&pair.rooms())) {
        let arguments = ["run", pair.name(), "--iterations", "3", "--warmup", "0"];
        return Some(arguments.map(str::to_owned).to_vec());
    }
    let (command, _) = COMMANDS.iter().find(|(_, rooms)| has_room(rooms))?;
    Some(command.iter().map(|&argument| argument.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ptx::kernel_names;
    use crate::harness::registry;

    const NAMES: [&str; 3] = [
        "memory_read_16",
        "paged_attention_decode_split_bf16_d128_g8",
        "paged_attention_decode_baseline_f16_d64",
    ];

    #[test]
    fn an_unknown_kernel_is_refused_with_the_near_names() {
        assert_eq!(find_kernel("memory_read_16", &NAMES), Ok("memory_read_16"));
        assert_eq!(
            find_kernel("memory_reed_16", &NAMES).unwrap_err().to_string(),
            "`KERNEL` must be one of the 3 kernels of this build, got `memory_reed_16`; did you \
             mean `memory_read_16`?"
        );
        assert!(find_kernel("zzz", &NAMES).unwrap_err().near.is_empty());
    }

    #[test]
    fn a_kernel_is_launched_by_the_pair_of_its_room_or_by_another_command() {
        let command = |kernel| launcher(kernel, &registry()).map(|arguments| arguments.join(" "));
        let run = "run paged_attention --iterations 3 --warmup 0";
        assert_eq!(command(NAMES[1]).as_deref(), Some(run));
        assert_eq!(command("memory_read_16").as_deref(), Some("ceilings"));
        let validate = "kv-validate --budget-us 1e9";
        assert_eq!(command("kv_append_tokens_bf16").as_deref(), Some(validate));
        assert_eq!(command("memory_reader_16"), None);
    }

    #[test]
    fn every_embedded_kernel_has_a_command() {
        for kernel in kernel_names() {
            assert!(launcher(kernel, &registry()).is_some(), "nothing launches {kernel}");
        }
    }
}
