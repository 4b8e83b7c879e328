//! A table, as Markdown and as HTML.

use std::fmt::Write;

use super::numbers;
use super::svg::escape;
use crate::harness::results::{Estimate, Published, Share};

/// What stands in a cell.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A number with its unit.
    Number(String),
    /// A median, and the interval it lies in.
    Estimate {
        /// The median with its unit.
        value: String,
        /// Both ends.
        interval: String,
    },
    /// A part of a ceiling.
    Share {
        /// 0 to 1.
        share: f64,
        /// The ceiling's name.
        of: String,
    },
    /// Nothing to say.
    Empty,
}

impl Cell {
    /// A ratio with its interval.
    pub fn ratio(ratio: Estimate) -> Self {
        Self::Estimate {
            value: numbers::ratio(ratio.median),
            interval: numbers::ratio_interval(ratio),
        }
    }

    /// A time with its interval.
    pub fn time(us: Estimate) -> Self {
        Self::Estimate { value: numbers::time(us.median), interval: numbers::time_interval(us) }
    }

    /// A share of a ceiling, where one bounds the side.
    pub fn share(share: Option<&Share>) -> Self {
        match share {
            Some(share) => Self::Share { share: share.share, of: share.ceiling.clone() },
            None => Self::Empty,
        }
    }

    /// Ratios of other machines.
    pub fn published(published: &[Published]) -> Self {
        let one = |one: &Published| format!("{} {}", numbers::ratio(one.ratio), one.hardware);
        match published {
            [] => Self::Empty,
            all => Self::Text(all.iter().map(one).collect::<Vec<_>>().join(", ")),
        }
    }

    fn markdown(&self) -> String {
        let text = match self {
            Self::Text(text) | Self::Number(text) => text.clone(),
            Self::Estimate { value, interval } => format!("{value} ({interval})"),
            Self::Share { share, of } => format!("{} of {of}", numbers::percent(*share)),
            Self::Empty => String::new(),
        };
        // Markdown takes what is in angle brackets for HTML.
        text.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace('\n', " ")
    }

    fn html(&self) -> String {
        match self {
            Self::Text(text) => format!("<td>{}</td>", escape(text)),
            Self::Number(text) => format!("<td class=\"number\">{}</td>", escape(text)),
            Self::Estimate { value, interval } => format!(
                "<td class=\"number\">{} <span class=\"interval\">{}</span></td>",
                escape(value),
                escape(interval)
            ),
            Self::Share { share, of } => format!(
                "<td class=\"share\"><span class=\"meter\"><span style=\"width:{:.1}%\"></span>\
                 </span>{} <span class=\"interval\">of {}</span></td>",
                100.0 * share.clamp(0.0, 1.0),
                numbers::percent(*share),
                escape(of)
            ),
            Self::Empty => "<td></td>".to_owned(),
        }
    }
}

/// Rows of cells under the names of their columns.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, one cell a column.
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a row has a cell for each column");
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The same without the columns in which no row says anything.
    pub fn without_empty_columns(mut self) -> Self {
        for idx in (0..self.columns.len()).rev() {
            if self.rows.iter().all(|row| matches!(row[idx], Cell::Empty)) {
                self.columns.remove(idx);
                self.rows.iter_mut().for_each(|row| drop(row.remove(idx)));
            }
        }
        self
    }

    /// Whether a column holds numbers, which stand to the right.
    fn is_numeric(&self, idx: usize) -> bool {
        let numeric = |cell: &Cell| matches!(cell, Cell::Number(_) | Cell::Estimate { .. });
        self.rows.iter().any(|row| numeric(&row[idx]))
    }

    /// As GitHub reads it.
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|", self.columns.join(" | "));
        for idx in 0..self.columns.len() {
            text += if self.is_numeric(idx) { "---:|" } else { "---|" };
        }
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(Cell::markdown).collect();
            writeln!(text, "| {} |", cells.join(" | ")).expect("a string takes all");
        }
        text
    }

    /// As an element `table` in a frame that scrolls where the page is narrow.
    pub fn html(&self) -> String {
        let mut text = "<div class=\"scroll\"><table><thead><tr>".to_owned();
        for (idx, name) in self.columns.iter().enumerate() {
            let class = if self.is_numeric(idx) { " class=\"number\"" } else { "" };
            text += &format!("<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        text += "</tr></thead><tbody>\n";
        for row in &self.rows {
            let cells: String = row.iter().map(Cell::html).collect();
            text += &format!("<tr>{cells}</tr>\n");
        }
        text + "</tbody></table></div>\n"
    }
}
