//! The oracle, and the shapes that tests, GPU tests and benches share.

use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use bytemuck::Pod;
use cuda_std::float::E4m3;
use half::{bf16, f16};
use rayon::prelude::*;

use super::contract::{DecodeShape, PageLists, PageTable};
use crate::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};

/// A page table, and how many pages of each location it speaks of.
#[derive(Clone, Debug)]
pub struct ScatteredTable {
    /// The table.
    pub lists: PageLists,
    /// Pages that each location's entries use: `[locations]`.
    pub pages_of: Vec<usize>,
}

impl ScatteredTable {
    /// Gives each page of requests of `kv_lens` tokens a place of its own: entry `i` in location
    /// `location_of(i)`, at a random one of the first pages there.
    pub fn new(
        kv_lens: &[u32],
        page_size: u32,
        num_locations: usize,
        mut location_of: impl FnMut(usize) -> usize,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let num_entries = kv_lens.iter().map(|kv_len| kv_len.div_ceil(page_size) as usize).sum();
        let mut entries_of = vec![Vec::new(); num_locations];
        for entry in 0..num_entries {
            entries_of[location_of(entry)].push(entry);
        }
        let mut places = vec![KvPagePlace { rank: 0, index: 0 }; num_entries];
        for (rank, entries) in (0..).zip(&entries_of) {
            let mut pages: Vec<u32> = (0..entries.len() as u32).collect();
            rng.shuffle(&mut pages);
            for (&entry, &index) in entries.iter().zip(&pages) {
                places[entry] = KvPagePlace { rank, index };
            }
        }
        let (mut lists, mut places) = (PageLists::default(), places.into_iter());
        for &kv_len in kv_lens {
            let num_pages = kv_len.div_ceil(page_size);
            let last_page_len = kv_len - num_pages.saturating_sub(1) * page_size;
            lists.push(places.by_ref().take(num_pages as usize), last_page_len);
        }
        Self { lists, pages_of: entries_of.iter().map(Vec::len).collect() }
    }

    /// The table, as contracts take it.
    pub fn table(&self) -> PageTable<'_> {
        self.lists.table()
    }
}

/// A batch as it lies in memory: pools of pages in `K`, the table into them, and the queries in `T`.
#[derive(Clone, Debug)]
pub struct DecodeProblem<T, K = T> {
    /// Sizes.
    pub shape: DecodeShape,
    /// Which page holds what.
    pub table: ScatteredTable,
    /// One pool a location, `[pages]` of the page's shape; batches of the same pages share them.
    pub pools: Arc<Vec<Vec<K>>>,
    /// `[batch, num_qo_heads, head_dim]`
    pub q: Vec<T>,
    /// Factors of stored K: `[num_kv_heads]`, 1 for 16-bit elements.
    pub k_scale: Vec<f32>,
    /// Factors of stored V: `[num_kv_heads]`, 1 for 16-bit elements.
    pub v_scale: Vec<f32>,
}

/// What K and V may be stored in.
pub trait StoredElement: Pod + Send + Sync {
    /// The element kind of pages of this type.
    const ELEMENT: KvElement;
    /// The nearest, to even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

macro_rules! stored_halves {
    ($($T:ty),*) => {$(
        impl StoredElement for $T {
            const ELEMENT: KvElement = KvElement::Half;

            fn from_f32(value: f32) -> Self {
                <$T>::from_f32(value)
            }

            fn to_f64(self) -> f64 {
                self.into()
            }
        }
    )*};
}

stored_halves!(bf16, f16);

impl StoredElement for E4m3 {
    const ELEMENT: KvElement = KvElement::E4m3;

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn to_f64(self) -> f64 {
        self.to_f32().into()
    }
}

/// What attention should give, in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DecodeResult {
    /// `[batch, num_qo_heads, head_dim]`
    pub out: Vec<f64>,
    /// `[batch, num_qo_heads]`, base 2
    pub lse: Vec<f64>,
}

/// A named shape and the lengths of its requests.
#[derive(Clone, Debug)]
pub struct DecodeCase {
    /// What the case is about.
    pub name: &'static str,
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Shape of the KV pages.
    pub page: KvPageShape,
    /// Tokens of each request.
    pub kv_lens: Vec<u32>,
    /// Locations the pages are spread over.
    pub num_locations: usize,
}

