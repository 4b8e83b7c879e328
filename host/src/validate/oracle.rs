//! What queries look for, and what attention should find: from tokens' sources alone.

use std::ops::Range;

use gpu_kernels::kv_page_pattern::pattern::{
    ElementFormat, KvHalf, content, element, token_identity,
};
use gpu_kernels::kv_page_pattern::{WORD_ELEMENTS, pattern};
use gpu_kernels::paged_attention::contract::DecodeShape;
use gpu_kernels::paged_attention::reference::{DecodeResult, attend};
use half::bf16;

use super::{SequenceView, TokenSource};

/// How the bits of K and V become elements.
pub(super) const FORMAT: ElementFormat = ElementFormat::BF16;

/// A query is the key it looks for times this, a power of two, so that it is exact in bf16. Scores
/// of that key then stand out among a hundred thousand others: were its page not where the table
/// says, the output would be another.
const SHARPNESS: f32 = 16.0;

/// The identity of the token with this source.
pub(super) fn identity(source: TokenSource) -> u64 {
    token_identity(source.owner, source.token_idx)
}

/// K and V of the token with this identity, bit by bit, `[2, num_kv_heads, head_dim]`.
pub(super) fn token_elements(identity: u64, shape: &DecodeShape) -> Vec<bf16> {
    let num_words = 2 * shape.page.num_kv_heads * shape.page.head_dim / WORD_ELEMENTS;
    elements(identity, 0..num_words).collect()
}

/// The query of one head: the key of the last token for the first head, of any token, drawn from
/// step, request and head, for the others.
fn query(sequence: &SequenceView<'_>, step: u64, head: u32, shape: &DecodeShape) -> Vec<f32> {
    let target = match head {
        0 => sequence.num_tokens - 1,
        _ => {
            let draw = pattern::mix(
                pattern::mix(step ^ pattern::mix(sequence.tokens.number)) ^ u64::from(head),
            );
            (draw % u64::from(sequence.num_tokens)) as u32
        }
    };
    let identity = identity(sequence.tokens.source(target));
    let kv_head = head / shape.group_size();
    (0..shape.page.head_dim)
        .map(|dim| SHARPNESS * element(identity, KvHalf::Key, kv_head, dim, &shape.page, FORMAT))
        .collect()
}

/// Queries of one sequence, `[num_qo_heads, head_dim]`.
pub(super) fn queries(sequence: &SequenceView<'_>, step: u64, shape: &DecodeShape) -> Vec<bf16> {
    (0..shape.num_qo_heads)
        .flat_map(|head| query(sequence, step, head, shape))
        .map(bf16::from_f32)
        .collect()
}

/// Attention of one sequence in f64, over what its tokens contain.
pub(super) fn expected(
    sequence: &SequenceView<'_>,
    step: u64,
    shape: &DecodeShape,
) -> DecodeResult {
    let identities: Vec<u64> = (0..sequence.num_tokens)
        .map(|position| identity(sequence.tokens.source(position)))
        .collect();
    let mut result = DecodeResult::default();
    for kv_head in 0..shape.page.num_kv_heads {
        let rows = |half| -> Vec<Vec<f64>> {
            identities.iter().map(|&identity| row(identity, half, kv_head, shape)).collect()
        };
        let (keys, values) = (rows(KvHalf::Key), rows(KvHalf::Value));
        for head in kv_head * shape.group_size()..(kv_head + 1) * shape.group_size() {
            let q: Vec<f64> =
                query(sequence, step, head, shape).into_iter().map(f64::from).collect();
            result.push(attend(&q, &keys, &values, f64::from(shape.sm_scale)));
        }
    }
    result
}

/// K or V of one head of a token.
fn row(identity: u64, half: KvHalf, kv_head: u32, shape: &DecodeShape) -> Vec<f64> {
    let first_head = match half {
        KvHalf::Key => kv_head,
        KvHalf::Value => shape.page.num_kv_heads + kv_head,
    };
    let words_per_head = shape.page.head_dim / WORD_ELEMENTS;
    let words = first_head * words_per_head..(first_head + 1) * words_per_head;
    elements(identity, words).map(|element| f64::from(element.to_f32())).collect()
}

/// The elements of some words of a token.
fn elements(identity: u64, words: Range<u32>) -> impl Iterator<Item = bf16> {
    words
        .flat_map(move |word_idx| content(identity, word_idx, FORMAT))
        .flat_map(|pair| [bf16::from_bits(pair as u16), bf16::from_bits((pair >> 16) as u16)])
}
