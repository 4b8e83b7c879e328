//! What rustc has no attribute for, added to its PTX: launch bounds and the alignment of tensor
//! maps.
//!
//! A kernel states its launch bounds in a comment that it leaves through `asm!`:
//!
//! ```text
//! // launch_bounds threads=256 min_blocks=2 cluster=0
//! ```
//!
//! where 0, or a key left out, means 'not given'. Its entry gets the directives
//! `.reqntid 256, 1, 1`, `.minnctapersm 2` and, with a cluster, `.reqnctapercluster`.
//!
//! A `CUtensorMap` parameter must be aligned to 64 bytes, but a by-value parameter aligned above
//! 16 crashes rustc. So kernels take it, or several, as a multiple of 128 bytes aligned to 16, and
//! such parameters are raised to 64 here. Their address is asked for under the name of an entry that
//! the source does not know yet, and gets it here:
//!
//! ```text
//! cvta.param.u64 %rd1, entry_param_2;        cvta.param.u64 %rd1, tiles_param_2;
//! ```

use std::fmt::Write;

const MARKER: &str = "// launch_bounds ";
const PARAMETER_ADDRESS: &str = "cvta.param.u64 ";
const PARAMETER_OF_ENTRY: &str = " entry_param_";
const TENSOR_MAP_BYTES: u32 = 128;
const ASM_BEGIN: &str = "// begin inline asm";
const ASM_END: &str = "// end inline asm";

/// PTX that cannot be post-processed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostProcessError {
    /// A marker that does not say `threads=…`, `min_blocks=…`, `cluster=…` in numbers.
    #[error("PTX line {line}: `{marker}` is not `launch_bounds threads=N min_blocks=N cluster=N`")]
    BadMarker {
        /// Counted from 1.
        line: usize,
        /// The comment.
        marker: String,
    },
    /// Two markers in one kernel disagree.
    #[error("kernel {kernel} states its launch bounds twice: {first:?}, then {second:?}")]
    Contradiction {
        /// The entry.
        kernel: String,
        /// The bounds in use until then.
        first: LaunchBounds,
        /// The bounds that differ.
        second: LaunchBounds,
    },
    /// Nothing but an entry has launch bounds and tensor maps; a function that was not inlined has
    /// none.
    #[error("PTX line {line}: launch bounds or a tensor map's address outside of a kernel")]
    OutsideKernel {
        /// Counted from 1.
        line: usize,
    },
    /// Clusters came with sm_90.
    #[error("kernel {kernel} asks for a cluster of {cluster} blocks, which {target} does not have")]
    NoClusters {
        /// The entry.
        kernel: String,
        /// Blocks in the cluster.
        cluster: u32,
        /// The module's target.
        target: String,
    },
}

/// Launch bounds as a kernel states them; 0 means 'not given'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchBounds {
    /// Threads of every block, all in x.
    pub threads: u32,
    /// Blocks that must fit on one multiprocessor at once, which bounds the registers.
    pub min_blocks: u32,
    /// Blocks of every cluster, all in x.
    pub cluster: u32,
}

impl LaunchBounds {
    fn parse(line: usize, marker: &str) -> Result<Self, PostProcessError> {
        let bad = || PostProcessError::BadMarker { line, marker: marker.to_owned() };
        let mut bounds = Self::default();
        for field in marker[MARKER.len()..].split_whitespace() {
            let (key, value) = field.split_once('=').ok_or_else(bad)?;
            let value = value.parse().map_err(|_| bad())?;
            match key {
                "threads" => bounds.threads = value,
                "min_blocks" => bounds.min_blocks = value,
                "cluster" => bounds.cluster = value,
                _ => return Err(bad()),
            }
        }
        Ok(bounds)
    }

    fn directives(self) -> String {
        let mut text = String::new();
        let mut add = |directive: &str, value: u32, rest: &str| {
            if value != 0 {
                writeln!(text, "{directive} {value}{rest}").expect("writing to a String");
            }
        };
        add(".reqntid", self.threads, ", 1, 1");
        add(".minnctapersm", self.min_blocks, "");
        add(".reqnctapercluster", self.cluster, "");
        text
    }
}

/// An entry being read: where its directives go, and what it stated so far.
struct Entry {
    name: String,
    body_at: Option<usize>,
    bounds: Option<LaunchBounds>,
}

