//! How each family's configuration says what the others' do.

use super::fields::Fields;
use super::rope::RopeConfig;
use super::{Experts, Family, FeedForward, ModelConfig, ModelError};

const FAMILIES: [(&str, &str, Family); 6] = [
    ("llama", "LlamaForCausalLM", Family::Llama),
    ("qwen2", "Qwen2ForCausalLM", Family::Qwen2),
    ("qwen3", "Qwen3ForCausalLM", Family::Qwen3),
    ("mixtral", "MixtralForCausalLM", Family::Mixtral),
    ("qwen2_moe", "Qwen2MoeForCausalLM", Family::Qwen2Moe),
    ("qwen3_moe", "Qwen3MoeForCausalLM", Family::Qwen3Moe),
];

/// Several times those of the deepest models.
const MAX_LAYERS: u32 = 1024;

pub(super) fn read(mut fields: Fields) -> Result<ModelConfig, ModelError> {
    let family = family(&mut fields)?;
    let hidden = fields.take_size("hidden_size")?;
    let num_layers = fields.take_size("num_hidden_layers")?;
    if num_layers > MAX_LAYERS {
        let needed = format!("at most {MAX_LAYERS}");
        return Err(ModelError::config("num_hidden_layers", needed, num_layers));
    }
    let num_qo_heads = fields.take_size("num_attention_heads")?;
    let num_kv_heads = fields.take_size_or("num_key_value_heads", num_qo_heads)?;
    let default_head_dim = match family {
        Family::Qwen3 | Family::Qwen3Moe => 128,
        _ => hidden / num_qo_heads,
    };
    let has_qkv_bias = matches!(family, Family::Qwen2 | Family::Qwen2Moe);
    refuse_what_is_not_done(&mut fields, family, num_layers)?;
    let config = ModelConfig {
        family,
        vocab_size: fields.take_size("vocab_size")?,
        hidden,
        num_qo_heads,
        num_kv_heads,
        head_dim: fields.take_size_or("head_dim", default_head_dim)?,
        num_max_positions: fields.take_size("max_position_embeddings")?,
        norm_eps: fields.take_number("rms_norm_eps")? as f32,
        rope: RopeConfig::read(&mut fields, if family == Family::Mixtral { 1e6 } else { 1e4 })?,
        has_qkv_bias,
        has_qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        ties_embeddings: fields.take_flag_or("tie_word_embeddings", false)?,
        feed_forward: feed_forward(&mut fields, family, num_layers)?,
        end_tokens: fields.take_tokens("eos_token_id")?,
    };
    fields.finish("")?;
    check(&config)?;
    Ok(config)
}

fn family(fields: &mut Fields) -> Result<Family, ModelError> {
    let model_type = fields.take_text("model_type")?;
    let known = FAMILIES.map(|(model_type, ..)| model_type).join(", ");
    let Some((_, architecture, family)) =
        FAMILIES.into_iter().find(|(name, ..)| *name == model_type)
    else {
        return Err(ModelError::config("model_type", format!("one of {known}"), model_type));
    };
    match fields.take("architectures") {
        Some(named) if named != serde_json::json!([architecture]) => Err(ModelError::config(
            "architectures",
            format!("[\"{architecture}\"], as model_type says {model_type}"),
            named,
        )),
        _ => Ok(family),
    }
}

/// Fields that must have the one value which the forward pass implements.
fn refuse_what_is_not_done(
    fields: &mut Fields,
    family: Family,
    num_layers: u32,
) -> Result<(), ModelError> {
    let has_qkv_bias = matches!(family, Family::Qwen2 | Family::Qwen2Moe);
    fields.take_fixed("hidden_act", "silu")?;
    fields.take_fixed("attention_bias", false)?;
    fields.take_fixed("mlp_bias", false)?;
    fields.take_fixed("qkv_bias", has_qkv_bias)?;
    if !fields.take_flag_or("use_sliding_window", family == Family::Mixtral)? {
        fields.take("sliding_window");
    }
    if let Some(window) = fields.take("sliding_window") {
        return Err(ModelError::config("sliding_window", "no window in use", window));
    }
    let full = vec!["full_attention"; num_layers as usize];
    fields.take_fixed("layer_types", serde_json::json!(full))
}

