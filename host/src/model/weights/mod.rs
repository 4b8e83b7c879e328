//! A model's tensors: which there are, under which names, and how they are stacked.
//!
//! [`Weights`] says what there is, whatever a tensor is at the moment: first a list of [`Part`]s of
//! a checkpoint, which is data that can be checked before anything is launched or allocated; then,
//! by [`Weights::try_map`], device memory. Products that read the same input are stacked into one,
//! rows after rows: q, k and v; gate and up; the experts of a layer; its router and their gate.

mod checkpoint;
mod load;
mod plan;
mod seeded;
#[cfg(test)]
mod tests;

pub use checkpoint::Checkpoint;
pub use load::{LoadProgress, load};
pub use plan::plan;
pub use seeded::Seeded;

use std::ops::Range;

use super::ModelError;
use crate::kernels::seeded_values::SeededTensor;

/// Some rows and columns of a tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub tensor: String,
    /// The whole tensor's shape.
    pub shape: Vec<usize>,
    /// Which rows, of the first dimension.
    pub rows: Range<usize>,
    /// Which columns: elements of a row.
    pub columns: Range<usize>,
}

impl Part {
    /// All of a tensor.
    pub fn whole(tensor: impl Into<String>, shape: &[usize]) -> Self {
        let num_columns = shape[1..].iter().product();
        Self {
            tensor: tensor.into(),
            shape: shape.to_vec(),
            rows: 0..shape[0],
            columns: 0..num_columns,
        }
    }

    /// Its elements.
    pub fn num_elements(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Where `num_elements` of its elements from `start` on lie in the tensor: runs, in order.
    fn runs(&self, start: usize, num_elements: usize) -> Vec<Range<usize>> {
        let row_len: usize = self.shape[1..].iter().product();
        if self.columns.len() == row_len {
            let first = self.rows.start * row_len + start;
            return std::iter::once(first..first + num_elements).collect();
        }
        let (mut runs, mut at, end) = (Vec::new(), start, start + num_elements);
        while at < end {
            let (row, column) = (at / self.columns.len(), at % self.columns.len());
            let len = (self.columns.len() - column).min(end - at);
            let first = (self.rows.start + row) * row_len + self.columns.start + column;
            runs.push(first..first + len);
            at += len;
        }
        runs
    }
}

/// Parts whose elements follow each other in one piece of memory, and zeros behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// In order.
    pub parts: Vec<Part>,
    /// Zeros.
    pub padding_elements: usize,
}

impl Stack {
    /// Its elements, zeros included.
    pub fn num_elements(&self) -> usize {
        self.parts.iter().map(Part::num_elements).sum::<usize>() + self.padding_elements
    }
}

/// Where tensors come from.
pub trait WeightSource {
    /// Refuses a tensor that is not there, or not of this shape.
    ///
    /// # Errors
    /// The tensor's name, what it must be, and what it is.
    fn check(&self, part: &Part) -> Result<(), ModelError>;

    /// Refuses what is there and not among all the model's parts.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    fn check_complete(&self, parts: &[Part]) -> Result<(), ModelError>;

    /// Writes `values.len()` elements from `start` on.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    fn read(&self, part: &Part, start: usize, values: &mut [half::bf16]) -> Result<(), ModelError>;

    /// What the part's values follow from, if a GPU can make those that [`read`](Self::read) gives.
    fn seeded(&self, _part: &Part) -> Option<SeededTensor> {
        None
    }
}

/// All tensors of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<T> {
    /// `[vocab_size, hidden]`
    pub embedding: T,
    /// One for each layer.
    pub layers: Vec<LayerWeights<T>>,
    /// `[hidden]`
    pub final_norm: T,
    /// `[vocab_size, hidden]`, unless it is the embedding.
    pub lm_head: Option<T>,
}

