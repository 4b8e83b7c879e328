//! The permutation one pair after the other, and the cases that tests share.

use std::vec;
use std::vec::Vec;

use super::contract::PermuteShape;

/// The whole result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    /// Pairs of each expert: `[num_local_experts]`.
    pub expert_counts: Vec<i32>,
    /// First row of each expert, and the end: `[num_local_experts + 1]`.
    pub expert_offsets: Vec<i32>,
    /// Row of each pair, or -1: `[num_tokens, top_k]`.
    pub pair_rows: Vec<i32>,
    /// Pair of each row up to the end, or -1: `[expert_offsets[num_local_experts]]`.
    pub row_pairs: Vec<i32>,
}

/// Sorts the pairs of the shape's experts.
pub fn permute(shape: &PermuteShape, topk_ids: &[i32]) -> Permutation {
    let range = shape.first_expert as i32..shape.end_expert as i32;
    let local = |id: i32| range.contains(&id).then(|| (id - range.start) as usize);
    let mut pairs_of: Vec<Vec<i32>> = vec![Vec::new(); shape.num_local_experts()];
    for (pair, &id) in topk_ids.iter().enumerate() {
        if let Some(expert) = local(id) {
            pairs_of[expert].push(pair as i32);
        }
    }
    let mut permutation = Permutation {
        expert_counts: pairs_of.iter().map(|pairs| pairs.len() as i32).collect(),
        expert_offsets: vec![0],
        pair_rows: vec![-1; topk_ids.len()],
        row_pairs: Vec::new(),
    };
    for pairs in pairs_of {
        for pair in pairs {
            permutation.pair_rows[pair as usize] = permutation.row_pairs.len() as i32;
            permutation.row_pairs.push(pair);
        }
        let num_rows = permutation.row_pairs.len().next_multiple_of(shape.row_alignment as usize);
        permutation.row_pairs.resize(num_rows, -1);
        permutation.expert_offsets.push(num_rows as i32);
    }
    permutation
}

/// How tokens choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Every expert as likely as the other; now and then none (-1), or the same one twice.
    Uniform,
    /// Low experts far more often than high ones.
    Skewed,
    /// All pairs to the range's last expert.
    OneExpert,
    /// No pair to any expert of the range.
    Elsewhere,
}

/// One permutation.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Its sizes.
    pub shape: PermuteShape,
    /// Experts of all ranks.
    pub num_experts: u32,
    /// How tokens choose.
    pub routing: Routing,
}

impl Case {
    /// Ids `[num_tokens, top_k]` from a seed.
    pub fn topk_ids(&self, seed: u64) -> Vec<i32> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let num_experts = self.num_experts;
        let mut draw = || match self.routing {
            Routing::Uniform => rng.i32(-1..num_experts as i32),
            Routing::Skewed => {
                let share = f64::from(rng.f32());
                (share.powi(4) * f64::from(num_experts)) as i32
            }
            Routing::OneExpert => self.shape.end_expert as i32 - 1,
            Routing::Elsewhere if self.shape.first_expert > 0 => 0,
            Routing::Elsewhere => -1 - rng.i32(0..2) * 1000,
        };
        (0..self.shape.num_pairs()).map(|_| draw()).collect()
    }
}

/// Edge cases, and sizes that take one block and several.
pub fn cases() -> Vec<Case> {
    let all = PermuteShape::new;
    let case = |name, shape: PermuteShape, num_experts, routing| Case {
        name,
        shape,
        num_experts,
        routing,
    };
    vec![
        case("no tokens", all(0, 8, 256), 256, Routing::Uniform),
        case("one token, one expert", all(1, 1, 1), 1, Routing::OneExpert),
        case("7 experts", all(100, 3, 7), 7, Routing::Uniform),
        case("60 experts, skewed", all(200, 4, 60), 60, Routing::Skewed),
        case("all to one expert", all(300, 8, 64), 64, Routing::OneExpert),
        case("none to any", all(300, 2, 64), 64, Routing::Elsewhere),
        case("512 experts, few pairs", all(9, 16, 512), 512, Routing::Uniform),
        case(
            "rows of tiles of 128",
            PermuteShape { row_alignment: 128, ..all(150, 8, 40) },
            40,
            Routing::Skewed,
        ),
        case(
            "the second of four ranks",
            PermuteShape { first_expert: 64, end_expert: 128, row_alignment: 16, ..all(500, 8, 0) },
            256,
            Routing::Uniform,
        ),
        case(
            "nothing for this rank",
            PermuteShape { first_expert: 8, end_expert: 9, ..all(600, 2, 0) },
            16,
            Routing::Elsewhere,
        ),
        case("several blocks", all(700, 8, 256), 256, Routing::Uniform),
    ]
}
