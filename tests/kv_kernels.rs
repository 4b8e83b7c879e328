//! Copying, appending to and filling pages through the launchers, on the CPU device and on GPUs,
//! against the rooms' references.
//!
//! Every byte of every pool is compared; what no kernel should write keeps its poison. GPU tests
//! draw fresh inputs, whose seed stands in the failure's message.

use farpage::device::{Buffer, Device, PinnedBuffer, Stream};
use farpage::kernels::kv_page_copy::{CopyVariant, PageCopy};
use farpage::kernels::kv_page_pattern::{PatternChecksum, PatternFill};
use gpu_kernels::kv_layout::{KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_copy::reference as copy_reference;
use gpu_kernels::kv_page_pattern::contract::PatternShape;
use gpu_kernels::kv_page_pattern::pattern::{ElementFormat, page_checksum, token_identity};
use gpu_kernels::kv_page_pattern::reference as pattern_reference;

const POISON: u8 = 0xff;

/// The memory of some device, or pinned host memory.
#[derive(Clone)]
enum Place {
    Device(Device),
    PinnedHost,
}

enum Pool {
    Device(Buffer<u8>, Stream),
    Pinned(PinnedBuffer<u8>),
}

/// A pool in each of some places, and the table of their addresses on the device that launches.
struct Pools {
    pools: Vec<Pool>,
    peer_kv_ptrs: Buffer<u64>,
}

impl Pools {
    /// Location `i` lies at `places[i % places.len()]` and holds `contents[i]`.
    fn new(stream: &Stream, places: &[Place], contents: &[Vec<u8>]) -> Self {
        let pools: Vec<Pool> = contents
            .iter()
            .zip(places.iter().cycle())
            .map(|(bytes, place)| match place {
                Place::Device(owner) => {
                    let owner_stream = owner.new_stream().unwrap();
                    Pool::Device(Buffer::from_slice(&owner_stream, bytes).unwrap(), owner_stream)
                }
                Place::PinnedHost => {
                    let pinned = stream.device().alloc_pinned(bytes.len()).unwrap();
                    pinned.write(0, bytes).unwrap();
                    Pool::Pinned(pinned)
                }
            })
            .collect();
        let addresses: Vec<u64> = pools
            .iter()
            .map(|pool| match pool {
                Pool::Device(buffer, _) => buffer.address(),
                Pool::Pinned(pinned) => pinned.address(),
            })
            .collect();
        Self { pools, peer_kv_ptrs: Buffer::from_slice(stream, &addresses).unwrap() }
    }

    fn poisoned(
        stream: &Stream,
        places: &[Place],
        pool_pages: &[usize],
        page_bytes: usize,
    ) -> Self {
        let contents: Vec<Vec<u8>> =
            pool_pages.iter().map(|&pages| vec![POISON; pages * page_bytes]).collect();
        Self::new(stream, places, &contents)
    }

    /// What every pool holds once `stream` is done.
    fn contents(&self, stream: &Stream) -> Vec<Vec<u8>> {
        stream.synchronize().unwrap();
        self.pools
            .iter()
            .map(|pool| match pool {
                Pool::Device(buffer, owner_stream) => owner_stream.download(buffer).unwrap(),
                Pool::Pinned(pinned) => {
                    let mut bytes = vec![0; pinned.len()];
                    pinned.read(0, &mut bytes).unwrap();
                    bytes
                }
            })
            .collect()
    }
}

fn check_copies(stream: &Stream, places: &[Place], cases: &[copy_reference::Case]) {
    let device = stream.device();
    let variants = [
        CopyVariant::Baseline,
        CopyVariant::alone(device).unwrap(),
        CopyVariant::overlapping(device).unwrap(),
    ];
    for case in cases {
        let page_bytes = case.page_bytes as usize;
        let copy =
            PageCopy::upload(stream, case.page_bytes, &case.moves, &case.pool_pages).unwrap();
        for variant in variants {
            let seed = fastrand::u64(..);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut expected: Vec<Vec<u8>> =
                case.pool_pages.iter().map(|pages| vec![0; pages * page_bytes]).collect();
            expected.iter_mut().for_each(|pool| rng.fill(pool));
            let pools = Pools::new(stream, places, &expected);
            // SAFETY: the pools are as large as the case says, and read below, after the copy.
            unsafe { copy.run(stream, variant, &pools.peer_kv_ptrs) }.unwrap();
            copy_reference::copy_pages(&mut expected, page_bytes, &case.moves);
            let equal = pools.contents(stream) == expected;
            assert!(equal, "{}, {variant:?}, seed {seed}: pools differ", case.name);
        }
    }
}

/// As much as real migrations move: each way between two locations at once.
fn large_copies() -> Vec<copy_reference::Case> {
    let case = |name, page_bytes: u32, num_pages: u32| copy_reference::Case {
        name,
        page_bytes,
        pool_pages: vec![2 * num_pages as usize; 2],
        moves: (0..2 * num_pages)
            .map(|i| KvPageMove {
                src: KvPagePlace { rank: i % 2, index: i / 2 },
                dst: KvPagePlace { rank: 1 - i % 2, index: num_pages + (i / 2 * 7919) % num_pages },
            })
            .collect(),
    };
    vec![case("pages of 64 KiB", 64 << 10, 1009), case("pages of 20 KiB", 20 << 10, 2003)]
}

fn checksums(
    stream: &Stream,
    shape: PatternShape,
    pools: &Pools,
    pool_pages: &[usize],
    pages: &[KvPagePlace],
    num_valid_tokens: &[u32],
) -> Vec<u64> {
    let checksum =
        PatternChecksum::upload(stream, shape, pages, num_valid_tokens, pool_pages).unwrap();
    // SAFETY: the pools are as large as checked, and nobody writes to them meanwhile.
    unsafe { checksum.run(stream, &pools.peer_kv_ptrs) }.unwrap()
}

/// Checksums of pages whose tokens have the identities of owners 0, 1, 2 …
fn expected_checksums(shape: PatternShape, num_valid_tokens: &[u32]) -> Vec<u64> {
    (0..)
        .zip(num_valid_tokens)
        .map(|(owner, &num_valid)| {
            let tokens = 0..u64::from(num_valid);
            let identities: Vec<u64> = tokens.map(|token| token_identity(owner, token)).collect();
            page_checksum(&identities, &shape.page, shape.format)
        })
        .collect()
}

fn check_patterns(stream: &Stream, places: &[Place]) {
    for case in pattern_reference::cases() {
        let pattern_reference::Case { name, shape, pool_pages, pages, num_valid_tokens } = &case;
        let page_bytes = shape.page.page_bytes();
        let pools = Pools::poisoned(stream, places, pool_pages, page_bytes);
        let (token_places, identities) = case.tokens();
        let fill =
            PatternFill::upload(stream, *shape, &identities, &token_places, pool_pages).unwrap();
        // SAFETY: the pools are as large as the case says, and live until they are read below.
        unsafe { fill.run(stream, &pools.peer_kv_ptrs) }.unwrap();

        let mut expected: Vec<Vec<Option<f32>>> =
            pool_pages.iter().map(|pages| vec![None; pages * page_bytes / 2]).collect();
        for (owner, (page, &num_valid)) in (0..).zip(pages.iter().zip(num_valid_tokens)) {
            let identity = |token| (token, token_identity(owner, u64::from(token)));
            let tokens: Vec<(u32, u64)> = (0..num_valid).map(identity).collect();
            let start = page.index as usize * page_bytes / 2;
            expected[page.rank as usize][start..start + page_bytes / 2]
                .copy_from_slice(&pattern_reference::page_elements(shape, &tokens));
        }
        let value = |bits: &[u8]| {
            let bits = u16::from_le_bytes([bits[0], bits[1]]);
            (bits != u16::MAX).then(|| shape.format.to_f32(bits))
        };
        for (location, (got, want)) in pools.contents(stream).iter().zip(&expected).enumerate() {
            assert!(
                got.chunks(2).map(value).eq(want.iter().copied()),
                "{name}, location {location}"
            );
        }

        let sums = checksums(stream, *shape, &pools, pool_pages, pages, num_valid_tokens);
        assert_eq!(sums, expected_checksums(*shape, num_valid_tokens), "{name}");
    }
}

/// A page that was not copied, and one copied to its neighbour, must show in the checksums.
fn check_lost_and_misplaced_pages_show(stream: &Stream, places: &[Place]) {
    let page = KvPageShape { page_size: 16, num_kv_heads: 4, head_dim: 64, layout: KvLayout::Nhd };
    let shape = PatternShape { page, format: ElementFormat::BF16 };
    let pool_pages = [8, 8];
    let place = |rank, index| KvPagePlace { rank, index };
    let case = pattern_reference::Case {
        name: "pages to move".into(),
        shape,
        pool_pages: pool_pages.to_vec(),
        pages: (0..8).map(|index| place(0, index)).collect(),
        num_valid_tokens: vec![16; 8],
    };
    let (token_places, identities) = case.tokens();
    let fill = PatternFill::upload(stream, shape, &identities, &token_places, &pool_pages).unwrap();
    let moved: Vec<KvPagePlace> = (0..8).map(|index| place(1, 7 - index)).collect();
    let moves: Vec<KvPageMove> =
        case.pages.iter().zip(&moved).map(|(&src, &dst)| KvPageMove { src, dst }).collect();

    let sums_after = |moves: &[KvPageMove]| {
        let pools = Pools::poisoned(stream, places, &pool_pages, page.page_bytes());
        let copy = PageCopy::upload(stream, page.page_bytes() as u32, moves, &pool_pages).unwrap();
        let variant = CopyVariant::alone(stream.device()).unwrap();
        // SAFETY: the pools are as large as checked, and live until the sums are there.
        unsafe {
            fill.run(stream, &pools.peer_kv_ptrs).unwrap();
            copy.run(stream, variant, &pools.peer_kv_ptrs).unwrap();
        }
        checksums(stream, shape, &pools, &pool_pages, &moved, &case.num_valid_tokens)
    };
    let wrong_pages = |moves: &[KvPageMove]| -> Vec<usize> {
        let expected = expected_checksums(shape, &case.num_valid_tokens);
        let sums = sums_after(moves);
        (0..8).filter(|&i| sums[i] != expected[i]).collect()
    };
    assert_eq!(wrong_pages(&moves), [0; 0]);
    assert_eq!(wrong_pages(&moves[1..]), [0], "a dropped move");
    let mut off_by_one = moves.clone();
    off_by_one[3].src.index += 1;
    assert_eq!(wrong_pages(&off_by_one), [3], "an off-by-one page index");
}

fn check_all(stream: &Stream, places: &[Place]) {
    check_copies(stream, places, &copy_reference::cases());
    check_patterns(stream, places);
    check_lost_and_misplaced_pages_show(stream, places);
}

#[test]
fn kernels_equal_their_references_on_the_cpu() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    check_all(&stream, &[Place::Device(device), Place::PinnedHost]);
}

