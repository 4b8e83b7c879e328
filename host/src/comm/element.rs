//! The types that ranks can reduce.

use bytemuck::Pod;
use cudarc::nccl::sys::ncclDataType_t as NcclType;
use half::{bf16, f16};

/// How values of all ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Their sum; of integers, wrapping.
    Sum,
    /// The largest; of floats, ignoring NaN.
    Max,
}

/// An element of an `all_reduce`.
pub trait Reduce: Pod + Send + Sync + sealed::Sealed {
    /// One element of all ranks, in the order of ranks.
    #[doc(hidden)]
    fn reduce(op: ReduceOp, values: impl Iterator<Item = Self>) -> Self;

    /// NCCL's name for it.
    #[doc(hidden)]
    const NCCL: NcclType;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! reduce {
    ($($T:ident, $nccl:ident, |$values:ident| $sum:expr, $max:expr;)*) => {$(
        impl sealed::Sealed for $T {}

        impl Reduce for $T {
            const NCCL: NcclType = NcclType::$nccl;

            fn reduce(op: ReduceOp, $values: impl Iterator<Item = Self>) -> Self {
                match op {
                    ReduceOp::Sum => $sum,
                    ReduceOp::Max => $max,
                }
            }
        }
    )*};
}

reduce! {
    f32, ncclFloat32, |values| values.sum(), values.fold(Self::NEG_INFINITY, Self::max);
    f64, ncclFloat64, |values| values.sum(), values.fold(Self::NEG_INFINITY, Self::max);
    // Summed in f32 and rounded once.
    bf16, ncclBfloat16, |values| Self::from_f32(values.map(Self::to_f32).sum()),
        values.fold(Self::NEG_INFINITY, Self::max);
    f16, ncclFloat16, |values| Self::from_f32(values.map(Self::to_f32).sum()),
        values.fold(Self::NEG_INFINITY, Self::max);
    i32, ncclInt32, |values| values.fold(0, Self::wrapping_add), values.fold(Self::MIN, Ord::max);
    i64, ncclInt64, |values| values.fold(0, Self::wrapping_add), values.fold(Self::MIN, Ord::max);
    u32, ncclUint32, |values| values.fold(0, Self::wrapping_add), values.fold(Self::MIN, Ord::max);
    u64, ncclUint64, |values| values.fold(0, Self::wrapping_add), values.fold(Self::MIN, Ord::max);
}
