"""Claims about branching operations: what the signs of their data are is foretold from the file, and no data repeats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from op_models import feeds, graph, signs
from op_models.layers import NetworkBuilder
from op_models.spaces.enas import EnasMicro


def relus(data: bytes) -> tuple[graph.Graph, dict[int, float]]:
    network = graph.parse(data, "network")
    return network, dict(signs.mixings(network))


def true_mixings(network: graph.Graph, places: list[int]) -> list[float]:
    found = []
    groups = [network.groups[place] for place in places]
    for group, (values,) in zip(groups, feeds.group_inputs(network, groups, seed=5), strict=True):
        above = (values > signs.zero_point(network, group)).reshape(-1, values.shape[-1]).mean(axis=0)
        found.append(signs.mixing(np.stack([1 - above, above]), values.size // values.shape[-1]))
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mixing_of_a_random_network_is_that_of_its_real_data(seed: int) -> None:
    space = EnasMicro(1)
    network, found = relus(space.graph(space.random(np.random.default_rng(seed)), "int8", seed))
    assert found
    truth = np.array(true_mixings(network, list(found)))
    assert np.abs(np.array(list(found.values())) - truth).mean() < 0.08


def test_a_network_without_branching_operations_has_no_mixings() -> None:
    builder = NetworkBuilder("int8")
    x = builder.input((1, 8, 8, 3))
    assert relus(builder.build(builder.conv2d(x, 4, 3, act="relu")))[1] == {}


def relu_of_input(precision: str = "int8", **spread: float) -> bytes:
    builder = NetworkBuilder("int8" if precision == "int8" else "float32")
    x = builder.input((1, 16, 16, 8), **spread)
    return builder.build(builder.relu(x))


def test_an_input_around_zero_is_evenly_mixed() -> None:
    assert list(relus(relu_of_input())[1].values()) == pytest.approx([1.0], abs=0.05)


def test_float_relus_do_not_branch() -> None:
    assert relus(relu_of_input("float32"))[1] == {}


def test_edges_spread_a_channel_of_large_mean() -> None:
    # A depthwise window that adds up a constant sees less of it at the edges, though the input does not vary at all.
    rows = signs._inside(4, 4, 3, 1, 1, True)
    assert np.diagonal(rows) == pytest.approx([0.75, 1.0, 0.75])
    assert signs._inside(4, 2, 3, 1, 1, False) == pytest.approx(np.ones((3, 3)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 10**6))
def test_mixing_is_a_share_and_the_same_for_both_signs(above: list[float], pixels: int) -> None:
    shares = np.array([[1 - share for share in above], above])
    assert 0 <= signs.mixing(shares, pixels) <= 1
    assert signs.mixing(shares, pixels) == pytest.approx(signs.mixing(shares[::-1], pixels))


def test_one_sign_is_not_mixed_and_channels_of_one_sign_each_are_not_either() -> None:
    assert signs.mixing(np.array([[0.0, 0.0], [1.0, 1.0]]), 100) == 0
    assert signs.mixing(np.array([[0.0, 1.0], [1.0, 0.0]]), 100) == 0
    assert signs.mixing(np.array([[0.5, 0.5], [0.5, 0.5]]), 100) == 1


def test_resampled_tensors_keep_each_channels_values_and_differ() -> None:
    source = np.arange(64, dtype=np.int8).reshape(1, 4, 4, 4)
    first, second = feeds.resampled([source], 2, seed=1)
    assert not np.array_equal(first, second)
    for channel in range(4):
        assert set(first[..., channel].ravel()) <= set(source[..., channel].ravel())


@pytest.mark.parametrize(("kind", "share"), [("one", 1.0), ("even", 0.5)])
def test_signed_noise_never_repeats_and_has_the_signs_asked_for(kind: str, share: float) -> None:
    made = feeds.signed((1, 16, 16, 8), "i8", -20, kind, 3, seed=1)
    assert len({array.tobytes() for array in made}) == 3
    assert np.mean([array > -20 for array in made]) == pytest.approx(share, abs=0.03)