/// The edge cases every variant must get right, small enough for the CPU.
pub fn cases() -> Vec<DecodeCase> {
    let page = |page_size, num_kv_heads, head_dim, layout| KvPageShape {
        page_size,
        num_kv_heads,
        head_dim,
        layout,
        element: KvElement::Half,
    };
    let case = |name, num_qo_heads, page, kv_lens: &[u32], num_locations| DecodeCase {
        name,
        num_qo_heads,
        page,
        kv_lens: kv_lens.to_vec(),
        num_locations,
    };
    use KvLayout::{Hnd, Nhd};
    vec![
        case("one token", 8, page(16, 1, 128, Nhd), &[1], 1),
        case("around a tile", 8, page(16, 1, 128, Nhd), &[15, 16, 17, 31, 33], 1),
        case("around a round of the warps", 4, page(16, 1, 64, Nhd), &[127, 128, 129, 300], 1),
        case("empty requests among others", 8, page(16, 2, 128, Nhd), &[0, 5, 0, 40, 0], 1),
        case("all empty", 4, page(16, 1, 64, Hnd), &[0, 0], 1),
        case("heads outermost", 16, page(16, 2, 128, Hnd), &[50, 1, 129], 1),
        case("pages of one token", 4, page(1, 2, 64, Nhd), &[1, 7, 37], 1),
        case("pages of three tokens", 4, page(3, 2, 64, Hnd), &[2, 3, 4, 50], 1),
        case("pages of 64 tokens", 8, page(64, 1, 128, Nhd), &[63, 64, 65, 200], 1),
        case("no sharing of heads", 3, page(8, 3, 64, Nhd), &[20, 9], 1),
        case("a group of 5", 10, page(16, 2, 128, Nhd), &[70, 3], 1),
        case("a group of 16", 16, page(16, 1, 128, Nhd), &[90, 16], 1),
        case("a group of 11, small heads", 22, page(4, 2, 64, Hnd), &[33, 60], 1),
        case("pages in three places", 8, page(16, 2, 128, Nhd), &[100, 17, 64], 3),
        case("one long, many short", 8, page(16, 1, 128, Nhd), &[1, 2, 700, 3, 4, 5], 2),
        case("a group of 16, small heads", 32, page(16, 2, 64, Nhd), &[33, 200, 5], 1),
    ]
}

impl DecodeCase {
    /// The launch sizes of the case.
    pub fn shape(&self) -> DecodeShape {
        DecodeShape {
            batch: self.kv_lens.len() as u32,
            num_qo_heads: self.num_qo_heads,
            page: self.page,
            sm_scale: 1.0 / (self.page.head_dim as f32).sqrt(),
        }
    }

    /// Random q, K and V of about unit variance, pages shuffled over the pools. Slots that hold no
    /// token are NaN, and so is one page of each pool that nobody owns: whoever reads them shows.
    pub fn problem<T: StoredElement>(&self, seed: u64) -> DecodeProblem<T> {
        self.problem_over(seed)
    }

    /// The same with pages of another type than the queries: those of 8 bits hold what K and V are
    /// over random factors, so that they are of about unit variance again.
    pub fn problem_over<T: StoredElement, K: StoredElement>(
        &self,
        seed: u64,
    ) -> DecodeProblem<T, K> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let case = Self { page: KvPageShape { element: K::ELEMENT, ..self.page }, ..self.clone() };
        let (shape, page) = (case.shape(), case.page);
        let mut locations = rng.fork();
        let location_of = |_| locations.usize(0..self.num_locations);
        let table = ScatteredTable::new(
            &self.kv_lens,
            page.page_size,
            self.num_locations,
            location_of,
            &mut rng,
        );
        let pool = |&pages: &usize| vec![K::from_f32(f32::NAN); (pages + 1) * page.page_elements()];
        let mut pools: Vec<Vec<K>> = table.pages_of.iter().map(pool).collect();
        let mut problem = DecodeProblem {
            shape,
            pools: Arc::default(),
            table,
            q: random_elements(&mut rng, shape.q_elements(), 1.0),
            k_scale: random_scales(K::ELEMENT, &mut rng, page.num_kv_heads),
            v_scale: random_scales(K::ELEMENT, &mut rng, page.num_kv_heads),
        };
        let row = page.head_dim as usize;
        for (request, &kv_len) in self.kv_lens.iter().enumerate() {
            for token in 0..kv_len {
                for kv_head in 0..page.num_kv_heads {
                    let (location, k) = problem.place_of_k(request, token, kv_head);
                    let v = k + page.strides().value as usize;
                    let scales = [&problem.k_scale, &problem.v_scale];
                    let [k_scale, v_scale] = scales.map(|scales| scales[kv_head as usize]);
                    pools[location][k..k + row]
                        .copy_from_slice(&random_elements(&mut rng, row, k_scale));
                    pools[location][v..v + row]
                        .copy_from_slice(&random_elements(&mut rng, row, v_scale));
                }
            }
        }
        problem.pools = pools.into();
        problem
    }
}

