"""PyTorch's scaled_dot_product_attention. It knows no pages: it gets contiguous K and V."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from inputs import Peer

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


class Library:
    name = "PyTorch SDPA"
    reads_pages = False
    version = torch.__version__

    @staticmethod
    def find(_given):
        return Library()

    def peers(self, inputs):
        shape = inputs.shape
        # It takes rectangles of one type, and aligns a causal mask with the first token, not with
        # the last.
        is_square = shape.is_decode or shape.qo_lens == shape.kv_lens
        if shape.is_uniform and is_square and inputs.kv_dtype == inputs.dtype:
            for name, backend in BACKENDS.items():
                yield f"SDPA {name}, contiguous", lambda b=backend: self.attend(inputs, b)

    def attend(self, inputs, backend):
        shape = inputs.shape
        by_head = lambda tensor: tensor.unflatten(0, (shape.batch, -1)).transpose(1, 2)
        q = by_head(inputs.q)

        def run(k, v):
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(
                    q, by_head(k), by_head(v), is_causal=not shape.is_decode, enable_gqa=True
                )
            return out.transpose(1, 2).reshape(inputs.q.shape)

        return Peer.over_tokens(inputs, run)
