"""FlashInfer: its decode and prefill kernels, which it compiles at first use."""

import torch

from inputs import DEVICE, Peer

WORKSPACE_BYTES = 512 << 20
# Sizes of pages that its XQA kernels take.
XQA_PAGE_SIZES = (16, 32, 64, 128)


class Library:
    name = "FlashInfer"
    reads_pages = True

    def __init__(self, version, module=None):
        self.version, self.module = version, module
        self.workspace = None

    @staticmethod
    def find(_given):
        try:
            import flashinfer
        except (ImportError, OSError):
            return Library(None)
        return Library(flashinfer.__version__, flashinfer)

    def peers(self, inputs):
        shape = inputs.shape
        if shape.is_decode:
            yield "FlashInfer, tensor cores", lambda: self.decode(inputs, True)
            yield "FlashInfer, CUDA cores", lambda: self.decode(inputs, False)
            if shape.page_size in XQA_PAGE_SIZES:
                yield "FlashInfer XQA", lambda: self.xqa(inputs)
        else:
            yield "FlashInfer fa3, paged", lambda: self.prefill(inputs, "fa3")
            yield "FlashInfer fa2, paged", lambda: self.prefill(inputs, "fa2")
            yield "FlashInfer fa3, contiguous", lambda: self.ragged_prefill(inputs, "fa3")

    def zeroed_workspace(self):
        if self.workspace is None:
            self.workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
        return self.workspace

    def decode(self, inputs, use_tensor_cores):
        shape, table = inputs.shape, inputs.table(inputs.shape.page_size)
        # A workspace of its own, because the plan lies in it.
        wrapper = self.module.BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(WORKSPACE_BYTES // 4, dtype=torch.uint8, device=DEVICE),
            "NHD",
            use_tensor_cores=use_tensor_cores,
            backend="fa2" if use_tensor_cores else "auto",
        )
        wrapper.plan(
            table.indptr,
            table.indices,
            table.last_page_len,
            shape.num_qo_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.page_size,
            q_data_type=inputs.dtype,
            kv_data_type=inputs.kv_dtype,
        )
        out = torch.empty_like(inputs.q)
        return Peer.over_pages(
            inputs, shape.page_size, lambda k, v: wrapper.run(inputs.q, (k, v), out=out)
        )

    def xqa(self, inputs):
        from flashinfer.xqa import xqa

        shape, table = inputs.shape, inputs.table(inputs.shape.page_size)
        q = inputs.q.unsqueeze(1)
        out = torch.empty_like(q)
        lens = torch.tensor(shape.kv_lens, device=DEVICE).unsqueeze(1).to(torch.uint32)
        semaphores = torch.zeros(8 << 20, dtype=torch.uint32, device=DEVICE)
        workspace = self.zeroed_workspace()

        def run(k, v):
            xqa(
                q,
                k,
                v,
                table.rows,
                lens,
                out,
                workspace,
                semaphores,
                shape.num_kv_heads,
                shape.page_size,
            )
            return out

        return Peer.over_pages(inputs, shape.page_size, run)

    def prefill(self, inputs, backend):
        shape, table = inputs.shape, inputs.table(inputs.shape.page_size)
        wrapper = self.module.BatchPrefillWithPagedKVCacheWrapper(
            torch.zeros(WORKSPACE_BYTES // 4, dtype=torch.uint8, device=DEVICE),
            "NHD",
            backend=backend,
        )
        wrapper.plan(
            inputs.starts(shape.qo_lens),
            table.indptr,
            table.indices,
            table.last_page_len,
            shape.num_qo_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.page_size,
            causal=True,
            q_data_type=inputs.dtype,
            kv_data_type=inputs.kv_dtype,
        )
        out = torch.empty_like(inputs.q)
        return Peer.over_pages(
            inputs, shape.page_size, lambda k, v: wrapper.run(inputs.q, (k, v), out=out)
        )

    def ragged_prefill(self, inputs, backend):
        shape = inputs.shape
        wrapper = self.module.BatchPrefillWithRaggedKVCacheWrapper(
            torch.zeros(WORKSPACE_BYTES // 4, dtype=torch.uint8, device=DEVICE),
            "NHD",
            backend=backend,
        )
        wrapper.plan(
            inputs.starts(shape.qo_lens),
            inputs.starts(shape.kv_lens),
            shape.num_qo_heads,
            shape.num_kv_heads,
            shape.head_dim,
            causal=True,
            q_data_type=inputs.dtype,
            kv_data_type=inputs.kv_dtype,
        )
        return Peer.over_tokens(inputs, lambda k, v: wrapper.run(inputs.q, k, v))
