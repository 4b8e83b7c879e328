use core::arch::asm;

use super::RawShared;

/// Bytes of a map.
const BYTES: u64 = 128;

/// The address of a map, in the kernel's parameters.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawTensorMap<const RANK: usize>(u64);

/// The address of the first of some maps that lie side by side.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawTensorMaps<const RANK: usize, const N: usize>(u64);

/// The address of a parameter. The name of its entry is filled in by `cuda_builder`.
#[inline(always)]
unsafe fn parameter_address<const INDEX: usize>() -> u64 {
    let address: u64;
    asm!("cvta.param.u64 {a}, entry_param_{i};", a = out(reg64) address, i = const INDEX,
        options(pure, nomem, nostack, preserves_flags));
    address
}

impl<const RANK: usize> RawTensorMap<RANK> {
    #[inline(always)]
    pub unsafe fn parameter<const INDEX: usize>() -> Self {
        Self(parameter_address::<INDEX>())
    }
}

impl<const RANK: usize, const N: usize> RawTensorMaps<RANK, N> {
    #[inline(always)]
    pub unsafe fn parameter<const INDEX: usize>() -> Self {
        Self(parameter_address::<INDEX>())
    }

    #[inline(always)]
    pub unsafe fn get(&self, idx: u32) -> RawTensorMap<RANK> {
        RawTensorMap(self.0 + u64::from(idx) * BYTES)
    }
}

#[inline(always)]
pub unsafe fn prefetch<const RANK: usize>(map: &RawTensorMap<RANK>) {
    asm!("prefetch.tensormap [{}];", in(reg64) map.0, options(nostack, preserves_flags));
}

/// An instruction on a tile: its name up to the dimensions, then from there to the map, then what
/// follows the coordinates.
macro_rules! on_tile {
    ($name:literal, $modifiers:literal, $rest:literal, $map:ident, $at:ident, $($operands:tt)*) => {
        match RANK {
            2 => asm!(
                concat!($name, "2d", $modifiers, "[{m}, {{{c0}, {c1}}}]", $rest),
                c0 = in(reg32) $at[0], c1 = in(reg32) $at[1], m = in(reg64) $map.0, $($operands)*
            ),
            3 => asm!(
                concat!($name, "3d", $modifiers, "[{m}, {{{c0}, {c1}, {c2}}}]", $rest),
                c0 = in(reg32) $at[0], c1 = in(reg32) $at[1], c2 = in(reg32) $at[2],
                m = in(reg64) $map.0, $($operands)*
            ),
            4 => asm!(
                concat!($name, "4d", $modifiers, "[{m}, {{{c0}, {c1}, {c2}, {c3}}}]", $rest),
                c0 = in(reg32) $at[0], c1 = in(reg32) $at[1], c2 = in(reg32) $at[2],
                c3 = in(reg32) $at[3], m = in(reg64) $map.0, $($operands)*
            ),
            _ => asm!(
                concat!($name, "5d", $modifiers, "[{m}, {{{c0}, {c1}, {c2}, {c3}, {c4}}}]", $rest),
                c0 = in(reg32) $at[0], c1 = in(reg32) $at[1], c2 = in(reg32) $at[2],
                c3 = in(reg32) $at[3], c4 = in(reg32) $at[4], m = in(reg64) $map.0, $($operands)*
            ),
        }
    };
}

#[inline(always)]
pub unsafe fn load<const RANK: usize>(
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
) {
    on_tile!(
        "cp.async.bulk.tensor.",
        ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [{d}], ",
        ", [{b}];",
        map, at,
        d = in(reg32) dst.address(), b = in(reg32) barrier.address(),
        options(nostack, preserves_flags)
    );
}

#[inline(always)]
pub unsafe fn load_with_policy<const RANK: usize>(
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
    policy: u64,
) {
    on_tile!(
        "cp.async.bulk.tensor.",
        ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [{d}], ",
        ", [{b}], {p};",
        map, at,
        d = in(reg32) dst.address(), b = in(reg32) barrier.address(), p = in(reg64) policy,
        options(nostack, preserves_flags)
    );
}

#[inline(always)]
pub unsafe fn load_to<const RANK: usize>(
    blocks: u16,
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
) {
    on_tile!(
        "cp.async.bulk.tensor.",
        ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [{d}], ",
        ", [{b}], {n};",
        map, at,
        d = in(reg32) dst.address(), b = in(reg32) barrier.address(), n = in(reg16) blocks,
        options(nostack, preserves_flags)
    );
}

#[inline(always)]
pub unsafe fn store<const RANK: usize>(map: &RawTensorMap<RANK>, at: [i32; RANK], src: RawShared) {
    on_tile!(
        "cp.async.bulk.tensor.",
        ".global.shared::cta.tile.bulk_group ",
        ", [{s}];",
        map, at,
        s = in(reg32) src.address(), options(nostack, preserves_flags)
    );
}
