//! The oracle, and the shapes that tests, GPU tests and benches share.

use std::vec;
use std::vec::Vec;

use super::contract::PrefillShape;
use crate::kv_layout::{KvElement, KvLayout, KvPageShape};
use crate::paged_attention::reference::{
    DecodeCase, DecodeProblem, DecodeResult, StoredElement, attend, elements, random_elements,
};
pub use crate::paged_attention::reference::{ScatteredTable, Tolerance};

/// What attention should give, in f64: rows of queries in order, heads within a row.
pub type PrefillResult = DecodeResult;

/// A named shape, and the lengths of its requests.
#[derive(Clone, Debug)]
pub struct PrefillCase {
    /// What the case is about.
    pub name: &'static str,
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Queries of each request.
    pub qo_lens: Vec<u32>,
    /// Tokens of each request.
    pub kv_lens: Vec<u32>,
    /// Locations the pages are spread over.
    pub num_locations: usize,
}

/// A batch as it lies in memory: pools of pages, the table into them, and the queries.
#[derive(Clone, Debug)]
pub struct PrefillProblem<T> {
    /// Sizes.
    pub shape: PrefillShape,
    /// Queries of each request.
    pub qo_lens: Vec<u32>,
    /// `[total_qo_len, num_qo_heads, head_dim]`
    pub q: Vec<T>,
    /// The pages and their table.
    pub kv: DecodeProblem<T>,
}

/// The edge cases every variant must get right, small enough for the CPU.
pub fn cases() -> Vec<PrefillCase> {
    let page = |page_size, num_kv_heads, head_dim, layout| KvPageShape {
        page_size,
        num_kv_heads,
        head_dim,
        layout,
        element: KvElement::Half,
    };
    let case = |name, num_qo_heads, page, lens: &[(u32, u32)], num_locations| PrefillCase {
        name,
        num_qo_heads,
        page,
        qo_lens: lens.iter().map(|&(qo_len, _)| qo_len).collect(),
        kv_lens: lens.iter().map(|&(_, kv_len)| kv_len).collect(),
        num_locations,
    };
    use KvLayout::{Hnd, Nhd};
    vec![
        case("one token", 1, page(16, 1, 128, Nhd), &[(1, 1)], 1),
        case("around a tile", 1, page(16, 1, 128, Nhd), &[(127, 127), (129, 129)], 1),
        case("several tiles", 1, page(16, 1, 128, Hnd), &[(300, 300)], 1),
        case("the last of many tokens", 2, page(16, 1, 128, Nhd), &[(1, 300), (3, 257)], 1),
        case("chunks", 1, page(16, 1, 128, Nhd), &[(100, 390), (64, 128), (130, 200)], 1),
        case("empty requests", 2, page(16, 2, 128, Nhd), &[(0, 0), (5, 9), (0, 40), (1, 1)], 1),
        case("heads outermost, groups", 4, page(16, 2, 128, Hnd), &[(70, 150)], 1),
        case("pages of one token", 1, page(1, 1, 128, Nhd), &[(37, 141)], 1),
        case("pages of three tokens", 3, page(3, 1, 128, Hnd), &[(50, 50), (4, 10)], 1),
        case("pages of 64 tokens", 1, page(64, 1, 128, Nhd), &[(65, 200)], 1),
        case("pages in three places", 2, page(16, 1, 128, Nhd), &[(40, 170), (33, 33)], 3),
        case("small heads", 3, page(16, 3, 64, Nhd), &[(1, 1), (63, 63), (65, 65)], 1),
        case("small heads, chunks", 4, page(8, 2, 64, Hnd), &[(20, 150), (0, 3), (64, 128)], 2),
    ]
}

impl PrefillCase {
    /// The sizes of a launch.
    pub fn shape(&self) -> PrefillShape {
        PrefillShape {
            num_qo_heads: self.num_qo_heads,
            page: self.page,
            sm_scale: 1.0 / (self.page.head_dim as f32).sqrt(),
        }
    }

    /// Random q, K and V of about unit variance, pages shuffled over the pools. Slots that hold no
    /// token are NaN, and so is one page of each pool that nobody owns: whoever reads them shows.
    pub fn problem<T: StoredElement>(&self, seed: u64) -> PrefillProblem<T> {
        let shape = self.shape();
        let PrefillCase { name, num_qo_heads, page, num_locations, .. } = *self;
        let kv_lens = self.kv_lens.clone();
        let kv = DecodeCase { name, num_qo_heads, page, kv_lens, num_locations }.problem(seed);
        let q_elements = shape.q_elements(&self.qo_lens);
        let q = random_elements(&mut fastrand::Rng::with_seed(!seed), q_elements, 1.0);
        PrefillProblem { shape, qo_lens: self.qo_lens.clone(), q, kv }
    }
}

impl<T: StoredElement> PrefillProblem<T> {
    /// Tokens of each request.
    pub fn kv_lens(&self) -> Vec<u32> {
        self.kv.table.table().kv_lens(self.shape.page.page_size)
    }

    /// Attention, the obvious way.
    pub fn oracle(&self) -> PrefillResult {
        let PrefillShape { num_qo_heads, page, sm_scale } = self.shape;
        let row = page.head_dim as usize;
        let mut result = PrefillResult::default();
        let mut queries = self.q.chunks_exact(row);
        for (request, (&qo_len, kv_len)) in self.qo_lens.iter().zip(self.kv_lens()).enumerate() {
            let of_head = |kv_head| {
                let of_token = |token| {
                    let (location, k) = self.kv.place_of_k(request, token, kv_head);
                    let v = k + page.strides().value as usize;
                    let pool = &self.kv.pools[location];
                    (elements(&pool[k..k + row]), elements(&pool[v..v + row]))
                };
                (0..kv_len).map(of_token).unzip()
            };
            let heads: Vec<(Vec<_>, Vec<_>)> = (0..page.num_kv_heads).map(of_head).collect();
            for seen in kv_len - qo_len + 1..=kv_len {
                for head in 0..num_qo_heads {
                    let (keys, values) = &heads[(head / self.shape.group_size()) as usize];
                    let q = elements(queries.next().expect("a query for each row and head"));
                    let seen = seen as usize;
                    let sm_scale = f64::from(sm_scale);
                    result.push(attend(&q, &keys[..seen], &values[..seen], sm_scale));
                }
            }
        }
        result
    }
}
