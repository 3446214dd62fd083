"""KV blocks: the least over the ranks, whole blocks, and one that the engine keeps."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.costs import kv_cache_bytes
from llmpq.costs.kv_blocks import KvBlocks, kv_blocks, page_size
from llmpq.costs.memory import paged_tokens
from llmpq.hardware.cluster import Cluster
from llmpq.plan import DeviceMemory, Plan
from llmpq.workload import Batch
from tests.tiny_checkpoint import graph, plan
from tests.values import llama_kind

KV_BYTES = 2 * 2 * 32 * 2  # of a token in a layer of the tiny model


def with_room(cluster: str, *left: int) -> Plan:
    """A plan of two layers a stage whose devices have that many bytes left for the cache."""
    made = plan(("16",) * (2 * len(left)), cuts=tuple(range(2, 2 * len(left), 2)))
    names = [device.name for device in Cluster.load(cluster).devices]
    stages = tuple(replace(stage, device=name) for stage, name in zip(made.stages, names))
    memory = tuple(DeviceMemory(name, 5_000, 77, 300, 20, 1, 5_321 + nbytes) for name, nbytes in zip(names, left))
    return replace(
        made,
        cluster=Cluster.load(cluster),
        workload=Batch(3, 20, 13),
        pipelines=(replace(made.pipeline, stages=stages),),
        prediction=replace(made.prediction, memory=memory),
    )


def test_the_rank_with_the_least_room_decides_for_all() -> None:
    block = 16 * 2 * KV_BYTES
    blocks = kv_blocks(with_room("2xL4", 9 * block - 1, 50 * block), graph(layers=4))
    assert (blocks.block_size, blocks.room, blocks.count, blocks.tightest) == (16, (8, 50), 8, 0)
    assert blocks.rank_bytes == (8 * block, 8 * block)
    assert blocks.tokens == 7 * 16


def test_a_longer_rank_pays_more_for_a_block() -> None:
    made = with_room("2xL4", 100_000, 100_000)
    first, second = made.stages
    uneven = (replace(first, options=("16",) * 3), replace(second, first_layer=3, options=("16",)))
    blocks = kv_blocks(replace(made, pipelines=(replace(made.pipeline, stages=uneven),)), graph(layers=4))
    assert blocks.block_bytes == (3 * 16 * KV_BYTES, 16 * KV_BYTES)
    assert blocks.count == 100_000 // (3 * 16 * KV_BYTES)


def test_a_cpu_gives_no_more_than_the_workload_needs() -> None:
    blocks = kv_blocks(with_room("2xCPU", 10**9, 10**9), graph(layers=4))
    assert (blocks.block_size, blocks.needed, blocks.count) == (32, 3 * 1 + 1, 4)


def test_a_rank_that_is_full_leaves_no_block() -> None:
    blocks = kv_blocks(with_room("2xL4", -5, 10**6), graph(layers=4))
    assert (blocks.count, blocks.tokens) == (0, 0)


@pytest.mark.parametrize(("kv_len", "block_size", "expected"), [(32, 16, 2 * 2 + 1), (33, 16, 2 * 3 + 1), (1, 16, 3)])
def test_planning_for_a_paged_engine_counts_whole_blocks_and_the_one_it_keeps(
    kv_len: int, block_size: int, expected: int
) -> None:
    kind = llama_kind()
    found = kv_cache_bytes(kind, Batch(2, kv_len, 1), block_size)
    assert found == expected * block_size * kind.kv_bytes_per_token


def test_only_paged_engines_have_pages() -> None:
    devices = Cluster.load("1xL4,1xCPU").devices
    assert page_size("local", devices) is None
    assert page_size("vllm", devices) == 32
    assert page_size("vllm", devices[:1]) == 16


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 1000))
def test_no_rank_is_given_more_than_it_has(ranks: list[tuple[int, int]], needed: int) -> None:
    """Whatever the ranks hold, the common number fits everywhere, and one more does not fit somewhere."""
    block_bytes = tuple(4096 * layers for _, layers in ranks)
    room = tuple(left // nbytes for (left, _), nbytes in zip(ranks, block_bytes))
    blocks = KvBlocks(16, room, block_bytes, needed, shared_memory=False)
    left = [nbytes for nbytes, _ in ranks]
    assert all(taken <= have for taken, have in zip(blocks.rank_bytes, left))
    assert any((blocks.count + 1) * nbytes > have for nbytes, have in zip(block_bytes, left))


@pytest.mark.parametrize(("batch", "prompt", "gen", "blocks"), [(1, 16, 17, 3), (1, 16, 16, 2), (2, 16, 17, 3), (3, 16, 17, 4)])
def test_one_sequence_with_its_last_token_has_room(batch: int, prompt: int, gen: int, blocks: int) -> None:
    assert paged_tokens(Batch(batch, prompt, gen), 32) == blocks * 32