impl<T: StoredElement, K: StoredElement> DecodeProblem<T, K> {
    /// Location, and first element within its pool, of the K of a token.
    pub(crate) fn place_of_k(&self, request: usize, token: u32, kv_head: u32) -> (usize, usize) {
        let page = self.shape.page;
        let lists = &self.table.lists;
        let place = lists.place(lists.entries(request).start + (token / page.page_size) as usize);
        let strides = page.strides();
        let in_page = token % page.page_size * strides.token + kv_head * strides.head;
        let first = place.index as usize * page.page_elements() + in_page as usize;
        (place.rank as usize, first)
    }

    /// A batch of some of the requests, in this order: the same pages, and the same queries.
    pub fn of_requests(&self, requests: &[usize]) -> Self {
        let (table, shape) = (&self.table, self.shape);
        let row = (shape.num_qo_heads * shape.page.head_dim) as usize;
        let mut batch = Self {
            shape: DecodeShape { batch: requests.len() as u32, ..shape },
            table: ScatteredTable { lists: PageLists::default(), pages_of: table.pages_of.clone() },
            pools: self.pools.clone(),
            q: Vec::new(),
            k_scale: self.k_scale.clone(),
            v_scale: self.v_scale.clone(),
        };
        for &request in requests {
            let pages = table.lists.entries(request).map(|entry| table.lists.place(entry));
            batch.table.lists.push(pages, table.lists.kv_last_page_len[request] as u32);
            batch.q.extend_from_slice(&self.q[request * row..][..row]);
        }
        batch
    }

    /// Attention, the obvious way.
    pub fn oracle(&self) -> DecodeResult {
        let DecodeShape { num_qo_heads, page, sm_scale, .. } = self.shape;
        let (row, group_size) = (page.head_dim as usize, self.shape.group_size() as usize);
        let kv_lens = self.table.table().kv_lens(page.page_size);
        let of_pair = |pair: usize| -> Vec<(Vec<f64>, f64)> {
            let (request, kv_head) =
                (pair / page.num_kv_heads as usize, pair as u32 % page.num_kv_heads);
            let (keys, values) = self.rows(request, kv_lens[request], kv_head);
            let first_head = request * num_qo_heads as usize + kv_head as usize * group_size;
            let queries = &self.q[first_head * row..][..group_size * row];
            let of_head = |q: &[T]| attend(&elements(q), &keys, &values, f64::from(sm_scale));
            queries.chunks(row).map(of_head).collect()
        };
        let num_pairs = kv_lens.len() * page.num_kv_heads as usize;
        let heads: Vec<_> = (0..num_pairs).into_par_iter().flat_map_iter(of_pair).collect();
        let mut result = DecodeResult::default();
        heads.into_iter().for_each(|head| result.push(head));
        result
    }

    /// The keys and values of a pair: `[kv_len, head_dim]` each.
    fn rows(&self, request: usize, kv_len: u32, kv_head: u32) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let page = self.shape.page;
        let row = page.head_dim as usize;
        let of_token = |token| {
            let (location, k) = self.place_of_k(request, token, kv_head);
            let v = k + page.strides().value as usize;
            let pool = &self.pools[location];
            let scaled = |first: usize, scale: &[f32]| -> Vec<f64> {
                let scale = f64::from(scale[kv_head as usize]);
                let stored = elements(&pool[first..first + row]).into_iter();
                stored.map(|element| scale * element).collect()
            };
            (scaled(k, &self.k_scale), scaled(v, &self.v_scale))
        };
        (0..kv_len).map(of_token).unzip()
    }
}

