//! The weighted sum in f64, and the cases that tests share.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::contract::UnpackShape;
use crate::token_pack::reference as token_pack;

/// How far an output may be from the oracle's: rounded to bf16, times the magnitude of the oracle's.
pub const RELATIVE_TOLERANCE: f64 = 1.0 / 256.0;
/// Added to that, times the sum of the magnitudes of what was added up.
pub const SUM_TOLERANCE: f64 = 1e-6;

/// Compares an output with the weighted sum of rows, in f64.
///
/// `row` gives element `i` of a row, which is asked for only where a pair has one; `addend`
/// `[num_tokens, hidden]`, or empty.
///
/// # Errors
/// The first element that is off.
pub fn check(
    shape: &UnpackShape,
    pair_rows: &[i32],
    topk_weights: &[f32],
    row: impl Fn(usize, usize) -> f64,
    addend: &[f64],
    out: &[f64],
) -> Result<(), String> {
    let (top_k, hidden) = (shape.rows.top_k as usize, shape.rows.hidden as usize);
    if out.len() != shape.rows.x_elements() {
        return Err(format!("{} elements, not {}", out.len(), shape.rows.x_elements()));
    }
    for (place, &got) in out.iter().enumerate() {
        let (token, i) = (place / hidden, place % hidden);
        let mut want = addend.get(place).copied().unwrap_or(0.0);
        let mut magnitude = want.abs();
        for pair in token * top_k..(token + 1) * top_k {
            if (0..shape.rows.num_max_rows as i32).contains(&pair_rows[pair]) {
                let part = f64::from(topk_weights[pair]) * row(pair_rows[pair] as usize, i);
                want += part;
                magnitude += part.abs();
            }
        }
        let is_close =
            (got - want).abs() <= RELATIVE_TOLERANCE * want.abs() + SUM_TOLERANCE * magnitude;
        if !is_close {
            return Err(format!("token {token}, element {i}: {got}, the oracle has {want}"));
        }
    }
    Ok(())
}

/// One unpack.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its sizes.
    pub shape: UnpackShape,
    /// The pack whose rows are added up.
    pub pack: token_pack::Case,
}

/// The cases of a pack of `format`, every other one with an addend.
pub fn cases(format: crate::token_rows::RowFormat) -> Vec<Case> {
    let packs = token_pack::cases().into_iter().filter(|pack| pack.shape.rows.format == format);
    let unpack = |(i, pack): (usize, token_pack::Case)| Case {
        shape: UnpackShape { rows: pack.shape.rows, has_addend: i % 2 == 1 },
        pack,
    };
    packs.enumerate().map(unpack).collect()
}
