use std::path::{Path, PathBuf};

use super::*;

fn fixture(family: &str) -> PathBuf {
    Path::new("tests/checkpoints").join(family)
}

const FIXTURES: [&str; 6] = ["llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"];

/// A family's configuration with some fields changed, null removing one.
fn changed(family: &str, changes: &[(&str, serde_json::Value)]) -> Result<ModelConfig, ModelError> {
    let path = fixture(family).join("config.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value) in changes {
        json[field] = value.clone();
    }
    ModelConfig::from_json(&json.to_string(), &path)
}

#[test]
fn configurations_that_transformers_writes_are_read() {
    let read = FIXTURES.map(|family| ModelConfig::from_folder(&fixture(family)).unwrap());
    insta::assert_debug_snapshot!(read);
}

#[test]
fn older_configurations_say_the_same() {
    let old_rope = [
        ("rope_parameters", serde_json::Value::Null),
        ("rope_theta", 500_000.0.into()),
        (
            "rope_scaling",
            serde_json::json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64
            }),
        ),
        ("torch_dtype", "bfloat16".into()),
    ];
    assert_eq!(changed("llama", &old_rope).unwrap(), changed("llama", &[]).unwrap());
    let renamed = [("num_experts", 8.into()), ("num_local_experts", serde_json::Value::Null)];
    assert_eq!(changed("qwen3_moe", &renamed).unwrap(), changed("qwen3_moe", &[]).unwrap());
}

#[test]
fn what_is_unknown_or_contradicts_is_refused_by_its_field() {
    use serde_json::json;
    let refused = [
        ("llama", "model_type", json!("gpt2")),
        ("llama", "architectures", json!(["MistralForCausalLM"])),
        ("llama", "hidden_size", json!(-32)),
        ("llama", "hidden_size", json!(null)),
        ("llama", "hidden_size", json!(36)),
        ("llama", "head_dim", json!(80)),
        ("llama", "num_key_value_heads", json!(3)),
        ("llama", "hidden_act", json!("gelu")),
        ("llama", "attention_bias", json!(true)),
        ("llama", "quantization_config", json!({"bits": 4})),
        ("llama", "rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4})),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 1e4, "attention_factor": 2}),
        ),
        ("qwen2", "use_sliding_window", json!("yes")),
        ("qwen2", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("mixtral", "sliding_window", json!(4096)),
        ("mixtral", "num_experts_per_tok", json!(5)),
        ("qwen3_moe", "num_experts", json!(9)),
        ("qwen2_moe", "moe_intermediate_size", json!(33)),
        ("qwen2_moe", "eos_token_id", json!("end")),
    ];
    let messages = refused.map(|(family, field, value)| {
        let error = changed(family, &[(field, value)]).unwrap_err().to_string();
        assert!(error.contains(field) || error.contains("rope_type"), "{field}: {error}");
        format!("{family}: {error}")
    });
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_window_that_is_not_in_use_is_none() {
    let window = [("sliding_window", 4096.into()), ("use_sliding_window", false.into())];
    assert_eq!(changed("qwen2", &window).unwrap(), changed("qwen2", &[]).unwrap());
    let used = [("sliding_window", 4096.into()), ("use_sliding_window", true.into())];
    assert!(changed("qwen2", &used).unwrap_err().to_string().contains("sliding_window"));
}

#[test]
fn long_waves_are_slowed_down_and_short_ones_kept() {
    let plain = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
    let scaled = RopeConfig {
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            num_original_positions: 64.0,
        },
        ..plain
    };
    let (plain, scaled) = (plain.frequencies(64), scaled.frequencies(64));
    assert_eq!((plain[0], scaled[0]), (1.0, 1.0));
    assert_eq!(scaled[31], plain[31] / 8.0);
    assert!(plain.iter().zip(&scaled).all(|(p, s)| (p / 8.0..=*p).contains(s)));
}

#[test]
fn named_shapes_have_their_names() {
    for shape in NamedShape::ALL {
        assert_eq!(NamedShape::of_name(shape.name()), Some(shape));
    }
    assert_eq!(NamedShape::of_name("gpt2"), None);
}
