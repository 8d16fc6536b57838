"""Each method with the contributions of another, or with one term of its own wrong, fails a test of this suite."""

from __future__ import annotations

import pytest

from method_laws.mutants import Mutant, survivors, swapped
from whenwhy.attribution import registered_methods

LAWS, GRADIENTS, RELEVANCE = (
    f"method_laws/test_{name}.py::test_" for name in ("laws", "gradient_methods", "relevance")
)
DECOMPOSITION, MASKS, OCCLUSION, SHAPLEY = (
    f"method_laws/test_{name}.py::test_" for name in ("decomposition", "masks", "occlusion", "shapley")
)
ATTENTION = "method_laws/test_attention.py::test_"
FAMILY = f"{GRADIENTS}gradient_times_input_equals_its_replica"
STEPS = f"{GRADIENTS}the_methods_of_every_step_equal_their_replicas"

ONE_PASS = f"{GRADIENTS}one_pass_says_what_prefix_after_prefix_says"
NODES = f"{GRADIENTS}the_methods_of_every_step_take_the_nodes_that_they_need"

#: Which test notices that a method tells what gradient times input tells.
GUARDS = {
    "amortised_mask": f"{MASKS}amortised_masks_equal_their_replica",
    "attention": f"{ATTENTION}attention_is_that_of_the_replica",
    "augmented_occlusion": f"{OCCLUSION}augmented_occlusion_equals_its_replica",
    "contextual_decomposition": f"{DECOMPOSITION}contributions_are_the_parts_of_their_groups",
    "deep_lift": f"{RELEVANCE}deep_lift_equals_its_replica",
    "expected_gradients": f"{GRADIENTS}expected_gradients_equals_its_replica",
    "extremal_mask": f"{MASKS}extremal_mask_equals_its_replica",
    "integrated_gradients": f"{LAWS}integrated_gradients_equals_its_replica",
    "kernel_shap": f"{SHAPLEY}all_coalitions_of_few_players_are_exact",
    "layerwise_relevance": f"{RELEVANCE}relevance_equals_messages_unit_by_unit",
    "occlusion": f"{OCCLUSION}occlusion_equals_its_replica",
    "prefix_integrated_gradients": f"{STEPS}[prefix_integrated_gradients-empty]",
    "relevance_dropout": f"{RELEVANCE}dropout_leaves_the_mean_and_tells_a_spread",
    "retain_contributions": f"{ATTENTION}retain_s_contributions_are_those_of_the_replica",
    "saliency": f"{GRADIENTS}saliency_equals_its_replica_and_has_no_baseline",
    "shapley": f"{SHAPLEY}two_players_are_exact_in_every_pair",
    "smooth_grad": f"{GRADIENTS}smooth_grad_equals_the_dense_one",
    "temporal_integrated_gradients": f"{STEPS}[temporal_integrated_gradients-empty]",
    "temporal_occlusion": f"{OCCLUSION}occlusion_equals_its_replica",
    "timing": f"{GRADIENTS}timing_equals_its_replica",
}


def own(method: str, what: str, old: str, new: str, test: str = "") -> Mutant:
    """One term of a method's own file."""
    return Mutant(method, what, f"methods.{method}", old, new, test or GUARDS[method])


def room(name: str, what: str, old: str, new: str, test: str) -> Mutant:
    """One term of what several methods share."""
    return Mutant(name, what, name, old, new, test)


SWAPS = [
    *(swapped(method, "gradient_times_input", test) for method, test in GUARDS.items()),
    swapped("gradient_times_input", "saliency", FAMILY),
]

