"""The map kernels of vLLM and SGLang and DeepEP's layout, on the ids and placement that `run bench map` left.

Each peer's own source is loaded from the files that `fetch` took out of its wheel, with its imports of the rest of the
engine stubbed. Time per node of a CUDA graph, as for our kernels; every peer's output is checked too.
"""

import importlib.util
import pathlib
import statistics
import sys
import types

import numpy
import torch

HERE = pathlib.Path(__file__).resolve().parent
NODES = 58
REPLAYS = 101
EXPERTS = 256
TOP_K = 8
TOKENS = [1, 16, 128, 512, 1024, 4096, 16384, 65536, 131072]


def stub(name, **members):
    """A module of the engine that the file under test imports and the measurement does not need."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = types.ModuleType(path)
            module.__path__ = []
            sys.modules[path] = module
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, HERE / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def vllm():
    import triton
    import triton.language as tl

    platform = types.SimpleNamespace(is_cuda_alike=lambda: True, is_xpu=lambda: False)
    stub("vllm.platforms", current_platform=platform)
    stub("vllm.triton_utils", tl=tl, triton=triton)
    stub("vllm.distributed.eplb.eplb_state", EplbLayerState=object)
    stub("vllm.model_executor.layers.fused_moe.router.fused_moe_router", FusedMoERouter=object)
    stub("vllm.v1.worker.ubatching", dbo_current_ubatch_id=lambda: 0)
    return load("vllm_router", "vllm/model_executor/layers/fused_moe/router/base_router.py")


def sglang():
    stub("sglang.srt.eplb.expert_location", get_global_expert_location_metadata=None)
    stub("sglang.srt.runtime_context", get_exec=None)
    stub("sglang.srt.eplb")
    name = "sglang.srt.eplb.expert_location_dispatch"
    dispatch = load(name, "sglang/srt/eplb/expert_location_dispatch.py")
    return dispatch, load("sglang_fused", "sglang/srt/eplb/eplb_map_record_fused.py")


def deepep():
    """DeepEP's kernel, compiled for this GPU with the assertions it needs from its headers."""
    import cupy

    source = (HERE / "deepep_layout.cu").read_text()
    begin = source.index("template <int kNumThreads")
    end = source.index("void get_dispatch_layout(const topk_idx_t* topk_idx,", source.index("__global__") + 100)
    shims = """
    typedef long long topk_idx_t;
    #define LEGACY_NUM_MAX_NVL_PEERS 8
    #define EP_STATIC_ASSERT(condition, reason) static_assert(condition, reason)
    #define EP_DEVICE_ASSERT(condition) if (!(condition)) asm("trap;")
    #define min(a, b) ((a) < (b) ? (a) : (b))
    """
    name = "get_dispatch_layout<256, 4, 8>"
    module = cupy.RawModule(code=shims + source[begin:end], options=("-std=c++17",), name_expressions=[name])
    kernel = module.get_function(name)

    def launch(ids, per_rank, per_expert, in_rank, ranks, slots):
        blocks = (slots + 3) // 4 + (ranks + 7) // 8
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        pointer = lambda tensor: tensor.data_ptr() if tensor is not None else 0
        arguments = [numpy.uint64(pointer(t)) for t in (ids, per_rank, None, per_expert, in_rank)]
        numbers = [numpy.int32(n) for n in (ids.shape[0], TOP_K, ranks, slots)]
        with stream:
            kernel((blocks,), (256,), tuple(arguments + numbers))

    return launch


def time_node(call):
    """Median microseconds of a node over many replays of a graph of NODES nodes."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NODES):
            call()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for replay in range(REPLAYS + 3):
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        if replay >= 3:
            times.append(before.elapsed_time(after) * 1e3 / NODES)
    return statistics.median(times)


class Placement:
    def __init__(self, ranks, slots_per_rank):
        self.ranks, self.slots = ranks, ranks * slots_per_rank
        name = f"{ranks}x{slots_per_rank}.i32"
        held = numpy.fromfile(HERE / "data" / f"slots_{name}", dtype=numpy.int32)
        ids = numpy.fromfile(HERE / "data" / f"ids_{name}", dtype=numpy.int32).reshape(-1, TOP_K)
        replicas = [numpy.nonzero(held == expert)[0] for expert in range(EXPERTS)]
        table = numpy.full((EXPERTS, max(map(len, replicas))), -1, dtype=numpy.int64)
        for expert, of in enumerate(replicas):
            table[expert, : len(of)] = of
        on_device = lambda array, kind: torch.tensor(array, dtype=kind, device="cuda")
        self.held = on_device(held, torch.int64)
        self.ids = on_device(ids, torch.int32)
        self.table = on_device(table, torch.int64)
        self.count = on_device([len(of) for of in replicas], torch.int64)
        self.first = self.table[:, 0].contiguous()

    def check(self, ids, physical, counts=None):
        """Every id went to a slot of its expert, and every slot's count is that of its ids."""
        assert torch.equal(self.held[physical.long()].to(ids.dtype), ids)
        if counts is not None:
            expected = torch.bincount(physical.long().flatten(), minlength=self.slots)
            assert torch.equal(counts.long().flatten()[: self.slots], expected)


