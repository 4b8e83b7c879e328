use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::load::shape_of;
use super::*;
use crate::device::{Buffer, Device};
use crate::kernels::seeded_values;
use crate::model::ModelConfig;
use crate::model::config::NamedShape;

const FIXTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"];

fn fixture(family: &str) -> PathBuf {
    Path::new("tests/checkpoints").join(family)
}

/// A tensor of a file: name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn tensors_of(family: &str) -> Vec<Tensor> {
    let bytes = fs::read(fixture(family).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
    });
    tensors.collect()
}

fn halves(bytes: &[u8]) -> Vec<bf16> {
    bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn load_from(folder: &Path, config: &ModelConfig) -> Result<Vec<Vec<bf16>>, ModelError> {
    let stream = Device::cpu().new_stream()?;
    let mut last = None;
    let weights =
        load(&stream, config, &Checkpoint::open(folder)?, &mut |progress| last = Some(progress))?;
    let last = last.unwrap();
    assert_eq!(last.loaded_bytes, last.total_bytes);
    let values = |tensor: Buffer<bf16>| Ok::<_, ModelError>(tensor.to_vec(&stream)?);
    Ok(weights.try_map(&mut { values })?.into_tensors())
}

/// What loading says of a llama checkpoint in a folder made by `make`.
fn refusal(make: impl FnOnce(&Path, Vec<Tensor>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), tensors_of("llama"));
    let config = ModelConfig::from_folder(&fixture("llama")).unwrap();
    let error = load_from(folder.path(), &config).unwrap_err().to_string();
    error.replace(&folder.path().display().to_string(), "FOLDER")
}

#[test]
fn every_family_has_its_names() {
    for family in FIXTURES {
        let config = ModelConfig::from_folder(&fixture(family)).unwrap();
        let loaded = load_from(&fixture(family), &config).unwrap();
        let stacks = plan(&config).into_tensors();
        let num_padding: usize = stacks.iter().map(|stack| stack.padding_elements).sum();
        let num_loaded = loaded.iter().map(Vec::len).sum::<usize>() - num_padding;
        let num_stored: usize = tensors_of(family).iter().map(|tensor| tensor.3.len() / 2).sum();
        assert_eq!(num_loaded, num_stored, "{family}");
    }
}

#[test]
fn stacks_are_parts_in_order() {
    let config = ModelConfig::from_folder(&fixture("llama")).unwrap();
    let stacks: Vec<Vec<String>> = plan(&config)
        .into_tensors()
        .into_iter()
        .map(|stack| stack.parts.into_iter().map(|part| part.tensor).collect())
        .collect();
    insta::assert_debug_snapshot!(stacks);
    let loaded = load_from(&fixture("llama"), &config).unwrap();
    let tensors = tensors_of("llama");
    for (stack, values) in stacks.iter().zip(loaded) {
        let bytes_of = |name: &String| &tensors.iter().find(|tensor| tensor.0 == *name).unwrap().3;
        let bytes: Vec<u8> = stack.iter().flat_map(|name| bytes_of(name).clone()).collect();
        assert_eq!(bytemuck::cast_slice::<_, u8>(&values), bytes, "{stack:?}");
    }
}

