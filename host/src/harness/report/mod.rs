//! What a run found, for people: one page, and the same as Markdown.

mod expected;
pub mod numbers;
pub mod svg;
pub mod table;

pub use expected::expectations_table;
