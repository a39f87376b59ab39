from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from op_models import graph
from op_models.errors import GenotypeError
from op_models.spaces.base import DisconnectedNetworkError
from op_models.spaces.registry import SPACES, Family


def keys_of(data: bytes) -> set[str]:
    return {group.spec.key for group in graph.parse(data).groups}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_listed_under_its_name(name: str) -> None:
    assert SPACES[name].name == name
    assert SPACES[name].make()


@pytest.mark.parametrize("name", SPACES)
def test_the_covering_networks_hold_every_operation_and_none_is_idle(name: str) -> None:
    family = SPACES[name]
    missing = set(family.operation_keys())
    covering = list(family.covering())
    for data in covering:
        new = keys_of(data) & missing
        assert new
        missing -= new
    assert not missing
    # Most operations come out of networks, with weights and neighbours as networks have them.
    assert len(set.union(*map(keys_of, [data for data in covering if len(keys_of(data)) > 1]))) > len(covering) / 2


def test_the_same_networks_cover_a_space_in_every_process() -> None:
    told = (
        "import hashlib\nfrom op_models.spaces.registry import SPACES\n"
        "print(*(hashlib.sha256(data).hexdigest() for data in SPACES['nas-bench-201'].covering()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True).stdout
    assert there.split() == [hashlib.sha256(data).hexdigest() for data in SPACES["nas-bench-201"].covering()]


@pytest.mark.parametrize("name", SPACES)
def test_no_network_of_a_space_has_an_operation_that_is_not_listed(name: str) -> None:
    family = SPACES[name]
    rng = np.random.default_rng(33)
    listed = family.operation_keys()
    for space in family.make():
        for seed in range(4):
            try:
                data = space.graph(space.random(rng), "float32", seed)
            except DisconnectedNetworkError:
                continue
            assert keys_of(data) <= listed


def test_a_family_asks_for_what_any_of_its_spaces_asks_for() -> None:
    family = SPACES["enas-micro"]
    each = [space.operation_keys("float32") for space in family.make()]
    assert len(each) > 1
    assert family.operation_keys() == frozenset().union(*each)


def test_a_network_that_is_not_connected_is_left_out_of_the_covering() -> None:
    (space,) = SPACES["nas-bench-201"].make()

    class Unlucky:
        """The space, whose first networks have no way through."""

        def __init__(self) -> None:
            self.drawn = 0

        def __getattr__(self, name: str) -> object:
            return getattr(space, name)

        def graph(self, genotype: object, precision: object, seed: int) -> bytes:
            self.drawn += 1
            if self.drawn < 4:
                raise DisconnectedNetworkError("|none~0|")
            return space.graph(genotype, precision, seed)  # type: ignore[arg-type]

    unlucky = Unlucky()
    family = Family("unlucky", lambda: (unlucky,))  # type: ignore[arg-type, return-value]
    assert set().union(*map(keys_of, family.covering())) >= family.operation_keys()
    assert issubclass(DisconnectedNetworkError, GenotypeError)
    assert unlucky.drawn > 4
