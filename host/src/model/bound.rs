//! What a decode step must read, whatever runs it.

use super::config::{FeedForward, ModelConfig};

/// Bytes of a weight, or of an element of K or V.
const ELEMENT_BYTES: u64 = 2;

/// Bytes that a decode step must read: every weight that some token of the batch needs, and K and V
/// of `num_kv_tokens` tokens, once. `num_experts_read` is how many experts of a layer the batch
/// chose, those that every token visits not counted.
pub fn decode_bytes(config: &ModelConfig, num_kv_tokens: u64, num_experts_read: u64) -> u64 {
    let [hidden, q_len, kv_len] = [config.hidden, config.q_len(), config.kv_len()].map(u64::from);
    let attention = (q_len + 2 * kv_len) * hidden + hidden * q_len;
    let of_layer = |layer: &FeedForward| match *layer {
        FeedForward::Dense { intermediate } => 3 * hidden * u64::from(intermediate),
        FeedForward::Experts(experts) => {
            let num_read = num_experts_read + u64::from(experts.num_shared());
            let router = u64::from(experts.num_columns()) * hidden;
            router + num_read * 3 * hidden * u64::from(experts.intermediate)
        }
    };
    let feed_forward: u64 = config.feed_forward.iter().map(of_layer).sum();
    let num_layers = config.num_layers() as u64;
    let logits = u64::from(config.vocab_size) * hidden;
    let kv = num_layers * 2 * kv_len * num_kv_tokens;
    ELEMENT_BYTES * (num_layers * attention + feed_forward + logits + kv)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::NamedShape;

    #[test]
    fn bytes_of_named_shapes() {
        let llama = decode_bytes(&NamedShape::Llama8B.config(), 0, 0);
        // All of its weights but the embedding and the norms.
        let others = 2 * (128_256 * 4096 + 65 * 4096);
        assert_eq!(llama, 16_060_522_496 - others);
        let qwen = NamedShape::QwenMoe.config();
        let one_token = decode_bytes(&qwen, 0, 4);
        // 2.7 billion weights are active in a token, of which the embedding is one row.
        assert!((4.6e9..5.4e9).contains(&(one_token as f64)), "{one_token}");
        let of_kv = decode_bytes(&qwen, 1000, 4) - one_token;
        assert_eq!(of_kv, 1000 * 24 * 2 * 2048 * 2);
    }
}
