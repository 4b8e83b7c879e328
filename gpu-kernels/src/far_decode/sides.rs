//! A batch's page table, dealt to those who attend over its pages.

use std::vec;
use std::vec::Vec;

use crate::kv_layout::KvPagePlace;
use crate::paged_attention::contract::{PageLists, PageTable};

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
) -> Vec<PageLists> {
    let mut sides = vec![PageLists::default(); num_sides];
    for (request, ends) in table.kv_indptr.windows(2).enumerate() {
        let entries = ends[0] as usize..ends[1] as usize;
        let mut pages = vec![Vec::new(); num_sides];
        let mut last_page_len = vec![0; num_sides];
        for entry in entries.clone() {
            let (rank, index) = (table.kv_page_rank[entry] as u32, table.kv_indices[entry] as u32);
            let side = side_of(request, rank as usize);
            pages[side].push(KvPagePlace { rank, index });
            let is_last = entry + 1 == entries.end;
            last_page_len[side] =
                if is_last { table.kv_last_page_len[request] as u32 } else { page_size };
        }
        for (side, (pages, last_page_len)) in
            sides.iter_mut().zip(pages.into_iter().zip(last_page_len))
        {
            side.push(pages, last_page_len);
        }
    }
    sides
}
