//! The oracle, and the shapes that tests share.

use std::vec;
use std::vec::Vec;

use super::contract::MergeStatesShape;

/// States to merge.
#[derive(Clone, Debug)]
pub struct MergeProblem {
    /// Sizes.
    pub shape: MergeStatesShape,
    /// `[num_states, num_rows, head_dim]`
    pub states_out: Vec<f32>,
    /// `[num_states, num_rows]`
    pub states_lse: Vec<f32>,
}

/// One state, one row, ragged blocks, more states than are in flight at once.
pub fn cases() -> [MergeStatesShape; 6] {
    [(1, 1, 4), (2, 3, 64), (2, 9, 128), (3, 40, 128), (4, 8, 64), (9, 5, 80)]
        .map(|(num_states, num_rows, head_dim)| MergeStatesShape { num_states, num_rows, head_dim })
}

impl MergeProblem {
    /// Random states; every third one has no tokens, and all those of the last row, if there are
    /// several rows.
    pub fn new(shape: MergeStatesShape, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (rows, row) = (shape.num_rows as usize, shape.head_dim as usize);
        let (mut states_out, mut states_lse) = (Vec::new(), Vec::new());
        for i in 0..shape.states_lse_elements() {
            let is_empty = rng.u32(0..3) == 0 || (rows > 1 && i % rows == rows - 1);
            let lse = if is_empty { f32::NEG_INFINITY } else { 40.0 * rng.f32() - 20.0 };
            states_lse.push(lse);
            let element = |_| if is_empty { 0.0 } else { 2.0 * rng.f32() - 1.0 };
            states_out.extend((0..row).map(element));
        }
        Self { shape, states_out, states_lse }
    }

    /// The formula: `out` `[num_rows, head_dim]` and `lse` `[num_rows]`.
    pub fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let (rows, row) = (self.shape.num_rows as usize, self.shape.head_dim as usize);
        let (mut out, mut lse) = (vec![0.0; rows * row], Vec::new());
        for r in 0..rows {
            let of_row = || (r..self.states_lse.len()).step_by(rows);
            let weight = |state: usize| f64::from(self.states_lse[state]).exp2();
            let sum: f64 = of_row().map(weight).sum();
            lse.push(sum.log2());
            for state in of_row().filter(|&state| weight(state) > 0.0) {
                for d in 0..row {
                    let value = f64::from(self.states_out[state * row + d]);
                    out[r * row + d] += weight(state) / sum * value;
                }
            }
        }
        (out, lse)
    }
}
