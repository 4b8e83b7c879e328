//! Tiles of tensors, moved by the copy engine.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch};
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};
use cuda_std::wgmma::SwizzledTile;

/// Loads one tile and writes shared memory out as it lies. The barrier follows the tile.
unsafe fn copy_out<T: bytemuck::AnyBitPattern, const RANK: usize>(
    map: &TensorMap<T, RANK>,
    at: [i32; RANK],
    tile_bytes: u32,
    out: GlobalMut<u32>,
) {
    let tile = shared::dynamic_shared_mem::<u32>();
    let full = Mbarrier::at(tile.cast::<u8>().offset(tile_bytes as usize).cast());
    let t = thread::thread_idx_x();
    if t == 0 {
        map.prefetch();
        full.init(1);
        bulk::fence_init();
    }
    thread::sync_threads();
    if t == 0 {
        full.arrive_expect_bytes(tile_bytes);
        bulk::load_tile(tile, map, at, full);
    }
    full.wait(0);
    let mut i = t;
    while i < tile_bytes / 4 {
        out.store(i as usize, tile.load(i as usize));
        i += thread::block_dim_x();
    }
}

#[kernel]
pub unsafe fn load_2d(map: TensorMap<u32, 2>, x: i32, y: i32, bytes: u32, out: GlobalMut<u32>) {
    copy_out(&map, [x, y], bytes, out);
}

#[kernel]
pub unsafe fn load_3d_of(
    maps: TensorMaps<u16, 3, 4>,
    idx: u32,
    z: i32,
    bytes: u32,
    out: GlobalMut<u32>,
) {
    copy_out(&maps.get(idx), [0, 0, z], bytes, out);
}

/// Rows of 8 columns, and a pitch of 12.
const ROWS: u64 = 5;
const COLUMNS: u64 = 7;
const PITCH: u64 = 12;

fn tiling() -> Tiling<2> {
    Tiling {
        sizes: [COLUMNS, ROWS],
        strides: [1, PITCH],
        tile: [4, 2],
        swizzle: Swizzle::None,
        l2_promotion: L2Promotion::None,
    }
}

fn matrix() -> Vec<u32> {
    (0..(PITCH * ROWS) as u32).map(|i| 1000 + i).collect()
}

/// The tile at (`x`, `y`) of the matrix, by the definition.
fn tile_at(x: i32, y: i32) -> Vec<u32> {
    let places = (y..y + 2).flat_map(|row| (x..x + 4).map(move |column| (row, column)));
    let element = |(row, column): (i32, i32)| {
        let inside = (0..ROWS as i32).contains(&row) && (0..COLUMNS as i32).contains(&column);
        if inside { 1000 + (row * PITCH as i32 + column) as u32 } else { 0 }
    };
    places.map(element).collect()
}

#[test]
fn a_tile_is_the_box_with_zeros_outside_of_the_tensor() {
    let memory = holding(&matrix());
    let map = TensorMap::new(memory.view(), &tiling()).unwrap();
    for (x, y) in [(0, 0), (3, 1), (4, 4), (6, 3), (7, 0), (-1, -1), (-4, 0), (0, 5), (2, -2)] {
        let out = fresh::<u32>(8);
        let kernel = load_2d { map, x, y, bytes: 32, out: out.view_mut() };
        launch(dims(1, 32, 64), kernel).unwrap();
        assert_eq!(contents::<u32>(&out), tile_at(x, y), "at {x}, {y}");
    }
}

/// A tensor of two halves of 64 elements, three tokens apart by 128, and two pages.
fn halves(swizzle: Swizzle) -> Tiling<3> {
    Tiling {
        sizes: [64, 8, 2],
        strides: [1, 128, 64],
        tile: [64, 8, 1],
        swizzle,
        l2_promotion: L2Promotion::Bytes128,
    }
}

#[test]
fn a_swizzled_tile_lies_as_wgmma_takes_it() {
    let values: Vec<u16> = (0..8 * 128).collect();
    let memory = holding(&values);
    let map = |swizzle| TensorMap::<u16, 3>::new(memory.view(), &halves(swizzle)).unwrap();
    let maps = TensorMaps::new(&[map(Swizzle::None), map(Swizzle::Bytes128)]);
    for half in 0..2 {
        let loaded = |idx| {
            let out = fresh::<u16>(512);
            let kernel = load_3d_of { maps, idx, z: half, bytes: 1024, out: out.view_mut() };
            launch(dims(1, 32, 1040), kernel).unwrap();
            contents::<u16>(&out)
        };
        let (plain, swizzled) = (loaded(0), loaded(1));
        for (i, &value) in plain.iter().enumerate() {
            let (row, column) = (i / 64, i % 64);
            assert_eq!(usize::from(value), row * 128 + half as usize * 64 + column);
            let piece = (column / 8) ^ (row % 8);
            assert_eq!(swizzled[row * 64 + piece * 8 + column % 8], value);
        }
    }
}

#[test]
fn a_map_that_is_not_there_is_a_fault() {
    let memory = holding(&[0_u16; 1024]);
    let map = TensorMap::<u16, 3>::new(memory.view(), &halves(Swizzle::None)).unwrap();
    let maps = TensorMaps::new(&[map]);
    let out = fresh::<u32>(256);
    let kernel = |idx| load_3d_of { maps, idx, z: 0, bytes: 1024, out: out.view_mut() };
    assert_says(&fault(dims(1, 32, 1040), kernel(1)), &["the tensor map is of nothing"]);
    assert_says(&fault(dims(1, 32, 1040), kernel(4)), &["tensor map 4 of 4"]);
}