/// Adds launch bounds and raises the alignment of tensor maps; all else stays as it is.
pub fn post_process(ptx: &str) -> Result<String, PostProcessError> {
    let mut output = String::with_capacity(ptx.len());
    let mut target = "";
    let mut entry: Option<Entry> = None;
    for (index, line) in ptx.lines().enumerate() {
        let text = line.trim();
        if let Some(name) = text.strip_prefix(".target ") {
            target = name;
        }
        if let Some(name) = entry_name(text) {
            entry = Some(Entry { name: name.to_owned(), body_at: None, bounds: None });
        }
        if text.starts_with(MARKER) {
            let bounds = LaunchBounds::parse(index + 1, text)?;
            entry
                .as_mut()
                .ok_or(PostProcessError::OutsideKernel { line: index + 1 })?
                .state(bounds, target)?;
            continue;
        }
        if text.starts_with(PARAMETER_ADDRESS) && text.contains(PARAMETER_OF_ENTRY) {
            let entry =
                entry.as_ref().ok_or(PostProcessError::OutsideKernel { line: index + 1 })?;
            output.push_str(&line.replace(PARAMETER_OF_ENTRY, &format!(" {}_param_", entry.name)));
            output.push('\n');
            continue;
        }
        if text == ASM_END && output.trim_end().ends_with(ASM_BEGIN) {
            // The block held nothing but markers.
            output.truncate(output.trim_end().len() - ASM_BEGIN.len());
            output.truncate(output.trim_end_matches([' ', '\t']).len());
            continue;
        }
        match entry.as_mut() {
            Some(entry) if line == "{" => entry.body_at = Some(output.len()),
            Some(entry) if entry.body_at.is_none() && is_tensor_map(text) => {
                output.push_str(&line.replace(".align 16 ", ".align 64 "));
                output.push('\n');
                continue;
            }
            _ => {}
        }
        output.push_str(line);
        output.push('\n');
        if line == "}"
            && let Some(Entry { body_at: Some(at), bounds: Some(bounds), .. }) = entry.take()
        {
            output.insert_str(at, &bounds.directives());
        }
    }
    Ok(output)
}

impl Entry {
    fn state(&mut self, bounds: LaunchBounds, target: &str) -> Result<(), PostProcessError> {
        if bounds.cluster != 0 && !target.starts_with("sm_9") && !target.starts_with("sm_1") {
            return Err(PostProcessError::NoClusters {
                kernel: self.name.clone(),
                cluster: bounds.cluster,
                target: target.to_owned(),
            });
        }
        match self.bounds.replace(bounds) {
            // The compiler may have duplicated the block that holds the marker.
            Some(first) if first != bounds => Err(PostProcessError::Contradiction {
                kernel: self.name.clone(),
                first,
                second: bounds,
            }),
            _ => Ok(()),
        }
    }
}

/// The name in a line that opens an entry: `.visible .entry name(`.
pub(crate) fn entry_name(line: &str) -> Option<&str> {
    let (_, name) = line.split_once(".entry ")?;
    Some(name.trim_end_matches(['(', ')', ' ']))
}

