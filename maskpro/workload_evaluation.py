"""How the networks of a workload are judged in the end, and the parts in which the judging's data are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from maskpro.fidelity import standard_error
from maskpro.held_out import TEST_SEED, VALIDATION_SEED
from maskpro.machine.process import Say
from maskpro.metrics import relative_figures, sparsity, with_recovery
from maskpro.objectives import HeldOutValues

if TYPE_CHECKING:
    from maskpro.workload import Workload

# Makes one part of what an evaluation needs of a network, such as its outputs for a range of indices.
Produce = Callable[[nn.Module, range], Tensor]
# Makes all parts in order.
PartMaker = Callable[[nn.Module, Produce, Sequence[range]], Iterator[Tensor]]


def make_parts(model: nn.Module, produce: Produce, parts: Sequence[range]) -> Iterator[Tensor]:
    """Make the parts here, one after the other, on the network's device."""
    return (produce(model, part) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the networks of a workload are judged. This class judges by the test samples alone.

    Attributes:
        shown: the figures shown in the terminal.
        candidate_figures: the figures that the record keeps of each of several candidates.
    """

    workload: Workload
    shown: ClassVar[tuple[str, ...]] = ("fidelity", "fidelity_error", "test_loss", "sparsity")
    candidate_figures: ClassVar[tuple[str, ...]] = ("test_error", "test_loss")

    @property
    def picked_by(self) -> str | None:
        """The figure whose lowest value picks one of several candidates; None: error on the selection samples."""
        return None

    def judged_by(self) -> dict[str, Any]:
        """What judges networks beside the held-out samples, opened and tried, as plain JSON."""
        return {}

    def check(self, device: torch.device) -> None:
        """Raise a MaskproError where the networks can't be judged on a device in this way."""

    def try_out(self, model: nn.Module, device: torch.device) -> Any:
        """Do the first step of `evaluate` with a network; raise a MaskproError where it fails."""
        return self.protocol(device)

    def understood(self) -> dict[str, str]:
        """Name to how networks are judged, for people to read."""
        return {}

    def protocol(self, device: torch.device) -> dict[str, Any]:
        """All that a figure depends on besides the network's weights, as plain JSON."""
        workload = self.workload
        return {
            "workload": workload.name,
            "model": workload.model_source,
            "model_hash": workload.fingerprint(),
            "data": workload.data_source,
            "num_loss_samples": {
                "validation": workload.budgets.validation_samples,
                "test": workload.budgets.test_samples,
            },
            "seeds": {"validation": VALIDATION_SEED, "test": TEST_SEED},
            "device": device.type,
        }

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
        """Judge the named networks on the same data; write pictures of them into `folder`.

        Fidelity is measured from the network named "initial", where there is one.

        Args:
            cache: folder with finished parts, from which a killed evaluation resumes.
            reference_cache: folder with what is known of the data.
            make: makes the parts that the figures need, here or spread over several processes.
            is_picking: the figures pick one of several candidates, with other randomness than reported figures.

        Returns: "protocol", "warnings" (sentences about what the figures can't tell), "models" with the figures of each,
            and "pictures", file name to caption.
        """
        workload = self.workload
        test, validation = (workload.held_out_samples(split, device) for split in ("test", "validation"))
        figures: dict[str, dict[str, Any]] = {}
        on_test: dict[str, HeldOutValues] = {}
        for name, model in models.items():
            judged, means = test.judge(model.to(device)), validation.judge(model).means()
            loss, loss_error = judged.means().loss, standard_error(judged.losses)
            on_test[name] = judged
            figures[name] = {
                "test_error": judged.means().error,
                "val_error": means.error,
                "val_loss": means.loss,
                "test_loss": loss,
                "test_loss_error": loss_error,
                **self.further_figures(model, device),
                "sparsity": sparsity(model),
                **self.figures_of_loss(loss, loss_error),
            }
            say(f"evaluated {name}: test error {judged.means().error:.3g}, loss {judged.means().loss:.5f}")
        initials = dict.fromkeys(models, "initial") if "initial" in models else {}
        for name, relative in relative_figures(on_test, initials).items():
            figures[name] = relative | figures[name]
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.draw_pictures(models, device, folder)
        return {"protocol": self.protocol(device), "warnings": [], "models": figures, "pictures": pictures}

    def further_figures(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Figures of a network beside those of the held-out samples."""
        return {}

    def figures_of_loss(self, loss: float, error: float) -> dict[str, Any]:
        """Figures that follow from a network's test loss and its standard error."""
        return {}

    def draw_pictures(self, models: Mapping[str, nn.Module], device: torch.device, folder: Path) -> dict[str, str]:
        """Write pictures of the networks into `folder`; file name to caption."""
        return {}

    def compare(self, report: Mapping[str, Any], learned: str) -> dict[str, Any]:
        """A report of `evaluate` with the figures of the network named `learned` relative to "initial" and "dense"."""
        return with_recovery(report, learned)
