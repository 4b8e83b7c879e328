//! The blocks' lists of work, as they lie in device memory.

use cuda_std::prelude::*;

use crate::paged_attention::WorkItem;

/// Reads an item.
#[inline(always)]
pub(super) unsafe fn load_item(items: Global<u32>, idx: u32) -> WorkItem {
    let item = items.offset(idx as usize * WorkItem::WORDS);
    let [request, kv_head, tile_begin, tile_end] = item.load_x4(0);
    let [kv_len, first_entry, next, part] = item.load_x4(4);
    let [part_begin, num_parts, meeting, merged] = item.load_x4(8);
    WorkItem {
        request,
        kv_head,
        tile_begin,
        tile_end,
        kv_len,
        first_entry,
        next,
        part,
        part_begin,
        num_parts,
        meeting,
        merged,
    }
}
