"""Inputs of a shape, so often that no cache holds all of them, and what is right for them."""

import torch

DEVICE = "cuda"
# How much more than the L2 cache holds all inputs have together.
CACHES_EXCEEDED = 2
# Rows of a request's output that are compared, spread over it.
MAX_CHECKED_ROWS = 16
# Elements of a pool: K of the largest batch, 64 x 8192 tokens of 8 heads of 128, with room.
POOL_ELEMENTS = 768 << 20

ELEMENTS = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}


class Pool:
    """Random numbers that all shapes share, K's and V's, for each element type."""

    def __init__(self):
        self.halves = {}

    def half(self, element, which):
        key = (element, which)
        if key not in self.halves:
            memory = torch.empty(POOL_ELEMENTS, dtype=ELEMENTS[element], device=DEVICE)
            for chunk in memory.chunk(16):
                chunk.copy_(torch.randn(chunk.shape, dtype=torch.bfloat16, device=DEVICE))
            self.halves[key] = memory
        return self.halves[key]


class PageTable:
    """Pages of each request, in random order within the pool."""

    def __init__(self, kv_lens, page_size):
        self.page_size = page_size
        num_pages = [-(-kv_len // page_size) for kv_len in kv_lens]
        starts = [0]
        for count in num_pages:
            starts.append(starts[-1] + count)
        self.starts = starts
        self.indices = torch.randperm(starts[-1], dtype=torch.int32, device=DEVICE)
        self.indptr = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
        last = [(kv_len - 1) % page_size + 1 for kv_len in kv_lens]
        self.last_page_len = torch.tensor(last, dtype=torch.int32, device=DEVICE)
        # Rows of equal length, as FlashAttention and XQA take them.
        self.rows = torch.zeros(len(kv_lens), max(num_pages), dtype=torch.int32, device=DEVICE)
        for request, count in enumerate(num_pages):
            self.rows[request, :count] = self.indices[starts[request] : starts[request + 1]]

    def pages(self, request):
        return self.indices[self.starts[request] : self.starts[request + 1]].long()


class Inputs:
    """q, and several sets of K and V, of one shape.

    A set is `[tokens, num_kv_heads, head_dim]`, with room for whole pages of any size; a paged
    peer sees pages of it, another one the requests' tokens one after the other.
    """

    # The largest pages that a peer is measured with.
    MAX_PAGE_SIZE = 256

    def __init__(self, shape, pool):
        self.shape = shape
        self.dtype, self.kv_dtype = ELEMENTS[shape.element], ELEMENTS[shape.kv_element]
        heads, dim = shape.num_kv_heads, shape.head_dim
        padded = sum(
            -(-kv_len // self.MAX_PAGE_SIZE) * self.MAX_PAGE_SIZE for kv_len in shape.kv_lens
        )
        elements = padded * heads * dim
        k_pool, v_pool = (pool.half(shape.kv_element, which) for which in "kv")
        if elements > POOL_ELEMENTS:
            raise ValueError(f"needs a pool of {elements} elements, this is {POOL_ELEMENTS}")
        l2_bytes = torch.cuda.get_device_properties(DEVICE).L2_cache_size
        kv_bytes = 2 * self.kv_dtype.itemsize * sum(shape.kv_lens) * heads * dim
        wanted = -(-CACHES_EXCEEDED * l2_bytes // kv_bytes)
        self.num_sets = max(1, min(wanted, POOL_ELEMENTS // elements))
        view = lambda half, i: half[i * elements : (i + 1) * elements].view(padded, heads, dim)
        self.sets = [(view(k_pool, i), view(v_pool, i)) for i in range(self.num_sets)]
        num_queries = sum(shape.qo_lens)
        self.q = torch.randn(num_queries, shape.num_qo_heads, dim, device=DEVICE, dtype=self.dtype)
        self.tables = {}

    def table(self, page_size):
        if page_size not in self.tables:
            self.tables[page_size] = PageTable(self.shape.kv_lens, page_size)
        return self.tables[page_size]

    def paged(self, page_size):
        """Each set as pages: `[pages, page_size, num_kv_heads, head_dim]`."""
        as_pages = lambda half: half.unflatten(0, (-1, page_size))
        return [(as_pages(k), as_pages(v)) for k, v in self.sets]

    def ragged(self):
        """Each set as the requests' tokens one after the other."""
        total = sum(self.shape.kv_lens)
        return [(k[:total], v[:total]) for k, v in self.sets]

    def starts(self, lens):
        """`[batch + 1]`: where each request begins."""
        return torch.tensor([0, *lens], dtype=torch.int32, device=DEVICE).cumsum(0).int()

    def relative_error(self, out, kv_of_request):
        """How far `out` `[queries, num_qo_heads, head_dim]` is from attention in float32, over
        the first set, of which `kv_of_request` gives a request's K and V."""
        shape, scale = self.shape, self.shape.head_dim**-0.5
        off = norm = 0.0
        first = 0
        for request, (qo_len, kv_len) in enumerate(zip(shape.qo_lens, shape.kv_lens)):
            k, v = (half.float() for half in kv_of_request(request, kv_len))
            num_rows = min(qo_len, MAX_CHECKED_ROWS)
            for i in range(num_rows):
                row = qo_len - 1 - i * qo_len // num_rows
                seen = kv_len - qo_len + row + 1
                q = self.q[first + row].float().unflatten(0, (shape.num_kv_heads, -1))
                scores = torch.einsum("hgd,lhd->hgl", q, k[:seen]) * scale
                want = torch.einsum("hgl,lhd->hgd", scores.softmax(-1), v[:seen]).flatten(0, 1)
                off += (out[first + row].float() - want).square().sum().item()
                norm += want.square().sum().item()
            first += qo_len
        return (off / norm) ** 0.5


class Peer:
    """A call for each set of inputs, which returns its output."""

    def __init__(self, calls, kv_of_request, is_paged):
        self.calls = calls
        self.kv_of_request = kv_of_request
        self.is_paged = is_paged

    @staticmethod
    def over_pages(inputs, page_size, call):
        """A peer that reads pages: `call(k, v)`."""
        sets, table = inputs.paged(page_size), inputs.table(page_size)

        def gather(pages, request, kv_len):
            # By bytes, because not every type can be indexed.
            chosen = pages.view(torch.uint8)[table.pages(request)].view(pages.dtype)
            return chosen.flatten(0, 1)[:kv_len]

        return Peer(
            [lambda k=k, v=v: call(k, v) for k, v in sets],
            lambda request, kv_len: [gather(half, request, kv_len) for half in sets[0]],
            is_paged=True,
        )

    @staticmethod
    def over_tokens(inputs, call):
        """A peer that reads the requests' tokens one after the other: `call(k, v)`."""
        sets, starts = inputs.ragged(), inputs.starts(inputs.shape.kv_lens).tolist()
        return Peer(
            [lambda k=k, v=v: call(k, v) for k, v in sets],
            lambda request, kv_len: [
                half[starts[request] : starts[request] + kv_len] for half in sets[0]
            ],
            is_paged=False,
        )

    def check(self, inputs):
        shape = inputs.shape
        out = self.calls[0]().view(-1, shape.num_qo_heads, shape.head_dim)
        return inputs.relative_error(out, self.kv_of_request)