#[test]
fn shards_and_other_types_are_the_same_weights() {
    let config = ModelConfig::from_folder(&fixture("llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let as_f32 = |(name, _, shape, bytes): Tensor| {
        let values = halves(&bytes);
        let values: Vec<f32> = values.into_iter().map(bf16::to_f32).collect();
        (name, Dtype::F32, shape, bytemuck::cast_slice(&values).to_vec())
    };
    let (first, second) = {
        let mut tensors = tensors_of("llama");
        let second = tensors.split_off(7);
        (tensors, second.into_iter().map(as_f32).collect::<Vec<_>>())
    };
    let mut weight_map = serde_json::Map::new();
    for (file, tensors) in [("a.safetensors", &first), ("b.safetensors", &second)] {
        write(&folder.path().join(file), tensors);
        for tensor in tensors {
            weight_map.insert(tensor.0.clone(), file.into());
        }
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(
        load_from(folder.path(), &config).unwrap(),
        load_from(&fixture("llama"), &config).unwrap()
    );
}

#[test]
fn broken_checkpoints_are_refused_by_the_tensors_name() {
    let file = |folder: &Path| folder.join("model.safetensors");
    let index = |folder: &Path, json: &str| {
        fs::write(folder.join("model.safetensors.index.json"), json).unwrap();
    };
    let refusals = [
        refusal(|_, _| {}),
        refusal(|folder, _| fs::write(file(folder), "no tensors").unwrap()),
        refusal(|folder, mut tensors| {
            tensors.retain(|tensor| tensor.0 != "model.layers.1.self_attn.k_proj.weight");
            write(&file(folder), &tensors);
        }),
        refusal(|folder, mut tensors| {
            let found = tensors.iter_mut().find(|tensor| tensor.0.contains("0.mlp.up_proj"));
            found.unwrap().2.reverse();
            write(&file(folder), &tensors);
        }),
        refusal(|folder, mut tensors| {
            let found = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight");
            found.unwrap().1 = Dtype::I16;
            write(&file(folder), &tensors);
        }),
        refusal(|folder, mut tensors| {
            let extra = "model.norm.weight.scale".to_owned();
            tensors.push((extra, Dtype::BF16, vec![1], vec![0, 0]));
            write(&file(folder), &tensors);
        }),
        refusal(|folder, tensors| {
            write(&file(folder), &tensors);
            let bytes = fs::read(file(folder)).unwrap();
            fs::write(file(folder), &bytes[..bytes.len() - 100]).unwrap();
        }),
        refusal(|folder, tensors| {
            write(&folder.join("a.safetensors"), &tensors);
            index(folder, r#"{"weight_map": {"missing.weight": "a.safetensors"}}"#);
        }),
        refusal(|folder, _| {
            index(folder, r#"{"weight_map": {"model.norm.weight": "../a.safetensors"}}"#);
        }),
        refusal(|folder, _| {
            index(folder, r#"{"weight_map": {"model.norm.weight": "b.safetensors"}}"#);
        }),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn seeded_weights_are_spread_as_said_and_differ() {
    let seeded = Seeded::new(7, 4);
    let values_of = |tensor: &str, start: usize, len: usize| {
        let part = Part::whole(tensor, &[512, 256]);
        let mut values = vec![bf16::ZERO; len];
        seeded.read(&part, start, &mut values).unwrap();
        values.into_iter().map(bf16::to_f64).collect::<Vec<_>>()
    };
    let len = 512 * 256;
    for (tensor, mean, deviation) in [
        ("model.embed_tokens.weight", 0.0, 1.0),
        ("model.layers.0.input_layernorm.weight", 1.0, 0.1),
        ("model.layers.0.self_attn.q_proj.weight", 0.0, 1.0 / 16.0),
        ("model.layers.0.mlp.down_proj.weight", 0.0, 1.0 / 32.0),
        ("lm_head.weight", 0.0, 3.0 / 16.0),
    ] {
        let values = values_of(tensor, 0, len);
        let found_mean = values.iter().sum::<f64>() / len as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / len as f64;
        assert!((found_mean - mean).abs() < 0.01 * deviation, "{tensor}: mean {found_mean}");
        assert!((variance.sqrt() / deviation - 1.0).abs() < 0.01, "{tensor}: {variance}");
    }
    let whole = values_of("a.q_proj.weight", 0, 1000);
    assert_eq!(whole[333..], values_of("a.q_proj.weight", 333, 667));
    assert_ne!(whole, values_of("b.q_proj.weight", 0, 1000));
}

#[test]
fn the_kernel_makes_the_values_that_the_host_makes() {
    let config = ModelConfig::from_folder(&fixture("qwen2_moe")).unwrap();
    let seeded = Seeded::new(7, config.num_layers());
    let stream = Device::cpu().new_stream().unwrap();
    let stacks = plan(&config).into_tensors().into_iter();
    let mut num_made = 0;
    for part in stacks.flat_map(|stack| stack.parts) {
        let (shape, len) = (shape_of(&part, 8), part.num_elements());
        let Some(tensor) = seeded.seeded(&part).filter(|_| shape.check().is_ok()) else {
            continue;
        };
        let out = stream.device().alloc_zeroed(8 + len).unwrap();
        seeded_values::fill(&stream, shape, tensor, &out).unwrap();
        let mut want = vec![bf16::ZERO; 8 + len];
        seeded.read(&part, 0, &mut want[8..]).unwrap();
        assert!(out.to_vec(&stream).unwrap() == want, "{part:?}");
        num_made += 1;
    }
    // All but norms and biases.
    assert!(num_made > 20, "{num_made}");
}

fn loaded_on(device: &Device, config: &ModelConfig) -> Vec<Vec<bf16>> {
    let (stream, source) = (device.new_stream().unwrap(), Seeded::new(7, config.num_layers()));
    let weights = load(&stream, config, &source, &mut |_| {}).unwrap();
    weights.into_tensors().iter().map(|tensor| tensor.to_vec(&stream).unwrap()).collect()
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_gpu_makes_the_weights_that_the_host_makes() {
    for family in ["llama", "qwen2_moe"] {
        let config = ModelConfig::from_folder(&fixture(family)).unwrap();
        let device = Device::cuda(0).unwrap();
        assert!(loaded_on(&device, &config) == loaded_on(&Device::cpu(), &config), "{family}");
        assert!(device.launched_kernels().contains(&"seeded_values_fill_bf16"));
    }
}

#[test]
fn seeded_weights_suit_every_named_shape() {
    let num_bytes = NamedShape::ALL.map(|shape| {
        let parts = plan(&shape.config()).into_tensors().into_iter().flat_map(|stack| stack.parts);
        2 * parts.map(|part| part.num_elements() as u64).sum::<u64>()
    });
    // The last two have as many as the models: 14.3 and 8.03 billion weights.
    assert_eq!(num_bytes, [313_856, 28_631_568_384, 16_060_522_496]);
}

#[test]
fn an_expert_that_every_token_visits_is_cut_into_others() {
    let config = ModelConfig::from_folder(&fixture("qwen2_moe")).unwrap();
    let stream = Device::cpu().new_stream().unwrap();
    let source = Checkpoint::open(&fixture("qwen2_moe")).unwrap();
    let weights = load(&stream, &config, &source, &mut |_| {}).unwrap();
    let tensors = tensors_of("qwen2_moe");
    let stored = |name: &str| {
        let name = format!("model.layers.1.mlp.{name}.weight");
        let tensor = tensors.iter().find(|tensor| tensor.0 == name).unwrap();
        halves(&tensor.3)
    };
    let FeedForwardWeights::Experts { router, experts } = &weights.layers[1].feed_forward else {
        panic!("layer 1 has experts")
    };
    let router = router.to_vec(&stream).unwrap();
    assert_eq!(router[..6 * 32], stored("gate"));
    assert_eq!(router[6 * 32..7 * 32], stored("shared_expert_gate"));
    assert_eq!(router[7 * 32..], [bf16::ZERO; 32]);
    let (gate_up, down) =
        (experts.gate_up.to_vec(&stream).unwrap(), experts.down.to_vec(&stream).unwrap());
    let (gate, up) = (stored("shared_expert.gate_proj"), stored("shared_expert.up_proj"));
    let shared_down = stored("shared_expert.down_proj");
    for cut in 0..2 {
        let expert = &gate_up[(6 + cut) * 2 * 32 * 32..][..2 * 32 * 32];
        assert_eq!(expert[..32 * 32], gate[cut * 32 * 32..][..32 * 32]);
        assert_eq!(expert[32 * 32..], up[cut * 32 * 32..][..32 * 32]);
        let expert = &down[(6 + cut) * 32 * 32..][..32 * 32];
        for row in 0..32 {
            assert_eq!(expert[row * 32..][..32], shared_down[row * 64 + cut * 32..][..32]);
        }
    }
}
