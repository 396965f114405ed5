"""Reading a pruned subset: our packed store against what else there is, on the same pictures.

Speed is images per second of processor time, until random crops are in memory as bytes (flips are
left to the device; so are crops of raw pixels): all read in one process by one thread, and what
else runs on the machine does not count. Bytes are those that the kernel read from the disk.
"""

import gc
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder as TorchvisionImageFolder
from torchvision.transforms import RandomResizedCrop, v2

from dp4tl_ray.data.pack import Index, Packing, joined, pack_shard
from dp4tl_ray.data.packed import JPEGImages, RawImages, Shards
from dp4tl_ray.data.pictures import Pictures, of_files
from dp4tl_ray.specs.data import JPEG, Raw
from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.reading import draw, read
from dp4tl_ray.training.worker import Worker
from tests.benchmarks.figure import Figure, figure

PICTURES, PER_CLASS, SIDES, QUALITY = 1000, 50, (375, 500), 90
"""JPEG files, cut from two photographs, of some 50 KB; ImageNet's have some 110."""
CROP, BATCH, ROUNDS = 160, 64, 3
KEEPS = (1.0, 0.5, 0.1)
TAR_PICTURES = 100
"""Of a WebDataset's shard; of ImageNet's usual ones 1,000 or more."""
Rows = npt.NDArray[np.int64]
Reader = Callable[[Rows], Iterator[torch.Tensor]]
"""Opens a store and gives batches of crops of some of its pictures, uint8."""


class Cost(NamedTuple):
    """What reading a subset once took."""

    cpu: float
    first: float
    """Seconds until the first batch."""
    disk: int
    """Bytes."""


def reading() -> Iterator[Figure]:
    """Compare stores at several shares of kept pictures, then decoders, then packing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("DP4TL_BENCH_DIR")) as folder:
        root = Path(folder)
        files = _write_pictures(root / "files")
        yield from _packing(files, root)
        readers = dict(_readers(files, root))
        for keep in KEEPS:
            rng = np.random.default_rng(0)
            rows = rng.permutation(PICTURES)[: round(keep * PICTURES)]
            costs = _measure(readers, rows, root)
            ours = costs["packed_as_is"]
            for name, cost in costs.items():
                unit = f"images/s of a core, crops of {CROP}, keep {keep:g}: packed as is vs {name}"
                yield figure(f"read_{name}_{keep:g}", len(rows) / ours.cpu,
                             len(rows) / cost.cpu, unit)  # fmt: skip
                unit = f"MiB from disk, keep {keep:g}: packed as is vs {name}"
                yield figure(f"disk_{name}_{keep:g}", ours.disk / 2**20, cost.disk / 2**20, unit)
                unit = f"s to the first batch of {BATCH}, keep {keep:g}: packed as is vs {name}"
                yield figure(f"first_{name}_{keep:g}", ours.first, cost.first, unit)
    yield from _decoding()
    torch.set_num_threads(threads)


def _photographs() -> Iterator[Image.Image]:
    """Cut pictures of one size out of photographs, at many scales."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    for n in range(PICTURES):
        photograph = photographs[n % 2]
        height = int(photograph.shape[0] * rng.uniform(0.5, 1))
        width = min(photograph.shape[1], int(height * SIDES[1] / SIDES[0]))
        top, left = (
            int(rng.integers(0, side - part + 1))
            for side, part in zip(photograph.shape[:2], (height, width), strict=True)
        )
        picture = Image.fromarray(photograph[top : top + height, left : left + width])
        yield picture.resize((SIDES[1], SIDES[0]), Image.Resampling.BICUBIC)


def _write_pictures(root: Path) -> Pictures:
    names, labels = [], []
    for n, picture in enumerate(_photographs()):
        label = n // PER_CLASS
        names.append(f"c{label:03d}/{n:05d}.jpg")
        labels.append(label)
        (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / names[-1], quality=QUALITY)
    classes = tuple(f"c{label:03d}" for label in range(labels[-1] + 1))
    return of_files(root, names, labels, [0] * len(names), classes)


# -- what is compared ------------------------------------------------------------------------------