TERMS = [
    own("gradient_times_input", "the slope at the baseline", "question.record_gradients",
        "question.gradients_at(question.baseline)", FAMILY),
    own("gradient_times_input", "against the way", "Explanation(question.contributions(gradients)",
        "Explanation(question.contributions({name: -of for name, of in gradients.items()})", FAMILY),
    own("saliency", "with a sign", "slope.abs()", "slope"),
    own("saliency", "the slope at the baseline", "question.record_gradients",
        "question.gradients_at(question.baseline)"),
    own("integrated_gradients", "against the path", "mean[name][open_rows] = gradient", "mean[name][open_rows] = -gradient"),
    own("integrated_gradients", "too much is never seen", ".abs() > 0.9 * question.tolerance", " > 0.9 * question.tolerance",
        f"{LAWS}completeness[integrated_gradients]"),
    own("deep_lift", "a fall is a rise", "(value - value_before) / torch", "(value_before - value) / torch"),
    own("deep_lift", "one factor of a product as it is now", "times(first - a, (b + b_before) / 2)", "times(first - a, b)"),
    own("deep_lift", "the other as it was", "times((a + a_before) / 2, second - b)", "times(a_before, second - b)"),
    own("deep_lift", "the slope at the record for every rise", "<= NO_RISE * (1 + held.abs())", ">= 0"),
    own("deep_lift", "what is the largest now gets no rise", "rise.clamp(min=0)", "rise.clamp(min=0) * 0",
        f"{RELEVANCE}deep_lift_is_complete_on_every_architecture"),
    own("deep_lift", "attention shifted by each way's own largest", "(largest,) = self.note(x.detach().amax(dim, keepdim=True))",
        "largest = x.detach().amax(dim, keepdim=True)", f"{RELEVANCE}deep_lift_is_complete_on_every_architecture"),
    own("expected_gradients", "the path turned round", "torch.lerp(beside.baseline[name], record, share)",
        "torch.lerp(record, beside.baseline[name], share)"),
    own("expected_gradients", "one reference for all draws", "question.beside_reference(draw)", "question.beside_reference(0)"),
    own("expected_gradients", "another baseline's score", "baseline_score=total / samples", "baseline_score=question.baseline_score",
        f"{GRADIENTS}expected_gradients_are_complete_on_average"),
    own("smooth_grad", "the variance for the deviation", ".view_as(record) * sigma", ".view_as(record) * sigma**2",
        f"{GRADIENTS}the_noise_of_smooth_grad_is_that_of_every_feature_value"),
    own("smooth_grad", "noise of another covariance", "values.clamp(min=0).sqrt()", "values.clamp(min=0)",
        f"{GRADIENTS}the_noise_of_smooth_grad_is_that_of_every_feature_value"),
    own("smooth_grad", "noise in padding", "noise = noise * true", "noise = noise * true.logical_not()",
        f"{GRADIENTS}the_noise_of_smooth_grad_is_that_of_every_feature_value"),
    own("smooth_grad", "the record left out", "found[name] = record + noise", "found[name] = noise", f"{GRADIENTS}the_noise_of_smooth_grad_is_that_of_every_feature_value"),
    own("timing", "what stays moves", "found[name] = ~stays", "found[name] = stays"),
    own("timing", "each draw's left end", "place = (sample + 0.5) / len(moving)", "place = sample / len(moving)"),
    own("timing", "the arc the other way", "torch.remainder(circle[values.id] - arc, 1)", "torch.remainder(arc - circle[values.id], 1)"),
    own("timing", "draws in which a value stays count", "question.contributions(gradients), moves)", "question.contributions(gradients))"),
    own("temporal_integrated_gradients", "against the path", "mean += torch.tensordot", "mean -= torch.tensordot"),
    own("temporal_integrated_gradients", "always from nothing", "if question.given.embedded else None", "if False else None",
        f"{STEPS}[temporal_integrated_gradients-rates]"),
    own("temporal_integrated_gradients", "the notes for each other", "step_notes(question, scores[0], scores[1])",
        "step_notes(question, scores[1], scores[0])"),
    own("temporal_integrated_gradients", "never enough nodes", "- wanted[open_rows]).abs().amax(1) > question.tolerance", "- wanted[open_rows]).abs().amax(1) > 100", NODES),
    own("prefix_integrated_gradients", "against the path", "mean += torch.tensordot", "mean -= torch.tensordot", ONE_PASS),
    own("prefix_integrated_gradients", "the past as it was", "own_step_gradients(question, flat,",
        "own_step_gradients(question, {name: of.repeat(len(at), *[1] * (of.ndim - 1)) for name, of in record.items()},", ONE_PASS),
    own("prefix_integrated_gradients", "never enough nodes", "open_rows = open_rows[moved > question.tolerance]", "open_rows = open_rows[:0]", NODES),
    own("occlusion", "gained for lost", "question.score[players.patient] - scores_without(players)",
        "scores_without(players) - question.score[players.patient]"),
    own("occlusion", "every value alone, whatever the unit", "Players(question, unit)", "Players(question, VALUE)"),
    own("temporal_occlusion", "gained for lost", "question.score[players.patient] - scores_without(players, restart=restart)",
        "scores_without(players, restart=restart) - question.score[players.patient]"),
    own("augmented_occlusion", "gained for lost", "(question.score[players.patient] - replaced)", "(replaced - question.score[players.patient])"),
    own("augmented_occlusion", "nothing in place of the values", ", instead=players.beside(recorded(other, ways))", ""),
    own("augmented_occlusion", "the spread of a draw, not of the mean", "/ (samples - 1)).sqrt()", ").sqrt()",
        f"{OCCLUSION}augmented_occlusion_is_the_mean_over_records_drawn"),
    own("shapley", "an order twice for its reverse", "torch.stack([order, reverse], dim=2)", "torch.stack([order, order], dim=2)"),
    own("shapley", "gained for lost", "(after - before)[:coming]", "(before - after)[:coming]"),
    own("shapley", "everybody comes to the record", "here = {name: tensor[rows] for name, tensor in question.baseline.items()}",
        "here = {name: tensor[rows] for name, tensor in question.embedded.items()}"),
    own("shapley", "the spread of a pair, not of the mean", "(variance / n_pairs).sqrt()", "variance.sqrt()",
        f"{SHAPLEY}the_spread_is_the_standard_error"),
    own("kernel_shap", "every size alike", "kernel = 1 / (size * (count - size))", "kernel = torch.ones_like(size)",
        f"{SHAPLEY}coalitions_are_drawn_by_the_kernel_in_pairs"),
    own("kernel_shap", "no weights", "root = weights.sqrt()", "root = torch.ones_like(weights)"),
    own("kernel_shap", "the last player's share not taken off", "gains - last * gain", "gains"),
    own("kernel_shap", "coalitions without their complements", "torch.cat([drawn, ~drawn])", "torch.cat([drawn, drawn])",
        f"{SHAPLEY}coalitions_are_drawn_by_the_kernel_in_pairs"),
    own("layerwise_relevance", "epsilon makes small sums smaller", "(safe + self.epsilon * safe.sign())", "(safe - self.epsilon * safe.sign())"),
    own("layerwise_relevance", "gates get their part", "return Plain(torch.sigmoid(x))", "return torch.sigmoid(x)"),
    own("layerwise_relevance", "the derivative for the quotient", "held = x.detach()\n        small", "return function(x)\n        held = x.detach()\n        small"),
    own("layerwise_relevance", "the share that is left for the share that is lost", "1 - total / score", "total / score"),
    own("relevance_dropout", "what stays weighs no more", "sums[name] += told", "sums[name] += told * 0.8"),
    own("relevance_dropout", "the same messages in every run", "seed=question.seed * 1_000_003 + run", "seed=question.seed * 1_000_003"),
    Mutant("relevance_dropout", "what stays weighs no more", "methods.layerwise_relevance", "(kept / (1 - self.dropout))", "kept",
           GUARDS["relevance_dropout"]),
    own("contextual_decomposition", "the whole part to each member", " / size[name]", ""),
    own("contextual_decomposition", "steps and values for each other", "own = torch.cat([of.id if unit == FEATURE_VALUE else of.step",
        "own = torch.cat([of.step if unit == FEATURE_VALUE else of.id"),
    own("extremal_mask", "the perturbation does not learn", "networks, networks.parameters, epochs", "networks, [], epochs"),
    own("extremal_mask", "another first mask", "game.masks(0.5)", "game.masks(0.75)"),
    own("attention", "the step's place for its weight", "weights[EVENTS][events.patient, events.step]",
        "weights[EVENTS][events.patient, 0 * events.step]"),
    own("attention", "static values have that of the first step", "weights[STATIC][static.patient]",
        "weights[EVENTS][static.patient, 0]"),
    own("retain_contributions", "the empty record's attention", "tell(question.embedded,", "tell(question.baseline,"),
    own("retain_contributions", "against the sum", "question.contributions(chosen)",
        "question.contributions({name: -of for name, of in chosen.items()})"),
    own("amortised_mask", "places count against", "within_one(logit + place)", "within_one(logit - place)"),
    own("amortised_mask", "no middle", "(x - self.middle) / self.spread", "x / self.spread"),
    own("amortised_mask", "the end for the begin", "1 / before.unsqueeze(2), 1 / after.unsqueeze(2)", "1 / after.unsqueeze(2), 1 / before.unsqueeze(2)"),
    own("amortised_mask", "it climbs", "parameter.grad = gradient\n            optimizer", "parameter.grad = -gradient\n            optimizer",
        f"{MASKS}the_fit_says_how_far_it_is_from_the_optimum_and_refinement_comes_nearer"),
]  # fmt: skip