/// The tensors of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights<T> {
    /// `[hidden]`
    pub input_norm: T,
    /// `[(num_qo_heads + 2 num_kv_heads) head_dim, hidden]`: q, k, v
    pub qkv: T,
    /// `[(num_qo_heads + 2 num_kv_heads) head_dim]`
    pub qkv_bias: Option<T>,
    /// `[head_dim]`
    pub q_norm: Option<T>,
    /// `[head_dim]`
    pub k_norm: Option<T>,
    /// `[hidden, num_qo_heads head_dim]`
    pub o: T,
    /// `[hidden]`
    pub post_attention_norm: T,
    /// What follows the attention.
    pub feed_forward: FeedForwardWeights<T>,
}

/// A SwiGLU.
#[derive(Clone, Debug, PartialEq)]
pub struct SwigluWeights<T> {
    /// `[2 intermediate, hidden]`, gates first
    pub gate_up: T,
    /// `[hidden, intermediate]`
    pub down: T,
}

/// What follows the attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardWeights<T> {
    /// One for all tokens.
    Dense(SwigluWeights<T>),
    /// The experts of each token. One that every token visits is cut into experts of the others'
    /// size, behind them: a SwiGLU is the sum of those of its parts.
    Experts {
        /// `[num_columns, hidden]`: a row for each expert, the gate of those that every token visits,
        /// zeros up to a multiple of 8
        router: T,
        /// `[num_experts, 2 intermediate, hidden]` and `[num_experts, hidden, intermediate]`
        experts: SwigluWeights<T>,
    },
}

impl<T> SwigluWeights<T> {
    fn try_map<U, E>(self, map: &mut impl FnMut(T) -> Result<U, E>) -> Result<SwigluWeights<U>, E> {
        Ok(SwigluWeights { gate_up: map(self.gate_up)?, down: map(self.down)? })
    }
}

impl<T> FeedForwardWeights<T> {
    fn try_map<U, E>(
        self,
        map: &mut impl FnMut(T) -> Result<U, E>,
    ) -> Result<FeedForwardWeights<U>, E> {
        Ok(match self {
            Self::Dense(swiglu) => FeedForwardWeights::Dense(swiglu.try_map(map)?),
            Self::Experts { router, experts } => {
                FeedForwardWeights::Experts { router: map(router)?, experts: experts.try_map(map)? }
            }
        })
    }
}

impl<T> LayerWeights<T> {
    fn try_map<U, E>(self, map: &mut impl FnMut(T) -> Result<U, E>) -> Result<LayerWeights<U>, E> {
        Ok(LayerWeights {
            input_norm: map(self.input_norm)?,
            qkv: map(self.qkv)?,
            qkv_bias: self.qkv_bias.map(&mut *map).transpose()?,
            q_norm: self.q_norm.map(&mut *map).transpose()?,
            k_norm: self.k_norm.map(&mut *map).transpose()?,
            o: map(self.o)?,
            post_attention_norm: map(self.post_attention_norm)?,
            feed_forward: self.feed_forward.try_map(map)?,
        })
    }
}

impl<T> Weights<T> {
    /// The same tensors as something else, one after the other.
    ///
    /// # Errors
    /// The first that `map` returns.
    pub fn try_map<U, E>(self, map: &mut impl FnMut(T) -> Result<U, E>) -> Result<Weights<U>, E> {
        Ok(Weights {
            embedding: map(self.embedding)?,
            layers: self
                .layers
                .into_iter()
                .map(|layer| layer.try_map(map))
                .collect::<Result<_, _>>()?,
            final_norm: map(self.final_norm)?,
            lm_head: self.lm_head.map(&mut *map).transpose()?,
        })
    }

    /// All of them, in the order of [`try_map`](Self::try_map).
    pub fn into_tensors(self) -> Vec<T> {
        let mut tensors = Vec::new();
        let collected = self.try_map(&mut |tensor| {
            tensors.push(tensor);
            Ok::<_, std::convert::Infallible>(())
        });
        collected.map_or_else(|never| match never {}, |_| tensors)
    }
}