fn feed_forward(
    fields: &mut Fields,
    family: Family,
    num_layers: u32,
) -> Result<Vec<FeedForward>, ModelError> {
    let intermediate = fields.take_size("intermediate_size")?;
    let dense = FeedForward::Dense { intermediate };
    match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 => Ok(vec![dense; num_layers as usize]),
        Family::Mixtral => {
            let experts = Experts {
                num_experts: fields.take_size("num_local_experts")?,
                top_k: fields.take_size("num_experts_per_tok")?,
                intermediate,
                renormalize: true,
                shared_intermediate: None,
            };
            Ok(vec![FeedForward::Experts(experts); num_layers as usize])
        }
        Family::Qwen2Moe | Family::Qwen3Moe => {
            let shared_intermediate = match family {
                Family::Qwen2Moe => Some(fields.take_size("shared_expert_intermediate_size")?),
                _ => None,
            };
            // The same number under two names: either, or both.
            fields.rename("num_local_experts", "num_experts")?;
            let experts = FeedForward::Experts(Experts {
                num_experts: fields.take_size("num_experts")?,
                top_k: fields.take_size("num_experts_per_tok")?,
                intermediate: fields.take_size("moe_intermediate_size")?,
                renormalize: fields.take_flag_or("norm_topk_prob", false)?,
                shared_intermediate,
            });
            let sparse_step = fields.take_size_or("decoder_sparse_step", 1)?;
            let dense_layers = fields.take_tokens("mlp_only_layers")?;
            let of_layer = |layer: u32| {
                let is_dense =
                    dense_layers.contains(&layer) || !(layer + 1).is_multiple_of(sparse_step);
                if is_dense { dense } else { experts }
            };
            Ok((0..num_layers).map(of_layer).collect())
        }
    }
}

/// Refuses sizes that contradict each other, or that the kernels do not take.
fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let require = |holds: bool, field: &str, needed: String, got: u32| match holds {
        true => Ok(()),
        false => Err(ModelError::config(field, needed, got)),
    };
    let eights = || "a multiple of 8".to_owned();
    let ModelConfig { num_qo_heads, num_kv_heads, head_dim, .. } = *config;
    require(
        num_qo_heads.is_multiple_of(num_kv_heads),
        "num_key_value_heads",
        format!("a divisor of num_attention_heads = {num_qo_heads}"),
        num_kv_heads,
    )?;
    require(
        num_qo_heads / num_kv_heads <= 16,
        "num_attention_heads",
        format!("at most 16 for each of {num_kv_heads} KV heads"),
        num_qo_heads,
    )?;
    require(matches!(head_dim, 64 | 128), "head_dim", "64 or 128".to_owned(), head_dim)?;
    require(config.hidden.is_multiple_of(8), "hidden_size", eights(), config.hidden)?;
    require(config.vocab_size.is_multiple_of(8), "vocab_size", eights(), config.vocab_size)?;
    for layer in &config.feed_forward {
        match *layer {
            FeedForward::Dense { intermediate } => {
                require(
                    intermediate.is_multiple_of(8),
                    "intermediate_size",
                    eights(),
                    intermediate,
                )?;
            }
            FeedForward::Experts(experts) => {
                let Experts { num_experts, top_k, intermediate, shared_intermediate, .. } = experts;
                let needed = format!("at most {num_experts}, the experts, and 16");
                require(top_k <= num_experts.min(16), "num_experts_per_tok", needed, top_k)?;
                let needed = "at most 512".to_owned();
                require(num_experts <= 512, "num_experts", needed, num_experts)?;
                let field = match config.family {
                    Family::Mixtral => "intermediate_size",
                    _ => "moe_intermediate_size",
                };
                require(intermediate.is_multiple_of(8), field, eights(), intermediate)?;
                let shared = shared_intermediate.unwrap_or(0);
                let num_max_shared = 16 - top_k;
                require(
                    shared.is_multiple_of(intermediate) && experts.num_shared() <= num_max_shared,
                    "shared_expert_intermediate_size",
                    format!("a multiple of {intermediate}, at most {num_max_shared} times"),
                    shared,
                )?;
            }
        }
    }
    Ok(())
}
