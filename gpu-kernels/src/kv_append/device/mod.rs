//! Appending tokens, rotating their queries, and both from joint rows; one body for each.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod qkv;

use bytemuck::AnyBitPattern;
use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::{bf16, f16};

use super::{AppendParams, Rotation, THREAD_DIMS};
pub use qkv::{kv_append_qkv_bf16, kv_append_qkv_bf16_e4m3};

macro_rules! tokens_entries {
    ($(#[$doc:meta] $name:ident: $T:ty, $storage:expr, [$($scale:ident),*];)*) => {$(
        #[$doc]
        #[kernel(threads = 128)]
        pub unsafe fn $name(
            k: Global<$T>,                 // [num_tokens, num_kv_heads, head_dim]
            v: Global<$T>,                 // [num_tokens, num_kv_heads, head_dim]
            $($scale: Global<f32>,)*       // [num_kv_heads]
            cos_sin_cache: Global<f32>,    // [num_max_positions, head_dim], or null
            append_indptr: Global<i32>,    // [batch + 1]
            kv_indptr: Global<i32>,        // [batch + 1]
            kv_indices: Global<i32>,       // [pages]
            kv_page_rank: Global<i32>,     // [pages]
            kv_last_page_len: Global<i32>, // [batch]
            peer_kv_ptrs: Global<u64>,     // [num_locations]
            params: AppendParams,
        ) {
            let lengths = Lengths { append_indptr, kv_indptr, kv_last_page_len };
            let pages = Pages { kv_indices, kv_page_rank, peer_kv_ptrs };
            append_tokens(k, v, cos_sin_cache, lengths, pages, $storage, params);
        }
    )*};
}

tokens_entries! {
    /// Appends tokens of bf16.
    kv_append_tokens_bf16: bf16, Unscaled, [];
    /// Appends tokens of bf16 to pages of e4m3.
    kv_append_tokens_bf16_e4m3: bf16, Scaled { k_scale, v_scale }, [k_scale, v_scale];
    /// Appends tokens of f16.
    kv_append_tokens_f16: f16, Unscaled, [];
    /// Appends tokens of f16 to pages of e4m3.
    kv_append_tokens_f16_e4m3: f16, Scaled { k_scale, v_scale }, [k_scale, v_scale];
}

macro_rules! rotate_q_entries {
    ($(#[$doc:meta] $name:ident: $T:ty;)*) => {$(
        #[$doc]
        #[kernel(threads = 128)]
        pub unsafe fn $name(
            q: Global<$T>,                 // [num_tokens, num_qo_heads, head_dim]
            q_out: GlobalMut<$T>,          // [num_tokens, num_qo_heads, head_dim]
            cos_sin_cache: Global<f32>,    // [num_max_positions, head_dim]
            append_indptr: Global<i32>,    // [batch + 1]
            kv_indptr: Global<i32>,        // [batch + 1]
            kv_last_page_len: Global<i32>, // [batch]
            params: AppendParams,
        ) {
            let lengths = Lengths { append_indptr, kv_indptr, kv_last_page_len };
            rotate_q(q, q_out, cos_sin_cache, lengths, params);
        }
    )*};
}

rotate_q_entries! {
    /// Rotates the queries of new tokens, of bf16; `q_out` may be `q`.
    kv_append_rotate_q_bf16: bf16;
    /// Rotates the queries of new tokens, of f16; `q_out` may be `q`.
    kv_append_rotate_q_f16: f16;
}

