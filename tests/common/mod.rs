//! What tests of decode share.

use std::sync::OnceLock;

use farpage::device::{Device, Stream};
use farpage::kernels::paged_attention::DecodeElement;
use farpage::kv::memory::KvMemory;
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::reference::{DecodeProblem, StoredElement};

/// The first GPUs, opened once: to reach a peer, a GPU loads all kernels.
pub fn gpus(count: usize) -> Vec<Device> {
    static GPUS: [OnceLock<Device>; 2] = [const { OnceLock::new() }; 2];
    let open =
        |(i, gpu): (usize, &OnceLock<Device>)| gpu.get_or_init(|| Device::cuda(i).unwrap()).clone();
    GPUS.iter().enumerate().take(count).map(open).collect()
}

/// The problem's pools, location by location.
pub fn upload_pools<T: DecodeElement, K: StoredElement>(
    stream: &Stream,
    devices: &[Device],
    problem: &DecodeProblem<T, K>,
) -> KvMemory {
    let page = problem.shape.page;
    let pages: Vec<usize> =
        problem.pools.iter().map(|pool| pool.len() / page.page_elements()).collect();
    let (host_pages, device_pages) = pages.split_last().unwrap();
    let mut memory = KvMemory::new(stream, devices, page, device_pages, *host_pages).unwrap();
    if page.element == KvElement::E4m3 {
        memory.set_scales(stream, &problem.k_scale, &problem.v_scale).unwrap();
    }
    for (location, pool) in problem.pools.iter().enumerate() {
        let word = |bytes: &[u8]| u16::from_ne_bytes([bytes[0], bytes[1]]);
        let words: Vec<u16> = bytemuck::cast_slice(pool).chunks_exact(2).map(word).collect();
        stream.upload(&words, memory.pages(location, 0, pages[location])).unwrap();
    }
    memory
}
