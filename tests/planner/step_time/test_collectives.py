"""Collectives against times worked out by hand, and against what holds of any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.step_time.collectives import Group, Links, all_reduce, all_to_all, ring_pass, send

# Eight devices a node, 100 GB/s between them, 10 GB/s a device to other nodes, no latency unless said.
LINKS = Links(8, 100e9, 10e9, 0.0)


def test_an_all_gather_within_a_node_passes_all_but_a_device_s_own_part() -> None:
    # 3/4 of 8 GB at 100 GB/s
    assert ring_pass(Group(4, 1, LINKS), 8e9) == pytest.approx(0.06)


def test_a_ring_over_nodes_leaves_each_by_as_many_cards_as_it_has_ranks_there() -> None:
    # 16 ranks in two nodes of eight: 8 × 10 GB/s = 80 GB/s, 15/16 of 16 GB.
    assert ring_pass(Group(16, 1, LINKS), 16e9) == pytest.approx(15e9 / 80e9)
    # Every eighth device, so one in each node: 10 GB/s.
    assert ring_pass(Group(2, 8, LINKS), 16e9) == pytest.approx(0.8)


def test_the_links_bound_a_ring_whose_cards_are_faster() -> None:
    fast = Links(8, 100e9, 50e9, 0.0)
    assert Group(16, 1, fast).bandwidth == 100e9


def test_the_latency_of_a_ring_is_a_step_a_rank_in_the_node_and_a_step_a_node() -> None:
    slow = Links(8, 100e9, 10e9, 1e-3)
    assert ring_pass(Group(16, 1, slow), 0.0) == pytest.approx((7 + 1) * 1e-3)


def test_an_all_reduce_takes_the_faster_of_ring_and_tree() -> None:
    # Large: a ring, 2 × 7/8 of 8 GB at 100 GB/s. Small: a tree of three levels there and back, not fourteen steps.
    assert all_reduce(Group(8, 1, LINKS), 8e9) == pytest.approx(0.14)
    slow = Links(8, 100e9, 10e9, 1e-3)
    assert all_reduce(Group(8, 1, slow), 0.0) == pytest.approx(6e-3)


def test_rows_that_go_to_several_ranks_of_a_node_cross_the_network_once() -> None:
    group = Group(16, 1, LINKS)
    # Eight copies of each row over two nodes reach 2 (1 − 2⁻⁸) of them, half of which are the sender's own node.
    crossing = 8e9 / 8 * 2 * (1 - 2**-8) / 2 / 10e9
    # Within the nodes they go to 16 (1 − (15/16)⁸) ranks, of which one in eight is the one that they came to.
    within = 7 / 8 * 8e9 / 8 * 16 * (1 - (15 / 16) ** 8) / 100e9
    assert all_to_all(group, 8e9, 8) == pytest.approx(within + crossing)


def test_rows_that_go_to_several_experts_of_a_rank_are_sent_once() -> None:
    # All of four ranks hold one of a hundred chosen experts: each row goes to all four, and three of these are others.
    assert all_to_all(Group(4, 1, LINKS), 100e9, 100) == pytest.approx(3 * 1e9 / 100e9, rel=1e-6)


def test_an_all_to_all_has_the_latency_of_a_tree() -> None:
    assert all_to_all(Group(8, 1, Links(8, 100e9, 10e9, 1e-3)), 0.0) == pytest.approx(3e-3)


def test_a_single_rank_exchanges_nothing() -> None:
    alone = Group(1, 1, LINKS)
    assert ring_pass(alone, 1e9) == all_reduce(alone, 1e9) == all_to_all(alone, 1e9) == send(alone, 1e9) == 0


def test_neighbours_in_other_nodes_are_reached_over_the_network() -> None:
    assert send(Group(2, 8, LINKS), 1e9) == pytest.approx(0.1)
    assert send(Group(2, 1, LINKS), 1e9) == pytest.approx(0.01)


def test_nodes_without_a_network_join_no_group() -> None:
    alone = Links(8, 100e9, None, 0.0)
    with pytest.raises(ValueError, match="network"):
        ring_pass(Group(16, 1, alone), 1.0)


@given(
    ranks=st.sampled_from([2, 3, 8, 16, 64, 500]),
    stride=st.sampled_from([1, 2, 4, 8, 16]),
    size=st.floats(1, 1e12),
    faster=st.floats(1, 10),
)
def test_faster_links_are_never_slower(ranks: int, stride: int, size: float, faster: float) -> None:
    before, links = Group(ranks, stride, LINKS), Links(8, 100e9 * faster, 10e9 * faster, 0.0)
    after = Group(ranks, stride, links)
    for collective in (ring_pass, all_reduce, all_to_all, send):
        assert collective(after, size) <= collective(before, size) * (1 + 1e-12)
    # Whoever gathers receives all but its own part.
    assert ring_pass(before, size) >= (ranks - 1) / ranks * size / LINKS.intra * (1 - 1e-12)
