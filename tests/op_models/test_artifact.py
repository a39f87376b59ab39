from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from op_models.artifact import (
    CACHE_VARIABLE,
    ArtifactCache,
    CorruptArtifactError,
    MissingArtifactError,
    default_cache,
)
from op_models.errors import CacheError


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_what_is_put_is_got_by_its_hash(tmp_path: Path, data: bytes) -> None:
    cache = ArtifactCache(tmp_path)
    sha256 = cache.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert cache.get(sha256) == data == cache.path(sha256).read_bytes()
    assert cache.put(data) == sha256


def test_nothing_but_whole_files_lies_in_the_cache(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    for number in range(5):
        cache.put(bytes([number]))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".tflite"}


def test_a_missing_entry_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="build it again") as caught:
        ArtifactCache(tmp_path).get("0" * 64)
    assert caught.value.sha256 == "0" * 64
    assert isinstance(caught.value, CacheError)


@pytest.mark.parametrize("spoil", [b"", b"otter bytes", b"other byte"])
def test_a_corrupt_entry_is_never_given_out_and_is_repaired_by_putting(tmp_path: Path, spoil: bytes) -> None:
    cache = ArtifactCache(tmp_path)
    sha256 = cache.put(b"other bytes")
    cache.path(sha256).write_bytes(spoil)
    for read in (cache.get, cache.path):
        with pytest.raises(CorruptArtifactError) as caught:
            read(sha256)
        assert caught.value.found == hashlib.sha256(spoil).hexdigest()
    assert not cache.has(sha256)
    assert cache.put(b"other bytes") == sha256
    assert cache.has(sha256)


@pytest.mark.parametrize("sha256", ["", "abc", "../../etc/passwd", "A" * 64, "0" * 64 + "\n", "0" * 63 + "/"])
def test_only_a_hash_becomes_a_path(tmp_path: Path, sha256: str) -> None:
    cache = ArtifactCache(tmp_path)
    for use in (cache.get, cache.path, cache.has, lambda text: cache.tag("recipe", text)):
        with pytest.raises(ValueError, match="not a sha256"):
            use(sha256)


def test_a_recipe_finds_what_it_made_while_that_is_whole(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    assert cache.find("convert x with seed 3") is None
    sha256 = cache.put(b"converted")
    cache.tag("convert x with seed 3", sha256)
    assert cache.find("convert x with seed 3") == sha256
    assert cache.find("convert x with seed 4") is None
    cache.path(sha256).write_bytes(b"spoiled")
    assert cache.find("convert x with seed 3") is None
    cache.put(b"converted")
    (tag,) = (tmp_path / "recipes").iterdir()
    tag.write_bytes(b"\xff not a hash")
    assert cache.find("convert x with seed 3") is None


def test_many_writers_and_readers_never_see_half_a_file(tmp_path: Path) -> None:
    datas = [bytes([number]) * 200_000 for number in range(4)]
    hashes = [hashlib.sha256(data).hexdigest() for data in datas]

    def work(seed: int) -> None:
        cache = ArtifactCache(tmp_path)
        for step in range(12):
            at = (seed + step) % len(datas)
            if step % 5 == seed % 5:
                (tmp_path / hashes[at][:2]).exists() and cache.has(hashes[at])
            assert cache.get(cache.put(datas[at])) == datas[at]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(datas)


def test_another_process_killed_while_writing_spoils_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from op_models import artifact; "
        "Path.replace = lambda *_: os._exit(137); artifact.ArtifactCache(Path(sys.argv[1])).put(b'data')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 137
    cache = ArtifactCache(tmp_path)
    sha256 = hashlib.sha256(b"data").hexdigest()
    assert not cache.has(sha256)
    assert cache.get(cache.put(b"data")) == b"data"


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="file"):
        ArtifactCache(tmp_path / "file").put(b"data")


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "here"))
    assert default_cache().directory == tmp_path / "here" / "artifacts"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert default_cache().directory.name == "artifacts"