PACKINGS = {
    "packed_as_is": Packing(CROP, 3, JPEG(short_side=2048), skips=False),
    "packed_256": Packing(CROP, 3, JPEG(short_side=256), skips=False),
    "packed_160": Packing(CROP, 3, JPEG(short_side=160), skips=False),
    "packed_raw_160": Packing(CROP, 3, Raw(), skips=False),
}


def _readers(files: Pictures, root: Path) -> Iterator[tuple[str, Reader]]:
    for name, packing in PACKINGS.items():
        yield name, _packed(root / name, packing, len(files))
    yield "image_folder", _image_folder(root / "files")
    yield "web_tar", _web_tar(files, root / "tar")
    if find_spec("webdataset") is not None:
        yield "webdataset", _webdataset(root / "tar")
    if find_spec("datasets") is not None:
        yield "hugging_face", _hugging_face(files, root / "hf")
    if find_spec("litdata") is not None:
        yield "litdata", _litdata(files, root / "lit")
    if find_spec("ffcv") is not None:
        raise NotImplementedError("ffcv installs here: write its reader")


def _packing(files: Pictures, root: Path) -> Iterator[Figure]:
    """Pack the pictures in each way, for the readers."""
    for name, packing in PACKINGS.items():
        (root / name).mkdir()
        started = time.process_time()
        indices = [
            pack_shard(files, packing, number, root / name, root / f"{name}-notes", threads=1)
            for number in range(len(packing.shards(len(files))))
        ]
        taken = time.process_time() - started
        index: Index = joined(indices)
        np.save(root / name / "addresses.npy", index.addresses)
        size = sum(path.stat().st_size for path in (root / name).iterdir()) / 2**20
        whole = sum(Path(file).stat().st_size for file in files.files) / 2**20
        yield figure(f"{name}_size", size, whole, "MiB of the packed store vs the files")
        yield figure(f"{name}_packing", len(files) / taken, 0, "images/s of a core, packed")


def _packed(folder: Path, packing: Packing, total: int) -> Reader:
    spec = Augmentation(crop=0.08)

    def batches(rows: Rows) -> Iterator[torch.Tensor]:
        names = [packing.shard_name(n) for n in range(len(packing.shards(total)))]
        shards = Shards(names, folder.joinpath, np.load(folder / "addresses.npy", mmap_mode="r"))
        kind = RawImages if isinstance(packing.stored, Raw) else JPEGImages
        examples, rng = Examples(kind(shards, CROP, 3), rows), np.random.default_rng(0)
        for at in range(0, len(rows), BATCH):
            here = np.arange(at, min(at + BATCH, len(rows)))
            changes = draw([spec], examples, here, [rng])
            [view] = read(examples.images, rows[here], changes, CROP, Worker())
            yield view.images_NHWC

    return batches


TRANSFORM = v2.Compose([RandomResizedCrop(CROP), v2.PILToTensor()])


def _collated(crops: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    batch = []
    for crop in crops:
        batch.append(crop)
        if len(batch) == BATCH:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _image_folder(folder: Path) -> Reader:
    def batches(rows: Rows) -> Iterator[torch.Tensor]:
        dataset = TorchvisionImageFolder(str(folder), transform=TRANSFORM)
        subset = torch.utils.data.Subset(dataset, rows.tolist())
        loader = torch.utils.data.DataLoader(subset, BATCH, shuffle=True)
        for crops, _ in loader:
            yield crops

    return batches


def _web_tar(files: Pictures, folder: Path) -> Reader:
    """The least that a store of shards read from front to back can do: skip what is pruned."""
    folder.mkdir()
    for shard, at in enumerate(range(0, len(files), TAR_PICTURES)):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for n in range(at, min(at + TAR_PICTURES, len(files))):
                tar.add(files.files[n], f"{n:08d}.jpg")
                label = str(int(files.labels[n])).encode()
                entry = tarfile.TarInfo(f"{n:08d}.cls")
                entry.size = len(label)
                tar.addfile(entry, io.BytesIO(label))

    def crops(kept: set[str]) -> Iterator[torch.Tensor]:
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path, "r|") as tar:
                for entry in tar:
                    if entry.name in kept:
                        content = tar.extractfile(entry)
                        assert content is not None
                        yield TRANSFORM(Image.open(content).convert("RGB"))

    return lambda rows: _collated(crops({f"{row:08d}.jpg" for row in rows}))