/// Fills a swizzled tile by its rows and columns, and stores it at (`x`, `y`).
#[kernel(threads = 128)]
pub unsafe fn store_2d(map: TensorMap<u16, 2>, x: i32, y: i32, rows: u32) {
    let tile = SwizzledTile::<u16>::at(shared::dynamic_shared_mem());
    let t = thread::thread_idx_x();
    let (row, column) = ((t / 8) as usize, (t % 8 * 8) as usize);
    if t / 8 < rows {
        let pair = |i: u32| (t * 8 + 2 * i) | (t * 8 + 2 * i + 1) << 16;
        tile.store_x4(row, column, [pair(0), pair(1), pair(2), pair(3)]);
    }
    bulk::fence_proxy_async();
    thread::sync_threads();
    if t == 0 {
        bulk::store_tile(&map, [x, y], shared::dynamic_shared_mem::<u16>());
        bulk::commit_group();
        bulk::wait_group::<0>();
    }
}

fn store(x: i32, y: i32, rows: u32) -> Result<Vec<u16>, String> {
    let memory = holding(&[9_u16; 80 * 20]);
    let tiling = Tiling {
        sizes: [72, 20],
        strides: [1, 80],
        tile: [64, 16],
        swizzle: Swizzle::Bytes128,
        l2_promotion: L2Promotion::None,
    };
    let map = TensorMap::new(memory.view(), &tiling).unwrap();
    launch(dims(1, 128, 2048), store_2d { map, x, y, rows }).map_err(|fault| fault.to_string())?;
    Ok(contents(&memory))
}

#[test]
fn a_store_writes_what_the_tensor_has() {
    for (x, y) in [(0, 0), (5, 3), (60, 17), (-3, -2)] {
        let stored = store(x, y, 16).unwrap();
        for (i, &value) in stored.iter().enumerate() {
            let (row, column) = ((i / 80) as i32, (i % 80) as i32);
            let in_tile = (y..y + 16).contains(&row) && (x..x + 64).contains(&column);
            let written = in_tile && column < 72;
            let expected = if written { (row - y) * 64 + column - x } else { 9 };
            assert_eq!(i32::from(value), expected, "row {row}, column {column}, from {x}, {y}");
        }
    }
}

#[test]
fn a_store_reads_only_what_it_writes() {
    // Rows 8 to 15 of the tile lie outside of the tensor, and nothing wrote them.
    store(0, 12, 8).unwrap();
    assert_says(&store(0, 11, 8).unwrap_err(), &["tensor_map.rs", "reads memory nothing wrote"]);
}

#[test]
fn a_load_is_checked() {
    let memory = holding(&matrix());
    let map = TensorMap::new(memory.view(), &tiling()).unwrap();
    let out = fresh::<u32>(8);
    let kernel = |bytes| load_2d { map, x: 0, y: 0, bytes, out: out.view_mut() };
    assert_says(
        &fault(dims(1, 32, 64), kernel(48)),
        &["stuck mbarrier", "48 bytes expected, 32 in loads"],
    );
    assert_says(
        &fault(dims(1, 32, 24), kernel(16)),
        &["shared store of 32 bytes", "out of bounds"],
    );
    let unwritten = fresh::<u32>((PITCH * ROWS) as usize);
    let map = TensorMap::new(unwritten.view(), &tiling()).unwrap();
    let kernel = load_2d { map, x: 0, y: 0, bytes: 32, out: out.view_mut() };
    let said = fault(dims(1, 32, 64), kernel);
    assert_says(&said, &["shared load of 4 bytes", "tensor_map.rs", "reads memory nothing wrote"]);
    drop(memory);
    let kernel = load_2d { map: kernel_of_freed(), x: 0, y: 0, bytes: 32, out: out.view_mut() };
    assert_says(&fault(dims(1, 32, 64), kernel), &["uses memory that was freed"]);
}

fn kernel_of_freed() -> TensorMap<u32, 2> {
    TensorMap::new(holding(&matrix()).view(), &tiling()).unwrap()
}

#[test]
fn tilings_are_refused_in_words() {
    let memory = holding(&matrix());
    let refusal = |change: fn(&mut Tiling<2>), first: usize| {
        let mut tiling = tiling();
        change(&mut tiling);
        // SAFETY: the view is made, and nothing is read through it.
        let view = unsafe { memory.view::<u32>().offset(first) };
        let error = TensorMap::new(view, &tiling).map(|_| ()).unwrap_err();
        let words = error.to_string();
        // Addresses differ from run to run.
        words.split(", got 0x").next().unwrap().to_owned() + "\n"
    };
    let text = [
        refusal(|_| (), 1),
        refusal(|_| (), 8),
        refusal(|tiling| tiling.sizes[1] = 6, 0),
        refusal(|tiling| tiling.sizes[0] = 0, 0),
        refusal(|tiling| tiling.sizes[1] = (1 << 32) + 1, 0),
        refusal(|tiling| tiling.strides[0] = 2, 0),
        refusal(|tiling| tiling.strides[1] = 7, 0),
        refusal(|tiling| tiling.strides[1] = 1 << 38, 0),
        refusal(|tiling| tiling.tile[1] = 0, 0),
        refusal(|tiling| tiling.tile[0] = 257, 0),
        refusal(|tiling| tiling.tile[0] = 6, 0),
        refusal(|tiling| tiling.swizzle = Swizzle::Bytes128, 0),
    ]
    .concat();
    insta::assert_snapshot!(text);
}
