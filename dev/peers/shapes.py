"""Shapes, as the results of `host run` tell them."""


# By pair, what the project states targets for.
TARGETS = {
    "paged_attention": (
        "batch 1 x 1024",
        "batch 1 x 8192",
        "batch 1 x 131072",
        "batch 16 x 4096",
        "batch 64 x 8192",
        "batch 256 x 1024",
        "batch 32 x 4096, 32/8 heads",
        "ragged 63 x 1024 + 131072",
    ),
    "paged_prefill": ("causal 1 x 8192", "causal 1 x 32768"),
}


class Shape:
    """Causal attention over a paged KV cache; of each request, the queries are its last tokens."""

    def __init__(self, pair, name, sizes):
        self.pair, self.name, self.sizes = pair, name, sizes
        self.element = sizes["element"]
        self.kv_element = sizes.get("kv_element", self.element)
        self.num_qo_heads = sizes["num_qo_heads"]
        self.num_kv_heads = sizes["num_kv_heads"]
        self.head_dim = sizes["head_dim"]
        self.page_size = sizes["page_size"]
        self.qo_lens = sizes["qo_lens"]
        self.kv_lens = sizes["kv_lens"]

    def __str__(self):
        return f"{self.pair}, {self.name}"

    @property
    def batch(self):
        return len(self.kv_lens)

    @property
    def group_size(self):
        return self.num_qo_heads // self.num_kv_heads

    @property
    def is_decode(self):
        return all(qo_len == 1 for qo_len in self.qo_lens)

    @property
    def is_uniform(self):
        return len(set(self.kv_lens)) == 1 and len(set(self.qo_lens)) == 1
