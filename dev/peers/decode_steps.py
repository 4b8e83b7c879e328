"""Measures decode steps of transformers: static cache, torch.compile, CUDA graphs, random weights.

    python3 dev/peers/decode_steps.py llama-8b --shape 1x1024 --shape 32x2048
    python3 dev/peers/decode_steps.py llama-8b --shape 32x2048 --few 2 6

The whole model's layers are compiled one for all, as they are of one code, and a step of all of them is
captured as one CUDA graph: a minute less than compiling the step as a whole. With `--few` that is done for
models of few layers, twice (`reduce-overhead`): what a layer adds, and what there is beside layers, make
the whole model's. Ours at the same shapes: `host compare inference_monolithic`.
"""

import argparse
import copy
import functools
import statistics
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM, StaticCache

# Places of the cache behind the context.
ROOM = 64
WARM_UP = 4
SAMPLES = 40


def llama_8b(num_layers):
    return LlamaForCausalLM, LlamaConfig(
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
    return Qwen2MoeForCausalLM, Qwen2MoeConfig(
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


def make_model(model_class, config, experts):
    """A model with random weights of its own spread."""
    config._attn_implementation = "sdpa"
    if config.model_type == "qwen2_moe":
        config._experts_implementation = experts
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = model_class(config)
    model = model.to_empty(device="cuda").eval()
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    # What is not stored: angles.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to("cuda")
    return model


@functools.partial(torch.compile, dynamic=False)
def compiled_layer(layer, cache, hidden_states, **arguments):
    return type(layer).forward(layer, hidden_states, **{**arguments, "past_key_values": cache})


class Steps:
    """A model whose cache holds `context` random tokens of each sequence."""

    def __init__(self, model, batch, context):
        self.model, self.context = model, context
        config = model.config
        self.cache = StaticCache(config=config, max_cache_len=context + ROOM)
        heads = config.num_key_value_heads
        head_dim = config.hidden_size // config.num_attention_heads
        for layer in self.cache.layers:
            some = torch.empty(batch, heads, 1, head_dim, device="cuda", dtype=torch.bfloat16)
            layer.lazy_initialization(some, some)
            layer.keys.normal_()
            layer.values.normal_()
        self.position = torch.empty((1, 1), dtype=torch.int64, device="cuda")
        self.ids = torch.randint(0, config.vocab_size, (batch, 1), device="cuda")
        self.rewind()

    def share_code(self):
        """Lets all layers run what was compiled for one: none of them knows which one it is."""
        for index, layer in enumerate(self.model.model.layers):
            cache = copy.copy(self.cache)
            cache.layers = [self.cache.layers[index]]
            for tensor in (cache.layers[0].keys, cache.layers[0].values):
                # Compiled code would be for this address alone.
                del tensor._dynamo_static_input_type
            layer.self_attn.layer_idx = 0
            layer.forward = functools.partial(compiled_layer, layer, cache)

    def rewind(self):
        self.position.fill_(self.context)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def forward(self, forward):
        logits = forward(
            input_ids=self.ids,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def num_experts(self):
        """Experts that a layer's tokens visit, in the mean; none without experts."""
        counts = []

        def count(gate, given, made):
            counts.append(made[-1].unique().numel())

        gates = [layer.mlp.gate for layer in self.model.model.layers if hasattr(layer.mlp, "gate")]
        hooks = [gate.register_forward_hook(count) for gate in gates]
        with torch.compiler.set_stance("force_eager"):
            self.forward(self.model)
        for hook in hooks:
            hook.remove()
        self.rewind()
        return sum(counts) / max(len(counts), 1)

    def graph(self):
        """A step of all layers, captured once. The tokens stay as they are: those that random weights make
        become the same in all sequences, and then all visit the same experts."""

        def step():
            self.forward(self.model)
            self.position.add_(1)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def compiled(self):
        """A step as `reduce-overhead` makes it."""
        forward = torch.compile(self.model.forward, mode="reduce-overhead", dynamic=False)

        def step():
            self.forward(forward)
            self.position.add_(1)

        return step

    def measure(self, step):
        self.rewind()
        for _ in range(WARM_UP):
            step()
        samples = []
        while len(samples) < SAMPLES:
            if len(samples) % (ROOM // 2) == 0:
                self.rewind()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        return statistics.median(samples)


def tell(name, batch, context, ms, how):
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{name}, {batch} x {context}: {ms:.3f} ms a step ({how}; {versions})", flush=True)


def whole(name, shapes, experts):
    make_config, num_layers = MODELS[name]
    model = make_model(*make_config(num_layers), experts)
    for batch, context in shapes:
        steps = Steps(model, batch, context)
        steps.share_code()
        if num_experts := steps.num_experts():
            print(f"{name}, {batch} x {context}: {num_experts:.1f} experts of a layer are visited")
        tell(name, batch, context, steps.measure(steps.graph()), f"layers compiled, a graph, {experts}")
        del steps
        torch.cuda.empty_cache()


def by_few(name, shapes, experts, few):
    make_config, num_layers = MODELS[name]
    for batch, context in shapes:
        ms = []
        for count in few:
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            steps = Steps(make_model(*make_config(count), experts), batch, context)
            ms.append(steps.measure(steps.compiled()))
        of_layer = (ms[1] - ms[0]) / (few[1] - few[0])
        how = f"reduce-overhead, from {few[0]} and {few[1]} layers, {experts}"
        tell(name, batch, context, ms[0] + (num_layers - few[0]) * of_layer, how)


def shape(text):
    batch, context = text.split("x")
    return int(batch), int(context)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--shape", type=shape, action="append", metavar="BATCHxCONTEXT")
    parser.add_argument("--experts", default="grouped_mm", help="how transformers computes experts")
    parser.add_argument("--few", type=int, nargs=2, metavar="LAYERS")
    given = parser.parse_args()
    shapes = given.shape or [(1, 1024), (32, 2048)]
    torch.set_grad_enabled(False)
    torch._dynamo.config.cache_size_limit = 64
    started = time.time()
    if given.few:
        by_few(given.model, shapes, given.experts, given.few)
    else:
        whole(given.model, shapes, given.experts)
    print(f"in {time.time() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
