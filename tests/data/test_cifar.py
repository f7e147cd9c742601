"""CIFAR: both file versions, packed and unpacked, and hostile pickles."""

import dataclasses
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from limbeck.data import cifar, load_data
from limbeck.data.cifar_files import parse_python
from limbeck.errors import DataError


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def pictures(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count)


def members(version):
    """File contents of a small CIFAR-10 by member path."""
    found = {}
    for number in range(6):
        images, labels = pictures(10, number)
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        if version == "bin":
            content = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1).tobytes()
            found[f"cifar-10-batches-bin/{name}.bin"] = content
        else:
            found[f"cifar-10-batches-py/{name}"] = python_two_pickle({b"data": images, b"labels": labels.tolist()})
    return found


def python_two_pickle(entries):
    """Writes a batch as Python 2 did: protocol 2, byte strings, numpy.core names."""
    entries = {k.decode("latin1"): v for k, v in entries.items()}
    return pickle.dumps(entries, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_unpacked(folder, contents):
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def write_packed(folder, archive, contents):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / archive, "w:gz") as opened:
        for path, content in contents.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))


ARCHIVES = {"bin": "cifar-10-binary.tar.gz", "py": "cifar-10-python.tar.gz"}


@pytest.mark.parametrize("version", ["bin", "py"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("by", ["cache", "path", "inner"])
def test_every_form_gives_the_same_samples(tmp_path, version, packed, by):
    folder = tmp_path / ("cache/cifar10" if by == "cache" else "mine")
    contents = members(version)
    write_packed(folder, ARCHIVES[version], contents) if packed else write_unpacked(folder, contents)
    spec = {"name": "cifar10"}
    if by != "cache":
        inner = folder / (ARCHIVES[version] if packed else next(iter(contents)).split("/")[0])
        spec["path"] = str(inner if by == "inner" else folder)
    train, test = load_data(spec), load_data(spec, split="test")
    assert (len(train), len(test), train.info.input_shape) == (50, 10, (3, 32, 32))
    for number in range(5):
        images, labels = pictures(10, number)
        found = train.fetch(np.arange(10) + 10 * number, 0)
        assert np.array_equal(found["inputs"].numpy(), images.reshape(-1, 3, 32, 32))
        assert found["labels"].tolist() == labels.tolist()
    assert test.labels().tolist() == pictures(10, 5)[1].tolist()
    assert train.info.class_names[3] == "cat"


def test_cifar100_uses_the_fine_labels(tmp_path):
    images, _ = pictures(4, 0)
    records = np.concatenate([np.array([[1, 30], [2, 99], [3, 0], [4, 7]], np.uint8), images], axis=1)
    write_unpacked(tmp_path, {"cifar-100-binary/train.bin": records.tobytes()})
    source = load_data(f"cifar100:{tmp_path}")
    assert source.labels().tolist() == [30, 99, 0, 7]
    assert len(source.info.class_names) == 100
    assert (source.info.class_names[30], source.info.class_names[99]) == ("dolphin", "worm")
    assert np.array_equal(source.fetch(np.arange(4), 0)["inputs"].numpy().reshape(4, -1), images)
    python = python_two_pickle({b"data": images, b"fine_labels": [30, 99, 0, 7], b"coarse_labels": [1, 2, 3, 4]})
    write_unpacked(tmp_path / "py", {"cifar-100-python/train": python})
    assert load_data(f"cifar100:{tmp_path / 'py'}").fingerprint() == source.fingerprint()


def test_found_in_the_hub_cache(tmp_path):
    folder = tmp_path / "hub" / "datasets--uoft-cs--cifar100" / "snapshots" / "0a1b" / "cifar100"
    folder.mkdir(parents=True)
    images = pictures(3, 0)[0].reshape(3, 3, 32, 32)
    cells = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    table = arrow.table({"img": cells, "fine_label": [30, 99, 0], "coarse_label": [1, 2, 3]})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    source = load_data("cifar100")
    assert np.array_equal(source.fetch(np.arange(3), 0)["inputs"].numpy(), images)
    assert source.labels().tolist() == [30, 99, 0]


def test_absent(tmp_path):
    with pytest.raises(DataError, match="not on this machine") as error:
        load_data("cifar10")
    assert str(tmp_path / "cache") in str(error.value)
    assert "download: true" in str(error.value)
    with pytest.raises(DataError, match=str(tmp_path / "mine")):
        load_data(f"cifar10:{tmp_path / 'mine'}")


def test_download(tmp_path, monkeypatch):
    write_packed(tmp_path / "site", ARCHIVES["bin"], members("bin"))
    archive = tmp_path / "site" / ARCHIVES["bin"]
    source = cifar.Download(archive.as_uri(), archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "_CIFAR10", dataclasses.replace(cifar._CIFAR10, archive=source))
    assert len(load_data({"name": "cifar10", "download": True})) == 50
    assert (tmp_path / "cache" / "cifar10" / archive.name).is_file()


@pytest.mark.parametrize("damage", ["short", "label", "archive"])
def test_damaged_binary(tmp_path, damage):
    contents = members("bin")
    first = "cifar-10-batches-bin/data_batch_1.bin"
    if damage == "short":
        contents[first] = contents[first][:-1]
    elif damage == "label":
        contents[first] = b"\x0b" + contents[first][1:]
    if damage == "archive":
        write_packed(tmp_path, ARCHIVES["bin"], contents)
        whole = (tmp_path / ARCHIVES["bin"]).read_bytes()
        (tmp_path / ARCHIVES["bin"]).write_bytes(whole[: len(whole) // 2])
    else:
        write_unpacked(tmp_path, contents)
    message = {"short": "truncated", "label": r"labels \[11\].*samples \[0\]", "archive": "cannot read"}[damage]
    with pytest.raises(DataError, match=message):
        load_data(f"cifar10:{tmp_path}")


class Opens:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def hostile(kind, witness):
    """Pickles that write a file when a careless reader loads them."""
    if kind == "reduce":
        return pickle.dumps({b"data": Opens(witness), b"labels": [1]}, protocol=2)
    if kind == "system":
        return b"cos\nsystem\n(S'touch " + witness.encode() + b"'\ntR."
    if kind == "eval":
        return b"c__builtin__\neval\n(S'open(\"" + witness.encode() + b'","w")\'\ntR.'
    if kind == "nested name":
        return b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    if kind == "numpy loader":
        return b"cnumpy\nload\n(S'" + witness.encode() + b"'\ntR."
    if kind == "instance":
        return b"(S'" + witness.encode() + b"'\nios\nsystem\n."
    # Setting the state of the stand-in for an array must not reach its class.
    return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(dS'__class__'\ncos\nsystem\nsb."


@pytest.mark.parametrize("kind", ["reduce", "system", "eval", "nested name", "numpy loader", "instance", "state"])
def test_hostile_pickles_execute_nothing(tmp_path, kind):
    witness = tmp_path / "executed"
    contents = members("py")
    contents["cifar-10-batches-py/data_batch_3"] = hostile(kind, str(witness))
    write_unpacked(tmp_path, contents)
    with pytest.raises(DataError, match=r"refused, nothing was run|no file of CIFAR"):
        load_data(f"cifar10:{tmp_path}")
    assert not witness.exists()


def test_the_hostile_pickles_are_hostile(tmp_path):
    """The control: an ordinary unpickler does run them."""
    pickle.loads(hostile("reduce", str(tmp_path / "executed")))[b"data"].close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "entries",
    [
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((2, 3072), np.int32), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 30), np.uint8), b"labels": [0, 1]},
        {b"data": np.asfortranarray(np.zeros((2, 3072), np.uint8)), b"labels": [0, 1]},
        {b"data": [1, 2], b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0.5, 1.0]},
    ],
)
def test_pickles_of_something_else(entries):
    with pytest.raises(DataError, match="batch"):
        parse_python(python_two_pickle(entries), b"labels", "batch")


def test_pickles_of_today_are_read_too():
    images, labels = pictures(3, 0)
    content = pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=2)
    found = parse_python(content, b"labels", "batch")
    assert np.array_equal(found[0].reshape(3, -1), images)
    assert found[1].tolist() == labels.tolist()
