"""Functions of dense inputs get what Captum 0.9 computes, by any method, for outputs of every shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients

from quick_methods import OF_ANY_MODEL, QUICK
from whenwhy import dense
from whenwhy.attribution import registered_methods
from whenwhy.errors import UserError


class Network(torch.nn.Module):
    """A recurrent classifier whose outputs have 1, 2 or 3 axes."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(axes)
        self.axes = axes
        self.cell = torch.nn.GRU(4, 6, batch_first=True)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = 2 * self.head(self.cell(x)[0])  # [patient, time, class]
        return {1: outputs[:, -1, 0], 2: outputs[:, -1], 3: outputs}[self.axes]


INPUTS = torch.randn(5, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = [
    (1, None),
    (2, 1),
    (2, torch.tensor([0, 2, 1, 1, 0])),
    (3, (4, 2)),
    (3, (-1, 0)),
]


@pytest.mark.parametrize(("axes", "target"), TARGETS)
@pytest.mark.parametrize("begin", [None, 0.5, INPUTS[:1].flip(1)], ids=["none", "number", "tensor"])
def test_integrated_gradients_equal_captums(axes: int, target: object, begin: torch.Tensor | float | None) -> None:
    network = Network(axes).double().eval()
    found = dense.Explainer(network, tolerance=1e-9).attribute(INPUTS, begin, target)  # type: ignore[arg-type]
    theirs = IntegratedGradients(network).attribute(INPUTS, begin, target=target, n_steps=200)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-7)
    assert found.abs().max() > 0.1


@pytest.mark.parametrize(("axes", "target"), TARGETS)
def test_gradient_times_input_equals_captums(axes: int, target: object) -> None:
    network = Network(axes).double().eval()
    found = dense.Explainer(network, "gradient_times_input").attribute(INPUTS, target=target)  # type: ignore[arg-type]
    theirs = InputXGradient(network).attribute(INPUTS.clone().requires_grad_(), target=target)
    torch.testing.assert_close(found, theirs.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_every_method_explains_dense_inputs_alone_as_in_a_batch(method: str) -> None:
    network = Network(2).double().eval()
    if registered_methods()[method].needs_population(registered_methods()[method].options):
        with pytest.raises(UserError, match="training patients"):
            dense.Explainer(network, method).attribute(INPUTS, target=1)
        return
    explainer = dense.Explainer(network, method, options=QUICK.get(method), tolerance=1e-9)
    if registered_methods()[method].fit is not None:
        explainer.fit([INPUTS.flip(0) / 2], target=1)
    found = explainer.attribute(INPUTS, target=1)
    assert found.shape == INPUTS.shape
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0
    torch.testing.assert_close(explainer.attribute(INPUTS[2:3], target=1)[0], found[2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
def test_without_a_target_masks_compare_all_outputs(mode: str) -> None:
    network = Network(3).double().eval()
    question = dense.DenseQuestion(network, INPUTS)
    assert question.outputs(question.embedded).shape == (5, 7, 3)
    every = dense.Explainer(network, "extremal_mask", options={"epochs": 20, "mode": mode}).attribute(INPUTS)
    one = dense.Explainer(network, "extremal_mask", options={"epochs": 20, "mode": mode}).attribute(
        INPUTS, target=(-1, 0)
    )
    assert (every - one).abs().max() > 0.01


def constant(outputs: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: outputs


@pytest.mark.parametrize(
    ("forward", "inputs", "asked", "sentence"),
    [
        (Network(1), INPUTS[0], {}, r"\[patient, time, feature\], not torch.float64 of shape \(7, 4\)"),
        (Network(1), INPUTS.long(), {}, "not torch.int64"),
        (Network(2).double(), INPUTS, {}, r"outputs of shape \[patient, 3\], of which this method explains one"),
        (Network(2).double(), INPUTS, {"target": 3}, "out of range: there are 3 outputs along axis 1"),
        (Network(2).double(), INPUTS, {"target": (0, 1)}, r"does not name an output of \[patient, 3\]: give 1 whole"),
        (Network(2).double(), INPUTS, {"target": torch.tensor([1, 2])}, "a row of so many for each of 5 patients"),
        (Network(2).double(), INPUTS, {"target": 0.5}, "a whole number, not 0.5"),
        (Network(2).double(), INPUTS, {"baselines": torch.zeros(3, 3), "target": 0}, "do not broadcast"),
        (constant(torch.zeros(2, 2)), INPUTS, {"target": 0}, "A function of 5 inputs must return"),
        (constant(torch.full((5,), float("nan"))), INPUTS, {}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, asked: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        dense.Explainer(forward).attribute(inputs, **asked)  # type: ignore[arg-type]


def test_a_method_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="is fitted to a model before it explains"):
        dense.Explainer(Network(1).double(), "amortised_mask").attribute(INPUTS)
