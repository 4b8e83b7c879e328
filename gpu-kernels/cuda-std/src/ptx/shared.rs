use core::arch::{asm, global_asm};
use core::mem::size_of;

// The size comes with the launch; the alignment is what the widest swizzle of the copy engine asks.
global_asm!(".extern .shared .align 1024 .b8 farpage_dynamic_shared[];");

/// An address in the block's shared memory.
#[derive(Clone, Copy)]
pub struct RawShared(u32);

impl RawShared {
    #[inline(always)]
    pub fn dynamic() -> Self {
        let base: u32;
        // SAFETY: the address of a symbol.
        unsafe {
            asm!(
                "mov.u32 {}, farpage_dynamic_shared;",
                out(reg32) base, options(pure, nomem, nostack, preserves_flags),
            );
        }
        Self(base)
    }

    #[inline(always)]
    pub fn address(self) -> u32 {
        self.0
    }

    /// A lane's own address, from a shuffle.
    #[inline(always)]
    pub unsafe fn opaque(self) -> Self {
        Self(super::warp::shuffle_idx(u32::MAX, self.0, super::warp::lane_id(), 32))
    }

    #[inline(always)]
    pub unsafe fn offset_bytes(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u32)
    }

    #[inline(always)]
    pub unsafe fn load<T: Copy>(self, byte_idx: usize) -> T {
        let place = self.0 + byte_idx as u32;
        // One arm is left once T is known.
        match size_of::<T>() {
            1 => {
                let value: u16;
                asm!("ld.shared.u8 {v}, [{p}];", v = out(reg16) value, p = in(reg32) place,
                    options(nostack, readonly, preserves_flags));
                core::mem::transmute_copy(&(value as u8))
            }
            2 => {
                let value: u16;
                asm!("ld.shared.b16 {v}, [{p}];", v = out(reg16) value, p = in(reg32) place,
                    options(nostack, readonly, preserves_flags));
                core::mem::transmute_copy(&value)
            }
            4 => {
                let value: u32;
                asm!("ld.shared.b32 {v}, [{p}];", v = out(reg32) value, p = in(reg32) place,
                    options(nostack, readonly, preserves_flags));
                core::mem::transmute_copy(&value)
            }
            8 => {
                let value: u64;
                asm!("ld.shared.b64 {v}, [{p}];", v = out(reg64) value, p = in(reg32) place,
                    options(nostack, readonly, preserves_flags));
                core::mem::transmute_copy(&value)
            }
            _ => unreachable!("an element of shared memory has 1, 2, 4 or 8 bytes"),
        }
    }

    #[inline(always)]
    pub unsafe fn store<T: Copy>(self, byte_idx: usize, value: T) {
        let place = self.0 + byte_idx as u32;
        match size_of::<T>() {
            1 => {
                let value = core::mem::transmute_copy::<T, u8>(&value) as u16;
                asm!("st.shared.u8 [{p}], {v};", v = in(reg16) value, p = in(reg32) place,
                    options(nostack, preserves_flags));
            }
            2 => {
                let value: u16 = core::mem::transmute_copy(&value);
                asm!("st.shared.b16 [{p}], {v};", v = in(reg16) value, p = in(reg32) place,
                    options(nostack, preserves_flags));
            }
            4 => {
                let value: u32 = core::mem::transmute_copy(&value);
                asm!("st.shared.b32 [{p}], {v};", v = in(reg32) value, p = in(reg32) place,
                    options(nostack, preserves_flags));
            }
            8 => {
                let value: u64 = core::mem::transmute_copy(&value);
                asm!("st.shared.b64 [{p}], {v};", v = in(reg64) value, p = in(reg32) place,
                    options(nostack, preserves_flags));
            }
            _ => unreachable!("an element of shared memory has 1, 2, 4 or 8 bytes"),
        }
    }

    #[inline(always)]
    pub unsafe fn load_x2(self, byte_idx: usize) -> [u32; 2] {
        let [a, b]: [u32; 2];
        asm!(
            "ld.shared.v2.b32 {{{a}, {b}}}, [{p}];",
            a = out(reg32) a, b = out(reg32) b, p = in(reg32) self.0 + byte_idx as u32,
            options(nostack, readonly, preserves_flags),
        );
        [a, b]
    }

    #[inline(always)]
    pub unsafe fn load_x4(self, byte_idx: usize) -> [u32; 4] {
        let [a, b, c, d]: [u32; 4];
        asm!(
            "ld.shared.v4.b32 {{{a}, {b}, {c}, {d}}}, [{p}];",
            a = out(reg32) a, b = out(reg32) b, c = out(reg32) c, d = out(reg32) d,
            p = in(reg32) self.0 + byte_idx as u32,
            options(nostack, readonly, preserves_flags),
        );
        [a, b, c, d]
    }

    #[inline(always)]
    pub unsafe fn store_x2(self, byte_idx: usize, [a, b]: [u32; 2]) {
        asm!(
            "st.shared.v2.b32 [{p}], {{{a}, {b}}};",
            a = in(reg32) a, b = in(reg32) b, p = in(reg32) self.0 + byte_idx as u32,
            options(nostack, preserves_flags),
        );
    }

    #[inline(always)]
    pub unsafe fn store_x4(self, byte_idx: usize, [a, b, c, d]: [u32; 4]) {
        asm!(
            "st.shared.v4.b32 [{p}], {{{a}, {b}, {c}, {d}}};",
            a = in(reg32) a, b = in(reg32) b, c = in(reg32) c, d = in(reg32) d,
            p = in(reg32) self.0 + byte_idx as u32,
            options(nostack, preserves_flags),
        );
    }
}
