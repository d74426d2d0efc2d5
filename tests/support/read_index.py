"""Reads a checkpoint with h5py alone and compares every array with the bytes that it should hold.

read_index.py CHECKPOINT EXPECTED: EXPECTED is a directory with arrays.json, a list of {name, role, path, dtype, shape,
bytes}: the array's path in index.h5, and the file beside the list that holds its elements. Prints what was compared; the
exit code is 1 when anything differs.
"""

import json
import os
import sys

import h5py
import numpy

TYPES = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "i64": "<i8", "u8": "|u1"}


def fail(text):
    sys.exit("read_index.py: " + text)


def datasets_of(file):
    """The paths of all datasets that lie in the file itself."""
    found = []
    file.visititems(lambda path, item: found.append("/" + path) if isinstance(item, h5py.Dataset) else None)
    return set(found)


def check_dataset(dataset, values, place):
    if dataset.dtype != values.dtype:
        fail(f"{place} holds {dataset.dtype}, not {values.dtype}")
    if dataset.shape != values.shape:
        fail(f"{place} has the shape {dataset.shape}, not {values.shape}")
    # Bytes, so that the signs of zeros and the bits of NaNs count.
    if dataset[()].tobytes() != values.tobytes():
        fail(f"{place} holds other elements")


def check_shards(checkpoint, arrays):
    """Every dataset of every shard, by the manifest."""
    with open(os.path.join(checkpoint, "manifest.json"), encoding="utf-8") as text:
        tensors = json.load(text)["tensors"]
    by_file = {}
    for t in tensors:
        by_file.setdefault(t["file"], []).append(t)
    elements = 0
    for name, entries in by_file.items():
        with h5py.File(os.path.join(checkpoint, name), "r") as shard:
            for t in entries:
                whole = arrays[t["name"], t["role"]]
                part = whole.reshape(-1)[t["begin"] : t["end"]]
                values = whole if part.size == whole.size else part
                check_dataset(shard[t["dataset"]], values, name + t["dataset"])
                elements += part.size
            unlisted = datasets_of(shard) - {t["dataset"] for t in entries}
            if unlisted:
                fail(f"{name} holds {sorted(unlisted)}, which the manifest does not list")
    if elements != sum(a.size for a in arrays.values()):
        fail(f"the shards hold {elements} elements")
    print(f"{len(tensors)} datasets of {len(by_file)} shards are equal")


def check_index(checkpoint, paths, arrays):
    """Every array at its own path, as if the checkpoint were one file."""
    external = virtual = 0
    with h5py.File(os.path.join(checkpoint, "index.h5"), "r") as index:
        for key, path in paths.items():
            dataset = index[path]
            check_dataset(dataset, arrays[key], "index.h5" + path)
            external += os.path.basename(dataset.file.filename) != "index.h5"
            virtual += bool(dataset.is_virtual)
    print(f"{len(paths)} arrays of index.h5 are equal: {external} by external link, {virtual} virtual")


def main():
    checkpoint, expected = sys.argv[1:]
    with open(os.path.join(expected, "arrays.json"), encoding="utf-8") as text:
        entries = json.load(text)
    arrays, paths = {}, {}
    for e in entries:
        key = e["name"], e["role"]
        with open(os.path.join(expected, e["bytes"]), "rb") as raw:
            arrays[key] = numpy.frombuffer(raw.read(), TYPES[e["dtype"]]).reshape(e["shape"])
        paths[key] = e["path"]
    check_shards(checkpoint, arrays)
    check_index(checkpoint, paths, arrays)


main()
