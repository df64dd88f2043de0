"""Small models and data for the tests; nothing here needs a GPU, a network or more than two cores."""

from __future__ import annotations

import copy
import gc
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torchvision.transforms.v2.functional import to_pil_image

from maskpro.initial_masks import magnitude_masked_model
from maskpro.objectives import HeldOutSamples, baseline_losses, teacher_outputs
from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.pattern import NMPattern
from maskpro.pretrained import save_pipeline
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig
from maskpro.workload import WorkloadKind
from maskpro.workloads import WORKLOADS, open_workload
from maskpro.workloads.diffusion import DiffusionWorkload

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

CPU = torch.device("cpu")
# 5,000 real CIFAR-10 images beside the checkout, where they are at hand.
CIFAR10_SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "cifar10-sample.zip"
needs_cifar10_sample = pytest.mark.skipif(
    not CIFAR10_SAMPLE.is_file(), reason="the CIFAR-10 sample is not part of the project"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> DiffusionWorkload:
    return open_workload("digits")


def with_few_held_out(workload: DiffusionWorkload) -> DiffusionWorkload:
    """The workload with some held-out samples of each kind instead of thousands, on which tests would spend their time."""
    few = dict.fromkeys(("validation_samples", "selection_samples", "test_samples"), FEW_HELD_OUT)
    return replace(workload, budgets=replace(workload.budgets, **few))


# Whole tenths of the noise schedule.
FEW_HELD_OUT = 40


@pytest.fixture(scope="module")
def few_held_out() -> Iterator[None]:
    """All workloads that are opened in this process are `with_few_held_out`."""

    def few(kind: WorkloadKind) -> WorkloadKind:
        return replace(kind, open=lambda *arguments: with_few_held_out(kind.open(*arguments)))

    with pytest.MonkeyPatch.context() as patch:
        for name, kind in WORKLOADS.items():
            patch.setitem(WORKLOADS, name, few(kind))
        yield


def seeded_unet(seed: int = 0, **overrides: object) -> UNet2DModel:
    """A tiny UNet with the CIFAR-10 hub model's block types and random weights."""
    settings: dict[str, object] = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**{**settings, **overrides})


@pytest.fixture(scope="session")
def tiny(digits: DiffusionWorkload) -> DiffusionWorkload:
    """The digits with a small network of random weights, for laws that hold whatever a network can do."""
    return with_few_held_out(replace(digits, model=seeded_unet(sample_size=8, in_channels=1, out_channels=1)))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A diffusers pipeline folder of a tiny random DDPM for 16x16 RGB images."""
    folder = tmp_path / "ddpm"
    folder.mkdir()
    save_pipeline(folder, seeded_unet(), DDPMScheduler(num_train_timesteps=1000))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path, generator: torch.Generator) -> Path:
    """60 random RGB images of 20x18, a folder per class."""
    for index in range(60):
        folder = tmp_path / "images" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        image = torch.randint(256, (3, 20, 18), dtype=torch.uint8, generator=generator)
        to_pil_image(image).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CIFAR-10 images (JPEG): train/ and test/, a folder per class in each."""
    folder = tmp_path_factory.mktemp("cifar10")
    with zipfile.ZipFile(CIFAR10_SAMPLE) as archive:
        archive.extractall(folder)
    return next(path.parent for path in folder.rglob("train"))


@contextmanager
def leftovers_collected() -> Iterator[None]:
    """Where Ray ends: what it leaves to the garbage collector is no fault of the test that happens to run then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.fixture(scope="session")
def started_cluster() -> Iterator[Cluster]:
    """See `ray_cluster`."""
    from ray.cluster_utils import Cluster

    with leftovers_collected():
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        )
    yield cluster
    with leftovers_collected():
        cluster.shutdown()


STORE = 80_000_000


def with_two_nodes(cluster: Cluster) -> Cluster:
    """The cluster with nodes added for those that a test before has taken away."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture
def ray_cluster(started_cluster: Cluster) -> Cluster:
    """The Ray that all tests share: a head and two nodes of a core each."""
    return with_two_nodes(started_cluster)


@pytest.fixture
def joined_ray(ray_cluster: Cluster) -> Iterator[Cluster]:
    """The same, joined by the test's own process."""
    import ray

    ray.init(address=ray_cluster.address, log_to_driver=False, logging_level="ERROR")
    yield ray_cluster
    with leftovers_collected():
        ray.shutdown()


# For tests in whose process Ray runs: it leaves sockets and processes of its own to the garbage collector.
RAY_IN_PROCESS = [
    pytest.mark.filterwarnings(f"ignore::{warning}")
    for warning in (
        "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning",
        "DeprecationWarning",
        "FutureWarning",
        "UserWarning",
    )
]


def make_trainer(
    workload: DiffusionWorkload,
    *,
    targets: tuple[str, ...] = ("all",),
    pattern: str = "2:4",
    device: torch.device = CPU,
    graphs: bool = True,
    **settings: object,
) -> MaskTrainer:
    """A trainer on a workload's magnitude mask with small held-out data."""
    dense = copy.deepcopy(workload.model).to(device)
    config = TrainerConfig(**{"batch_size": 8, "dataset_size": 64, "budget_samples": 64, **settings})
    objective = workload.training_objective(seed=0, device=device)
    held_out = DiffusionObjective(workload.scheduler, workload.images.validation, seed=1, device=device, strata=32)
    masked = magnitude_masked_model(dense, pattern=NMPattern.parse(pattern), layout="channel", targets=targets)
    teacher = teacher_outputs(dense, objective, precision=config.precision)
    target = teacher if config.target == "teacher" else None
    return MaskTrainer(
        config,
        masked=masked,
        objective=objective,
        validation=HeldOutSamples(held_out, 32, dense),
        teacher=teacher,
        baseline=baseline_losses(copy.deepcopy(masked.model), objective, target, precision=config.precision),
        dense=dense,
        graphs=graphs,
    )


def is_strictly_two_of_four(weight: torch.Tensor, layout: str) -> bool:
    """Counts kept weights by plain indexing, apart from the package's own group code."""
    if weight.ndim == 4 and layout == "channel":
        rows = [weight[:, :, y, x] for y in range(weight.shape[2]) for x in range(weight.shape[3])]
    else:
        rows = [weight.reshape(len(weight), -1)]
    for row in rows:
        for start in range(0, row.shape[1], 4):
            if not ((row[:, start : start + 4] != 0).sum(dim=1) == 2).all():
                return False
    return True
