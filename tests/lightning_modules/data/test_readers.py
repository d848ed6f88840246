"""Readers: what was written comes back, real files agree with other readers, and damaged files are named."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.data import EVENT_DTYPE, EventDataError, make_events
from lightning_modules.data.readers import read_aedat3, read_aedat4, read_atis_bin, read_dat, read_dvs128_aedat2
from lightning_modules.data.readers.lz4 import decompress_lz4
from tests.lightning_modules import event_files as files

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "formats"

CASES = {
    "atis": (read_atis_bin, files.atis_bin),
    "dat": (read_dat, files.dat),
    "aedat2": (read_dvs128_aedat2, files.dvs128_aedat2),
    "aedat3": (read_aedat3, files.aedat3),
    "aedat4": (read_aedat4, files.aedat4),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"no real recording beside the checkout: {path}")
    return path


def test_what_was_written_comes_back(case, tmp_path):
    read, encode = case
    events = files.random_events(1, 333, 128, 128)
    found = read(files.write(tmp_path / "one", encode(events)))
    assert found.dtype == EVENT_DTYPE
    np.testing.assert_array_equal(found, events)
    np.testing.assert_array_equal(read(str(tmp_path / "one")), events)


@pytest.mark.parametrize("lost", [1, 3, 102])  # no multiples of an event's size, which some formats could not notice
def test_cut_file_is_named(case, tmp_path, lost):
    read, encode = case
    options = {"table_of_contents": False} if read is read_aedat4 else {}  # the events themselves are to be cut
    path = files.write(tmp_path / "one.file", encode(files.random_events(1, 333, 128, 128), **options)[:-lost])
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*cut off"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"x", b"<html>a page, not a recording</html>..", bytes(100)])
def test_other_files_are_named(case, tmp_path, content):
    read, _ = case
    path = files.write(tmp_path / "one.file", content)
    if content and read in (read_atis_bin, read_dat) and len(content) % 5 in (0, 4):
        pytest.skip("this format has no mark that would tell")
    with pytest.raises(EventDataError, match=re.escape(str(path))):
        read(path)


def test_missing_file_is_named(case, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        case[0](tmp_path / "nothing")


def test_nothing_recorded(case, tmp_path):
    read, encode = case
    if read is read_atis_bin:
        pytest.skip("an empty file, which is refused")
    assert len(read(files.write(tmp_path / "one", encode(files.random_events(1, 0))))) == 0


def test_aedat3_invalid_events_and_other_packets_are_passed_over(tmp_path):
    events = files.random_events(1, 120, 128, 128)
    found = read_aedat3(files.write(tmp_path / "a", files.aedat3(events, invalid=(3, 70))))
    np.testing.assert_array_equal(found, np.delete(events, (3, 70)))


def test_aedat3_without_end_of_header(tmp_path):
    events = files.random_events(1, 120, 128, 128)
    np.testing.assert_array_equal(read_aedat3(files.write(tmp_path / "a", files.aedat3(events, end=False))), events)


def test_aedat3_times_go_on_after_an_overflow(tmp_path):
    events = make_events([1, 2], [3, 4], [2**31 - 5, 2**31 + 7], [0, 1])
    np.testing.assert_array_equal(read_aedat3(files.write(tmp_path / "a", files.aedat3(events, per_packet=1))), events)


@pytest.mark.parametrize("options", [{"compression": 0}, {"compression": 2}, {"table_of_contents": False}])
def test_aedat4_variants(tmp_path, options):
    events = files.random_events(1, 120, 128, 128)
    np.testing.assert_array_equal(read_aedat4(files.write(tmp_path / "a", files.aedat4(events, **options))), events)


@pytest.mark.parametrize("kind", [3, 4])
def test_aedat4_with_zstandard(tmp_path, kind):
    zstandard = pytest.importorskip("zstandard")
    for pack in (
        zstandard.ZstdCompressor().compress,
        zstandard.ZstdCompressor(write_content_size=False).compress,  # as a stream is written
    ):
        events = files.random_events(1, 120, 128, 128)
        path = files.write(tmp_path / "a", files.aedat4(events, kind, pack=pack))
        np.testing.assert_array_equal(read_aedat4(path), events)


@pytest.mark.parametrize("spoil", [lambda packed: packed[:-4], lambda packed: bytes(len(packed))])
def test_damaged_zstandard_is_named(tmp_path, spoil):
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    path = files.write(tmp_path / "a", files.aedat4(files.random_events(1), 3, pack=lambda part: spoil(compress(part))))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: cut off or damaged"):
        read_aedat4(path)


def test_zstandard_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compression", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = files.write(tmp_path / "a", files.aedat4(files.random_events(1), 3))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: compressed with Zst.*pip install zstandard"):
        read_aedat4(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "FRME"}, r"no stream of events; found \['FRME', 'IMUS'\]"), ({"compression": 9}, "compression")],
)
def test_aedat4_that_cannot_be_read_is_named(tmp_path, options, message):
    path = files.write(tmp_path / "a", files.aedat4(files.random_events(1), **options))
    with pytest.raises(EventDataError, match=rf"{re.escape(str(path))}: .*{message}"):
        read_aedat4(path)


def test_aedat4_damage_anywhere_is_named_or_harmless(tmp_path):
    content = files.aedat4(files.random_events(1, 50))
    random = np.random.default_rng(0)
    for place in random.integers(14, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        path = files.write(tmp_path / "a", bytes(damaged))
        try:
            read_aedat4(path)
        except EventDataError as error:
            assert str(path) in str(error)


def test_dat_without_header(tmp_path):
    events = files.random_events(1)
    np.testing.assert_array_equal(read_dat(files.write(tmp_path / "a", files.dat(events, header=b""))), events)


@pytest.mark.parametrize("options", [{"kind": 14}, {"size": 4}])
def test_dat_of_something_else_is_named(tmp_path, options):
    path = files.write(tmp_path / "a.dat", files.dat(files.random_events(1), **options))
    with pytest.raises(EventDataError, match=r"a\.dat: damaged, or not"):
        read_dat(path)


def test_dat_that_ends_in_its_header_is_named(tmp_path):
    with pytest.raises(EventDataError, match=r"a\.dat: cut off"):
        read_dat(files.write(tmp_path / "a.dat", b"% only a comment\n"))


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (bytes([0x50]) + b"abcde", b"abcde"),
        (bytes([0x22]) + b"ab" + bytes([2, 0, 0x00]), b"ab" + b"ababab"),  # a copy that overlaps itself
        (bytes([0x1F]) + b"a" + bytes([1, 0, 255, 3]) + bytes([0x10]) + b"z", b"a" * (1 + 4 + 15 + 255 + 3) + b"z"),
    ],
)
def test_lz4_blocks(packed, plain):
    head = bytes.fromhex("04224d18") + bytes([0x40, 0x40, 0xC0])
    frame = head + len(packed).to_bytes(4, "little") + packed + bytes(4)
    assert decompress_lz4(frame) == plain
    raw = head + (len(plain) | 1 << 31).to_bytes(4, "little") + plain + bytes(4)
    assert decompress_lz4(raw) == plain


@pytest.mark.parametrize("packed", [bytes([0x10]) + b"a" + bytes([9, 0]), bytes([0xF0]), bytes([0x50]) + b"ab"])
def test_lz4_damage(packed):
    head = bytes.fromhex("04224d18") + bytes([0x40, 0x40, 0xC0])
    with pytest.raises(ValueError, match="LZ4"):
        decompress_lz4(head + len(packed).to_bytes(4, "little") + packed + bytes(4))
    with pytest.raises(ValueError, match="LZ4"):
        decompress_lz4(b"something else")


def test_real_ncars_file():
    events = read_dat(real("sample_ncars.dat"))
    assert len(events) == 2009 and events[0].item() == (25, 8, 0, False) and events[-1].item() == (75, 28, 99952, True)
    wizard = pytest.importorskip("expelliarmus", reason="expelliarmus is not installed").Wizard(encoding="dat")
    theirs = wizard.read(real("sample_ncars.dat"))
    for field in "xytp":
        np.testing.assert_array_equal(events[field], theirs[field])


def test_real_nmnist_file():
    events = read_atis_bin(real("sample_nmnist.bin"))
    assert len(events) == 4325 and events["t"].max() == 311_175 and max(events["x"].max(), events["y"].max()) == 33
    tonic_io = pytest.importorskip("tonic.io", reason="tonic is not installed")
    theirs = tonic_io.read_mnist_file(str(real("sample_nmnist.bin")), dtype=EVENT_DTYPE)
    np.testing.assert_array_equal(events, theirs)


def test_real_aedat4_file(tmp_path):
    path = real("sample.aedat4")
    events = read_aedat4(path)
    assert len(events) == 111_954 and (events["x"].max(), events["y"].max()) == (319, 239)
    assert (np.diff(events["t"]) >= 0).all()
    assert (events["t"][0], events["t"][-1]) == (1605537493718345, 1605537494308262)
    cut = files.write(tmp_path / "cut.aedat4", path.read_bytes()[:-20_000])
    with pytest.raises(EventDataError, match=r"cut\.aedat4: cut off"):
        read_aedat4(cut)
