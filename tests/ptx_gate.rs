//! The PTX gate: what `build.rs` embedded must be what was reviewed, and must assemble without
//! stack, spills or complaints.
//!
//! The snapshots list each kernel with its parameters, launch bounds, and its number of barriers,
//! shuffles and other collective instructions; a compiler pass that copies or drops one changes
//! them. Assembling needs ptxas, which `.ci/run` installs. `FARPAGE_REQUIRE_PTXAS=1` makes a build
//! without PTX, or a machine without ptxas, a failure.

use std::path::Path;

use cuda_builder::gate::{check_assembly, check_text};
use cuda_builder::inspect::inspect;
use cuda_builder::ptxas::Ptxas;

const MODULES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

fn not_checked(why: &str) {
    let required = std::env::var("FARPAGE_REQUIRE_PTXAS").is_ok_and(|value| value == "1");
    assert!(!required, "FARPAGE_REQUIRE_PTXAS=1, but {why}");
    eprintln!("not checked: {why}");
}

#[test]
fn kernels_are_the_reviewed_ones() {
    if MODULES.is_empty() {
        return not_checked("this build holds no PTX");
    }
    for (arch, ptx) in MODULES {
        let module = inspect(ptx);
        assert_eq!(check_text(&module), [""; 0]);
        insta::assert_snapshot!(*arch, module);
    }
}

#[test]
fn kernels_assemble_without_stack_spills_or_complaints() {
    if MODULES.is_empty() {
        return not_checked("this build holds no PTX");
    }
    // Where `.ci/run` installs ptxas: `<target>/ptxas`.
    let python_env = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("ptxas");
    let ptxas = match Ptxas::find(Some(&python_env)) {
        Ok(ptxas) => ptxas,
        Err(error) => return not_checked(&error.to_string()),
    };
    for (arch, ptx) in MODULES {
        let report = ptxas
            .assemble(ptx, arch)
            .expect("ptxas starts")
            .unwrap_or_else(|errors| panic!("{arch} does not assemble:\n{errors}"));
        println!("{arch}, {ptxas}:\n{report}");
        assert_eq!(check_assembly(&report), [""; 0], "{arch}");
    }
}