#[test]
#[ignore = "needs 1 GPU"]
fn kernels_equal_their_references_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let stream = device.new_stream().unwrap();
    let places = [Place::Device(device), Place::PinnedHost];
    check_all(&stream, &places);
    check_copies(&stream, &places, &large_copies());
    check_copies(&stream, &places[..1], &large_copies());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn kernels_reach_the_pages_of_a_peer() {
    let (device, peer) = (Device::cuda(0).unwrap(), Device::cuda(1).unwrap());
    device.enable_peer_access(&peer).unwrap();
    let stream = device.new_stream().unwrap();
    let places = [Place::Device(peer), Place::Device(device), Place::PinnedHost];
    check_all(&stream, &places);
    check_copies(&stream, &places, &large_copies());
}

#[test]
#[ignore = "needs 1 GPU"]
fn pages_beyond_4_gib_are_found() {
    let device = Device::cuda(0).unwrap();
    let stream = device.new_stream().unwrap();
    let page = KvPageShape { page_size: 64, num_kv_heads: 8, head_dim: 128, layout: KvLayout::Hnd };
    let shape = PatternShape { page, format: ElementFormat::BF16 };
    let num_pages = (9 << 30) / page.page_bytes();
    let pool: Buffer<u8> = device.alloc(num_pages * page.page_bytes()).unwrap();
    stream.fill_bytes(&pool, POISON).unwrap();
    let peer_kv_ptrs = Buffer::from_slice(&stream, &[pool.address()]).unwrap();
    let place = |index| KvPagePlace { rank: 0, index };
    let last = num_pages as u32 - 1;
    let case = pattern_reference::Case {
        name: "far pages".into(),
        shape,
        pool_pages: vec![num_pages],
        pages: vec![place(last), place(last / 2 + 1)],
        num_valid_tokens: vec![64, 64],
    };
    let (token_places, identities) = case.tokens();
    let fill =
        PatternFill::upload(&stream, shape, &identities, &token_places, &[num_pages]).unwrap();
    for variant in [CopyVariant::Baseline, CopyVariant::alone(&device).unwrap()] {
        let moved = [place(last - 1), place(0)];
        let moves = [0, 1].map(|i| KvPageMove { src: case.pages[i], dst: moved[i] });
        let copy =
            PageCopy::upload(&stream, page.page_bytes() as u32, &moves, &[num_pages]).unwrap();
        let checksum =
            PatternChecksum::upload(&stream, shape, &moved, &[64, 64], &[num_pages]).unwrap();
        // SAFETY: the pool has that many pages, and lives to the end of the test.
        let sums = unsafe {
            fill.run(&stream, &peer_kv_ptrs).unwrap();
            copy.run(&stream, variant, &peer_kv_ptrs).unwrap();
            checksum.run(&stream, &peer_kv_ptrs).unwrap()
        };
        assert_eq!(sums, expected_checksums(shape, &[64, 64]), "{variant:?}");
        stream.fill_bytes(&pool, POISON).unwrap();
    }
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let place = |index| KvPagePlace { rank: 0, index };
    let moves = [KvPageMove { src: place(0), dst: place(1) }];
    let refused = |moves: &[KvPageMove], page_bytes| {
        PageCopy::upload(&stream, page_bytes, moves, &[2]).err().unwrap().to_string()
    };
    insta::assert_snapshot!(refused(&[], 64), @"`num_moves` must be at least 1, got 0");
    insta::assert_snapshot!(refused(&moves, 40), @"`page_bytes` must be a positive multiple of 16, got 40");
    let beyond = [KvPageMove { src: place(2), dst: place(1) }];
    insta::assert_snapshot!(refused(&beyond, 64), @"`moves[0].src` must be one of the 2 pages of location 0, got page 2");

    let copy = PageCopy::upload(&stream, 64, &moves, &[2]).unwrap();
    let table = Buffer::from_slice(&stream, &[0u64; 3]).unwrap();
    // SAFETY: refused, so nothing runs.
    let error = unsafe { copy.run(&stream, CopyVariant::Baseline, &table) }.unwrap_err();
    insta::assert_snapshot!(error, @"`peer_kv_ptrs` must be 1 elements long, got 3");
    let table = Buffer::from_slice(&stream, &[0u64]).unwrap();
    let nine = CopyVariant::Bulk { num_blocks: 9 };
    // SAFETY: as above.
    let error = unsafe { copy.run(&stream, nine, &table) }.unwrap_err();
    insta::assert_snapshot!(error, @"`num_blocks` must be 1 to 8 (overlap) or from 17 on (132 when alone), got 9");
}