def _webdataset(folder: Path) -> Reader:
    import webdataset

    def batches(rows: Rows) -> Iterator[torch.Tensor]:
        kept = {f"{row:08d}" for row in rows}
        paths = [str(path) for path in sorted(folder.glob("*.tar"))]
        data = (
            webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
            .select(lambda sample: sample["__key__"] in kept)
            .shuffle(200)
            .decode("pil")
            .to_tuple("jpg", "cls")
        )
        return _collated(TRANSFORM(picture) for picture, _ in data)

    return batches


def _hugging_face(files: Pictures, folder: Path) -> Reader:
    import datasets

    datasets.disable_progress_bars()
    rows = [{"bytes": Path(file).read_bytes(), "path": None} for file in files.files]
    whole = datasets.Dataset.from_dict(
        {"image": rows, "label": files.labels.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    whole.save_to_disk(str(folder))

    def batches(rows: Rows) -> Iterator[torch.Tensor]:
        data = datasets.load_from_disk(str(folder)).select(rows)
        return _collated(TRANSFORM(data[n]["image"]) for n in range(len(data)))

    return batches


def _litdata(files: Pictures, folder: Path) -> Reader:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for n, file in enumerate(files.files):
        writer[n] = {"image": Path(file).read_bytes(), "label": int(files.labels[n])}
    writer.done()
    writer.merge()

    def batches(rows: Rows) -> Iterator[torch.Tensor]:
        data = litdata.StreamingDataset(str(folder), shuffle=False)
        crops = (
            TRANSFORM(Image.open(io.BytesIO(data[int(row)]["image"])).convert("RGB"))
            for row in rows
        )
        return _collated(crops)

    return batches


# -- measuring -------------------------------------------------------------------------------------


def _measure(readers: dict[str, Reader], rows: Rows, root: Path) -> dict[str, Cost]:
    """Read a subset by each reader: once from the disk for the bytes, then for the time."""
    costs = {}
    for name, reader in readers.items():
        _forget(root)
        before, started, first = _disk_bytes(), time.perf_counter(), 0.0
        seen = 0
        for batch in reader(rows):
            first = first or time.perf_counter() - started
            seen += len(batch)
        assert seen == len(rows), name
        disk, cpu = _disk_bytes() - before, []
        for _ in range(ROUNDS):
            started = time.process_time()
            for _batch in reader(rows):
                pass
            cpu.append(time.process_time() - started)
        costs[name] = Cost(sorted(cpu)[ROUNDS // 2], first, disk)
    return costs


def _forget(root: Path) -> None:
    """Drop all files from the page cache, so that they are read from the disk again."""
    gc.collect()  # what is still mapped stays
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _disk_bytes() -> int:
    """Return the bytes that the kernel has read from disks for this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _decoding() -> Iterator[Figure]:
    """Compare decoders on the same JPEG, whole pictures."""
    decoders: dict[str, Callable[[bytes], Any]] = {
        "simplejpeg": simplejpeg.decode_jpeg,
        "pillow": lambda content: np.asarray(Image.open(io.BytesIO(content))),
    }
    if find_spec("torchcodec") is not None:
        from torchcodec.decoders import decode_jpeg

        decoders["torchcodec"] = lambda content: decode_jpeg(
            torch.frombuffer(bytearray(content), dtype=torch.uint8)
        )
    if find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(1)
        decoders["opencv"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), 1)
    for short in (375, 256, 160):
        contents = []
        for _, picture in zip(range(BATCH), _photographs(), strict=False):
            buffer = io.BytesIO()
            scaled = picture.resize((round(picture.width * short / picture.height), short))
            scaled.save(buffer, "JPEG", quality=QUALITY)
            contents.append(buffer.getvalue())
        speeds = {}
        for name, decode in decoders.items():
            taken = []
            for _ in range(ROUNDS + 1):
                started = time.process_time()
                for content in contents:
                    decode(content)
                taken.append(time.process_time() - started)
            speeds[name] = len(contents) / sorted(taken[1:])[ROUNDS // 2]
        for name, speed in speeds.items():
            unit = f"images/s of a core, shorter side {short}: simplejpeg vs {name}"
            yield figure(f"decode_{name}_{short}", speeds["simplejpeg"], speed, unit)
