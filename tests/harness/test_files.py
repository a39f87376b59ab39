from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.errors import StorageError
from harness.files import OsFileLayer, is_temporary, temporary_path
from tests.faults import Crash, FaultyFileLayer


def test_a_file_is_synced_before_it_gets_its_name_and_the_name_after(tmp_path: Path) -> None:
    files = FaultyFileLayer()
    files.write_atomic(tmp_path / "a", b"1")
    hidden = temporary_path(tmp_path / "a").name
    assert files.log == [("write", hidden), ("sync", hidden), ("rename", "a"), ("sync", tmp_path.name)]


def test_an_append_and_a_new_directory_are_synced(tmp_path: Path) -> None:
    files = FaultyFileLayer()
    (tmp_path / "a").write_bytes(b"1")
    files.append(tmp_path / "a", b"2")
    files.truncate(tmp_path / "a", 1)
    files.make_directory(tmp_path / "b" / "c")
    kinds = [kind for kind, _ in files.log]
    assert kinds == ["write", "sync", "truncate", "sync", "make_directory", "sync", "make_directory", "sync"]
    assert files.log[-3:] == [("sync", tmp_path.name), ("make_directory", "c"), ("sync", "b")]


def test_a_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    files = OsFileLayer()
    files.write_atomic(tmp_path / "a", b"1")
    with pytest.raises(StorageError) as caught:
        files.write_atomic(tmp_path / "a", b"2")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.path == tmp_path / "a"
    assert files.read(tmp_path / "a") == b"1"
    files.write_atomic(tmp_path / "a", b"3", replace=True)
    assert files.read(tmp_path / "a") == b"3"
    assert files.listing(tmp_path) == [tmp_path / "a"]


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_a_crash_leaves_the_old_content_or_the_new(tmp_path: Path, when: str) -> None:
    for step in range(4):
        path = tmp_path / f"{step}"
        path.write_bytes(b"old" * 100)
        files = FaultyFileLayer(step, when)  # type: ignore[arg-type]
        with pytest.raises(Crash):
            files.write_atomic(path, b"new" * 100, replace=True)
        assert path.read_bytes() in (b"old" * 100, b"new" * 100)
        assert all(item == path or is_temporary(item) or item.name.isdigit() for item in tmp_path.iterdir())
        with pytest.raises(Crash):
            files.write_atomic(tmp_path / "more", b"")


def test_a_full_disk_is_a_sentence_with_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(StorageError, match="the disk is full") as caught:
        FaultyFileLayer(0, "full").write_atomic(path, b"12345678")
    assert caught.value.is_full
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_a_storage_error(tmp_path: Path) -> None:
    files = OsFileLayer()
    (tmp_path / "file").write_bytes(b"")
    below = tmp_path / "file" / "below"
    for action in (
        lambda: files.read(tmp_path / "absent"),
        lambda: files.append(tmp_path / "absent", b""),
        lambda: files.truncate(tmp_path / "absent", 0),
        lambda: files.write_atomic(tmp_path / "absent" / "a", b""),
        lambda: files.write_atomic(below, b""),
        lambda: files.make_directory(below),
        lambda: files.make_directory(tmp_path / "file"),
        lambda: files.listing(tmp_path / "file"),
        lambda: files.remove(tmp_path),
    ):
        with pytest.raises(StorageError) as caught:
            action()
        assert str(tmp_path) in str(caught.value)


def test_removing_what_is_gone_and_making_what_is_there_are_harmless(tmp_path: Path) -> None:
    files = OsFileLayer()
    files.remove(tmp_path / "absent")
    files.make_directory(tmp_path)
    assert files.listing(tmp_path / "absent") == []


def test_a_leftover_is_known_by_its_name(tmp_path: Path) -> None:
    assert is_temporary(temporary_path(tmp_path / "a.npy"))
    assert temporary_path(tmp_path / "a.npy").parent == tmp_path
    assert not is_temporary(tmp_path / "a.npy")
    assert not is_temporary(tmp_path / "a.partial")
