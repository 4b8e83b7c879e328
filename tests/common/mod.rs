//! What tests of decode share.

use farpage::device::{Device, Stream};
use farpage::kernels::paged_attention::DecodeElement;
use farpage::kv::memory::KvMemory;
use gpu_kernels::paged_attention::reference::DecodeProblem;

/// The problem's pools, location by location.
pub fn upload_pools<T: DecodeElement>(
    stream: &Stream,
    devices: &[Device],
    problem: &DecodeProblem<T>,
) -> KvMemory {
    let page = problem.shape.page;
    let pages: Vec<usize> =
        problem.pools.iter().map(|pool| pool.len() / page.page_elements()).collect();
    let (host_pages, device_pages) = pages.split_last().unwrap();
    let memory = KvMemory::new(stream, devices, page, device_pages, *host_pages).unwrap();
    for (location, pool) in problem.pools.iter().enumerate() {
        let elements = bytemuck::cast_slice::<T, u16>(pool);
        stream.upload(elements, memory.pages(location, 0, pages[location])).unwrap();
    }
    memory
}