#[inline(always)]
unsafe fn append_tokens<T: HalfFloat, S: Storage<T>>(
    k: Global<T>,               // [num_tokens, num_kv_heads, head_dim]
    v: Global<T>,               // [num_tokens, num_kv_heads, head_dim]
    cos_sin_cache: Global<f32>, // [num_max_positions, head_dim], or null
    lengths: Lengths,
    pages: Pages,
    storage: S,
    params: AppendParams,
) {
    let Some(share) = Share::of_thread(params) else { return };
    let Some((request, position)) = lengths.place_of(share.token, params) else { return };
    let (page, destination) =
        share.destination::<S::Element>(lengths, pages, request, position, params);
    let [k_scale, v_scale] = storage.scales(share.head);

    let source = share.first_element(params);
    let value = share.load(v, source, params);
    let value_place = destination + params.strides.value as usize;
    share.store::<T, S>(page, value_place, value, v_scale, params);
    let key = share.load(k, source, params);
    let key = share.rotate::<T>(key, cos_sin_cache, position, params);
    share.store::<T, S>(page, destination, key, k_scale, params);
}

#[inline(always)]
unsafe fn rotate_q<T: HalfFloat>(
    q: Global<T>,               // [num_tokens, num_qo_heads, head_dim]
    q_out: GlobalMut<T>,        // [num_tokens, num_qo_heads, head_dim]
    cos_sin_cache: Global<f32>, // [num_max_positions, head_dim]
    lengths: Lengths,
    params: AppendParams,
) {
    let Some(share) = Share::of_thread(params) else { return };
    let Some((_, position)) = lengths.place_of(share.token, params) else { return };
    let place = share.first_element(params);
    let query = share.load(q, place, params);
    let query = share.rotate::<T>(query, cos_sin_cache, position, params);
    share.store::<T, Unscaled>(q_out, place, query, 1.0, params);
}

/// How long requests are, and which of their tokens are new.
#[derive(Clone, Copy)]
struct Lengths {
    append_indptr: Global<i32>,    // [batch + 1]
    kv_indptr: Global<i32>,        // [batch + 1]
    kv_last_page_len: Global<i32>, // [batch]
}

impl Lengths {
    /// Request and position of a new token; none where the request has no pages.
    #[inline(always)]
    unsafe fn place_of(self, token: u32, params: AppendParams) -> Option<(u32, u32)> {
        let (mut request, mut above) = (0, params.batch);
        while above - request > 1 {
            let middle = (request + above) / 2;
            if self.append_indptr.load(middle as usize) as u32 <= token {
                request = middle;
            } else {
                above = middle;
            }
        }
        let b = request as usize;
        let num_pages = (self.kv_indptr.load(b + 1) - self.kv_indptr.load(b)) as u32;
        if num_pages == 0 {
            return None;
        }
        let kv_len = (num_pages - 1) * params.page_size + self.kv_last_page_len.load(b) as u32;
        let tokens_to_end = self.append_indptr.load(b + 1) as u32 - token;
        Some((request, kv_len - tokens_to_end))
    }
}

/// Where the pages of the table's entries lie.
#[derive(Clone, Copy)]
struct Pages {
    kv_indices: Global<i32>,   // [pages]
    kv_page_rank: Global<i32>, // [pages]
    peer_kv_ptrs: Global<u64>, // [num_locations]
}

impl Pages {
    /// The elements of an entry's page.
    #[inline(always)]
    unsafe fn page<E: AnyBitPattern>(self, entry: usize, params: AppendParams) -> GlobalMut<E> {
        let pool = self.peer_kv_ptrs.load(self.kv_page_rank.load(entry) as usize);
        let page_bytes = size_of::<E>() as u64 * u64::from(params.strides.page);
        let address = pool + self.kv_indices.load(entry) as u64 * page_bytes;
        GlobalMut::from_address(address, params.strides.page as usize)
    }
}

/// How tokens of `T` are stored.
trait Storage<T>: Copy {
    /// In what.
    type Element: AnyBitPattern;

    /// What stored K and V of a head are multiplied by to get the value.
    unsafe fn scales(self, head: u32) -> [f32; 2];
    /// Stores 8 elements from `first` on, over `scale`.
    unsafe fn store_word(
        tensor: GlobalMut<Self::Element>,
        first: usize,
        word: [u32; 4],
        scale: f32,
    );
}

/// As they are.
#[derive(Clone, Copy)]
struct Unscaled;

