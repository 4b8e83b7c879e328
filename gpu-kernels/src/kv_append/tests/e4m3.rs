//! Appending to pages of e4m3.

use cuda_std::float::E4m3;

use super::*;
use crate::kv_append::device::{kv_append_tokens_bf16_e4m3, kv_append_tokens_f16_e4m3};

/// Factors of the heads: values in [-1, 1] then saturate, round, and become subnormal.
fn scales(num_kv_heads: u32, first: usize) -> Vec<f32> {
    let some = [1.0 / 600.0, 0.3, 30.0, 1.0];
    (0..num_kv_heads as usize).map(|head| some[(head + first) % some.len()]).collect()
}

/// The kernel that appends tokens of this type to pages of e4m3.
trait Source: Element {
    /// What every pool holds afterwards; `None` where nothing was written.
    fn append_e4m3(
        device: &TestDevice,
        run: &Run<Self>,
        k_scale: &[f32],
        v_scale: &[f32],
    ) -> Vec<Vec<Option<E4m3>>>;
}

macro_rules! source {
    ($T:ty, $append:ident) => {
        impl Source for $T {
            fn append_e4m3(
                device: &TestDevice,
                run: &Run<Self>,
                k_scale: &[f32],
                v_scale: &[f32],
            ) -> Vec<Vec<Option<E4m3>>> {
                let shape = run.case.shape;
                let pools: Vec<DeviceMemory<E4m3>> = (run.case.table.pages_of.iter())
                    .map(|pages| DeviceMemory::poisoned(pages * shape.page.page_bytes()))
                    .collect();
                let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
                let ptrs = DeviceMemory::from_slice(&addresses);
                let (k, v) = (DeviceMemory::from_slice(&run.k), DeviceMemory::from_slice(&run.v));
                let k_scale = DeviceMemory::from_slice(k_scale);
                let v_scale = DeviceMemory::from_slice(v_scale);
                let kernel = $append {
                    k: k.view(),
                    v: v.view(),
                    k_scale: k_scale.view(),
                    v_scale: v_scale.view(),
                    cos_sin_cache: run.cos_sin_cache.view(),
                    append_indptr: run.append_indptr.view(),
                    kv_indptr: run.kv_indptr.view(),
                    kv_indices: run.kv_indices.view(),
                    kv_page_rank: run.kv_page_rank.view(),
                    kv_last_page_len: run.kv_last_page_len.view(),
                    peer_kv_ptrs: ptrs.view(),
                    params: shape.params(),
                };
                device.launch(shape.dims(), kernel);
                pools.iter().map(DeviceMemory::written).collect()
            }
        }
    };
}

source!(bf16, kv_append_tokens_bf16_e4m3);
source!(f16, kv_append_tokens_f16_e4m3);

/// Compares every element of every page with the reference over its head's factor.
fn check<T: Source>(device: &TestDevice, mut case: Case, seed: u64) -> Result<(), String> {
    case.shape.page.element = KvElement::E4m3;
    case.shape.check().unwrap();
    let page = case.shape.page;
    let is_rotated = case.shape.rope.is_some();
    let (k_scale, v_scale) = (scales(page.num_kv_heads, 0), scales(page.num_kv_heads, 1));
    let run = Run::<T>::new(case, seed);
    let pools = T::append_e4m3(device, &run, &k_scale, &v_scale);
    for (got, want) in pools.iter().zip(run.expected_pools()) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let in_page = i as u32 % page.strides().page;
            let is_value = in_page >= page.strides().value;
            let head = in_page % page.strides().value / page.strides().head % page.num_kv_heads;
            let scale = if is_value { v_scale[head as usize] } else { k_scale[head as usize] };
            let wanted = want.map(|want| E4m3::from_f32(want as f32 / scale));
            let is_close = match (got, wanted) {
                (Some(got), Some(wanted)) if is_rotated && !is_value => {
                    // Rounded twice, so a neighbour may be nearer.
                    (i16::from(got.to_bits()) - i16::from(wanted.to_bits())).abs() <= 1
                        || got.to_f32() == 0.0 && wanted.to_f32() == 0.0
                }
                (got, wanted) => *got == wanted,
            };
            if !is_close {
                return Err(format!("element {i} is {got:?}, should be {wanted:?} for {want:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn e4m3_is_the_reference_over_the_scale_in_any_lane_order() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            let name = case.name.clone();
            check::<bf16>(&device, case, 3).unwrap_or_else(|off| panic!("{name}: {off}"));
        }
    }
}

#[test]
fn e4m3_of_f16_is_the_reference_over_the_scale() {
    for case in cases() {
        let name = case.name.clone();
        check::<f16>(&TestDevice::seeded(5), case, 4).unwrap_or_else(|off| panic!("{name}: {off}"));
    }
}
