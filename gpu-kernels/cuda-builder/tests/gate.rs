//! The gate on crafted modules and crafted ptxas output: it must be able to fail.

use cuda_builder::gate::{check_assembly, check_text};
use cuda_builder::inspect::inspect;
use cuda_builder::ptxas::{Ptxas, Report};

const PTX: &str = r#"
.version 8.7
.target sm_90a
.address_size 64

.extern .shared .align 16 .b8 dynamic[];
	// .globl	reduce_rows_f32_warp

.visible .entry reduce_rows_f32_warp(
	.param .u64 .ptr .align 1 reduce_rows_f32_warp_param_0,
	.param .align 64 .b8 reduce_rows_f32_warp_param_1[128],
	.param .f32 reduce_rows_f32_warp_param_2
)
.reqntid 256, 1, 1
.minnctapersm 2
{
	.reg .pred 	%p<2>;
$L__func_begin0:
	shfl.sync.bfly.b32 	%r1, %r2, 16, 31, -1; // bar.sync in a comment is none
	// begin inline asm
	{ .reg .pred q; setp.ne.u32 q, %r1, 0; @q shfl.sync.bfly.b32 %r3, %r1, 8, 31, -1; }
	// end inline asm
	@%p1 bra 	$L__BB0_2;
	barrier.sync 	0;
$L__BB0_2: bar.warp.sync 	-1;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};
	ret;

}

.func  (.param .b32 func_retval0) helper(
	.param .b32 helper_param_0
)
{
	bar.sync 	1;
	ret;
}
"#;

const PTXAS_OUTPUT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'clean' for 'sm_90a'
ptxas info    : Function properties for clean
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 4096 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 1.719 ms
";

#[test]
fn module_is_read_in_full() {
    insta::assert_snapshot!(inspect(PTX), @"
    target sm_90a

    function helper(b32)
        bar.sync 1

    kernel reduce_rows_f32_warp(u64 ptr, b8[128] align 64, f32)
        .reqntid 256, 1, 1 .minnctapersm 2
        bar.sync 1, bar.warp.sync 1, mma.sync 1, shfl.sync 2
    ");
}

#[test]
fn a_lost_or_doubled_barrier_changes_the_snapshot() {
    let barrier = "\tbarrier.sync \t0;\n";
    let whole = inspect(PTX).to_string();
    assert_ne!(inspect(&PTX.replace(barrier, "")).to_string(), whole);
    assert_ne!(inspect(&PTX.replace(barrier, &barrier.repeat(2))).to_string(), whole);
}

#[test]
fn dynamic_shared_memory_is_the_only_extern_allowed() {
    assert_eq!(check_text(&inspect(PTX)), [""; 0]);
    let calling =
        format!("{PTX}\n.extern .func  (.param .b64 r) memcpy\n(\n\t.param .b64 p\n)\n;\n");
    let expected = "sm_90a: `.extern .func  (.param .b64 r) memcpy` is defined nowhere";
    assert_eq!(check_text(&inspect(&calling)), [expected]);
}

#[test]
fn a_clean_report_passes() {
    let report = Report::parse(PTXAS_OUTPUT);
    assert_eq!(check_assembly(&report), [""; 0]);
    let usage = &report.functions[0];
    assert_eq!((usage.registers, usage.shared_bytes), (168, 4096));
}

#[test]
fn stack_and_spills_are_violations() {
    let zero = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    let some = "336 bytes stack frame, 24 bytes spill stores, 48 bytes spill loads";
    let report = Report::parse(&PTXAS_OUTPUT.replace(zero, some));
    let expected = [
        "clean: 336 bytes of stack",
        "clean: 24 bytes spilled",
        "clean: 48 bytes of spilled registers read back",
    ];
    assert_eq!(check_assembly(&report), expected);
}

#[test]
fn complaints_are_violations() {
    for complaint in [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to \
         determine register count at entry.",
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are \
         serialized due to function call in the function 'clean'",
        "ptxas warning : Unresolved extern variable 'x' in whole program compilation",
    ] {
        let report = Report::parse(&format!("{complaint}\n{PTXAS_OUTPUT}"));
        assert_eq!(check_assembly(&report), [complaint]);
    }
}

#[test]
fn the_assembler_itself_reports_stack_and_errors() {
    let Ok(ptxas) = Ptxas::find(None) else {
        eprintln!("not tested: no ptxas");
        return;
    };
    let module = |body: &str| {
        format!(
            ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n\
             {{\n.reg .b64 %rd<4>; .reg .b32 %r<2>; .local .b32 cells[64];\n{body}\nret;\n}}\n"
        )
    };
    let indexed = "mov.u32 %r0, %tid.x; cvt.u64.u32 %rd0, %r0; mov.u64 %rd1, cells;\n\
                   add.u64 %rd1, %rd1, %rd0; st.local.u32 [%rd1], %r0;\n\
                   ld.local.u32 %r1, [%rd1+64]; ld.param.u64 %rd2, [p]; st.u32 [%rd2], %r1;";
    let report = ptxas.assemble(&module(indexed), "sm_90a").unwrap().unwrap();
    assert_eq!(check_assembly(&report), ["k: 256 bytes of stack"]);
    let error = ptxas.assemble(&module("nonsense;"), "sm_90a").unwrap().unwrap_err();
    assert!(error.contains("error"), "{error}");
}
