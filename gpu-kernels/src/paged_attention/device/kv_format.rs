//! How K and V lie in their pages, and what the tensor cores make of them.

use core::marker::PhantomData;

use cuda_std::prelude::*;
use half::f16;

/// A way to store K and V. Fragments are those of [`mma`], with 32 bytes of a row loaded at once.
pub(crate) trait KvFormat: Copy {
    /// In what the tensor cores multiply.
    type Math: HalfFloat;
    /// Bytes of an element.
    const BYTES: u32;
    /// Steps of 16 dimensions in 32 bytes of a row.
    const STEPS: usize;

    /// Of K `[16 tokens, 32 bytes]`, as loaded: the A operand of a step, a token a row.
    fn keys(loaded: [u32; 4], step: usize) -> [u32; 4];
    /// Of V `[16 tokens, 32 bytes]`, loaded transposed: the A operand of a step, a dimension a row.
    fn values(loaded: [u32; 4], step: usize) -> [u32; 4];
    /// First of the two dimensions of a step whose queries are rows `2t` and `2t + 8` of the B
    /// operand, with `t = lane % 4`: as [`keys`](Self::keys) orders columns.
    fn query_dims(lane: u32) -> [u32; 2];
    /// Dimension of a step that rows `g` and `g + 8` of the result are, with `g = lane / 4`: as
    /// [`values`](Self::values) orders rows.
    fn output_dims(lane: u32) -> [u32; 2];

    /// Factors of the K and the V of a head.
    unsafe fn scales(self, kv_head: u32) -> KvScales;

    /// `k . q` over `D` elements, the queries in f32.
    unsafe fn dot<const D: usize>(k: Global<u8>, q: Shared<f32>) -> f32;
    /// Elements `lane * D / 32` to `(lane + 1) * D / 32` of a row; those past `D / 32` are 0.
    unsafe fn elements_of_lane<const D: usize>(row: Global<u8>, lane: u32) -> [f32; 4];
}

/// What stored numbers of a head are to be multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct KvScales {
    pub(crate) k: f32,
    pub(crate) v: f32,
}

/// 16-bit floats, as the queries.
#[derive(Clone, Copy)]
pub(crate) struct Halves<T>(PhantomData<T>);

impl<T> Halves<T> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: HalfFloat> KvFormat for Halves<T> {
    type Math = T;
    const BYTES: u32 = 2;
    const STEPS: usize = 1;

    #[inline(always)]
    fn keys(loaded: [u32; 4], _step: usize) -> [u32; 4] {
        loaded
    }

    #[inline(always)]
    fn values(loaded: [u32; 4], _step: usize) -> [u32; 4] {
        loaded
    }

    #[inline(always)]
    fn query_dims(lane: u32) -> [u32; 2] {
        [lane % 4 * 2, lane % 4 * 2 + 8]
    }

    #[inline(always)]
    fn output_dims(lane: u32) -> [u32; 2] {
        [lane / 4, lane / 4 + 8]
    }

    #[inline(always)]
    unsafe fn scales(self, _kv_head: u32) -> KvScales {
        KvScales { k: 1.0, v: 1.0 }
    }

    #[inline(always)]
    unsafe fn dot<const D: usize>(k: Global<u8>, q: Shared<f32>) -> f32 {
        let mut sum = 0.0;
        let mut d = 0;
        while d < D {
            let packed = k.load_x4(2 * d);
            for half in 0..2 {
                let pairs = [T::unpack(packed[2 * half]), T::unpack(packed[2 * half + 1])];
                sum = add_products(sum, pairs, q.offset(d + 4 * half));
            }
            d += 8;
        }
        sum
    }

    #[inline(always)]
    unsafe fn elements_of_lane<const D: usize>(row: Global<u8>, lane: u32) -> [f32; 4] {
        let pairs = row.cast::<u32>().offset(lane as usize * (D / 64));
        let mut elements = [0.0; 4];
        for i in 0..D / 64 {
            [elements[2 * i], elements[2 * i + 1]] = T::unpack(pairs.load(i));
        }
        elements
    }
}

/// 8-bit floats with a factor for each head, multiplied as f16.
#[derive(Clone, Copy)]
pub(crate) struct E4m3s {
    pub(crate) k_scale: Global<f32>, // [num_kv_heads]
    pub(crate) v_scale: Global<f32>, // [num_kv_heads]
}

impl KvFormat for E4m3s {
    type Math = f16;
    const BYTES: u32 = 1;
    const STEPS: usize = 2;

    /// A lane has dimensions `4t..4t + 4` of a token: the first two are columns `2t`, `2t + 1`, the
    /// others `2t + 8`, `2t + 9`.
    #[inline(always)]
    fn keys(loaded: [u32; 4], step: usize) -> [u32; 4] {
        let [low, high] = float::unpack_e4m3(loaded[2 * step]);
        let [low_8, high_8] = float::unpack_e4m3(loaded[2 * step + 1]);
        [low, low_8, high, high_8]
    }

    /// A lane has dimensions `2g`, `2g + 1` of tokens `2t`, `2t + 1`: one is row `g`, one `g + 8`.
    #[inline(always)]
    fn values(loaded: [u32; 4], step: usize) -> [u32; 4] {
        let [even, odd] = float::unpack_e4m3_by_columns(loaded[step]);
        let [even_8, odd_8] = float::unpack_e4m3_by_columns(loaded[step + 2]);
        [even, odd, even_8, odd_8]
    }

    #[inline(always)]
    fn query_dims(lane: u32) -> [u32; 2] {
        [lane % 4 * 4, lane % 4 * 4 + 2]
    }

    #[inline(always)]
    fn output_dims(lane: u32) -> [u32; 2] {
        [lane / 4 * 2, lane / 4 * 2 + 1]
    }

    #[inline(always)]
    unsafe fn scales(self, kv_head: u32) -> KvScales {
        let head = kv_head as usize;
        KvScales { k: self.k_scale.load(head), v: self.v_scale.load(head) }
    }

    #[inline(always)]
    unsafe fn dot<const D: usize>(k: Global<u8>, q: Shared<f32>) -> f32 {
        let mut sum = 0.0;
        let mut d = 0;
        while d < D {
            let packed = k.load_x4(d);
            for four in 0..4 {
                let pairs = float::unpack_e4m3(packed[four]).map(f16::unpack);
                sum = add_products(sum, pairs, q.offset(d + 4 * four));
            }
            d += 16;
        }
        sum
    }

    #[inline(always)]
    unsafe fn elements_of_lane<const D: usize>(row: Global<u8>, lane: u32) -> [f32; 4] {
        let packed = match D {
            64 => u32::from(row.cast::<u16>().load(lane as usize)),
            _ => row.cast::<u32>().load(lane as usize),
        };
        let [[a, b], [c, d]] = float::unpack_e4m3(packed).map(f16::unpack);
        [a, b, c, d]
    }
}

/// `sum` and the products of four elements with four queries.
#[inline(always)]
unsafe fn add_products(mut sum: f32, pairs: [[f32; 2]; 2], q: Shared<f32>) -> f32 {
    let q = q.load_x4(0).map(f32::from_bits);
    sum += pairs[0][0] * q[0] + pairs[0][1] * q[1];
    sum += pairs[1][0] * q[2] + pairs[1][1] * q[3];
    sum
}
