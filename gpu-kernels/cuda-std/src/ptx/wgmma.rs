use core::arch::asm;

use bytemuck::AnyBitPattern;

use crate::float::{E4m3, HalfFloat};
use crate::wgmma::{OperandA, OperandB, SwizzledTile, TransposedTile};

unsafe extern "C" {
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn setmaxnreg_dec(registers: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn setmaxnreg_inc(registers: u32);
}

#[inline(always)]
pub unsafe fn give_registers<const REGISTERS: u32>() {
    setmaxnreg_dec(REGISTERS);
}

#[inline(always)]
pub unsafe fn take_registers<const REGISTERS: u32>() {
    setmaxnreg_inc(REGISTERS);
}

/// The matrix descriptor of a tile in the 128-byte swizzle: eight rows are 1024 bytes after the
/// eight before them. The other stride counts for transposed tiles only: from panel to panel.
#[inline(always)]
unsafe fn descriptor<T: AnyBitPattern>(tile: SwizzledTile<T>, panel_bytes: u32) -> u64 {
    const SWIZZLE_128: u64 = 1 << 62;
    const STRIDE_OF_8_ROWS: u64 = (1024 >> 4) << 32;
    let base = panel_bytes << 12 | tile.base.raw.address() >> 4;
    SWIZZLE_128 | STRIDE_OF_8_ROWS | (base + (tile.start_byte() >> 4) as u32) as u64
}

/// The other stride, where it does not count.
const UNUSED_STRIDE: u32 = 16;

/// A as the instruction has it: a descriptor, or registers.
#[derive(Clone, Copy)]
enum A<'a> {
    Descriptor(u64),
    Registers(&'a [u32; 4]),
}

/// Calls `$then` with a number of registers, their numbers, and the rest.
macro_rules! with_registers {
    (8, $then:ident, $($rest:tt)*) => {
        $then! { 8 [
            0 1 2 3 4 5 6 7
        ] $($rest)* }
    };
    (16, $then:ident, $($rest:tt)*) => {
        $then! { 16 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        ] $($rest)* }
    };
    (24, $then:ident, $($rest:tt)*) => {
        $then! { 24 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
        ] $($rest)* }
    };
    (32, $then:ident, $($rest:tt)*) => {
        $then! { 32 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31
        ] $($rest)* }
    };
    (40, $then:ident, $($rest:tt)*) => {
        $then! { 40 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31 32 33 34 35 36 37 38 39
        ] $($rest)* }
    };
    (48, $then:ident, $($rest:tt)*) => {
        $then! { 48 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
        ] $($rest)* }
    };
    (56, $then:ident, $($rest:tt)*) => {
        $then! { 56 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55
        ] $($rest)* }
    };
    (64, $then:ident, $($rest:tt)*) => {
        $then! { 64 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58
            59 60 61 62 63
        ] $($rest)* }
    };
    (128, $then:ident, $($rest:tt)*) => {
        $then! { 128 [
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30
            31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58
            59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86
            87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109 110
            111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127
        ] $($rest)* }
    };
}

/// An instruction that touches an accumulator which it does not name: as a comment it does, so
/// that nothing which uses the registers moves across.
macro_rules! around_accumulator {
    ($registers:literal [$first:tt $($i:tt)*] $name:ident, $instruction:literal $(, $groups:ident)?) => {
        #[inline(always)]
        unsafe fn $name $(<const $groups: u32>)? (d: &mut [f32; $registers]) {
            asm!(
                concat!($instruction, "; // {0}" $(, " {", stringify!($i), "}")*),
                inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                $(groups = const $groups,)?
                options(nostack, preserves_flags),
            );
        }
    };
}

/// The multiplications of a shape and type; `TRANSPOSED` is 1 for B by columns.
macro_rules! multiplication {
    ($registers:literal [$first:tt $($i:tt)*] $name:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $name<const TRANSPOSED: u32>(
            d: &mut [f32; $registers],
            a: A<'_>,
            b: u64,
            accumulate: bool,
        ) {
            match a {
                A::Descriptor(a) => asm!(
                    "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0;",
                    concat!(
                        "wgmma.mma_async.sync.aligned.", $instruction,
                        " {{{0}" $(, ", {", stringify!($i), "}")*,
                        "}}, {a}, {b}, p, 1, 1, 0, {transposed}; }}",
                    ),
                    inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                    a = in(reg64) a, b = in(reg64) b, accumulate = in(reg32) accumulate as u32,
                    transposed = const TRANSPOSED,
                    options(nostack, preserves_flags),
                ),
                A::Registers(a) => asm!(
                    "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0;",
                    concat!(
                        "wgmma.mma_async.sync.aligned.", $instruction,
                        " {{{0}" $(, ", {", stringify!($i), "}")*,
                        "}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, p, 1, 1, {transposed}; }}",
                    ),
                    inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1],
                    a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b = in(reg64) b, accumulate = in(reg32) accumulate as u32,
                    transposed = const TRANSPOSED,
                    options(nostack, preserves_flags),
                ),
            }
        }
    };
}

