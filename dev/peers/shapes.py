"""Shapes, as the results of `host run` tell them."""


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