ROOMS = [
    room("paths", "half of the way", "return (place + 1) / 2, share / 2", "return place / 2, share / 2", GUARDS["integrated_gradients"]),
    room("paths", "twice the mean", "return (place + 1) / 2, share / 2", "return (place + 1) / 2, share", GUARDS["integrated_gradients"]),
    room("paths", "always from nothing", "if begin is None else", "if True else", ONE_PASS),
    room("own_steps", "the past of the step after", "prefix[EVENTS][:, :step], last", "prefix[EVENTS][:, 1 : step + 1], last",
         ONE_PASS),
    room("own_steps", "the gradient of the first step", "gradients[:, here, step] = slopes[EVENTS][:, step]", "gradients[:, here, step] = slopes[EVENTS][:, 0]",
         ONE_PASS),
    room("own_steps", "padding has notes", "told.masked_fill(~question.true_steps, torch.nan)", "told", STEPS),
    room("players", "who comes goes", "alpha=sign", "alpha=-sign", GUARDS["occlusion"]),
    room("players", "the absent comes for the recorded", "-extra[absent].to(values.way)", "extra[absent].to(values.way)", GUARDS["occlusion"]),
    room("players", "each has all of it", "totals / self.sizes", "totals", GUARDS["occlusion"]),
    room("players", "restarts a step too late", "past = question.read(begin, past)", "past = question.read(begin + 1, past)",
         f"{OCCLUSION}a_restart_changes_nothing"),
    room("players", "values of a step are of no step", "if unit in (VALUE, CELL, CODE_CELL, STEP):", "if unit in (VALUE, CELL, CODE_CELL):", GUARDS["temporal_occlusion"]),
    room("players", "coalitions are alike", "torch.where(self.first_step[players] < steps, self._mark[players], 0)",
         "torch.where(self.first_step[players] < steps, 0, 0)", f"{SHAPLEY}a_pruned_past_is_read_once"),
    room("pruning", "what it adds alone", "return (alone + joining) / 2", "return alone", f"{SHAPLEY}the_pruned_past_is_that_of_dense_records"),
    room("pruning", "a sign of its own", "value.abs() <= tolerance", "value <= tolerance", f"{SHAPLEY}the_pruned_past_is_that_of_dense_records"),
    room("masks", "large masks are rewarded", "told = self._difference(outputs) + self.l1 *", "told = self._difference(outputs) - self.l1 *", GUARDS["extremal_mask"]),
    room("masks", "perturbations cost nothing", "return told + self.l2 * self._size(perturbation)", "return told", GUARDS["extremal_mask"]),
    room("masks", "what is deleted is kept", "kept = masks if self.mode == PRESERVATION else _inverse(masks)", "kept = masks", GUARDS["extremal_mask"]),
    room("masks", "the other class", "wanted.argmax(-1, keepdim=True)", "wanted.argmin(-1, keepdim=True)", f"{MASKS}cross_entropy_wants_the_predicted_class"),
    room("masks", "masks leave [0, 1]", "mask.clamp_(0, 1)", "mask.clamp_(-1, 2)", GUARDS["extremal_mask"]),
    room("perturbation_networks", "the reset gate is none", "+ reset * of_state", "+ of_state", GUARDS["extremal_mask"]),
    room("perturbation_networks", "the update gate turned", "torch.lerp(new, state, update)", "torch.lerp(state, new, update)", GUARDS["extremal_mask"]),
    room("decomposition", "the parts for each other", "return (first - alone + whole - second) / 2, (second - alone + whole - first) / 2, alone",
         "return (second - alone + whole - first) / 2, (first - alone + whole - second) / 2, alone", f"{DECOMPOSITION}parts_equal_those_of_the_replica"),
    room("decomposition", "the gate opens for it", "left_a, left_c = -update_a", "left_a, left_c = update_a", f"{DECOMPOSITION}parts_equal_those_of_the_replica"),
    room("decomposition", "a step's biases are nobody's (GRU)", " + share * left_c * new_c", "", f"{DECOMPOSITION}parts_equal_those_of_the_replica"),
    room("decomposition", "a step's biases are nobody's (LSTM)", " + share * input_c * new_c", "", f"{DECOMPOSITION}parts_equal_those_of_the_replica"),
    room("decomposition", "what it remembers is forgotten", "kept = (forget_a + forget_c) * beta_cell", "kept = forget_c * beta_cell", f"{DECOMPOSITION}parts_equal_those_of_the_replica"),
    room("decomposition", "biases are its own", "return x + constant if self.first else x", "return x + constant", "method_laws/test_rules.py::test_a_constant_is_in_neither_part"),
    room("signals", "a difference is a sum", "return first - second if minus else first + second", "return first + second",
         "method_laws/test_rules.py"),
    room("signals", "a constant taken off is put on", "rule.plus_constant(first, -second if minus else second)", "rule.plus_constant(first, second)", "method_laws/test_rules.py"),
    room("signals", "what a constant loses it gains", "rule.plus_constant(-second if minus else second, first)", "rule.plus_constant(second, first)", "method_laws/test_rules.py"),
    room("signals", "a quotient is a product", "inverse = rule.elementwise(torch.reciprocal, given[1])", "inverse = given[1]", "method_laws/test_rules.py"),
    room("signals", "a norm without its mean", "(0 if bias is None else bias) - mean * scale", "(0 if bias is None else bias)", "method_laws/test_rules.py"),
    room("signals", "factors for each other", "arguments, given = arguments[::-1], given[::-1]\n        times", "pass\n        times", "method_laws/test_rules.py"),
    room("recurrences", "the update gate turned", "((1 - update) * new + update * before,)", "(update * new + (1 - update) * before,)", f"{RELEVANCE}unrolled_layers_are_torchs"),
    room("recurrences", "nothing is forgotten", "torch.sigmoid(of_forget) * memory", "memory", f"{RELEVANCE}unrolled_layers_are_torchs"),
    room("recurrences", "who ended first comes first", "*reversed(ended)", "*ended", f"{RELEVANCE}unrolled_layers_are_torchs"),
    room("recurrences", "the way back is a way forth", "direction == 1, step or", "False, step or", f"{RELEVANCE}unrolled_layers_are_torchs"),
    room("baselines", "a value that repeats has its rate each time", "rates[bags.ids.long()] / _repeats(bags)", "rates[bags.ids.long()]", f"{LAWS}baselines_are_those_of_dense_records"),
    room("baselines", "the first steps meet", "step = step + (lengths - own)[patient]", "step = step + 0 * (lengths - own)[patient]", f"{LAWS}baselines_are_those_of_dense_records"),
    room("baselines", "another code's record is carried", "& (c[begins[1:]] == c[begins[:-1]])", "& (c[begins[1:]] >= 0)", f"{LAWS}baselines_are_those_of_dense_records"),
    room("averages", "the spread of a draw, not of the mean", ".clamp(min=0) / self._count[of]).sqrt()", ".clamp(min=0)).sqrt()", GUARDS["expected_gradients"]),
    room("averages", "the last draw counts most", "change / self._count[of].clamp(min=1)", "change / 2", GUARDS["expected_gradients"]),
    room("question", "absence is presence", "parts[name] = -(extra * gradients[name])", "parts[name] = (extra * gradients[name])", f"{LAWS}baselines_are_those_of_dense_records"),
    room("question", "a value's whole weight for its way", "(self.weights[name] - self.given.matched[name]) * slope", "self.weights[name] * slope", f"{LAWS}baselines_are_those_of_dense_records"),
    room("targets", "one logit for the difference", "return logits[:, places[0]] - logits[:, 1 - places[0]] if len(names) == 2 else logits[:, places[0]]",
         "return logits[:, places[0]] / 2", GUARDS["integrated_gradients"]),
    room("precision", "everything is compared with itself", "own = mine[name][: len(told)]", "own = told", "test_precision.py::test_the_error_that_is_told_is_the_true_one"),
    room("precision", "the middle is told as the most", "float(difference.max()) if", "float(difference.median()) if", "test_precision.py::test_the_error_that_is_told_is_the_true_one"),
    room("draws", "the next prediction's numbers", "keys = self.keys if rows is None else self.keys[rows.cpu().numpy()]", "keys = np.roll(self.keys if rows is None else self.keys[rows.cpu().numpy()], 1)",
         f"{LAWS}draws_belong_to_predictions_and_are_uniform"),
]  # fmt: skip

