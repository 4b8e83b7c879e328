//! A batch's page table, dealt to those who attend over its pages.

use std::vec;
use std::vec::Vec;

use crate::paged_attention::contract::PageTable;

/// The page table of one side, which has lists of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideTable {
    /// `[batch + 1]`
    pub kv_indptr: Vec<i32>,
    /// `[entries]`
    pub kv_indices: Vec<i32>,
    /// `[entries]`
    pub kv_page_rank: Vec<i32>,
    /// `[batch]`
    pub kv_last_page_len: Vec<i32>,
}

impl SideTable {
    /// The table, as contracts take it.
    pub fn table(&self) -> PageTable<'_> {
        PageTable {
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.kv_indices,
            kv_page_rank: &self.kv_page_rank,
            kv_last_page_len: &self.kv_last_page_len,
        }
    }

    /// Whether it has any page.
    pub fn has_pages(&self) -> bool {
        !self.kv_indices.is_empty()
    }
}

/// Deals each page of request `b` in location `l` to side `side_of(b, l)`, of `num_sides`.
///
/// Every side has all requests, in order, and their pages in order; a request's last page, the
/// only one that may be part full, stays the last on its side. The table must have passed its
/// [check](PageTable::check).
pub fn deal_pages(
    table: &PageTable<'_>,
    page_size: u32,
    num_sides: usize,
    side_of: impl Fn(usize, usize) -> usize,
) -> Vec<SideTable> {
    let mut sides = vec![SideTable { kv_indptr: vec![0], ..SideTable::default() }; num_sides];
    for (request, ends) in table.kv_indptr.windows(2).enumerate() {
        let entries = ends[0] as usize..ends[1] as usize;
        let mut last_page_len = vec![0; num_sides];
        for entry in entries.clone() {
            let location = table.kv_page_rank[entry];
            let side = side_of(request, location as usize);
            sides[side].kv_indices.push(table.kv_indices[entry]);
            sides[side].kv_page_rank.push(location);
            let is_last = entry + 1 == entries.end;
            let full = page_size as i32;
            last_page_len[side] = if is_last { table.kv_last_page_len[request] } else { full };
        }
        for (side, last_page_len) in sides.iter_mut().zip(last_page_len) {
            side.kv_indptr.push(side.kv_indices.len() as i32);
            side.kv_last_page_len.push(last_page_len);
        }
    }
    sides
}
