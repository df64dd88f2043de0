"""How diffusion networks are judged: by held-out samples, and by the images that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import GENERATION_SEED, evaluate_models, resolve_sampling, with_distances
from maskpro.evaluation.features import feature_names, open_features
from maskpro.evaluation.protocol import protocol
from maskpro.evaluation.references import read_reference, real_features, write_reference
from maskpro.evaluation.sampling import SamplingPlan, parse_sampler
from maskpro.evaluation.timesteps import parse_spacing, resolve_spacing
from maskpro.files import check_new
from maskpro.machine.process import Say
from maskpro.precision import check_precision, parse_sampling_precision
from maskpro.workload_evaluation import Evaluation, PartMaker, make_parts

if TYPE_CHECKING:
    from maskpro.workloads.diffusion import DiffusionWorkload

# Seed of the images that pick one of several candidates; reported figures use other images.
PICKING_SEED = 2**32 + 7


@dataclass(frozen=True, kw_only=True)
class ImageJudging:
    """Options for judging images; None: the workload's value.

    Attributes:
        num_generated: images per model.
        sampler, sampling_steps, timestep_spacing: see `maskpro.evaluation.sampling`.
        sampling_precision, compile_sampling: settings of the networks while they sample; `resolve_sampling_precision`
            explains "auto" and None.
        frechet: whether images are judged at all.
        features, inception_weights: what judges images, for `open_features`.
        reference_statistics: .npz file with the statistics of real images other than the workload's.
        save_images: write every generated image.
    """

    num_generated: int | None = None
    sampler: str = "ddim"
    sampling_steps: int | None = None
    timestep_spacing: str | None = None
    sampling_precision: str = "auto"
    compile_sampling: bool | None = None
    frechet: bool = True
    features: str | None = None
    inception_weights: Path | None = None
    reference_statistics: Path | None = None
    save_images: bool = False

    def __post_init__(self) -> None:
        if self.num_generated is not None and self.num_generated < 2:
            raise MaskproError(f"num_generated is {self.num_generated}; allowed: a whole number of at least 2")
        for name in ("inception_weights", "reference_statistics"):  # records hold them as texts
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        parse_sampler(self.sampler)
        parse_spacing(self.timestep_spacing)
        parse_sampling_precision(self.sampling_precision)


def is_features_file(name: str, value: Any) -> bool:
    """Whether an option of `ImageJudging` names the file of a program that judges images."""
    return name == "features" and value not in feature_names()


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation(Evaluation):
    """Judges diffusion networks.

    Raises:
        MaskproError: the options don't fit the workload's noise schedule.
    """

    workload: DiffusionWorkload
    options: ImageJudging
    shown: ClassVar[tuple[str, ...]] = (
        "fidelity",
        "fidelity_error",
        "test_loss",
        "frechet_distance",
        "frechet_distance_extrapolated",
        "kernel_distance",
        "precision",
        "recall",
        "sparsity",
    )
    candidate_figures: ClassVar[tuple[str, ...]] = (
        "test_error",
        "test_loss",
        "frechet_distance",
        "kernel_distance",
        "precision",
        "recall",
    )

    def __post_init__(self) -> None:
        _ = self.plan  # refuses what does not fit

    @cached_property
    def plan(self) -> SamplingPlan:
        """How images are sampled, one at a time and in float32."""
        options, workload = self.options, self.workload
        sampler, spacing = parse_sampler(options.sampler), parse_spacing(options.timestep_spacing)
        return SamplingPlan(
            scheduler=workload.scheduler,
            shape=workload.shape,
            sampler=sampler,
            steps=resolve_sampling(workload, sampler, options.sampling_steps, spacing),
            spacing=spacing,
            seed=GENERATION_SEED,
            batch_size=1,
        )

    @property
    def picked_by(self) -> str | None:
        """The Frechet distance, if images are judged."""
        return "frechet_distance" if self.options.frechet else None

    def judged_by(self) -> dict[str, Any]:
        """What judges images, opened and tried, so that a search of hours can't end in an impossible evaluation."""
        options = self.options
        if not (options.frechet or any((options.features, options.inception_weights, options.reference_statistics))):
            return {}
        extractor = open_features(
            self.workload.features,
            device=torch.device("cpu"),
            shape=self.workload.shape,
            inception_weights=options.inception_weights,
        )
        if options.reference_statistics is not None:
            read_reference(options.reference_statistics, extractor)
        return {"features": extractor.name, "features_sha256": extractor.weights_hash, "num_features": extractor.width}

    def check(self, device: torch.device) -> None:
        """Check that the device computes in the requested precision."""
        check_precision(self.options.sampling_precision, device, field="sampling_precision")

    def try_out(self, model: nn.Module, device: torch.device) -> Any:
        """Make the sampler's first step."""
        self.workload.check_finite(self.plan.first_step(model), f"first step of sampler {self.plan.sampler}")
        return self.protocol(device)

    def protocol(self, device: torch.device) -> dict[str, Any]:
        """The protocol of an evaluation that judges no images."""
        return protocol(self.workload, None, device, plan=self.plan)

    def understood(self) -> dict[str, str]:
        """The sampler and its timesteps."""
        plan = self.plan
        every, visited = plan.scheduler.config["num_train_timesteps"], plan.timesteps
        spacing = resolve_spacing(every, plan.steps, plan.spacing)
        ends = f"from {visited[0]} down to {visited[-1]}"
        return {"sampler": f"{plan.sampler}, {len(visited):,} of {every:,} timesteps, spacing {spacing}, {ends}"}

    def evaluate(
        self,
        models: Mapping[str, nn.Module],
        *,
        device: torch.device,
        folder: Path,
        cache: Path | None,
        reference_cache: Path | None = None,
        make: PartMaker = make_parts,
        is_picking: bool = False,
        say: Say = lambda text: None,
    ) -> dict[str, Any]:
        """See `evaluate_models`; all networks make their images from the same noise."""
        options = self.options
        report = evaluate_models(
            self.workload,
            models,
            device=device,
            folder=folder,
            cache=cache,
            sampler=self.plan.sampler,
            sampling_steps=options.sampling_steps,
            timestep_spacing=self.plan.spacing,
            sampling_precision=parse_sampling_precision(options.sampling_precision),
            compile_sampling=options.compile_sampling,
            compute_frechet=options.frechet,
            save_images=options.save_images,
            inception_weights=options.inception_weights,
            reference_statistics=options.reference_statistics,
            reference_cache=reference_cache,
            make=make,
            generation_seed=PICKING_SEED if is_picking else GENERATION_SEED,
            say=say,
        )
        return report | {"pictures": {f"samples_{name}.png": f"images of {_CAPTIONS.get(name, name)}" for name in models}}

    def compare(self, report: Mapping[str, Any], learned: str) -> dict[str, Any]:
        """See `with_distances`."""
        return with_distances(report, learned)


_CAPTIONS = {"dense": "the dense network", "initial": "the initial mask", "learned": "the learned mask"}


def reference_statistics(
    workload: DiffusionWorkload,
    output: Path,
    *,
    features: str | None = None,
    inception_weights: Path | None = None,
    device: torch.device,
) -> dict[str, Any]:
    """Write a .npz file with the statistics (mu, sigma) of the workload's real images; returns a record of the features.

    Raises:
        MaskproError: `output` exists or is no .npz name, or the features can't be loaded.
    """
    check_new(output, "output file")
    if output.suffix != ".npz":
        raise MaskproError(f"output is {output}; allowed: a name that ends in .npz")
    extractor = open_features(
        features or workload.features, device=device, shape=workload.shape, inception_weights=inception_weights
    )
    write_reference(output, real_features(workload, extractor, None))
    return {"features": extractor.name, "features_sha256": extractor.weights_hash, "num_features": extractor.width}
