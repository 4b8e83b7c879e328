//! What PTX must hold to before it goes to a GPU. Each function lists the violations; none is well.

use crate::inspect::Module;
use crate::ptxas::Report;

/// Violations that the text shows: anything `.extern` but dynamic shared memory. Such a name is
/// a call into a library that no GPU has, often `memcpy` or formatting code of `core`.
pub fn check_text(module: &Module) -> Vec<String> {
    let unexpected = |line: &&String| !line.starts_with(".extern .shared");
    module
        .externs
        .iter()
        .filter(unexpected)
        .map(|line| format!("{}: `{line}` is defined nowhere", module.target))
        .collect()
}

/// Violations that assembling shows: stack, spilled registers, and any complaint of ptxas, among
/// them serialized `wgmma` (C7510) and an ignored `setmaxnreg` (C7508).
pub fn check_assembly(report: &Report) -> Vec<String> {
    let mut violations = report.complaints.clone();
    for usage in &report.functions {
        for (bytes, what) in [
            (usage.stack_bytes, "of stack"),
            (usage.spill_store_bytes, "spilled"),
            (usage.spill_load_bytes, "of spilled registers read back"),
        ] {
            if bytes != 0 {
                violations.push(format!("{}: {bytes} bytes {what}", usage.name));
            }
        }
    }
    violations
}