impl<T: HalfFloat> Storage<T> for Unscaled {
    type Element = T;

    #[inline(always)]
    unsafe fn scales(self, _head: u32) -> [f32; 2] {
        [1.0; 2]
    }

    #[inline(always)]
    unsafe fn store_word(tensor: GlobalMut<T>, first: usize, word: [u32; 4], _scale: f32) {
        tensor.store_x4(first, word);
    }
}

/// In e4m3, with a factor for each head.
#[derive(Clone, Copy)]
struct Scaled {
    k_scale: Global<f32>, // [num_kv_heads]
    v_scale: Global<f32>, // [num_kv_heads]
}

impl<T: HalfFloat> Storage<T> for Scaled {
    type Element = E4m3;

    #[inline(always)]
    unsafe fn scales(self, head: u32) -> [f32; 2] {
        [self.k_scale.load(head as usize), self.v_scale.load(head as usize)]
    }

    #[inline(always)]
    unsafe fn store_word(tensor: GlobalMut<E4m3>, first: usize, word: [u32; 4], scale: f32) {
        let mut packed = [0; 2];
        for i in 0..2 {
            let ([a, b], [c, d]) = (T::unpack(word[2 * i]), T::unpack(word[2 * i + 1]));
            packed[i] = float::pack_e4m3([a / scale, b / scale, c / scale, d / scale]);
        }
        tensor.store_x2(first, packed);
    }
}

/// 16 dimensions of a head of a token: 8 from `first_dim` on, and 8 half a head further.
#[derive(Clone, Copy)]
struct Share {
    token: u32,
    head: u32,
    first_dim: u32,
}

/// The two words of a share.
type Words = [[u32; 4]; 2];

impl Share {
    /// This thread's share, if there is one for it.
    #[inline(always)]
    fn of_thread(params: AppendParams) -> Option<Self> {
        let (share, is_own) = Self::nearest(params);
        is_own.then_some(share)
    }

    /// The share of this thread, or the last one, and whether it is this thread's.
    #[inline(always)]
    fn nearest(params: AppendParams) -> (Self, bool) {
        let shares_per_head = params.head_dim / THREAD_DIMS;
        let end = params.num_tokens * params.num_heads * shares_per_head;
        let idx = thread::index_1d().min(end - 1);
        let row = idx / shares_per_head;
        let token = row / params.num_heads;
        let share = Self {
            token,
            head: row - token * params.num_heads,
            first_dim: (idx - row * shares_per_head) * (THREAD_DIMS / 2),
        };
        (share, thread::index_1d() < end)
    }

    /// The page of its token, and where in it K of its head lies.
    #[inline(always)]
    unsafe fn destination<E: AnyBitPattern>(
        self,
        lengths: Lengths,
        pages: Pages,
        request: u32,
        position: u32,
        params: AppendParams,
    ) -> (GlobalMut<E>, usize) {
        let page_of_request = position / params.page_size;
        let entry = lengths.kv_indptr.load(request as usize) as u32 + page_of_request;
        let token_of_page = position - page_of_request * params.page_size;
        let strides = params.strides;
        let place = token_of_page * strides.token + self.head * strides.head + self.first_dim;
        (pages.page(entry as usize, params), place as usize)
    }

    /// Its first element in a tensor of `[num_tokens, num_heads, head_dim]`.
    #[inline(always)]
    fn first_element(self, params: AppendParams) -> usize {
        let row = self.token as usize * params.num_heads as usize + self.head as usize;
        row * params.head_dim as usize + self.first_dim as usize
    }

    #[inline(always)]
    unsafe fn load<T: HalfFloat>(
        self,
        tensor: Global<T>,
        first: usize,
        params: AppendParams,
    ) -> Words {
        [tensor.load_x4(first), tensor.load_x4(first + (params.head_dim / 2) as usize)]
    }

