//! Tensor maps as the driver encodes them.

use std::ffi::c_void;

use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};
use cudarc::driver::sys::{
    self, CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as OutOfBounds,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as DriverSwizzle,
};

use super::context::Gpu;
use super::driver::driver;
use crate::device::Result;

impl Gpu {
    /// Encodes a tiling, which was checked, of memory at `address` in elements of 1, 2 or 4 bytes.
    pub(in crate::device) fn encode_tiled<const RANK: usize>(
        &self,
        address: u64,
        tiling: &Tiling<RANK>,
        element_bytes: usize,
    ) -> Result<[u64; 16]> {
        self.bind()?;
        // Elements are moved, and never computed with.
        let data_type = match element_bytes {
            1 => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            _ => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        };
        let swizzle = match tiling.swizzle {
            Swizzle::None => DriverSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes128 => DriverSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let promotion = match tiling.l2_promotion {
            L2Promotion::None => Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            L2Promotion::Bytes128 => Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            L2Promotion::Bytes256 => Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        };
        let strides_bytes = tiling.strides.map(|stride| stride * element_bytes as u64);
        let every_element = [1; RANK];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the driver reads RANK sizes, tile sizes and steps, and RANK - 1 strides; it writes
        // one map, whose type has its alignment. The address is encoded, not used.
        self.checked(unsafe {
            driver!(cuTensorMapEncodeTiled(
                &raw mut map,
                data_type,
                RANK as u32,
                address as *mut c_void,
                tiling.sizes.as_ptr(),
                strides_bytes[1..].as_ptr(),
                tiling.tile.as_ptr(),
                every_element.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                promotion,
                OutOfBounds::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
            ))
        })?;
        Ok(map.opaque)
    }
}
