//! Page copies one after the other, and the cases that tests and benches share.

use std::vec;
use std::vec::Vec;

use super::KvPageMove;
use super::contract::{gather, scatter};
use crate::kv_layout::KvPagePlace;

/// Carries out `moves` on `pools`, each of whole pages of `page_bytes` bytes.
pub fn copy_pages(pools: &mut [Vec<u8>], page_bytes: usize, moves: &[KvPageMove]) {
    for KvPageMove { src, dst } in moves {
        let src_start = src.index as usize * page_bytes;
        let dst_start = dst.index as usize * page_bytes;
        let page = pools[src.rank as usize][src_start..src_start + page_bytes].to_vec();
        pools[dst.rank as usize][dst_start..dst_start + page_bytes].copy_from_slice(&page);
    }
}

/// One list of moves.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Pages of each location.
    pub pool_pages: Vec<usize>,
    /// The moves.
    pub moves: Vec<KvPageMove>,
}

/// Edge cases, smallest first.
pub fn cases() -> Vec<Case> {
    let place = |rank, index| KvPagePlace { rank, index };
    let scattered = |num_pages: u32, of: u32| -> Vec<KvPagePlace> {
        (0..num_pages).map(|i| place(i % 2, (i * 7 + 3) % of)).collect()
    };
    vec![
        Case {
            name: "one page of 32 bytes within a location",
            page_bytes: 32,
            pool_pages: vec![2],
            moves: vec![KvPageMove { src: place(0, 1), dst: place(0, 0) }],
        },
        Case {
            name: "one source to several destinations",
            page_bytes: 1024,
            pool_pages: vec![3, 3],
            moves: (0..3).map(|i| KvPageMove { src: place(0, 2), dst: place(1, i) }).collect(),
        },
        Case {
            name: "gather of pages of less than a piece",
            page_bytes: 4096 + 32,
            pool_pages: vec![31, 31, 12],
            moves: gather(&scattered(12, 31), 2),
        },
        Case {
            name: "scatter of pages of one piece",
            page_bytes: 16 * 1024,
            pool_pages: vec![23, 23, 20],
            moves: scatter(2, &scattered(20, 23)),
        },
        Case {
            name: "migration of pages of three uneven pieces, to and fro",
            page_bytes: 40 * 1024 + 32,
            pool_pages: vec![11, 11, 11],
            moves: (0..5)
                .flat_map(|i| {
                    let there = KvPageMove { src: place(0, i), dst: place(1, 10 - i) };
                    let back = KvPageMove { src: place(1, i), dst: place(2, (i * 3) % 11) };
                    [there, back]
                })
                .collect(),
        },
        Case {
            name: "more pieces than a ring has stages, for every block",
            page_bytes: 64 * 1024,
            pool_pages: vec![29, 29],
            moves: (0..29)
                .map(|i| KvPageMove { src: place(0, (i * 5) % 29), dst: place(1, i) })
                .collect(),
        },
    ]
}
