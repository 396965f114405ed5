"""A tiny world on disk, in torchvision's ImageFolder layout: stripes and blobs, easy to learn."""

import contextlib
import fcntl
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dp4tl_ray.specs.study import Study


def draw_class(label: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one 16 x 16 picture: stripes whose direction and period tell the class."""
    y, x = np.mgrid[0:16, 0:16]
    angle, period = label * np.pi / 6, 3.0 + label % 3
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 6))
    picture: npt.NDArray[np.float64] = np.clip(
        128 + 90 * wave + rng.normal(0, 12, (16, 16)), 0, 255
    )
    return picture.astype(np.uint8)


def write_folder(root: Path, labels: range, per_class: int, seed: int) -> Path:
    """Write a folder of pictures, one subfolder per class."""
    rng = np.random.default_rng(seed)
    for label in labels:
        folder = root / f"stripes{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            Image.fromarray(draw_class(label, rng)).save(folder / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a source of 6 classes and of a target of 3."""
    root = tmp_path_factory.mktemp("pictures")
    return {
        "source": str(write_folder(root / "source", range(6), 24, seed=0)),
        "target": str(write_folder(root / "target", range(1, 4), 30, seed=1)),
    }


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a recipe small enough for a test."""
    return {
        "network": {"arch": "resnet9", "width": 4},
        "budget": {"epochs": 2},
        "batch_size": 16,
        "optimizer": {"lr": 0.1},
        "batch_norm": {"group_size": 8},
        **changes,
    }


def supervised(**changes: Any) -> dict[str, Any]:
    """Return a supervised pretraining, or a surrogate, small enough for a test."""
    return {"objective": "supervised", **recipe(**changes)}


def folder(path: str, **changes: Any) -> dict[str, Any]:
    """Return the dataset record of a tiny folder."""
    return {"dataset": "image_folder", "path": path, "image_size": 16, "channels": 1, **changes}


def study_data(pictures: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Return a small study as plain data, as YAML would give it."""
    return {
        "name": "tiny",
        "source": folder(pictures["source"]),
        "surrogate": supervised(),
        "targets": [folder(pictures["target"], shots=4)],
        "methods": ["random_classes", "label_mapping"],
        "pruning_ratios": [0.0, 0.5],
        "pretraining": [supervised(), "none", "raw_pixels"],
        **changes,
    }


def tiny_study(pictures: dict[str, str], **changes: Any) -> Study:
    """Return a small study."""
    return Study.model_validate(study_data(pictures, **changes))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 server in this process, which has the bucket `stores`."""
    import boto3
    import moto.server

    application: Any = getattr(moto.server, "DomainDispatcherApplication")  # noqa: B009
    writing = threading.Lock()

    def one_write_at_a_time(create: Any) -> Any:
        """Look at a condition and write in one, as storage does and moto does not."""
        answer = application(create)

        def serve(environ: Any, start_response: Any) -> Any:
            with writing if environ["REQUEST_METHOD"] == "PUT" else contextlib.nullcontext():
                return answer(environ, start_response)

        return serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moto.server, "DomainDispatcherApplication", one_write_at_a_time)
        server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    client.create_bucket(Bucket="stores")
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture
def bucket_uri(
    s3_server: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> str:
    """URI of an empty store on the S3 server, which this process and its children can reach."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "DP4TL_CACHE": str(tmp_path_factory.mktemp("cache")),
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://stores/{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Let children feel Ctrl-C, also where a shell made the tests deaf to it (`make test &`)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pin torch to one thread: float sums then have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- one Ray at a time -----------------------------------------------------------------------------

_LOCK = Path(tempfile.gettempdir()) / "dp4tl_ray_tests.lock"
_held: list[IO[str]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of Ray, which wait more than they compute, and what takes longest."""
    long = ("test_schemas.py", "test_imagenet.py")
    items.sort(
        key=lambda item: (item.get_closest_marker("ray") is None, item.path.name not in long)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let one process of tests start Ray at a time: two that start together can fail."""
    if item.get_closest_marker("ray") and not _held:
        _held.append(_LOCK.open("w"))
        fcntl.flock(_held[0], fcntl.LOCK_EX)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Let another process have its turn when a file, and what its fixtures started, has ended."""
    yield
    if _held and (nextitem is None or nextitem.path != item.path):
        _held.pop().close()