def row(label, values):
    print(f"  {label:<34} " + " ".join(f"{value:>7.2f}" for value in values), flush=True)


def measured(label, tokens, make):
    """Prints a peer's row, or why there is none: a peer that does not run must not look like one that was not tried."""
    try:
        row(label, [time_node(make(count)) for count in tokens])
    except Exception as error:  # whatever a foreign kernel raises
        print(f"  {label:<34} not measured: {type(error).__name__}: {str(error)[:160]}", flush=True)


def tables(ranks, slots_per_rank):
    of = Placement(ranks, slots_per_rank)
    print(f"\npeers, {ranks}x{slots_per_rank}, warm: us per node of a {NODES}-node graph")
    print(f"  {'tokens':<34} " + " ".join(f"{tokens:>7}" for tokens in TOKENS))

    def of_vllm(recording):
        def make(tokens):
            ids, router = of.ids[:tokens].contiguous(), vllm_module
            counts = torch.zeros(of.slots, dtype=torch.int32, device="cuda")
            enabled = torch.tensor([recording], dtype=torch.bool, device="cuda")
            call = lambda: router.eplb_map_to_physical_and_record(ids, counts, of.table, of.count, enabled)
            of.check(ids, call(), counts if recording else None)
            return call

        return make

    measured("vLLM 0.33.0, i32", TOKENS, of_vllm(True))
    measured("vLLM 0.33.0, i32, recording off", TOKENS, of_vllm(False))

    def info(algorithm):
        return dispatch_module.ExpertLocationDispatchInfo(
            ep_dispatch_algorithm=algorithm,
            partial_logical_to_rank_dispatch_physical_map=of.first,
            partial_logical_to_all_physical_map=of.table,
            partial_logical_to_all_physical_map_num_valid=of.count,
            num_physical_experts=of.slots,
        )

    def of_sglang(algorithm):
        def make(tokens):
            ids, with_info = of.ids[:tokens].contiguous(), info(algorithm)
            call = lambda: dispatch_module.topk_ids_logical_to_physical(ids, with_info)
            of.check(ids, call())
            return call

        return make

    def of_fused(tokens):
        ids, with_info = of.ids[:tokens].contiguous(), info("static")
        counts = torch.zeros(of.slots, dtype=torch.int32, device="cuda")
        call = lambda: fused_module.eplb_map_and_record_fused(ids, with_info, counts, None)
        of.check(ids, call(), counts)
        return call

    measured("SGLang 0.5.23 static, no recording", TOKENS, of_sglang("static"))
    measured("SGLang 0.5.23 dynamic, no recording", TOKENS, of_sglang("dynamic"))
    measured("SGLang 0.5.23 fused record, static", TOKENS, of_fused)

    def of_deepep(tokens):
        physical = of.first[of.ids[:tokens].long()].contiguous()
        per_rank = torch.empty(of.ranks, dtype=torch.int32, device="cuda")
        per_expert = torch.empty(of.slots, dtype=torch.int32, device="cuda")
        in_rank = torch.empty(tokens, of.ranks, dtype=torch.bool, device="cuda")
        call = lambda: layout(physical, per_rank, per_expert, in_rank, of.ranks, of.slots)
        call()
        expected = torch.zeros_like(in_rank)
        expected.scatter_(1, physical // (of.slots // of.ranks), True)
        assert torch.equal(in_rank, expected) and torch.equal(per_rank.long(), expected.sum(0))
        return call

    if (HERE / "deepep_layout.cu").exists():
        measured("DeepEP get_dispatch_layout, i64", TOKENS, of_deepep)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU")
        sys.exit()
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    vllm_module = vllm()
    dispatch_module, fused_module = sglang()
    layout = deepep() if (HERE / "deepep_layout.cu").exists() else None
    for shape in [(32, 9), (144, 2)]:
        tables(*shape)
