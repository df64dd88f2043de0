"""The `maskpro` commands: thin wrappers of `maskpro.pipeline`, and of `maskpro.monitoring.control` for searches."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from maskpro.errors import MaskproError
from maskpro.files import NO_ROOM, check_new, says_no_room
from maskpro.machine.installation import check_installation, limit_threads
from maskpro.machine.limits import usable_cores
from maskpro.machine.process import (
    check_texts,
    current_folder,
    is_terminal,
    open_closed_streams,
    raise_file_limit,
    say_aside,
    show_all_characters,
)
from maskpro.monitoring.driver_log import kept_output
from maskpro.option_groups import FeatureOptions, JudgingOptions, SamplingOptions, SourceOptions
from maskpro.options import Given, expanded, option
from maskpro.trainer_config import TrainerConfig

_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # The original's options are spelt with underscores: --batch_size is --batch-size.
    "context_settings": {"token_normalize_func": lambda text: text.replace("_", "-")},
}

# What the system may refuse at any moment, and what mends it; any other refusal is a fault of ours.
_TO_MEND = {
    NO_ROOM: "a disk with room",
    (errno.EACCES, errno.EPERM, errno.EROFS): "files and folders that this user may read and write",
    (errno.ENAMETOOLONG,): "shorter names of files and folders",
    (errno.EMFILE, errno.ENFILE): "more open files, such as by ulimit -n 4096",
}

# They look at a search's folder, and need neither torch nor torchvision, which take seconds to import.
_WITHOUT_TORCH = ("monitor", "stop")


def _check(context: typer.Context) -> None:
    if context.invoked_subcommand not in _WITHOUT_TORCH:
        check_installation()
        limit_threads(usable_cores())


app = typer.Typer(
    **_SETTINGS,
    no_args_is_help=True,
    help="Learn and evaluate n:m sparse masks of frozen diffusion networks. The search itself is tune_main.py.",
    callback=_check,
)

Output = Annotated[Path, typer.Option("--output-dir", help="New folder for the results.")]
Pattern = Annotated[str, typer.Option(help="n:m, n weights kept of every m.")]
LayoutName = Annotated[str, typer.Option("--layout", help="channel or flattened.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Masks = Annotated[Path | None, typer.Option(help="Mask file; default: the magnitude mask.")]
Seed = Annotated[int, typer.Option(help="Of calibration samples and sampled masks.")]


@dataclass(frozen=True, kw_only=True)
class _FittingSource(SourceOptions):
    """A workload whose model a mask must fit, or none."""

    workload: str | None = option(None, "Whose model it must fit: digits or cifar10.", "--workload", "--dataset")


@dataclass(frozen=True, kw_only=True)
class _PositionalSource(SourceOptions):
    """A workload by its model and its images."""

    model: str | None = option(None, "Diffusers DDPM folder or hub name.", positional=True, otherwise="digits")
    data: Path | None = option(None, "Folder of images.", positional=True, otherwise="CIFAR-10")
    workload: str | None = option(
        None, "digits (embedded) or cifar10.", "--workload", "--dataset", otherwise="cifar10 with a model, else digits"
    )


def _results_first(command: Callable[..., None]) -> Callable[..., None]:
    """A step whose results are files: it goes on where its output can't be written (a closed pipe, a full disk)."""

    @wraps(command)
    def kept(**options: Any) -> None:
        with kept_output():
            command(**options)

    return kept


def run_command(command: Callable[..., Any], *, check: bool = True) -> None:
    """Run a typer command; a user's mistake ends in one sentence and exit status 2.

    Args:
        check: the installation first, which takes seconds; else the command has to.
    """

    @wraps(command)
    def checked(**options: Any) -> Any:
        if check:
            check_installation()
            limit_threads(usable_cores())
        return command(**options)

    single = typer.Typer(**_SETTINGS)
    single.command()(checked)
    run_app(single)


