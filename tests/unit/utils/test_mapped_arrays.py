"""Arrays of an .npz file in place: the same numbers as NumPy's, and damage is found."""

import zipfile

import numpy as np
import pytest

from megatron_longpo.utils.mapped_arrays import map_arrays, read_blocks


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", text=np.array("x" * 77), rows=rng.random((1000, 2)), counts=np.arange(7))
    return tmp_path / "a.npz"


def test_mapped_arrays_are_those_that_numpy_reads(path):
    rows, counts = map_arrays(path, ("rows", "counts"))
    with np.load(path) as arrays:
        assert np.array_equal(rows, arrays["rows"])
        assert np.array_equal(counts, arrays["counts"])
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable


def test_blocks_are_the_array_in_order(path):
    blocks = list(read_blocks(path, "rows", elements=300))
    assert [len(block) for block in blocks] == [300, 300, 300, 300, 300, 300, 200]
    assert np.array_equal(np.concatenate(blocks), map_arrays(path, ("rows",))[0].ravel())


def test_a_changed_byte_is_found_while_reading_blocks(path):
    content = bytearray(path.read_bytes())
    content[content.index(map_arrays(path, ("rows",))[0].tobytes()) + 5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        list(read_blocks(path, "rows"))


def test_what_cannot_be_mapped_is_refused(path, tmp_path):
    with pytest.raises(KeyError):
        map_arrays(path, ("absent",))
    np.savez_compressed(tmp_path / "b.npz", rows=np.zeros(9))
    with pytest.raises(ValueError, match="rows is compressed"):
        map_arrays(tmp_path / "b.npz", ("rows",))
