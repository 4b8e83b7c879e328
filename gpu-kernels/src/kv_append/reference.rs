//! Appending token by token in f64, and the cases that tests and benches share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::contract::{AppendLists, AppendShape, Rope, RopeStyle};
use crate::kv_layout::{KvElement, KvLayout, KvPageShape};
use crate::paged_attention::reference::ScatteredTable;

/// Cosines and sines of every position, `[num_max_positions, head_dim]`: angle `i` of a position
/// is `position * theta^(-2 i / head_dim)`.
pub fn cos_sin_cache(num_max_positions: u32, head_dim: u32, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let mut cache = Vec::with_capacity((num_max_positions * head_dim) as usize);
    for position in 0..num_max_positions {
        let angle =
            |i: u32| f64::from(position) * theta.powf(-2.0 * f64::from(i) / f64::from(head_dim));
        cache.extend((0..half).map(|i| angle(i).cos() as f32));
        cache.extend((0..half).map(|i| angle(i).sin() as f32));
    }
    cache
}

/// Turns the pairs of one head in place by a row of the cache, `[head_dim]`.
pub fn rotate_head(head: &mut [f64], style: RopeStyle, cos_sin: &[f32]) {
    let half = head.len() / 2;
    for i in 0..half {
        let (a, b) = match style {
            RopeStyle::HalfSplit => (i, i + half),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (head[a], head[b]);
        let (cos, sin) = (f64::from(cos_sin[i]), f64::from(cos_sin[half + i]));
        head[a] = x * cos - y * sin;
        head[b] = y * cos + x * sin;
    }
}

/// Request and position of every new token, in order.
pub fn token_places(shape: &AppendShape, lists: &AppendLists) -> Vec<(usize, u32)> {
    let mut places = Vec::new();
    for (b, kv_len) in lists.table.kv_lens(shape.page.page_size).into_iter().enumerate() {
        let num_new = (lists.append_indptr[b + 1] - lists.append_indptr[b]) as u32;
        places.extend((kv_len - num_new..kv_len).map(|position| (b, position)));
    }
    places
}

/// Rotates `tensor` `[num_tokens, num_heads, head_dim]` as its tokens' positions ask.
pub fn rotate_tokens(
    shape: &AppendShape,
    lists: &AppendLists,
    tensor: &[f32],
    cos_sin_cache: &[f32],
) -> Vec<f64> {
    let mut rotated: Vec<f64> = tensor.iter().map(|&x| f64::from(x)).collect();
    let Some(rope) = shape.rope else {
        return rotated;
    };
    let head_dim = shape.page.head_dim as usize;
    let token_elements = tensor.len() / shape.num_tokens as usize;
    let tokens = rotated.chunks_mut(token_elements);
    for (token, (_, position)) in tokens.zip(token_places(shape, lists)) {
        let row = &cos_sin_cache[position as usize * head_dim..][..head_dim];
        for head in token.chunks_mut(head_dim) {
            rotate_head(head, rope.style, row);
        }
    }
    rotated
}

/// What appending `k` and `v` (of `[num_tokens, num_kv_heads, head_dim]`) writes to each of the
/// pools of `pool_pages` pages, element by element; `None` where nothing is written.
pub fn append_tokens(
    shape: &AppendShape,
    lists: &AppendLists,
    pool_pages: &[usize],
    k: &[f32],
    v: &[f32],
    cos_sin_cache: &[f32],
) -> Vec<Vec<Option<f64>>> {
    let page = &shape.page;
    let strides = page.strides();
    let mut pools: Vec<Vec<Option<f64>>> =
        pool_pages.iter().map(|&pages| vec![None; pages * page.page_elements()]).collect();
    let k = rotate_tokens(shape, lists, k, cos_sin_cache);
    let token_elements = (page.num_kv_heads * page.head_dim) as usize;
    for (token, (b, position)) in token_places(shape, lists).into_iter().enumerate() {
        let entry = lists.table.kv_indptr[b] as usize + (position / page.page_size) as usize;
        let pool = &mut pools[lists.table.kv_page_rank[entry] as usize];
        let page_start = lists.table.kv_indices[entry] as usize * page.page_elements();
        for head in 0..page.num_kv_heads {
            for dim in 0..page.head_dim {
                let place = (position % page.page_size) * strides.token + head * strides.head + dim;
                let source = token * token_elements + (head * page.head_dim + dim) as usize;
                pool[page_start + place as usize] = Some(k[source]);
                pool[page_start + (strides.value + place) as usize] = Some(f64::from(v[source]));
            }
        }
    }
    pools
}

/// An append with its lists.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// Its sizes.
    pub shape: AppendShape,
    /// Heads of q, for rotating the queries.
    pub num_qo_heads: u32,
    /// `[batch + 1]`
    pub append_indptr: Vec<i32>,
    /// The page table, and how many pages each location has.
    pub table: ScatteredTable,
}

impl Case {
    /// An append of `(tokens before, new tokens)` for each request, its pages scattered over
    /// `num_locations` locations.
    pub fn new(
        name: impl Into<String>,
        page: KvPageShape,
        rope: Option<RopeStyle>,
        num_locations: usize,
        requests: &[(u32, u32)],
    ) -> Self {
        let kv_lens: Vec<u32> = requests.iter().map(|(before, new)| before + new).collect();
        let num_max_positions = kv_lens.iter().copied().max().unwrap_or(0);
        let mut append_indptr = vec![0];
        for &(_, new) in requests {
            append_indptr.push(append_indptr[append_indptr.len() - 1] + new as i32);
        }
        let table = ScatteredTable::new(
            &kv_lens,
            page.page_size,
            num_locations,
            |entry| entry % num_locations,
            &mut fastrand::Rng::with_seed(num_max_positions.into()),
        );
        Self {
            name: name.into(),
            shape: AppendShape {
                batch: requests.len() as u32,
                num_tokens: append_indptr[requests.len()] as u32,
                page,
                rope: rope.map(|style| Rope { style, num_max_positions }),
            },
            num_qo_heads: 3 * page.num_kv_heads,
            append_indptr,
            table,
        }
    }

    /// Its lists.
    pub fn lists(&self) -> AppendLists<'_> {
        AppendLists { append_indptr: &self.append_indptr, table: self.table.table() }
    }
}

/// Edge cases, smallest first, in both layouts and with every rotation.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for layout in [KvLayout::Nhd, KvLayout::Hnd] {
        for rope in [None, Some(RopeStyle::HalfSplit), Some(RopeStyle::Interleaved)] {
            let page = |page_size, num_kv_heads, head_dim| KvPageShape {
                page_size,
                num_kv_heads,
                head_dim,
                layout,
                element: KvElement::Half,
            };
            let variant = format!("{layout:?}, rope {rope:?}");
            let case = |name, page, num_locations, requests| {
                Case::new(format!("{name}, {variant}"), page, rope, num_locations, requests)
            };
            cases.extend([
                case("first token of one request", page(1, 1, 16), 1, &[(0, 1)]),
                case(
                    "decode, with idle and empty requests",
                    page(16, 2, 64),
                    2,
                    &[(0, 0), (15, 1), (16, 1), (31, 0), (4, 1), (0, 0)],
                ),
                case(
                    "prefill across pages of 5 tokens",
                    page(5, 3, 48),
                    3,
                    &[(0, 13), (4, 2), (7, 8)],
                ),
                case("chunk that ends with a page", page(64, 4, 128), 2, &[(1, 63), (70, 58)]),
            ]);
        }
    }
    cases
}