#: What several methods share; each has a mutant of its own.
SHARED = {
    "averages", "baselines", "decomposition", "draws", "masks", "own_steps", "paths", "perturbation_networks", "players",
    "precision", "pruning", "question", "recurrences", "signals", "targets",
}  # fmt: skip


def test_every_method_and_every_room_has_mutants() -> None:
    methods = set(registered_methods())
    undeclared = methods - {mutant.of for mutant in SWAPS}, methods - {mutant.of for mutant in TERMS}
    assert undeclared == (set(), set()), "no mutants declared: write one in tests/method_laws/test_mutants.py"
    assert {mutant.of for mutant in ROOMS} == SHARED


@pytest.mark.parametrize("mutant", [*TERMS, *ROOMS], ids=lambda mutant: f"{mutant.of}: {mutant.what}")
def test_what_a_mutant_changes_is_there(mutant: Mutant) -> None:
    """A mutant of text that is gone changes nothing, and would prove nothing."""
    assert mutant.text != mutant.file.read_text()
    compile(mutant.text, str(mutant.file), "exec")


def test_a_method_with_the_contributions_of_another_is_noticed() -> None:
    """Each method's own function still works for the others, so all can be swapped at once."""
    assert survivors(SWAPS, together=True) == {}


@pytest.mark.full
@pytest.mark.parametrize("of", sorted({mutant.of for mutant in [*TERMS, *ROOMS]}))
def test_one_wrong_term_is_noticed(of: str) -> None:
    assert survivors(mutant for mutant in [*TERMS, *ROOMS] if mutant.of == of) == {}


def test_what_is_not_wrong_survives() -> None:
    """The check itself can fail."""
    same = Mutant("paths", "the same", "paths", "share / 2", "share * 0.5", f"{LAWS}linearity[integrated_gradients]")
    missing = Mutant("paths", "no such text", "paths", "share / 3", "share", f"{LAWS}linearity[integrated_gradients]")
    crashes = Mutant(
        "paths", "a crash", "paths", "share / 2", "share / nothing", f"{LAWS}linearity[integrated_gradients]"
    )
    with pytest.raises(LookupError, match="0 times what the mutant changes: 'share / 3'"):
        survivors([missing])
    told = survivors([same, crashes])
    assert told[same] == "it survives: the test passes"
    assert "crashes by NameError" in told[crashes]