/// The multiplications of a shape of e4m3, whose operands are rows of K in shared memory.
macro_rules! multiplication_e4m3 {
    ($registers:literal [$first:tt $($i:tt)*] $name:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $name(d: &mut [f32; $registers], a: u64, b: u64, accumulate: bool) {
            asm!(
                "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0;",
                concat!(
                    "wgmma.mma_async.sync.aligned.", $instruction,
                    " {{{0}" $(, ", {", stringify!($i), "}")*,
                    "}}, {a}, {b}, p, 1, 1; }}",
                ),
                inout(reg32) d[$first], $(inout(reg32) d[$i],)*
                a = in(reg64) a, b = in(reg64) b, accumulate = in(reg32) accumulate as u32,
                options(nostack, preserves_flags),
            );
        }
    };
}

/// What each size of accumulator needs, and who chooses among the sizes: one arm of a `match` is
/// left once the number is known.
macro_rules! sizes {
    ($($registers:tt: $fence:ident, $settle:ident, $wait:ident, $bf16:ident = $bf16_shape:literal, $f16:ident = $f16_shape:literal, $e4m3:ident = $e4m3_shape:literal;)*) => {
        $(
            with_registers!($registers, around_accumulator, $fence, "wgmma.fence.sync.aligned");
            with_registers!($registers, around_accumulator, $settle, "// settled");
            with_registers!(
                $registers, around_accumulator, $wait, "wgmma.wait_group.sync.aligned {groups}", N
            );
            with_registers!($registers, multiplication, $bf16, $bf16_shape);
            with_registers!($registers, multiplication, $f16, $f16_shape);
            with_registers!($registers, multiplication_e4m3, $e4m3, $e4m3_shape);
        )*

        #[inline(always)]
        pub unsafe fn fence<const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
            match REGISTERS {
                $($registers => $fence(of_length(d)),)*
                _ => unreachable!(),
            }
        }

        #[inline(always)]
        pub unsafe fn settle<const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
            match REGISTERS {
                $($registers => $settle(of_length(d)),)*
                _ => unreachable!(),
            }
        }

        #[inline(always)]
        unsafe fn multiply_by<T: HalfFloat, const TRANSPOSED: u32, const REGISTERS: usize>(
            d: &mut [f32; REGISTERS],
            a: OperandA<'_, T>,
            b: u64,
            accumulate: bool,
        ) {
            let a = match a {
                OperandA::Tile(tile) => A::Descriptor(descriptor(tile, UNUSED_STRIDE)),
                OperandA::Registers(registers) => A::Registers(registers),
            };
            match (REGISTERS, T::IS_BF16) {
                $(
                    ($registers, true) => $bf16::<TRANSPOSED>(of_length(d), a, b, accumulate),
                    ($registers, false) => $f16::<TRANSPOSED>(of_length(d), a, b, accumulate),
                )*
                _ => unreachable!(),
            }
        }

        #[inline(always)]
        pub unsafe fn multiply_e4m3<const REGISTERS: usize>(
            d: &mut [f32; REGISTERS],
            a: SwizzledTile<E4m3>,
            b: SwizzledTile<E4m3>,
            accumulate: bool,
        ) {
            let [a, b] = [a, b].map(|tile| descriptor(tile, UNUSED_STRIDE));
            match REGISTERS {
                $($registers => $e4m3(of_length(d), a, b, accumulate),)*
                _ => unreachable!(),
            }
        }

        #[inline(always)]
        pub unsafe fn wait_group<const N: u32, const REGISTERS: usize>(d: &mut [f32; REGISTERS]) {
            match REGISTERS {
                $($registers => $wait::<N>(of_length(d)),)*
                _ => unreachable!(),
            }
        }
    };
}

