//! The kernels that `build.rs` embedded, and which of them a GPU gets.
//!
//! `FARPAGE_PTX_ARCH=sm_80`, when a command runs, takes the portable kernels on any GPU: that is
//! how they are tested on Hopper.

use std::collections::{BTreeMap, BTreeSet};

use super::{DeviceError, Result};

/// What to do about a build without GPU kernels.
pub const HOW_TO_EMBED: &str =
    "get the sources of `core` (`rustup component add rust-src`) and build again";

const OVERRIDE: &str = "FARPAGE_PTX_ARCH";

const PORTABLE: &str = "sm_80";
const HOPPER: &str = "sm_90a";

/// Architecture and text of each embedded module.
static EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// A module of embedded kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtxModule {
    /// `sm_80`, which the driver compiles for whatever the GPU is, or `sm_90a`.
    pub arch: &'static str,
    pub(super) text: &'static str,
}

impl PtxModule {
    #[cfg(test)]
    pub(crate) fn named(arch: &'static str) -> Self {
        Self { arch, text: "" }
    }

    /// Whether it holds the kernels that only Hopper can run.
    pub fn is_hopper(self) -> bool {
        self.arch == HOPPER
    }

    /// The module's kernels, each to be had by itself.
    pub(super) fn take_apart(self) -> SeparateKernels {
        let mut shared = String::new();
        let mut entries = BTreeMap::new();
        // None between kernels, in what they share.
        let mut inside: Option<(&'static str, usize)> = None;
        let mut position = 0;
        for line in self.text.split_inclusive('\n') {
            inside = inside.or_else(|| entry_name(line).map(|name| (name, position)));
            position += line.len();
            match inside {
                None => shared.push_str(line),
                Some((name, start)) if line == "}\n" => {
                    entries.insert(name, &self.text[start..position]);
                    inside = None;
                }
                Some(_) => (),
            }
        }
        SeparateKernels { shared, entries }
    }
}

/// The kernels of a module, and what they share.
pub(super) struct SeparateKernels {
    shared: String,
    entries: BTreeMap<&'static str, &'static str>,
}

impl SeparateKernels {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.keys().copied()
    }

    /// A module that holds this kernel alone.
    pub(super) fn module(&self, kernel: &str) -> Option<String> {
        self.entries.get(kernel).map(|entry| format!("{}{entry}", self.shared))
    }
}

/// The architectures embedded in this build; none: it has no GPU kernels.
pub fn embedded_archs() -> Vec<&'static str> {
    EMBEDDED.iter().map(|(arch, _)| *arch).collect()
}

/// The names of all embedded kernels, in order: those that profilers show.
pub fn kernel_names() -> Vec<&'static str> {
    let names: BTreeSet<&str> = EMBEDDED.iter().flat_map(|(_, text)| entries(text)).collect();
    names.into_iter().collect()
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(entry_name)
}

/// The kernel whose entry begins on this line.
fn entry_name(line: &str) -> Option<&str> {
    line.strip_prefix(".visible .entry ")?.split('(').next()
}

/// The module that a GPU of this compute capability gets.
pub fn module_for(compute_capability: (u32, u32)) -> Result<PtxModule> {
    let asked = std::env::var(OVERRIDE).ok();
    choose(EMBEDDED, compute_capability, asked.as_deref())
}

/// `sm_90a` code runs on compute capability 9.0 and on nothing else, later ones included.
fn choose(
    embedded: &'static [(&'static str, &'static str)],
    compute_capability: (u32, u32),
    asked: Option<&str>,
) -> Result<PtxModule> {
    if embedded.is_empty() {
        return Err(DeviceError::NoPtx);
    }
    let best = if compute_capability == (9, 0) { HOPPER } else { PORTABLE };
    let find = |arch: &str| {
        let found = embedded.iter().find(|(of, _)| *of == arch);
        found.map(|&(arch, text)| PtxModule { arch, text })
    };
    let found = match asked {
        Some(arch) => find(arch),
        None => find(best).or_else(|| find(PORTABLE)),
    };
    found.ok_or_else(|| DeviceError::NoSuchPtx {
        asked: asked.unwrap_or(best).to_owned(),
        embedded: embedded.iter().map(|(arch, _)| *arch).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOTH: &[(&str, &str)] = &[("sm_80", "portable"), ("sm_90a", "hopper")];

    #[test]
    fn entries_are_named_once_each_and_nothing_else_is() {
        let text = "// .entry no(\n.visible .entry first(\n\t.param .u64 a\n)\n.func f()\n\
                    .visible .entry second()\n";
        assert_eq!(entries(text).collect::<Vec<_>>(), ["first", "second"]);
        assert_eq!(kernel_names().is_empty(), embedded_archs().is_empty());
    }

    #[test]
    fn a_kernel_comes_with_what_is_shared_and_without_the_others() {
        let text = ".version 8.7\n\
                    .visible .entry first(\n\t.param .u64 a\n)\n{\n\tret;\n}\n\
                    .visible .entry second()\n{\n\t{ add; }\n\tret;\n}\n\
                    \t.file 1 \"a.rs\"\n";
        let kernels = PtxModule { arch: "sm_80", text }.take_apart();
        assert_eq!(
            kernels.module("second").unwrap(),
            ".version 8.7\n\t.file 1 \"a.rs\"\n\
             .visible .entry second()\n{\n\t{ add; }\n\tret;\n}\n"
        );
        assert_eq!(kernels.module("sec"), None);
        for &(arch, text) in EMBEDDED {
            let kernels = PtxModule { arch, text }.take_apart();
            assert!(kernels.names().eq(entries(text)), "in order, and none is lost");
            for name in kernels.names() {
                let alone = kernels.module(name).expect("the name is of this module");
                assert!(entries(&alone).eq([name]), "{name}");
            }
        }
    }

    #[test]
    fn only_compute_capability_9_0_gets_the_hopper_module() {
        for (compute_capability, arch) in
            [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_80")]
        {
            assert_eq!(choose(BOTH, compute_capability, None).unwrap().arch, arch);
        }
    }

    #[test]
    fn the_override_runs_the_portable_module_on_hopper() {
        let module = choose(BOTH, (9, 0), Some("sm_80")).unwrap();
        assert_eq!((module.arch, module.text), ("sm_80", "portable"));
    }

    #[test]
    fn an_override_that_is_not_embedded_is_refused() {
        let error = choose(BOTH, (9, 0), Some("sm_75")).unwrap_err().to_string();
        assert_eq!(error, "FARPAGE_PTX_ARCH=sm_75: this build embeds sm_80, sm_90a");
    }

    #[test]
    fn a_build_without_ptx_says_how_to_get_it() {
        let error = choose(&[], (9, 0), None).unwrap_err().to_string();
        assert!(error.contains("rustup component add rust-src"), "{error}");
    }
}
