use core::arch::asm;

/// A device pointer.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RawGlobal(*mut u8);

impl RawGlobal {
    #[inline(always)]
    pub unsafe fn from_address(address: u64, _bytes: usize) -> Self {
        Self(address as *mut u8)
    }

    #[inline(always)]
    pub fn null() -> Self {
        Self(core::ptr::null_mut())
    }

    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    pub unsafe fn offset_bytes(self, bytes: usize) -> Self {
        Self(self.0.add(bytes))
    }

    #[inline(always)]
    pub unsafe fn load<T>(self, byte_idx: usize) -> T {
        self.0.add(byte_idx).cast::<T>().read()
    }

    #[inline(always)]
    pub unsafe fn store<T>(self, byte_idx: usize, value: T) {
        self.0.add(byte_idx).cast::<T>().write(value);
    }

    #[inline(always)]
    pub unsafe fn load_x2(self, byte_idx: usize) -> [u32; 2] {
        let [a, b]: [u32; 2];
        asm!(
            "ld.global.v2.b32 {{{a}, {b}}}, [{p}];",
            a = out(reg32) a, b = out(reg32) b, p = in(reg64) self.0.add(byte_idx),
            options(nostack, readonly, preserves_flags),
        );
        [a, b]
    }

    #[inline(always)]
    pub unsafe fn load_x4(self, byte_idx: usize) -> [u32; 4] {
        let [a, b, c, d]: [u32; 4];
        asm!(
            "ld.global.v4.b32 {{{a}, {b}, {c}, {d}}}, [{p}];",
            a = out(reg32) a, b = out(reg32) b, c = out(reg32) c, d = out(reg32) d,
            p = in(reg64) self.0.add(byte_idx),
            options(nostack, readonly, preserves_flags),
        );
        [a, b, c, d]
    }

    #[inline(always)]
    pub unsafe fn store_x2(self, byte_idx: usize, [a, b]: [u32; 2]) {
        asm!(
            "st.global.v2.b32 [{p}], {{{a}, {b}}};",
            a = in(reg32) a, b = in(reg32) b, p = in(reg64) self.0.add(byte_idx),
            options(nostack, preserves_flags),
        );
    }

    #[inline(always)]
    pub unsafe fn store_x4(self, byte_idx: usize, [a, b, c, d]: [u32; 4]) {
        asm!(
            "st.global.v4.b32 [{p}], {{{a}, {b}, {c}, {d}}};",
            a = in(reg32) a, b = in(reg32) b, c = in(reg32) c, d = in(reg32) d,
            p = in(reg64) self.0.add(byte_idx),
            options(nostack, preserves_flags),
        );
    }
}