sizes! {
    8: fence_8, settle_8, wait_group_8, m64n16k16_bf16 = "m64n16k16.f32.bf16.bf16", m64n16k16_f16 = "m64n16k16.f32.f16.f16", m64n16k32_e4m3 = "m64n16k32.f32.e4m3.e4m3";
    16: fence_16, settle_16, wait_group_16, m64n32k16_bf16 = "m64n32k16.f32.bf16.bf16", m64n32k16_f16 = "m64n32k16.f32.f16.f16", m64n32k32_e4m3 = "m64n32k32.f32.e4m3.e4m3";
    24: fence_24, settle_24, wait_group_24, m64n48k16_bf16 = "m64n48k16.f32.bf16.bf16", m64n48k16_f16 = "m64n48k16.f32.f16.f16", m64n48k32_e4m3 = "m64n48k32.f32.e4m3.e4m3";
    32: fence_32, settle_32, wait_group_32, m64n64k16_bf16 = "m64n64k16.f32.bf16.bf16", m64n64k16_f16 = "m64n64k16.f32.f16.f16", m64n64k32_e4m3 = "m64n64k32.f32.e4m3.e4m3";
    40: fence_40, settle_40, wait_group_40, m64n80k16_bf16 = "m64n80k16.f32.bf16.bf16", m64n80k16_f16 = "m64n80k16.f32.f16.f16", m64n80k32_e4m3 = "m64n80k32.f32.e4m3.e4m3";
    48: fence_48, settle_48, wait_group_48, m64n96k16_bf16 = "m64n96k16.f32.bf16.bf16", m64n96k16_f16 = "m64n96k16.f32.f16.f16", m64n96k32_e4m3 = "m64n96k32.f32.e4m3.e4m3";
    56: fence_56, settle_56, wait_group_56, m64n112k16_bf16 = "m64n112k16.f32.bf16.bf16", m64n112k16_f16 = "m64n112k16.f32.f16.f16", m64n112k32_e4m3 = "m64n112k32.f32.e4m3.e4m3";
    64: fence_64, settle_64, wait_group_64, m64n128k16_bf16 = "m64n128k16.f32.bf16.bf16", m64n128k16_f16 = "m64n128k16.f32.f16.f16", m64n128k32_e4m3 = "m64n128k32.f32.e4m3.e4m3";
    128: fence_128, settle_128, wait_group_128, m64n256k16_bf16 = "m64n256k16.f32.bf16.bf16", m64n256k16_f16 = "m64n256k16.f32.f16.f16", m64n256k32_e4m3 = "m64n256k32.f32.e4m3.e4m3";
}

/// The accumulator as an array of the length that it has.
#[inline(always)]
unsafe fn of_length<const FROM: usize, const TO: usize>(d: &mut [f32; FROM]) -> &mut [f32; TO] {
    &mut *(&raw mut *d).cast()
}

#[inline(always)]
pub unsafe fn multiply<T: HalfFloat, const REGISTERS: usize>(
    d: &mut [f32; REGISTERS],
    a: OperandA<'_, T>,
    b: OperandB<T>,
    accumulate: bool,
) {
    match b {
        OperandB::Tile(tile) => {
            multiply_by::<T, 0, REGISTERS>(d, a, descriptor(tile, UNUSED_STRIDE), accumulate);
        }
        OperandB::Transposed(TransposedTile { first_panel, panel_bytes }) => {
            multiply_by::<T, 1, REGISTERS>(d, a, descriptor(first_panel, panel_bytes), accumulate);
        }
    }
}

/// No instruction, but one that has the registers for an operand: what writes them stays before,
/// or after.
#[inline(always)]
unsafe fn name_registers<const STEPS: usize>(a: &mut [[u32; 4]; STEPS]) {
    let mut step = 0;
    while step < STEPS {
        let a = &mut a[step];
        asm!(
            "// {} {} {} {}",
            inout(reg32) a[0], inout(reg32) a[1], inout(reg32) a[2], inout(reg32) a[3],
            options(nostack, preserves_flags),
        );
        step += 1;
    }
}

#[inline(always)]
pub unsafe fn lend<const STEPS: usize>(a: &mut [[u32; 4]; STEPS]) {
    name_registers(a);
}

#[inline(always)]
pub unsafe fn take_back<const STEPS: usize>(a: &mut [[u32; 4]; STEPS]) {
    name_registers(a);
}

#[inline(always)]
pub unsafe fn commit_group() {
    asm!("wgmma.commit_group.sync.aligned;", options(nostack, preserves_flags));
}