def run_app(application: typer.Typer) -> None:
    """Run a typer application; a user's mistake, or a place that can't be written, ends in one sentence and status 2."""
    open_closed_streams()
    show_all_characters()
    raise_file_limit()
    try:
        check_texts((*sys.argv[1:], current_folder()))
        application()
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        with suppress(OSError):  # nobody listens
            say_aside(f"error: {sentence}")
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What a user can do about an error; None where it is a fault of ours."""
    if isinstance(error, MaskproError):
        return str(error)
    text = " ".join(str(error).split())[:200]
    # torch's, which is imported only where it is needed.
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory with one sample at a time ({text}); allowed: another --device"
    # A name from a file, which the arguments did not show. That UTF-8 lacks it is a fault of ours.
    if isinstance(error, UnicodeEncodeError) and not error.encoding.lower().startswith("utf"):
        return f"a name can't be written in this locale ({text}); allowed: a locale of UTF-8, such as LC_ALL=C.UTF-8"
    if isinstance(error, OSError):
        allowed = next((allowed for numbers, allowed in _TO_MEND.items() if error.errno in numbers), None)
        if allowed is not None:
            how = "written" if error.errno in NO_ROOM else "opened or written"
            return f"{error.filename or 'a file or the output'} can't be {how} ({error.strerror}); allowed: {allowed}"
    # safetensors and torch have errors of their own, which name no file.
    return f"a file can't be written ({text}); allowed: a disk with room" if says_no_room(text) else None


def main() -> None:
    """The console script."""
    run_app(app)


@app.command()
@_results_first
@expanded
def prune(
    output_dir: Output,
    source: SourceOptions,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    method: Annotated[str, typer.Option(help="magnitude, wanda, sparsegpt (its mask alone) or random.")] = "magnitude",
    ratio: Annotated[float | None, typer.Option(help="Share of weights removed; must be the pattern's.")] = None,
    seed: Seed = 0,
) -> None:
    """Prune the dense network to n:m in one shot and write it as a diffusers folder."""
    from maskpro import pipeline
    from maskpro.initial_masks import parse_initial_mask
    from maskpro.pattern import NMPattern, parse_layout

    parsed, chosen = NMPattern.parse(pattern), parse_initial_mask(method)
    if ratio is not None and ratio != parsed.sparsity:
        raise MaskproError(f"ratio is {ratio}; allowed with pattern {pattern}: {parsed.sparsity}")
    opened, parsed_layout = (
        _opened(source, output_dir),
        parse_layout(layout),
    )
    _preflight(opened, pattern=parsed, layout=parsed_layout)
    pipeline.prune(opened, output_dir, pattern=parsed, layout=parsed_layout, method=chosen, seed=seed)
    print(f"pruned to {pattern} ({parsed.sparsity:.0%} of the maskable weights removed): {output_dir}")


@app.command()
@_results_first
@expanded
def extract(
    model_path: Annotated[str, typer.Option(help="Pruned diffusers folder.")],
    output_dir: Output,
    original_model: Annotated[
        str | None, typer.Option(help="Dense model to bind the masks to: folder, hub name, or digits (embedded).")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the weights in unet_ema/ beside the model's unet/.")] = False,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Turn zeros that are not n:m into the nearest n:m masks.")
    ] = False,
) -> None:
    """Extract the masks of a pruned model's zeros into masks.safetensors."""
    from maskpro import pipeline
    from maskpro.embedded import DIGITS_MODEL
    from maskpro.pattern import NMPattern, parse_layout

    content = pipeline.extract(
        model_path,
        output_dir,
        pattern=NMPattern.parse(pattern),
        layout=parse_layout(layout),
        original_model=str(DIGITS_MODEL) if original_model == "digits" else original_model,
        nearest=nearest,
        ema=ema,
    )
    differing = content.provenance["share_of_positions_that_differ_from_the_zeros"]
    print(
        f"masks of {len(content.masks)} layers, {differing:.2%} of the positions unlike the zeros: "
        f"{output_dir / pipeline.MASKS_FILE}"
    )


