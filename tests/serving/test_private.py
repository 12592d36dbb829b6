import os
import subprocess
import sys

import pytest

from steerlift.records.errors import InputError, MissingInputError
from steerlift.serving.private import (
    create_folder,
    key_path,
    open_private,
    private_folder,
    read_key,
    read_private,
    read_server,
    read_settings,
    remove_folder,
    write_private,
    write_server,
    write_settings,
)

PORT = 60_000_000 + os.getpid()
"""No port that could be listened on: no server's folder is in the way."""


@pytest.fixture
def folder():
    folder = create_folder(PORT, None)
    yield folder
    remove_folder(folder)


def test_only_the_user_can_enter_it(folder):
    assert folder == private_folder(PORT)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert key_path(folder).stat().st_mode & 0o777 == 0o600
    assert len(read_key(folder)) >= 32


def test_it_keeps_what_it_is_given(folder):
    write_settings(folder, {"host": "h"})
    assert read_settings(folder) == {"host": "h"}
    assert read_server(folder) is None

    write_server(folder, {"url": "http://h"})

    assert read_server(folder) == {"url": "http://h"}
    remove_folder(folder)
    assert not folder.exists()
    with pytest.raises(MissingInputError, match="start `steerlift serve`"):
        read_key(folder)


def test_the_user_s_own_key_is_kept():
    folder = create_folder(PORT, "my-own-key")
    assert read_key(folder) == "my-own-key"
    remove_folder(folder)


def test_a_live_server_keeps_its_folder_and_a_dead_one_loses_it(folder):
    with pytest.raises(InputError, match=rf"a steerlift server \(process {os.getpid()}\) is running"):
        create_folder(PORT, None)

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_private(folder / "pid", str(dead.pid).encode())
    (folder / "weights" / "left").write_bytes(b"x")
    create_folder(PORT, "another-key")

    assert read_key(folder) == "another-key"
    assert list((folder / "weights").iterdir()) == []


def test_a_link_in_its_place_is_refused(tmp_path):
    private_folder(PORT).symlink_to(tmp_path)
    try:
        with pytest.raises(InputError, match="not a folder of yours"):
            create_folder(PORT, None)
    finally:
        private_folder(PORT).unlink()


@pytest.mark.parametrize("name", ["", ".", "..", "../key", "/etc/passwd", "weights/x", "a\\b", "a\0b"])
def test_a_path_is_no_name(name, folder):
    with pytest.raises(InputError, match="expected the plain name of a file"):
        open_private(folder, name)


def test_links_pipes_and_folders_are_no_files(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")

    for name in ("link", "pipe", "weights"):
        with pytest.raises(InputError, match="expected a plain file"):
            read_private(folder, name)


def test_a_failed_write_leaves_nothing(folder):
    with pytest.raises(IsADirectoryError):
        write_private(folder / "weights", b"x")

    assert sorted(path.name for path in folder.iterdir()) == ["key", "pid", "vectors", "weights"]
