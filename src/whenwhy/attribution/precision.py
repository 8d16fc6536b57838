"""What numbers a model computes in, and what fewer bits of them do to its attributions.

Models are trained and explained in float32. Float64 is for comparing with other programs. Bfloat16 has 8 significant
bits, so what it costs is measured, in every run, beside the same predictions in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from whenwhy.attribution.baselines import Population
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.halves import out_of_memory
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import EVENTS, Bags, SequenceBatch
from whenwhy.models.sequence_model import Embedded, SequenceModel, logits_of

if TYPE_CHECKING:
    from whenwhy.attribution.attribute import Attributions

FLOAT32, FLOAT64, BFLOAT16 = "float32", "float64", "bfloat16"
PRECISIONS = {
    FLOAT32: "the model as it is, which is float32 where nobody made it otherwise",
    FLOAT64: "model, weights of the record, and all that follows in float64",
    BFLOAT16: "all behind the model's first layer in bfloat16, its error measured; contributions add up in float32",
}

#: Predictions that are explained in float32 too, to measure what bfloat16 does.
SAMPLE = 64


class Bfloat16(torch.nn.Module):
    """A model whose first layer adds up in its own precision, and whose score is computed in bfloat16 behind it.

    Embeddings and what is asked of them flow in and out in the model's own precision, so paths, means and
    contributions lose nothing: values and gradients are rounded on their way through the model alone. Everything that
    the model can be asked, it can be asked.

    Args:
        model: the whole; its weights are copied.
        low: what computes in bfloat16; None: the model itself, converted.

    Example:
        >>> from whenwhy.models.recurrent import GRUClassifier
        >>> low = Bfloat16(GRUClassifier(8, hidden=4).eval())
        >>> low.score({"events": torch.ones(1, 2, 4), "static": torch.ones(1, 4)}, torch.tensor([2])).dtype
        torch.float32
    """

    def __init__(self, model: torch.nn.Module, low: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.own = model
        self.low = copy.deepcopy(model).to(torch.bfloat16) if low is None else low
        self.training = model.training

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums, by the model's own tables."""
        found: Embedded = self.own.embed(batch, weights)  # type: ignore[operator]
        return found

    def __getattr__(self, name: str) -> Any:
        """What the model in bfloat16 has of this name; a method takes and gives the model's own precision."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(super().__getattr__("low"), name)
        asked = callable(found) and not isinstance(found, torch.nn.Module)
        return self._converting(found) if asked else found

    def _converting(self, asked: Callable[..., Any]) -> Callable[..., Any]:
        own = next((tensor.dtype for tensor in self.own.parameters() if tensor.is_floating_point()), torch.float32)

        def converted(told: Any, kind: torch.dtype) -> Any:
            if isinstance(told, torch.nn.Module):
                return Bfloat16(self.own, told)  # a model that goes on from what it has read
            return told.to(kind) if isinstance(told, torch.Tensor) and told.is_floating_point() else told

        def answer(*given: Any, **named: Any) -> Any:
            given, named = tree_map(lambda one: converted(one, torch.bfloat16), (given, named))
            return tree_map(lambda one: converted(one, own), asked(*given, **named))

        return answer


def at_precision(model: SequenceModel, precision: str, tried_on: SequenceBatch) -> SequenceModel:
    """The model as one that computes in this precision; its own weights stay as they are.

    Args:
        precision: one of `PRECISIONS`.
        tried_on: records whose scores and gradients it must give.

    Raises:
        UserError: no such precision, or a model that cannot compute in it.

    Example: `at_precision(model, "float64", sequences.batch(np.arange(2)))`
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == FLOAT32:
        return model
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"The model is no torch module, so its numbers cannot be made {precision}: use float32.")
    changed: Any = Bfloat16(model) if precision == BFLOAT16 else copy.deepcopy(model).double()
    try:
        _try(changed, batch_at(first_records(tried_on, 2), precision))
    except RuntimeError as error:  # torch's word for dtypes that do not meet, in a stranger's code as well
        if out_of_memory(error):
            raise
        why = str(error).splitlines()[0]
        raise UserError(f"The model does not compute in {precision} ({why}): use the precision float32.") from error
    found: SequenceModel = changed
    return found


