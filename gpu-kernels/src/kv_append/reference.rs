//! Appending token by token in f64, and the cases that tests and benches share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::{AppendLists, AppendShape, QkvShape, Rope, RopeStyle};
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

/// An append from joint rows, with its inputs.
#[derive(Clone, Debug)]
pub struct QkvProblem {
    /// Its lists.
    pub case: Case,
    /// Its sizes.
    pub shape: QkvShape,
    /// `[num_tokens, (num_qo_heads + 2 num_kv_heads) * head_dim]`
    pub qkv: Vec<bf16>,
    /// A row of that; empty if there is none
    pub qkv_bias: Vec<bf16>,
    /// `[head_dim]` each; empty if there are none
    pub norms: [Vec<bf16>; 2],
    /// `[num_max_positions, head_dim]`
    pub cos_sin_cache: Vec<f32>,
}

impl QkvProblem {
    /// Random rows for a case, with a bias and normalised heads if told so.
    pub fn new(case: Case, has_bias: bool, norm_eps: Option<f32>, seed: u64) -> Self {
        let num_qo_heads = case.num_qo_heads;
        let shape = QkvShape { append: case.shape, num_qo_heads, has_bias, norm_eps };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut random = |len, least: f32| -> Vec<bf16> {
            (0..len).map(|_| bf16::from_f32(least + (1.0 - least) * rng.f32())).collect()
        };
        let num_max_positions = case.shape.rope.map_or(0, |rope| rope.num_max_positions);
        Self {
            qkv: random(shape.qkv_elements(), -1.0),
            qkv_bias: random(shape.bias_elements(), -1.0),
            norms: [random(shape.norm_elements(), 0.5), random(shape.norm_elements(), 0.5)],
            cos_sin_cache: cos_sin_cache(num_max_positions, case.shape.page.head_dim, 10_000.0),
            case,
            shape,
        }
    }

    /// The tokens' heads of q, K and V before any rotation: `[num_tokens, heads, head_dim]` each.
    fn heads(&self) -> [Vec<f32>; 3] {
        let head_dim = self.shape.append.page.head_dim as usize;
        let num_kv_heads = self.shape.append.page.num_kv_heads as usize;
        let ends = [0, 1, 2].map(|part| self.shape.num_qo_heads as usize + part * num_kv_heads);
        let row_heads = ends[2];
        let mut heads = [Vec::new(), Vec::new(), Vec::new()];
        for (i, head) in self.qkv.chunks(head_dim).enumerate() {
            let head_of_row = i % row_heads;
            let part = ends.iter().filter(|&&end| end <= head_of_row).count();
            let mut head: Vec<f32> = head.iter().map(|x| x.to_f32()).collect();
            let biases = self.qkv_bias.chunks(head_dim).nth(head_of_row).unwrap_or_default();
            for (x, bias) in head.iter_mut().zip(biases) {
                *x = bf16::from_f32(*x + bias.to_f32()).to_f32();
            }
            if let (Some(eps), Some(weights)) = (self.shape.norm_eps, self.norms.get(part)) {
                let squares: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
                let scale = 1.0 / (squares / head_dim as f64 + f64::from(eps)).sqrt();
                for (x, weight) in head.iter_mut().zip(weights) {
                    let normal = bf16::from_f64(f64::from(*x) * scale);
                    *x = bf16::from_f32(normal.to_f32() * weight.to_f32()).to_f32();
                }
            }
            heads[part].extend(head);
        }
        heads
    }

    /// What `q_out` must be, and each of the pools, `None` where nothing is written.
    pub fn expected(&self) -> (Vec<f64>, Vec<Vec<Option<f64>>>) {
        let [q, k, v] = self.heads();
        let (append, lists) = (&self.shape.append, self.case.lists());
        let pool_pages = &self.case.table.pages_of;
        let pools = append_tokens(append, &lists, pool_pages, &k, &v, &self.cos_sin_cache);
        (rotate_tokens(append, &lists, &q, &self.cos_sin_cache), pools)
    }

    /// Whether `got` is right where `want` is expected: rounded once where heads are not
    /// normalised; else up to a unit in the last place of a normalised value, which a mean off by
    /// the last bit may round to its neighbour.
    pub fn is_close(&self, got: f64, want: f64) -> bool {
        let (relative, absolute) = match self.shape.norm_eps {
            None => (1.0 / 256.0, 1e-6),
            Some(_) => (1.0 / 128.0, 1.0 / 64.0),
        };
        (got - want).abs() <= relative * want.abs() + absolute
    }
}

/// Problems of every kind, smallest first.
pub fn qkv_problems() -> Vec<QkvProblem> {
    let cases = cases().into_iter().filter(|case| case.shape.page.head_dim.is_power_of_two());
    let problem = |(i, case): (usize, Case)| {
        let norm_eps = (i % 3 != 0).then_some(1e-6);
        QkvProblem::new(case, i % 2 == 1, norm_eps, i as u64)
    };
    cases.enumerate().map(problem).collect()
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