/// One query over `[tokens, head_dim]` keys and values: its output, and its log-sum-exp in base 2.
pub fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], sm_scale: f64) -> (Vec<f64>, f64) {
    if keys.is_empty() {
        return (vec![0.0; q.len()], f64::NEG_INFINITY);
    }
    let dot = |key: &Vec<f64>| key.iter().zip(q).map(|(k, q)| k * q).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|key| sm_scale * dot(key)).collect();
    let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (out, v) in out.iter_mut().zip(value) {
            *out += weight / sum * v;
        }
    }
    (out, (maximum + sum.ln()) * core::f64::consts::LOG2_E)
}

/// How far a kernel may be from the oracle, for values of about unit variance.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of an element of `out`: half a unit in the last place of the output, and the rounding of
    /// the softmax weights to 16 bits.
    pub out: f64,
    /// Of an element of `lse`.
    pub lse: f64,
}

impl Tolerance {
    /// For kernels in bf16, of 8 bits of precision.
    pub const BF16: Self = Self { out: 1.6e-2, lse: 2e-3 };
    /// For kernels in f16, of 11 bits of precision.
    pub const F16: Self = Self { out: 2e-3, lse: 2e-3 };
    /// For kernels that read e4m3, multiply in f16, and write bf16; from what the pages hold.
    pub const BF16_OVER_E4M3: Self = Self { out: 8e-3, lse: 2e-3 };
    /// For kernels that read e4m3, and multiply and write in f16; from what the pages hold.
    pub const F16_OVER_E4M3: Self = Self { out: 2e-3, lse: 2e-3 };
}

impl DecodeResult {
    /// Adds the result of the next head.
    pub fn push(&mut self, (out, lse): (Vec<f64>, f64)) {
        self.out.extend(out);
        self.lse.push(lse);
    }

    /// Refuses a kernel's whole output if any element is further off than `tolerance`, or NaN.
    pub fn check<T: StoredElement>(
        &self,
        out: &[T],
        lse: &[f32],
        tolerance: Tolerance,
    ) -> Result<(), std::string::String> {
        if (out.len(), lse.len()) != (self.out.len(), self.lse.len()) {
            return Err(std::format!(
                "{} outputs and {} lse, not {} and {}",
                out.len(),
                lse.len(),
                self.out.len(),
                self.lse.len()
            ));
        }
        let close = |got: f64, want: f64, tolerance: f64| {
            got == want || (got - want).abs() <= tolerance * want.abs().max(1.0)
        };
        for (i, (got, &want)) in elements(out).into_iter().zip(&self.out).enumerate() {
            if !close(got, want, tolerance.out) {
                return Err(std::format!("out[{i}] is {got}, should be {want}"));
            }
        }
        for (i, (&got, &want)) in lse.iter().zip(&self.lse).enumerate() {
            if !close(f64::from(got), want, tolerance.lse) {
                return Err(std::format!("lse[{i}] is {got}, should be {want}"));
            }
        }
        Ok(())
    }
}

/// Elements as f64.
pub(crate) fn elements<T: StoredElement>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.to_f64()).collect()
}

/// Sums of uniform numbers, of unit variance, over a factor.
pub(crate) fn random_elements<T: StoredElement>(
    rng: &mut fastrand::Rng,
    len: usize,
    scale: f32,
) -> Vec<T> {
    let mut element = || (0..3).map(|_| 2.0 * rng.f32() - 1.0).sum::<f32>();
    (0..len).map(|_| T::from_f32(element() / scale)).collect()
}

/// A factor for each head, far from 1, if the element kind has any.
fn random_scales(element: KvElement, rng: &mut fastrand::Rng, num_kv_heads: u32) -> Vec<f32> {
    let mut scale = || match element {
        KvElement::Half => 1.0,
        KvElement::E4m3 => (4.0 * rng.f32() - 4.0).exp2(),
    };
    (0..num_kv_heads).map(|_| scale()).collect()
}
