"""FlashAttention 3: its own package, the one in vLLM, or a file with its operators."""

import importlib
import importlib.metadata

import torch

from inputs import Peer

# Where its operators are found: module to import, namespace of operators, package with a version.
PACKAGES = (
    ("flash_attn_interface", "flash_attn_3", "flash_attn_3"),
    ("vllm.vllm_flash_attn._vllm_fa3_C", "_vllm_fa3_C", "vllm"),
)
# Arguments that some version wants and has no default for, as they mean nothing special.
NEUTRAL = {
    "window_size_left": -1,
    "window_size_right": -1,
    "attention_chunk": 0,
    "softcap": 0.0,
    "has_softcap": False,
    "is_rotary_interleaved": False,
    "max_seqlen_k_new": 0,
    "num_splits": 0,
    "sm_margin": 0,
    "cp_world_size": 1,
    "cp_rank": 0,
}
# Pages that it is measured with besides those of the shape: it is faster on large ones.
LARGE_PAGES = (128, 256)


def call(operator, **given):
    """Calls an operator by the names in its schema, which differs between versions."""
    known = operator._schema.arguments
    missing = given.keys() - {argument.name for argument in known}
    if missing:
        raise TypeError(f"this version does not know {', '.join(sorted(missing))}")
    for argument in known:
        if argument.name not in given and not argument.has_default_value():
            given[argument.name] = NEUTRAL.get(argument.name)
    return operator(**given)


class Library:
    name = "FA3"
    reads_pages = True

    def __init__(self, version, operators=None):
        self.version, self.operators = version, operators

    @staticmethod
    def find(given):
        if given.fa3_library:
            torch.ops.load_library(given.fa3_library)
            for _, namespace, _ in PACKAGES:
                operators = getattr(torch.ops, namespace)
                if hasattr(operators, "fwd"):
                    return Library(given.fa3_library, operators)
            raise SystemExit(f"--fa3-library {given.fa3_library}: no operator `fwd` in it")
        for module, namespace, package in PACKAGES:
            try:
                importlib.import_module(module)
                version = f"{package} {importlib.metadata.version(package)}"
            except (ImportError, OSError):
                continue
            return Library(version, getattr(torch.ops, namespace))
        return Library(None)

    def peers(self, inputs):
        if inputs.kv_dtype != inputs.dtype:
            # It takes K and V in FP8 with q in FP8 only, which is another task.
            return
        page_sizes = dict.fromkeys((inputs.shape.page_size, *LARGE_PAGES))
        for page_size in page_sizes:
            yield f"FA3, pages of {page_size}", lambda size=page_size: self.paged(inputs, size)
        if not inputs.shape.is_decode:
            yield "FA3, contiguous", lambda: self.ragged(inputs)

    def paged(self, inputs, page_size):
        shape, table = inputs.shape, inputs.table(page_size)
        common = {
            "cu_seqlens_q": inputs.starts(shape.qo_lens),
            "seqused_k": torch.tensor(shape.kv_lens, dtype=torch.int32, device=inputs.q.device),
            "max_seqlen_q": max(shape.qo_lens),
            "max_seqlen_k": max(shape.kv_lens),
            "is_causal": True,
        }
        metadata = None
        if shape.is_decode:
            metadata = call(
                self.operators.get_scheduler_metadata.default,
                batch_size=shape.batch,
                num_heads=shape.num_qo_heads,
                num_heads_k=shape.num_kv_heads,
                headdim=shape.head_dim,
                headdim_v=shape.head_dim,
                qkv_dtype=inputs.dtype,
                page_size=page_size,
                **common,
            )
        return Peer.over_pages(
            inputs,
            page_size,
            lambda k, v: self.forward(
                inputs, k, v, page_table=table.rows, scheduler_metadata=metadata, **common
            ),
        )

    def ragged(self, inputs):
        shape = inputs.shape
        common = {
            "cu_seqlens_q": inputs.starts(shape.qo_lens),
            "cu_seqlens_k": inputs.starts(shape.kv_lens),
            "max_seqlen_q": max(shape.qo_lens),
            "max_seqlen_k": max(shape.kv_lens),
            "is_causal": True,
            "num_splits": 1,
        }
        return Peer.over_tokens(inputs, lambda k, v: self.forward(inputs, k, v, **common))

    def forward(self, inputs, k, v, **arguments):
        scale = inputs.shape.head_dim**-0.5
        return call(
            self.operators.fwd.default, q=inputs.q, k=k, v=v, softmax_scale=scale, **arguments
        )[0]
