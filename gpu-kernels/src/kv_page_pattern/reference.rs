//! The pattern element by element, and the cases that tests and benches share.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::KvTokenPlace;
use super::contract::PatternShape;
use super::pattern::{ElementFormat, KvHalf, element, token_identity};
use crate::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};

/// The value of every element of a page that holds tokens of these identities at these places;
/// `None` where nothing was written. In the order of the page's layout.
pub fn page_elements(shape: &PatternShape, tokens: &[(u32, u64)]) -> Vec<Option<f32>> {
    let page = &shape.page;
    let strides = page.strides();
    let mut elements = vec![None; page.page_elements()];
    for &(token_idx, identity) in tokens {
        for (half, half_start) in [(KvHalf::Key, 0), (KvHalf::Value, strides.value)] {
            for head in 0..page.num_kv_heads {
                for dim in 0..page.head_dim {
                    let idx = half_start + token_idx * strides.token + head * strides.head + dim;
                    elements[idx as usize] =
                        Some(element(identity, half, head, dim, page, shape.format));
                }
            }
        }
    }
    elements
}

/// Pages to fill and to sum up.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// Shape of the pages.
    pub shape: PatternShape,
    /// Pages of each location.
    pub pool_pages: Vec<usize>,
    /// The pages, in any order.
    pub pages: Vec<KvPagePlace>,
    /// How many tokens, from the first on, each of them holds.
    pub num_valid_tokens: Vec<u32>,
}

impl Case {
    /// Place and identity of every token, page by page.
    pub fn tokens(&self) -> (Vec<KvTokenPlace>, Vec<u64>) {
        let mut places = Vec::new();
        let mut identities = Vec::new();
        for (owner, (&page, &num_valid)) in
            self.pages.iter().zip(&self.num_valid_tokens).enumerate()
        {
            for token_idx in 0..num_valid {
                places.push(KvTokenPlace { page, token_idx });
                identities.push(token_identity(owner as u64, u64::from(token_idx)));
            }
        }
        (places, identities)
    }
}

/// Edge cases, smallest first, each in both layouts.
pub fn cases() -> Vec<Case> {
    let page = |page_size, num_kv_heads, head_dim, layout| KvPageShape {
        page_size,
        num_kv_heads,
        head_dim,
        layout,
        element: KvElement::Half,
    };
    let place = |rank, index| KvPagePlace { rank, index };
    let mut cases = Vec::new();
    for layout in [KvLayout::Nhd, KvLayout::Hnd] {
        cases.extend([
            Case {
                name: format!("one token of one head, fewer words than lanes, {layout:?}"),
                shape: PatternShape { page: page(1, 1, 64, layout), format: ElementFormat::BF16 },
                pool_pages: vec![1],
                pages: vec![place(0, 0)],
                num_valid_tokens: vec![1],
            },
            Case {
                name: format!("pages that are full, partly full and empty, f16, {layout:?}"),
                shape: PatternShape { page: page(16, 8, 64, layout), format: ElementFormat::F16 },
                pool_pages: vec![3, 0, 4],
                pages: vec![place(2, 3), place(0, 1), place(2, 0), place(0, 2)],
                num_valid_tokens: vec![16, 1, 0, 15],
            },
            Case {
                name: format!("words that do not divide by the lanes, {layout:?}"),
                shape: PatternShape { page: page(5, 3, 80, layout), format: ElementFormat::BF16 },
                pool_pages: vec![4, 4],
                pages: (0..8).map(|i| place(i % 2, i / 2)).collect(),
                num_valid_tokens: vec![5, 4, 3, 2, 1, 5, 5, 5],
            },
            Case {
                name: format!("pages of 64 tokens, {layout:?}"),
                shape: PatternShape { page: page(64, 4, 128, layout), format: ElementFormat::BF16 },
                pool_pages: vec![2, 1],
                pages: vec![place(0, 1), place(1, 0), place(0, 0)],
                num_valid_tokens: vec![64, 63, 33],
            },
        ]);
    }
    cases
}
