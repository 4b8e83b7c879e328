//! The oracle, and the shapes that tests and GPU tests share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::{GemvExperts, GemvShape};
use crate::gemm::reference::{Tolerance, product, random};
use crate::shared_expert::reference::gate;

/// Inputs of a product.
#[derive(Clone, Debug)]
pub struct GemvProblem {
    /// Sizes.
    pub shape: GemvShape,
    /// What is multiplied.
    pub row: Vec<bf16>,
    /// `[k]`, if there is a norm
    pub norm_weight: Vec<bf16>,
    /// Weights.
    pub b: Vec<bf16>,
    /// `[n]`: what results are added to, where they are
    pub x: Vec<bf16>,
    /// `[top_k + num_shared]`, if there are experts
    pub topk_ids: Vec<i32>,
    /// `[top_k + num_shared]`, if there are experts
    pub topk_weights: Vec<f32>,
}

/// Refuses results unless each is close to what the oracle has, where it has one.
///
/// # Errors
/// The first that is off.
pub fn check(got: &[bf16], want: &[Option<f64>]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} results, the oracle has {}", got.len(), want.len()));
    }
    let is_off = |&(_, (got, want)): &(usize, (&bf16, &Option<f64>))| {
        want.is_some_and(|want| !Tolerance::BF16.holds(got.to_f64(), want))
    };
    match got.iter().zip(want).enumerate().find(is_off) {
        None => Ok(()),
        Some((i, (got, want))) => Err(format!("result {i} is {got}, the oracle has {want:?}")),
    }
}

/// One unit and many, pieces that are full, exceeded and short, rows that fill the ring several times,
/// with and without a norm, experts with and without shared ones.
pub fn cases() -> Vec<GemvShape> {
    let plain = GemvShape::new;
    let normed = |n, k| GemvShape { norm_eps: Some(1e-6), ..plain(n, k) };
    let gated = |n, k| GemvShape { is_gated: true, ..normed(n, k) };
    let experts = |top_k, num_shared| Some(GemvExperts { num_experts: 6, top_k, num_shared });
    vec![
        plain(8, 8),
        plain(200, 264),
        normed(72, 1024),
        normed(24, 3080),
        gated(8, 1032),
        gated(136, 72),
        GemvShape { norm_eps: None, ..gated(16, 1024) },
        GemvShape { experts: experts(2, 3), ..gated(40, 136) },
        GemvShape { experts: experts(6, 0), ..gated(8, 2056) },
        GemvShape { experts: experts(2, 3), ..plain(72, 40) },
        GemvShape { experts: experts(1, 0), ..plain(136, 1160) },
        GemvShape { experts: experts(4, 4), ..plain(24, 1408) },
    ]
}

impl GemvProblem {
    /// Random inputs whose results are of variance 1. Where there are several slots, the second has no
    /// expert.
    pub fn new(shape: GemvShape, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut topk_ids, mut topk_weights) = (Vec::new(), Vec::new());
        if let Some(GemvExperts { num_experts, top_k, num_shared }) = shape.experts {
            let mut ids: Vec<i32> = (0..num_experts as i32).collect();
            rng.shuffle(&mut ids);
            topk_ids.extend(&ids[..top_k as usize]);
            topk_ids.extend((num_experts..num_experts + num_shared).map(|id| id as i32));
            if top_k > 1 {
                topk_ids[1] = -1;
            }
            topk_weights.extend(topk_ids.iter().map(|_| 0.1 + rng.f32()));
        }
        let weight = (0..shape.norm_elements()).map(|_| bf16::from_f32(0.5 + rng.f32()));
        Self {
            shape,
            norm_weight: weight.collect(),
            row: random(seed, shape.row_elements(), 1.0),
            b: random(!seed, shape.b_elements(), 1.0 / f64::from(shape.k)),
            x: random(seed ^ 1, shape.n as usize, 1.0),
            topk_ids,
            topk_weights,
        }
    }

    /// The multiplied row, as the kernels round it.
    fn multiplied(&self) -> Vec<bf16> {
        let Some(eps) = self.shape.norm_eps else { return self.row.clone() };
        let squares: f64 = self.row.iter().map(|x| x.to_f64().powi(2)).sum();
        let scale = 1.0 / (squares / self.row.len() as f64 + f64::from(eps)).sqrt();
        let element = |(x, weight): (&bf16, &bf16)| {
            let normal = bf16::from_f64(x.to_f64() * scale).to_f64();
            bf16::from_f64(normal * weight.to_f64())
        };
        self.row.iter().zip(&self.norm_weight).map(element).collect()
    }

    /// Results in f64, without what they are added to. `None` where a slot has no expert.
    pub fn results(&self) -> Vec<Option<f64>> {
        let GemvShape { n, k, is_gated, experts, .. } = self.shape;
        let (n, k) = (n as usize, k as usize);
        let row = self.multiplied();
        let of_one = self.b_rows() * k;
        let of_expert = |row: &[bf16], expert: usize| {
            let sums = product(row, &self.b[expert * of_one..][..of_one], k);
            if is_gated { gate(&sums, n) } else { sums }
        };
        if experts.is_none() {
            return of_expert(&row, 0).into_iter().map(Some).collect();
        }
        let ids = || self.topk_ids.iter().map(|&id| usize::try_from(id).ok());
        if is_gated {
            let of_slot = |id: Option<usize>| match id {
                Some(expert) => of_expert(&row, expert).into_iter().map(Some).collect(),
                None => vec![None; n],
            };
            return ids().flat_map(of_slot).collect();
        }
        let mut sums = vec![0.0; n];
        for ((row, id), weight) in row.chunks(k).zip(ids()).zip(&self.topk_weights) {
            if let Some(expert) = id {
                let of_slot = of_expert(row, expert);
                sums.iter_mut().zip(of_slot).for_each(|(sum, x)| *sum += f64::from(*weight) * x);
            }
        }
        sums.into_iter().map(Some).collect()
    }

    /// Results where they are added to `x`.
    pub fn added(&self) -> Vec<Option<f64>> {
        let add = |(sum, x): (Option<f64>, &bf16)| sum.map(|sum| sum + x.to_f64());
        self.results().into_iter().zip(&self.x).map(add).collect()
    }

    fn b_rows(&self) -> usize {
        if self.shape.is_gated { 2 * self.shape.n as usize } else { self.shape.n as usize }
    }
}
