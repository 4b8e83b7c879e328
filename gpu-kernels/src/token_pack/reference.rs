//! A pack row by row, and the cases that tests share.

use std::vec;
use std::vec::Vec;

use super::contract::PackShape;
use crate::moe_permute::contract::PermuteShape;
use crate::moe_permute::reference::{Case as Permute, Permutation, Routing, permute};
use crate::token_rows::{RowFormat, TokenRows};

/// What `rows` (or their scales) hold after a pack of `x` (or its scales), both with `width`
/// elements a row: none where they are left as they were.
pub fn pack<T: Copy + Default>(
    shape: &PackShape,
    permutation: &Permutation,
    x: &[T],
    width: usize,
) -> Vec<Option<T>> {
    let num_max_rows = shape.rows.num_max_rows as usize;
    let mut rows = vec![None; num_max_rows * width];
    for (row, &pair) in permutation.row_pairs.iter().enumerate().take(num_max_rows) {
        let place = &mut rows[row * width..][..width];
        if let Ok(pair) = usize::try_from(pair) {
            let token = pair / shape.rows.top_k as usize;
            let source = &x[token * width..][..width];
            place.iter_mut().zip(source).for_each(|(to, &from)| *to = Some(from));
        } else if shape.zero_padding {
            place.fill(Some(T::default()));
        }
    }
    rows
}

/// One pack.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Its sizes.
    pub shape: PackShape,
    /// Where tokens go.
    pub permute: Permute,
}

impl Case {
    /// A case of these sizes; rows of `dropped` pairs have no memory.
    pub fn new(
        name: &'static str,
        permute: PermuteShape,
        routing: Routing,
        (hidden, format): (u32, RowFormat),
        num_dropped: u32,
    ) -> Self {
        let num_experts = permute.end_expert + 3;
        let permute = Permute { name, shape: permute, num_experts, routing };
        let num_max_rows = (permute.shape.num_max_rows() as u32).saturating_sub(num_dropped);
        let PermuteShape { num_tokens, top_k, .. } = permute.shape;
        let shape = PackShape {
            rows: TokenRows { num_tokens, top_k, hidden, format, num_max_rows },
            num_local_experts: permute.shape.num_local_experts() as u32,
            zero_padding: permute.shape.row_alignment > 4,
        };
        Self { name, shape, permute }
    }

    /// Where the tokens of a seed go.
    pub fn permutation(&self, seed: u64) -> Permutation {
        permute(&self.permute.shape, &self.permute.topk_ids(seed))
    }
}

/// Edge cases.
pub fn cases() -> Vec<Case> {
    let (bf16, fp8) = (RowFormat::Bf16, RowFormat::Fp8);
    let sizes = PermuteShape::new;
    let tiles = |row_alignment, shape| PermuteShape { row_alignment, ..shape };
    vec![
        Case::new("no tokens", sizes(0, 8, 16), Routing::Uniform, (64, bf16), 0),
        Case::new("rows of 16 bytes", sizes(5, 2, 7), Routing::Uniform, (8, bf16), 0),
        Case::new("one unit more than a block", sizes(6, 3, 8), Routing::Skewed, (1032, bf16), 0),
        Case::new("all to one expert", sizes(9, 8, 60), Routing::OneExpert, (72, bf16), 0),
        Case::new("none to any", sizes(9, 8, 60), Routing::Elsewhere, (72, bf16), 0),
        Case::new("padding left", tiles(4, sizes(7, 2, 5)), Routing::Skewed, (40, bf16), 0),
        Case::new("padding cleared", tiles(16, sizes(7, 2, 5)), Routing::Skewed, (40, bf16), 0),
        Case::new("rows beyond the memory", sizes(12, 4, 6), Routing::Uniform, (48, bf16), 17),
        Case::new("top-k of 11", sizes(4, 11, 64), Routing::Uniform, (128, bf16), 0),
        Case::new("fp8, a scale for the rest", sizes(8, 4, 9), Routing::Uniform, (144, fp8), 0),
        Case::new("fp8, padding cleared", tiles(8, sizes(8, 4, 9)), Routing::Skewed, (256, fp8), 3),
    ]
}