@app.command()
@expanded
def verify(
    masks: Annotated[Path, typer.Argument(help="Mask file.")],
    source: _FittingSource,
) -> None:
    """Check a mask file: whole, every group n:m, and (with --workload) made for that model; exit status 2 if not."""
    from maskpro import pipeline

    if source.workload is None and source != _FittingSource():
        raise MaskproError(
            "workload is missing with model, data or an option of theirs; allowed: --workload digits or cifar10"
        )
    opened = None if source.workload is None else _opened(source)
    found = pipeline.verify(masks, opened)
    for name, problem in found.items():
        print(f"{name}: {problem or 'ok'}")
    wrong = [name for name, problem in found.items() if problem]
    if wrong:
        raise MaskproError(f"mask file {masks} does not fit: {len(wrong)} of {len(found)} layers, such as {wrong[0]}")
    if opened is not None:
        content = pipeline.load_masks_for(opened, masks)
        _preflight(opened, pattern=content.pattern, layout=content.layout, covered=list(content.masks))
    for name, why in pipeline.unmasked_layers(masks, opened).items():
        print(f"{name}: stays dense, {why}")
    against = "" if opened is None else f" and fit {opened.model_source}"
    print(f"{len(found)} layers keep exactly n of every m{against}: {masks}")


@app.command()
@_results_first
@expanded
def baseline(
    output_dir: Output,
    source: SourceOptions,
    masks: Masks = None,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    dataset_size: Annotated[int, typer.Option(help="Calibration samples.")] = 512,
    batch_size: int = 32,
    max_batches: Annotated[int | None, typer.Option(help="Stop after so many batches.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Losses of the original weights under the initial mask."""
    from maskpro import pipeline

    opened = _opened(source, output_dir)
    chosen = _masks_or_magnitude(opened, masks, pattern, layout)
    _preflight(opened, pattern=chosen.pattern, layout=chosen.layout, covered=list(chosen.masks), device=device)
    report = pipeline.baseline(
        opened,
        output_dir,
        masks=chosen,
        dataset_size=dataset_size,
        batch_size=batch_size,
        max_batches=max_batches,
        seed=seed,
        device=pipeline.parse_device(device),
    )
    print(f"mean loss {report['mean_loss']:.5f} over {report['num_batches']} batches: {output_dir}")


@app.command()
@_results_first
@expanded
def train(
    output_dir: Output,
    source: SourceOptions,
    settings: Given[TrainerConfig],
    masks: Masks = None,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    targets: Annotated[
        list[str] | None, typer.Option(help="Layers to learn, by parts of their names; repeatable; default: all.")
    ] = None,
    initial_mask: Annotated[
        str, typer.Option(help="Where learning starts, without --masks: magnitude, wanda, sparsegpt or random.")
    ] = "magnitude",
    epoch: Annotated[int, typer.Option(help="Passes over the calibration samples.")] = 625,
    max_step: Annotated[int, typer.Option(help="Upper bound of steps.")] = 10_000,
    swanlab: Annotated[
        str | None, typer.Option("--swanlab", "--project-name", help="SwanLab project to log to as well (extra swanlab).")
    ] = None,
    experiment_name: Annotated[str | None, typer.Option(help="Of the SwanLab run; default: SwanLab's own.")] = None,
    save: Annotated[bool, typer.Option(help="Also save the logits and the optimizer's state.")] = False,
    statistics: Annotated[
        bool, typer.Option(help="Write layers.csv: what was changed where, and what it is worth.")
    ] = True,
    device: Device = "auto",
) -> None:
    """Learn one mask, outside a search."""
    from maskpro import pipeline
    from maskpro.fidelity import NO_DIFFERENCE, format_share
    from maskpro.initial_masks import parse_initial_mask
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.trackers import swanlab_log

    for name, value in (("epoch", epoch), ("max_step", max_step)):
        if value < 1:
            raise MaskproError(f"{name} is {value}; allowed: a whole number of at least 1")
    method = parse_initial_mask(initial_mask)
    # The budget of one step is allowed with any setting that is allowed.
    one_step = settings.values.get("masks_per_step", 1)
    config = TrainerConfig(**settings.values, budget_samples=max(1, one_step))
    budget = min(epoch * config.dataset_size * config.masks_per_step, max_step * config.step_samples)
    config = replace(config, budget_samples=budget)
    opened = _opened(source, output_dir)
    initial = None if masks is None else pipeline.load_masks_for(opened, masks)
    form: dict[str, Any] = {
        "pattern": NMPattern.parse(pattern) if initial is None else initial.pattern,
        "layout": parse_layout(layout) if initial is None else initial.layout,
        "targets": tuple(part for text in targets or ["all"] for part in text.split()),
    }
    _preflight(opened, **form, covered=None if initial is None else list(initial.masks), device=device)
    with swanlab_log(swanlab, name=experiment_name, config=asdict(config)) as log:
        summary = pipeline.train(
            opened,
            output_dir,
            config=config,
            **form,
            initial=initial or method,
            device=pipeline.parse_device(device),
            save_logits=save,
            statistics=statistics,
            log=log,
        )
    reached = summary["fidelity"]
    shown = f"undefined: {NO_DIFFERENCE}" if reached is None else format_share(reached)
    print(f"held-out fidelity {shown}, after {summary['num_samples_seen']:,} samples: {output_dir}")


@app.command()
@_results_first
@expanded
def evaluate(
    output_dir: Output,
    source: SourceOptions,
    sampling: SamplingOptions,
    judging: JudgingOptions,
    masks: Annotated[Path | None, typer.Option(help="Learned mask file.")] = None,
    checkpoint_path: Annotated[
        str | None, typer.Option(help="Or a diffusers folder with the learned mask baked in.")
    ] = None,
    initial_masks: Annotated[Path | None, typer.Option(help="Initial mask file; default: the magnitude mask.")] = None,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    num_samples: Annotated[int, typer.Option(help="Images generated by each model.")] = 1000,
    compute_fid: Annotated[
        bool, typer.Option(help="Also judge the images: Frechet distance (FID with Inception features) and others.")
    ] = False,
    save_images: Annotated[bool, typer.Option(help="Also write every generated image.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for finished parts, from which an interrupted evaluation goes on."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare the dense network with its initial and its learned mask."""
    from maskpro import pipeline
    from maskpro.fidelity import learned_against_dense
    from maskpro.metrics import masked_copy
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.workloads import workload_options

    if (masks is None) == (checkpoint_path is None):
        raise MaskproError("masks and checkpoint_path are both given or both missing; allowed: exactly one of them")
    for name in ("features", "inception_weights", "reference_statistics"):
        value = getattr(judging, name)
        if value is not None and not compute_fid:
            raise MaskproError(f"{name} is {value} without compute_fid; allowed: together with --compute-fid")
    further = {
        "num_generated": (num_samples, 1000),
        "frechet": (compute_fid, False),
        "save_images": (save_images, False),
    }
    _, options = workload_options(str(source.workload), source, sampling, judging, further=further)
    opened = _opened(source, output_dir)
    parsed, parsed_layout = NMPattern.parse(pattern), parse_layout(layout)
    if masks is not None:
        content = pipeline.load_masks_for(opened, masks)
        parsed, parsed_layout = content.pattern, content.layout
        learned = masked_copy(opened.model, content.masks, parsed, parsed_layout)
        covered = list(content.masks)
    else:
        learned, covered = pipeline.load_masked_checkpoint(
            opened, str(checkpoint_path), pattern=parsed, layout=parsed_layout
        )
    form: dict[str, Any] = {"pattern": parsed, "layout": parsed_layout, "covered": covered}
    _preflight(opened, **form, options=options, device=device)
    report = pipeline.evaluate(
        opened,
        output_dir,
        learned=learned,
        **form,
        initial=None if initial_masks is None else pipeline.load_masks_for(opened, initial_masks),
        test_samples=judging.test_samples,
        options=options,
        cache=cache,
        device=pipeline.parse_device(device),
    )
    print(learned_against_dense(report))
    print(f"results: {output_dir}")


@app.command()
@_results_first
@expanded
def reference_statistics(
    output: Annotated[Path, typer.Argument(help="New .npz file.")],
    source: SourceOptions,
    judging: FeatureOptions,
    device: Device = "auto",
) -> None:
    """Write mean and covariance of the real images' features into a .npz file (mu, sigma)."""
    from maskpro import pipeline
    from maskpro.workloads.judging import reference_statistics as write_statistics

    opened = _opened(source, output)
    found = write_statistics(
        opened,
        output,
        features=judging.features,
        inception_weights=judging.inception_weights,
        device=pipeline.parse_device(device),
    )
    print(f"mean and covariance of {found['num_features']} features, {found['features']}: {output}")


@app.command()
@expanded
def doctor(
    source: _PositionalSource,
    sampling: SamplingOptions,
    pattern: Pattern = "2:4",
    layout: LayoutName = "channel",
    device: Device = "auto",
) -> None:
    """Show what is understood of a model and its data, and what a trial will take; nothing is written."""
    from rich.console import Console
    from rich.table import Table

    from maskpro.doctor import understood
    from maskpro.pattern import NMPattern, parse_layout
    from maskpro.workloads import workload_options

    form: dict[str, Any] = {"pattern": NMPattern.parse(pattern), "layout": parse_layout(layout)}
    is_embedded = source.model is None and source.data is None
    name = source.workload or ("digits" if is_embedded else "cifar10")
    _, options = workload_options(name, source, sampling)
    opened = _opened(replace(source, workload=name), quiet=True)
    found = _preflight(opened, **form, options=options, device=device)
    rows = understood(opened, found, opened.evaluation(options), **form)
    if not is_terminal(sys.stdout):  # whole lines, to be searched
        for name, text in rows.items():
            print(f"{name}: {text}")
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for name, text in rows.items():
        table.add_row(name, text)
    Console().print(table)


@app.command()
@expanded
def monitor(
    experiment: Annotated[Path | None, typer.Argument(help="Its folder; default: the newest one in ./results.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it as it stands, and end.")] = False,
) -> None:
    """Show a search that runs in another terminal, until it has ended, or how one has ended."""
    from rich.console import Console

    from maskpro.monitoring.control import monitor_search, newest_experiment

    with suppress(KeyboardInterrupt):
        monitor_search(experiment or newest_experiment(Path("results")), once=once, console=Console())


@app.command()
@expanded
def stop(
    experiment: Annotated[Path, typer.Argument(help="Its folder.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 120.0,
) -> None:
    """End a search that runs on this machine, so that tune_main.py --resume goes on with it later."""
    from maskpro.monitoring.control import stop_search

    print(stop_search(experiment, timeout=timeout))


def _opened(source: SourceOptions, output: Path | None = None, *, quiet: bool = False) -> Any:
    """A workload; images that don't fit into memory are kept beside the results.

    Unless `quiet`, what was converted or left out of its model is printed.
    """
    from maskpro.workloads import open_workload, workload_options

    if output is not None:
        check_new(output, "output file" if output.suffix == ".npz" else "output folder")
    assert source.workload is not None
    opened = open_workload(
        source.workload,
        model=source.model,
        data=source.data,
        options=workload_options(source.workload, source)[0],
        cache=None if output is None else output.absolute().parent,
        say=say_aside,
    )
    for note in () if quiet else opened.notes:
        print(f"model {opened.model_source}: {note}")
    return opened


def _preflight(workload: Any, *, options: Mapping[str, Any] | None = None, device: str = "cpu", **form: Any) -> Any:
    """What the preflight of a job finds; what can't work is an error before anything is written.

    Args:
        options: by which networks will be judged.
    """
    from maskpro import pipeline
    from maskpro.preflight import run_preflight

    evaluation = workload.evaluation(options or {})
    return run_preflight(workload, evaluation=evaluation, device=pipeline.parse_device(device), **form)


def _masks_or_magnitude(workload: Any, masks: Path | None, pattern: str, layout: str) -> Any:
    from maskpro import pipeline
    from maskpro.pattern import NMPattern, parse_layout

    if masks is not None:
        return pipeline.load_masks_for(workload, masks)
    return pipeline.magnitude_mask_file(workload, pattern=NMPattern.parse(pattern), layout=parse_layout(layout))