    #[inline(always)]
    unsafe fn store<T: HalfFloat, S: Storage<T>>(
        self,
        tensor: GlobalMut<S::Element>,
        first: usize,
        words: Words,
        scale: f32,
        params: AppendParams,
    ) {
        S::store_word(tensor, first, words[0], scale);
        S::store_word(tensor, first + (params.head_dim / 2) as usize, words[1], scale);
    }

    #[inline(always)]
    unsafe fn rotate<T: HalfFloat>(
        self,
        words: Words,
        cos_sin_cache: Global<f32>, // [num_max_positions, head_dim]
        position: u32,
        params: AppendParams,
    ) -> Words {
        self.turn::<T>(words, self.angles(cos_sin_cache, position, params), params)
    }

    /// The angles of a position, for this share's dimensions; none matter without a rotation.
    #[inline(always)]
    unsafe fn angles(
        self,
        cos_sin_cache: Global<f32>, // [num_max_positions, head_dim]
        position: u32,
        params: AppendParams,
    ) -> Angles {
        let mut angles = Angles { cos: [[0.0; 4]; 2], sin: [[0.0; 4]; 2] };
        if params.rotation == Rotation::NONE {
            return angles;
        }
        let cos = cos_sin_cache.offset(position as usize * params.head_dim as usize);
        let sin = cos.offset((params.head_dim / 2) as usize);
        let (first, next) = match params.rotation == Rotation::HALF_SPLIT {
            true => (self.first_dim, 4),
            false => (self.first_dim / 2, params.head_dim / 4),
        };
        for part in 0..2 {
            let first_angle = first as usize + part * next as usize;
            angles.cos[part] = load_f32x4(cos, first_angle);
            angles.sin[part] = load_f32x4(sin, first_angle);
        }
        angles
    }

    #[inline(always)]
    unsafe fn turn<T: HalfFloat>(
        self,
        words: Words,
        angles: Angles,
        params: AppendParams,
    ) -> Words {
        if params.rotation == Rotation::NONE {
            words
        } else if params.rotation == Rotation::HALF_SPLIT {
            turn_half_split::<T>(words, angles)
        } else {
            turn_interleaved::<T>(words, angles)
        }
    }
}

/// Cosines and sines for a share.
#[derive(Clone, Copy)]
struct Angles {
    cos: [[f32; 4]; 2],
    sin: [[f32; 4]; 2],
}

#[inline(always)]
fn turn_half_split<T: HalfFloat>(words: Words, angles: Angles) -> Words {
    let mut rotated = words;
    for part in 0..2 {
        let (c, s) = (angles.cos[part], angles.sin[part]);
        for i in 0..2 {
            let register = 2 * part + i;
            let [x0, x1] = T::unpack(words[0][register]);
            let [y0, y1] = T::unpack(words[1][register]);
            let (x0, y0) = turn(x0, y0, c[2 * i], s[2 * i]);
            let (x1, y1) = turn(x1, y1, c[2 * i + 1], s[2 * i + 1]);
            rotated[0][register] = T::pack(x0, x1);
            rotated[1][register] = T::pack(y0, y1);
        }
    }
    rotated
}

#[inline(always)]
fn turn_interleaved<T: HalfFloat>(words: Words, angles: Angles) -> Words {
    let mut rotated = words;
    for part in 0..2 {
        let (c, s) = (angles.cos[part], angles.sin[part]);
        for register in 0..4 {
            let [x, y] = T::unpack(words[part][register]);
            let (x, y) = turn(x, y, c[register], s[register]);
            rotated[part][register] = T::pack(x, y);
        }
    }
    rotated
}

#[inline(always)]
unsafe fn load_f32x4(values: Global<f32>, idx: usize) -> [f32; 4] {
    values.load_x4(idx).map(f32::from_bits)
}

/// `(x, y)` by the angle with this cosine and sine.
#[inline(always)]
fn turn(x: f32, y: f32, cos: f32, sin: f32) -> (f32, f32) {
    (x * cos - y * sin, y * cos + x * sin)
}