/// `.param .align 16 .b8 name[128]`, or a multiple of that, with or without a comma.
fn is_tensor_map(parameter: &str) -> bool {
    let Some(declared) = parameter.strip_prefix(".param .align 16 .b8 ") else { return false };
    let bytes = declared.trim_end_matches([',', ']']).split_once('[').map(|(_, bytes)| bytes);
    let bytes = bytes.and_then(|bytes| bytes.parse().ok());
    bytes.is_some_and(|bytes: u32| bytes > 0 && bytes.is_multiple_of(TENSOR_MAP_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(target: &str, marker: &str) -> String {
        format!(
            "\
.version 8.7
.target {target}
.visible .entry tiles(
\t.param .align 16 .b8 tiles_param_0[128],
\t.param .align 16 .b8 tiles_param_1[64],
\t.param .u64 .ptr .align 16 tiles_param_2
)
{{
\t.reg .b32 \t%r<2>;
\t// begin inline asm
\t{marker}
\t// end inline asm
\tret;

}}
"
        )
    }

    #[test]
    fn bounds_become_directives_and_the_marker_goes() {
        let ptx =
            post_process(&module("sm_90a", "// launch_bounds threads=256 min_blocks=1 cluster=2"));
        let expected = "\
.version 8.7
.target sm_90a
.visible .entry tiles(
\t.param .align 64 .b8 tiles_param_0[128],
\t.param .align 16 .b8 tiles_param_1[64],
\t.param .u64 .ptr .align 16 tiles_param_2
)
.reqntid 256, 1, 1
.minnctapersm 1
.reqnctapercluster 2
{
\t.reg .b32 \t%r<2>;
\tret;

}
";
        assert_eq!(ptx.unwrap(), expected);
    }

    #[test]
    fn several_maps_are_aligned_as_one_is() {
        let ptx = post_process(&module("sm_90a", "nop;").replace("[128]", "[384]")).unwrap();
        assert!(ptx.contains(".param .align 64 .b8 tiles_param_0[384],"), "{ptx}");
    }

    #[test]
    fn the_address_of_a_map_names_its_entry() {
        let asked = "cvta.param.u64 %rd1, entry_param_0;";
        let ptx = post_process(&module("sm_90a", asked)).unwrap();
        assert!(ptx.contains("cvta.param.u64 %rd1, tiles_param_0;"), "{ptx}");
        let outside = format!(".func helper()\n{{\n\t{asked}\n}}\n");
        let error = post_process(&outside).unwrap_err();
        assert_eq!(error, PostProcessError::OutsideKernel { line: 3 });
    }

    #[test]
    fn zero_and_absent_mean_not_given() {
        for marker in
            ["// launch_bounds threads=64 min_blocks=0 cluster=0", "// launch_bounds threads=64"]
        {
            let ptx = post_process(&module("sm_80", marker)).unwrap();
            assert!(ptx.contains(".reqntid 64, 1, 1\n{"), "{ptx}");
            assert!(!ptx.contains(".minnctapersm"), "{ptx}");
            assert!(!ptx.contains(".reqnctapercluster"), "{ptx}");
        }
    }

    #[test]
    fn asm_beside_the_marker_stays() {
        let ptx =
            post_process(&module("sm_80", "// launch_bounds threads=64\n\tmov.u32 %r1, %tid.x;"))
                .unwrap();
        let kept = "\t// begin inline asm\n\tmov.u32 %r1, %tid.x;\n\t// end inline asm\n";
        assert!(ptx.contains(kept), "{ptx}");
    }

    #[test]
    fn bounds_stay_with_their_own_kernel() {
        let without = module("sm_80", "nop;").replace("tiles", "plain");
        let both = without + &module("sm_80", "// launch_bounds threads=32");
        let ptx = post_process(&both).unwrap();
        assert_eq!(ptx.matches(".reqntid").count(), 1);
        assert!(ptx.find(".reqntid") > ptx.find("tiles_param_2"));
    }

    #[test]
    fn the_same_marker_twice_is_one() {
        let twice = "// launch_bounds threads=32\n\t// launch_bounds threads=32";
        let ptx = post_process(&module("sm_80", twice)).unwrap();
        assert_eq!(ptx.matches(".reqntid").count(), 1);
    }

    #[test]
    fn contradicting_markers_are_refused() {
        let twice = "// launch_bounds threads=32\n\t// launch_bounds threads=64";
        let error = post_process(&module("sm_80", twice)).unwrap_err();
        let expected = "kernel tiles states its launch bounds twice";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn unknown_keys_and_words_are_refused() {
        for marker in [
            "// launch_bounds warps=4",
            "// launch_bounds threads=many",
            "// launch_bounds threads",
        ] {
            let error = post_process(&module("sm_80", marker)).unwrap_err();
            assert!(matches!(error, PostProcessError::BadMarker { line: 11, .. }));
        }
    }

    #[test]
    fn a_cluster_needs_hopper() {
        let marker = "// launch_bounds threads=128 cluster=2";
        let error = post_process(&module("sm_80", marker)).unwrap_err();
        assert!(matches!(error, PostProcessError::NoClusters { cluster: 2, .. }));
        post_process(&module("sm_90a", marker)).unwrap();
    }

    #[test]
    fn a_marker_in_a_function_is_refused() {
        let ptx = ".func helper()\n{\n\t// launch_bounds threads=32\n}\n";
        let expected = PostProcessError::OutsideKernel { line: 3 };
        assert_eq!(post_process(ptx).unwrap_err(), expected);
    }
}
