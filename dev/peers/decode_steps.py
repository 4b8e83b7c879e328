"""Measures decode steps of transformers: static cache, torch.compile with CUDA graphs, random weights.

    python3 dev/peers/decode_steps.py llama-8b --batch 32 --context 2048

A step is measured with few layers, twice, as compiling all of them takes minutes: what a layer adds, and
what there is beside layers, make the whole model's. Ours at the same shape: `host compare
inference_monolithic`.
"""

import argparse
import inspect
import statistics

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2MoeConfig, StaticCache

ROOM = 64
WARM_UP = 4
SAMPLES = 15


def llama_8b(num_layers):
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )


def qwen_moe(num_layers):
    return Qwen2MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5632,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        num_experts=60,
        num_experts_per_tok=4,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
        norm_topk_prob=False,
        tie_word_embeddings=False,
    )


# By name: the configuration for so many layers, and how many there are.
MODELS = {"llama-8b": (llama_8b, 32), "qwen1.5-moe-a2.7b": (qwen_moe, 24)}


class Steps:
    """A model whose cache holds `context` tokens of each sequence, and its compiled step."""

    def __init__(self, config, batch, context):
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        self.model, self.at = model.eval(), context
        self.cache = StaticCache(config=config, max_cache_len=context + ROOM)
        self.takes_position = "cache_position" in inspect.signature(model.forward).parameters
        self.ids = torch.randint(0, config.vocab_size, (batch, 1), device="cuda")
        prompt = torch.randint(0, config.vocab_size, (batch, context), device="cuda")
        model(**self.arguments(prompt, 0))
        self.compiled = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)

    def arguments(self, ids, first):
        position = torch.arange(first, first + ids.shape[1], device="cuda")
        given = {
            "input_ids": ids,
            "position_ids": position[None],
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        return {**given, "cache_position": position} if self.takes_position else given

    def step(self):
        logits = self.compiled(**self.arguments(self.ids, self.at)).logits
        self.at += 1
        return logits[:, -1].argmax(-1)

    def measure(self):
        for _ in range(WARM_UP):
            self.step()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples = []
        for _ in range(SAMPLES):
            torch.cuda.synchronize()
            start.record()
            self.step()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        return statistics.median(samples)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--layers", type=int, nargs=2, default=(2, 6), metavar="N")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    config, num_layers = MODELS[given.model]
    few, more = given.layers
    ms = []
    for count in (few, more):
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        ms.append(Steps(config(count), given.batch, given.context).measure())
        print(f"{count} layers: {ms[-1]:.3f} ms", flush=True)
    of_layer = (ms[1] - ms[0]) / (more - few)
    whole = ms[0] + (num_layers - few) * of_layer
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}: {given.model}, "
        f"{given.batch} x {given.context}: {whole:.2f} ms a step, {of_layer:.3f} of them a layer's"
    )


if __name__ == "__main__":
    main()