def _try(model: SequenceModel, batch: SequenceBatch) -> None:
    """Scores and gradients of a batch, which are dropped."""
    seen = getattr(model, "seen", lambda same: same)(batch)
    with torch.enable_grad(), recurrence_with_gradients(model):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in model.embed(seen).items()}
        total = logits_of(model, leaves, seen.lengths).sum()
        if total.requires_grad:
            torch.autograd.grad(total, list(leaves.values()), allow_unused=True)


def batch_at(batch: SequenceBatch, precision: str) -> SequenceBatch:
    """The batch with the weights that a model of this precision is given."""
    if precision != FLOAT64:
        return batch
    streams = {name: replace(bags, weights=bags.weights.double()) for name, bags in batch.streams.items()}
    return replace(batch, streams=streams)


def population_at(population: Population | None, precision: str) -> Population | None:
    """What is known of training patients, with numbers of this precision."""
    if population is None or precision != FLOAT64:
        return population
    return replace(
        population,
        step_rates=population.step_rates.double(),
        static_rates=population.static_rates.double(),
        references=None if population.references is None else batch_at(population.references, precision),
    )


def first_records(batch: SequenceBatch, number: int) -> SequenceBatch:
    """The first of a batch's records, at most so many, as padded as they are."""
    if len(batch) <= number:
        return batch
    streams = {}
    for name, bags in batch.streams.items():
        n_bags = number * (batch.n_steps if name == EVENTS else 1)
        end = int(bags.offsets[n_bags])
        streams[name] = Bags(bags.ids[:end], bags.weights[:end], bags.offsets[:n_bags], bags.at[:end])
    return replace(
        batch, streams=streams, hours=batch.hours[:number], lengths=batch.lengths[:number],
        rows=batch.rows[:number], keys=batch.keys[:number],
    )  # fmt: skip


def precision_error(pairs: Iterable[tuple[Attributions, Attributions]]) -> dict[str, float]:
    """How far attributions are from those of the same predictions in float32.

    Args:
        pairs: of the first predictions of the one, as many as the other has, and of the other, in float32.

    Returns:
        `maximum` and `median`, of the absolute differences of all contributions, what is absent included, in units
        of the score; `score_maximum`, of the scores; `spread_of_scores`, the standard deviation of the scores in
        float32, and where that is above 0 `maximum_relative` and `median_relative`, in units of it;
        `n_predictions` and `n_contributions` that were compared.
    """
    differences, scores, exact_scores = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0)], []
    for low, exact in pairs:
        for mine, others in ((low.streams, exact.streams), (low.absent, exact.absent)):
            for name, told in others.items():
                own = mine[name][: len(told)]
                differences.append((own.double() - told.double()).abs().flatten().cpu())
        scores.append((low.score[: len(exact.score)].double() - exact.score.double()).abs().cpu())
        exact_scores.append(exact.score.double().cpu())
    difference, score = torch.cat(differences), torch.cat(exact_scores or scores[:1]).double()
    spread = float(score.std()) if len(score) > 1 else 0.0
    summary = {
        "n_predictions": float(len(score)),
        "n_contributions": float(len(difference)),
        "maximum": float(difference.max()) if len(difference) else 0.0,
        "median": float(difference.median()) if len(difference) else 0.0,
        "score_maximum": float(torch.cat(scores).max()) if len(score) else 0.0,
        "spread_of_scores": spread,
    }
    if spread > 0:
        summary |= {f"{name}_relative": summary[name] / spread for name in ("maximum", "median")}
    return summary


def precision_sentence(error: Mapping[str, float]) -> str:
    """What `precision_error` found, in one sentence for people."""
    relative = (
        f", {error['maximum_relative']:.2%} and {error['median_relative']:.2%} of the spread of scores"
        if "maximum_relative" in error
        else ""
    )
    return (
        f"In bfloat16 contributions differ from those in float32 by {error['maximum']:.1e} at most (median "
        f"{error['median']:.1e}{relative}), scores by {error['score_maximum']:.1e} at most, on "
        f"{error['n_predictions']:,.0f} predictions explained both ways"
    )
