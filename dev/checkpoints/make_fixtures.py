#!/usr/bin/env python3
"""Makes the tiny checkpoints that `tests/model.rs` holds the forward pass against.

    pip install torch transformers
    python3 dev/checkpoints/make_fixtures.py tests/checkpoints

For each family a folder: config.json, model.safetensors (bf16) and tokenizer.json as transformers
writes them, and reference.safetensors: prompts, the tokens that follow greedily, and the logits at
every position, computed by transformers in f32 from the same bf16 weights.

A seed is taken only if no choice is close: neither a greedy token nor an expert may depend on the
rounding of bf16. `MARGIN` says what close is.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 256
PROMPT_LENS = [19, 5]
NUM_NEW_TOKENS = 8
# Least distance between what is chosen and what is not, as a share of the spread of all.
MARGIN = {"token": 0.05, "expert": 0.02}

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    dtype="bfloat16",
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

FAMILIES = {
    "llama": transformers.LlamaConfig(
        **SIZES | dict(num_attention_heads=4, num_key_value_heads=2, rope_parameters=LLAMA3_ROPE)
    ),
    "qwen2": transformers.Qwen2Config(**SIZES | dict(tie_word_embeddings=True)),
    "qwen3": transformers.Qwen3Config(**SIZES | dict(head_dim=128)),
    "mixtral": transformers.MixtralConfig(
        **SIZES | dict(intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)
    ),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **SIZES
        | dict(
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
            norm_topk_prob=False,
        )
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES
        | dict(
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=32,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        )
    ),
}


def initialize(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near 1, and logits apart; then rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                values = 1 + 0.1 * values
            elif name.endswith("bias"):
                values = 0.1 * values
            elif "lm_head" in name:
                values = values * 3 / weight.shape[-1] ** 0.5
            elif "embed_tokens" not in name:
                values = values / weight.shape[-1] ** 0.5
            weight.copy_(values.bfloat16().float())


def margin(scores: torch.Tensor, num_chosen: int) -> float:
    """How far the last chosen score stands above the first one not chosen, at worst."""
    best = scores.topk(num_chosen + 1, dim=-1).values
    return ((best[..., num_chosen - 1] - best[..., num_chosen]).min() / scores.std()).item()


class TooClose(Exception):
    """A choice that rounding might turn."""


def check_experts(model: torch.nn.Module) -> None:
    """Lets every router of the model raise `TooClose`."""
    top_k = getattr(model.config, "num_experts_per_tok", 1)

    def check(module, inputs):
        scores = inputs[0].reshape(-1, inputs[0].shape[-1]) @ module.weight.T
        if margin(scores, top_k) < MARGIN["expert"]:
            raise TooClose

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_pre_hook(check)


def reference(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Prompts, the tokens that follow, and all logits."""
    tensors = {}
    for i, prompt_len in enumerate(PROMPT_LENS):
        ids = torch.randint(VOCAB, (prompt_len,), generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            for _ in range(NUM_NEW_TOKENS):
                logits = model(ids[None], use_cache=False).logits[0]
                if margin(logits[-1:], 1) < MARGIN["token"]:
                    raise TooClose
                ids = torch.cat([ids, logits[-1:].argmax(-1)])
        tensors[f"prompt.{i}"] = ids[:prompt_len].int().contiguous()
        tensors[f"tokens.{i}"] = ids[prompt_len:].int().contiguous()
        tensors[f"logits.{i}"] = logits.float().contiguous()
    return tensors


def write_tokenizer(folder: Path) -> None:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: token for token, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def make(family: str, config: transformers.PretrainedConfig, parent: Path) -> None:
    for seed in range(10000):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        initialize(model, seed)
        check_experts(model)
        try:
            tensors = reference(model)
            break
        except TooClose:
            pass
    else:
        raise SystemExit(f"{family}: no seed keeps its choices apart")
    folder = parent / family
    model.bfloat16().save_pretrained(folder)
    for extra in ["generation_config.json"]:
        (folder / extra).unlink(missing_ok=True)
    write_tokenizer(folder)
    save_file(tensors, folder / "reference.safetensors", metadata=dict(seed=str(seed)))
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{family}: seed {seed}, {num_bytes} bytes, transformers {transformers.__version__}")


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    chosen = sys.argv[2:] or list(FAMILIES)
    for family in chosen:
        make(family, FAMILIES[family], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
