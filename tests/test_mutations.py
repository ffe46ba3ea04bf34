"""The suite notices when a formula is changed: one textual mutation of the package at a time."""

import ast
import os
from pathlib import Path
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

import sam_optax

PACKAGE = Path(sam_optax.__file__).parent
TESTS = Path(__file__).parent


class Mutation(NamedTuple):
    """A change of one text in one module, and the tests (file, -k expression) that must notice."""

    module: str
    old: str
    new: str
    file: str
    keyword: str


MUTATIONS = {
    "gsam adds the rejected part": Mutation(
        "combine/_projected.py", "h - weight * r,", "h + weight * r,", "closed_forms", "gsam"
    ),
    "gsam rejects the second gradient": Mutation(
        "combine/_projected.py",
        "_tree.reject(first, second)",
        "_tree.reject(second, first)",
        "closed_forms",
        "gsam",
    ),
    "looksam rejects the first gradient": Mutation(
        "combine/_projected.py",
        "_tree.reject(second, first)",
        "_tree.reject(first, second)",
        "closed_forms",
        "looksam",
    ),
    "looksam reuses without the norm": Mutation(
        "combine/_projected.py", " * _tree.norm(first))", ")", "closed_forms", "looksam"
    ),
    "a norm per leaf": Mutation(
        "_tree.py",
        "scale * _where_long(x, size)",
        "length / jnp.maximum(norm(x), TINY) * x",
        "closed_forms",
        "unit_first_gradient",
    ),
    "the square of the norm": Mutation(
        "_tree.py",
        "scale = 1 / jnp.maximum(size, TINY)",
        "scale = 1 / vdot(a, a)",
        "closed_forms",
        "unit",
    ),
    "adaptive tests against the old mean": Mutation(
        "when.py",
        "jnp.where(jnp.isinf(c), c, mean + c",
        "jnp.where(jnp.isinf(c), c, state.mean + c",
        "closed_forms",
        "new_mean",
    ),
    "adaptive takes the variance around the old mean": Mutation(
        "when.py",
        "jnp.square(s - mean)",
        "jnp.square(s - state.mean)",
        "closed_forms",
        "adaptive",
    ),
    "adaptive tests with the old variance": Mutation(
        "when.py", "c * jnp.sqrt(variance)", "c * jnp.sqrt(state.variance)", "exactness", "ae_"
    ),
    "adaptive does not fire at equality": Mutation(
        "when.py", "return s >= bound", "return s > bound", "closed_forms", "equality"
    ),
    "an infinite threshold times zero": Mutation(
        "when.py",
        "jnp.where(jnp.isinf(c), c, mean + c * jnp.sqrt(variance))",
        "mean + c * jnp.sqrt(variance)",
        "closed_forms",
        "infinite",
    ),
    "r_sam climbs around the noisy point": Mutation(
        "_step.py",
        "_rounding.moved(params, epsilon",
        "_rounding.moved(_first.point(state.start, params, 0), epsilon",
        "closed_forms",
        "r_sam",
    ),
    "the first gradient is not at the noisy point": Mutation(
        "_engine.py",
        "first = own_updates if taken else gradient(place())",
        "first = own_updates if taken else gradient(own)",
        "closed_forms",
        "r_sam",
    ),
    "the noise draws the same number again": Mutation(
        "start/_noise.py",
        "draw=old.draw + samples",
        "draw=old.draw",
        "closed_forms",
        "draws_anew",
    ),
    "the offset of the draw before": Mutation(
        "start/_noise.py",
        "state.draw + sample, params)",
        "jnp.maximum(state.draw + sample - 1, 0), params)",
        "exactness",
        "equal_the_reference and r_sam",
    ),
    "the scale of the noise of the step before": Mutation(
        "start/_following.py",
        "value_at(hyperparameter, step, ahead=1)",
        "value_at(hyperparameter, step)",
        "exactness",
        "r_sam_schedule",
    ),
    "kernels along the first axis": Mutation(
        "start/_kernel_axes.py",
        "out_axis: int | Sequence[int] = -1",
        "out_axis: int | Sequence[int] = 0",
        "closed_forms",
        "noise_has_the_scale",
    ),
    "a variance in place of a standard deviation": Mutation(
        "methods.py",
        "return 1.0 if noise_scale",
        "return 0.5 if noise_scale",
        "closed_forms",
        "noise_has_the_scale",
    ),
    "lambda_ weighs the noise": Mutation(
        "perturb/_balls.py",
        "_tree.combine(jnp.add, _parts.hide_as(ascent, offset), ascent)",
        "_tree.combine(lambda o, a: weight * o + a, _parts.hide_as(ascent, offset), ascent)",
        "closed_forms",
        "r_sam",
    ),
    "wsam feeds the perturbed gradient to its base": Mutation(
        "combine/_weigh.py",
        "stale(first, state, params, step=step, **extra)",
        "stale(second, state, params, step=step, **extra)",
        "closed_forms",
        "wsam",
    ),
    "wsam adds to the first gradient and not to the base": Mutation(
        "combine/_weigh.py", "u + weight * (h - g)", "g + weight * (h - g)", "closed_forms", "wsam"
    ),
    "wsam weighs by γ": Mutation(
        "combine/_weigh.py",
        "weight = gamma_t / (1 - gamma_t)",
        "weight = gamma_t",
        "closed_forms",
        "wsam",
    ),
    "samar grows where the norm falls": Mutation(
        "combine/_mix.py", "grows = norm >= ", "grows = norm <= ", "closed_forms", "samar"
    ),
    "samar does not grow at exactly χ": Mutation(
        "combine/_mix.py", "grows = norm >= ", "grows = norm > ", "closed_forms", "samar"
    ),
    "samar does not clip": Mutation(
        "combine/_mix.py", "jnp.clip(moved, delta, 1 - delta)", "moved", "closed_forms", "samar"
    ),
    "samar clips below only": Mutation(
        "combine/_mix.py",
        "jnp.clip(moved, delta, 1 - delta)",
        "jnp.maximum(moved, delta)",
        "closed_forms",
        "samar",
    ),
    "samar swaps the gradients": Mutation(
        "combine/_mix.py",
        "(1 - lambda_k) * g + lambda_k * h",
        "(1 - lambda_k) * h + lambda_k * g",
        "closed_forms",
        "samar",
    ),
    "le_sam divides by the norm once": Mutation(
        "perturb/_balls.py", "lambda g: rho / n * g", "lambda g: rho * g", "closed_forms", "le_sam"
    ),
    "le_sam without the bound of its norm": Mutation(
        "perturb/_balls.py", "first) + 1e-12)", "first))", "closed_forms", "le_sam"
    ),
    "le_sam does not clip": Mutation(
        "perturb/_balls.py",
        "if rho_max is not None:\n            rho =",
        "if False:\n            rho =",
        "closed_forms",
        "le_sam",
    ),
    "extrapolate adds the clean gradient": Mutation(
        "combine/_plain.py", "h - weight * g", "h + weight * g", "closed_forms", "le_sam_plus"
    ),
    "extrapolate rescales": Mutation(
        "combine/_plain.py",
        "h - weight * g",
        "(h - weight * g) / (1 - weight)",
        "closed_forms",
        "le_sam_plus",
    ),
    "asam does not square": Mutation(
        "perturb/_ellipsoids.py",
        "return _tree.combine(jnp.multiply, axes, _tree.towards(ascent, rho))",
        "return _tree.towards(ascent, rho)",
        "closed_forms",
        "asam",
    ),
    "asam takes every leaf for a weight": Mutation(
        "perturb/_ellipsoids.py",
        "(jnp.ndim(w) > 1 and not _names",
        "(jnp.ndim(w) >= 0 and not _names",
        "names",
        "vector",
    ),
    "fisher_sam without the root": Mutation(
        "perturb/_ellipsoids.py",
        "jax.lax.rsqrt(1 +",
        "jnp.reciprocal(1 +",
        "closed_forms",
        "fisher",
    ),
    "ssam scales the other way": Mutation(
        "combine/_projected.py",
        "length = _tree.norm(first)",
        "length = _tree.norm(second) ** 2 / _tree.norm(first)",
        "closed_forms",
        "ssam",
    ),
    "vasso climbs along the average before": Mutation(
        "perturb/_directions.py",
        "return m, EmaState(_tree",
        "return state.m, EmaState(_tree",
        "closed_forms",
        "vasso",
    ),
    "friendly_sam averages what is left": Mutation(
        "perturb/_directions.py",
        "_moved(m, after, share, step)",
        "_moved(m, noise, share, step)",
        "closed_forms",
        "friendly",
    ),
    "eigen_sam renormalises": Mutation(
        "perturb/_eigen.py",
        "return _tree.combine(lambda a, r: rho * (a + weight * r), ascent, rejected)",
        "return _tree.towards(_tree.combine(lambda a, r: a + weight * r, ascent, rejected), rho)",
        "closed_forms",
        "eigen",
    ),
    "eigen_sam without the sign": Mutation(
        "perturb/_eigen.py",
        "alpha * jnp.sign(_tree.along(v, first))",
        "alpha",
        "closed_forms",
        "eigen",
    ),
    "eigen_sam estimates at step 0": Mutation(
        "perturb/_eigen.py", "due = (step > 0) & ", "due = (step >= 0) & ", "closed_forms", "eigen"
    ),
    "esam keeps one example less": Mutation(
        "_examples.py",
        "kept = max(1, math.floor(",
        "kept = max(1, -1 + math.floor(",
        "closed_forms",
        "esam",
    ),
    "esam keeps the largest losses": Mutation(
        "_examples.py",
        "losses - _checked(clean)",
        "losses",
        "closed_forms",
        "esam",
    ),
    "esam does not make up for what it masks": Mutation(
        "perturb/_directions.py", "x / beta, 0)", "x, 0)", "closed_forms", "esam"
    ),
    "msam looks back": Mutation(
        "start/_moved.py",
        "self.velocity, params), -self.rho",
        "self.velocity, params), self.rho",
        "closed_forms",
        "msam",
    ),
    "s2_sam descends": Mutation(
        "start/_moved.py",
        "self.previous, params), self.rho",
        "self.previous, params), -self.rho",
        "closed_forms",
        "s2_sam",
    ),
    "lpf_sgd takes the same draw for each sample": Mutation(
        "_first.py",
        "gradient(place(i))",
        "gradient(place())",
        "closed_forms",
        "lpf_sgd",
    ),
    "a norm of the own part": Mutation(
        "_shards.py", "jax.lax.psum(sum(some), axes)", "sum(some)", "shards", "other_maps"
    ),
    "a kernel of the own part": Mutation(
        "start/_noise.py",
        "squared = jax.lax.psum(squared, names)",
        "squared = squared + 0",
        "shards",
        "a_bias_is_one_kernel",
    ),
    "the same draws for all parts": Mutation(
        "_random.py", "jax.lax.axis_index(names)", "0", "shards", "a_bias_is_one_kernel"
    ),
    "a loss in the own part": Mutation(
        "_finite.py",
        "_shards.joint(_axes.varying(finite))",
        "tuple(_axes.varying(finite))",
        "shards",
        "lost_in_one_part",
    ),
    "a program for all that is told": Mutation(
        "_shards.py", "program(_layout.get(), ", "program(NOWHERE, ", "shards", "a_program_is_kept"
    ),
    "an average as a part": Mutation(
        "_shards.py", "    if updates is not None:", "    if False:", "shards", "averaged"
    ),
    "optimizers of their own as one": Mutation(
        "_shards.py", "varying - _layout.get().apart", "varying", "shards", "models_of_their_own"
    ),
    "parts of all as models": Mutation(
        "_shards.py", "if unclear := _layout", "if unclear := () and _layout", "shards", "gathered"
    ),
    "the shape of the own part": Mutation(
        "_shards.py", "n * jax.lax.axis_size(by)", "n", "shards", "shape_of_the_whole"
    ),
    "branches of two types": Mutation(
        "_decision.py",
        "if any(map(_axes.varying,",
        "if False and any(map(_axes.varying,",
        "shards",
        "only_begins_the_same",
    ),
    "a schedule on the caller's mesh": Mutation(
        "_checks.py",
        'jax.transfer_guard("allow"), no_mesh,',
        'jax.transfer_guard("allow"),',
        "shards",
        "schedules_of_optax",
    ),
    "a leaf left out": Mutation(
        "_shards.py",
        "& told).difference(cut.names)",
        "& told) and ()",
        "shards",
        "leave_a_leaf_out",
    ),
    "unit without its guard": Mutation(
        "_tree.py",
        "scale = 1 / jnp.maximum(size, TINY)",
        "scale = 1 / size",
        "edge_cases",
        "moves_nothing",
    ),
    "norms in the dtype of the leaves": Mutation(
        "_tree.py",
        "return x.astype(_promotion.common(x.dtype))",
        "return x",
        "edge_cases",
        "overflows_float16",
    ),
    "sums over leaves in the dtype of the leaves": Mutation(
        "_tree.py",
        "return _shards.total(combine(lambda x, y: jnp.sum(x * y), a, b))",
        "return sum(jnp.sum(widen(x) * widen(y)).astype(jnp.result_type(x)) "
        "for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))",
        "edge_cases",
        "many_small or inner_products",
    ),
    "second gradients are not counted": Mutation(
        "_step.py",
        "_counted(state.ascents, taken)",
        "state.ascents",
        "closed_forms",
        "looksam",
    ),
    "lost gradients are not counted": Mutation(
        "_step.py", "_counted(state.notfinite, lost)", "state.notfinite", "overflow", "lost"
    ),
    "a lost second gradient is taken": Mutation(
        "_step.py",
        "usable & _finite.is_finite(gradient, params)",
        "usable",
        "overflow",
        "whose_own_gradient",
    ),
    "a lost first gradient of one's own is taken": Mutation(
        "_step.py",
        "_finite.choose(usable, lambda: first, lambda: given)",
        "first",
        "overflow",
        "whose_own_gradient",
    ),
    "differences at a distance of the parameters' unit": Mutation(
        "perturb/_eigen.py", "jnp.where(size > 0, size, 1)", "1 + size", "products", "unit"
    ),
    "differences at the radius alone": Mutation(
        "perturb/_eigen.py",
        "jnp.clip(rho, spacing ** (1 / 2) * size, spacing ** (1 / 3) * size)",
        "rho",
        "products",
        "unit",
    ),
    "no distance from 0": Mutation(
        "perturb/_eigen.py", "jnp.where(size > 0, size, 1)", "size", "products", "from_zero"
    ),
    "every dtype has the spacing of float32": Mutation(
        "perturb/_eigen.py",
        "float(jnp.finfo(leaf.dtype).eps)",
        "float(jnp.finfo(jnp.float32).eps)",
        "products",
        "top_eigenvector and bfloat16",
    ),
    "differences on one side": Mutation(
        "perturb/_eigen.py", "return -sign, ", "return sign, ", "products", "top_eigenvector"
    ),
    "products beside the first gradient": Mutation(
        "perturb/_eigen.py", "due &= _decision.known_after(first, step)", "pass", "scans", "eigen"
    ),
    "a lost eigenvector is kept": Mutation(
        "perturb/_eigen.py",
        "_finite.choose(_finite.is_finite(found, params), lambda: found, lambda: old)",
        "found",
        "overflow",
        "whose_own_gradient and eigen",
    ),
    "each micro-batch loses its own": Mutation(
        "_finite.py", "if not any(jax.tree.leaves(in_batched[1])):", "if False:", "overflow", "vmap"
    ),
    "a conditional of another's is not seen": Mutation(
        "_callers.py",
        '"control_flow.conditionals"',
        '"control_flow"',
        "wrappers_convolution",
        "warned_of",
    ),
    "skipped steps do not move the geometry": Mutation(
        "_step.py",
        "*_, state = self._ascend(grad_fn, first, state, params, extra)",
        "pass",
        "off_menu",
        "a_random_composition and 4",
    ),
    "steps are not counted": Mutation(
        "_step.py", "steps=following(state.steps)", "steps=state.steps", "told", "decides"
    ),
    "the second gradient is taken where it is not needed": Mutation(
        "_step.py",
        "        if not fire:",
        "        if gradient(params) is None or not fire:",
        "gradient_counts",
        "ten_steps and host",
    ),
    "every convolution under a conditional": Mutation(
        "_decision.py",
        "if not _has(jax.make_jaxpr(gradient)(point).jaxpr, CONVOLUTION):",
        "if True:",
        "gradient_counts",
        "convolution",
    ),
    "residuals of two gradients side by side": Mutation(
        "_decision.py", "if _axes.varying(count):  #", "if True:  #", "scans", "memory and sam-kept"
    ),
    "a gradient of its own beside the caller's": Mutation(
        "_decision.py",
        "> 0 if known else False",
        "> 0 if False else False",
        "scans",
        "memory and r_sam-kept",
    ),
    "a convolution behind a scan under a conditional": Mutation(
        "_decision.py", "_has(made.jaxpr, CONVOLUTION) or ", "", "scans", "stood"
    ),
    "effects under a conditional": Mutation(
        "_decision.py", "made.effects or ", "", "scans", "stood"
    ),
    "what is not returned lies elsewhere": Mutation(
        "_decision.py", "_tree.placed_like(zeros, made.out_avals)", "zeros", "scans", "explicit"
    ),
    "a decision that is told is not taken": Mutation(
        "_step.py",
        "            fire = told\n",
        "            pass\n",
        "told",
        "convolutional or told",
    ),
    "a policy is asked for one step alone": Mutation(
        "_foresight.py", "step = following(step)", "step = step", "told", "done"
    ),
    "many steps are asked for one": Mutation(
        "_foresight.py", "return (kept, following(step))", "return (kept, step)", "told", "many"
    ),
    "what a policy keeps stays while it is asked": Mutation(
        "_foresight.py", "fire, kept = self._ask_once(", "fire, _ = self._ask_once(", "told", "own"
    ),
    "the state of any policy is asked": Mutation(
        "_foresight.py", "if self._is_pure:", "if False:", "remedies", "another_policy or policy"
    ),
    "a mask hides the decisions": Mutation(
        "_masked.py",
        "transformation(init, update, foresight(link))",
        "transformation(init, update)",
        "told",
        "masked",
    ),
    "a point is rounded down": Mutation(
        "_rounding.py", "(below + (coin < units - below))", "below", "rounding", "mean"
    ),
    "a point is rounded as at the first step": Mutation(
        "_rounding.py",
        "draw_like(jax.random.uniform, key_data, steps, coarse)",
        "draw_like(jax.random.uniform, key_data, 0, coarse)",
        "rounding",
        "own",
    ),
    "the first point is rounded as the second": Mutation(
        "_rounding.py", "SECOND, FIRST = 5, 6", "SECOND, FIRST = 5, 5", "rounding", "apart"
    ),
    "a rounded point has no derivative": Mutation(
        "_rounding.py",
        "(point + jax.lax.stop_gradient(_step(point, coin, w.dtype)))",
        "jax.lax.stop_gradient(point + _step(point, coin, w.dtype))",
        "rounding",
        "derivative",
    ),
    "a hidden convolution is not found": Mutation(
        "_decision.py",
        "if is_jaxpr(node) and _has(",
        "if False and _has(",
        "gradient_counts",
        "convolution",
    ),
    "the annealed budget ends one index late": Mutation(
        "schedules.py",
        "max(total - anneal_from - 1, 1)",
        "max(total - anneal_from, 1)",
        "schedules",
        "budget",
    ),
    "the thresholds are swapped": Mutation(
        "schedules.py", "share * lambda_1, 0)", "share * lambda_2, 0)", "schedules", "threshold"
    ),
    "devices may decide differently": Mutation(
        "_decision.py", "    _check_equal(fire)\n", "", "devices", "could_differ"
    ),
    "what was summed is averaged": Mutation(
        "_average.py", "        _check_local(updates, axis_name)\n", "", "devices", "summed"
    ),
    "the adaptive statistics are summed over the devices": Mutation(
        "when.py", "jax.lax.pmean(s", "jax.lax.psum(s", "modes", "averaged_statistics"
    ),
    "samar has a weight for each device": Mutation(
        "methods.py",
        "ratio=ratio, axis_name=axis_name)",
        "ratio=ratio)",
        "devices",
        "loop_over_the_parts and samar",
    ),
    "code of the caller's is compiled": Mutation(
        "_purity.py",
        'if thing.__globals__.get("__name__", "").split(".")[0] not in PACKAGES:',
        "if False:",
        "outside_jit",
        "follows_what_it_reads",
    ),
    "a schedule is called once for all": Mutation(
        "_contracts.py",
        "if answer is None or _purity.is_pure(hyperparameter):",
        "if True:",
        "outside_jit",
        "may_be_any_python",
    ),
    "the values of the schedules are mixed up": Mutation(
        "_pieces.py",
        "following = iter(values)",
        "following = reversed(values)",
        "outside_jit",
        "keep_their_places",
    ),
    "schedules are not held to the caller's promotion": Mutation(
        "_checks.py",
        "with callers():\n            value = schedule(step)",
        "if True:\n            value = schedule(step)",
        "promotion",
        "held_to_strict and schedule",
    ),
    "our arithmetic is held to the caller's promotion": Mutation(
        "_promotion.py",
        'if rules == "standard":',
        "if True:",
        "promotion",
        "outside_jit and injected",
    ),
    "any state is taken": Mutation(
        "_engine.py", "        states.check(state, own)\n", "", "states", "other_parameters"
    ),
    "what has no gradient is perturbed": Mutation(
        "_parts.py",
        "Part(structure, list(map(_is_trainable, leaves)))",
        "Part(structure, [leaf is not None for leaf in leaves])",
        "gaps",
        "pass_through and r_sam",
    ),
    "the rest of a masked tree is handed on as the direction of the part": Mutation(
        "_masked.py",
        "return part.merge(direction, updates), MaskedState",
        "return direction, MaskedState",
        "masked",
        "a_prefix",
    ),
    "the state of a masked method is that of all": Mutation(
        "_masked.py",
        "link.init(part.prune(params))",
        "link.init(params)",
        "masked",
        "closed_over and looksam and jit",
    ),
    "the gradient point of a masked method moves the rest": Mutation(
        "_point.py",
        "return parts[0].merge(inner, params)",
        "return jax.tree.map(lambda p: p + 1, parts[0].merge(inner, params))",
        "masked",
        "gradient_point",
    ),
    "the rest is perturbed by its gradient": Mutation(
        "perturb/_only.py",
        "part.merge(epsilon, _tree.combine(jnp.zeros_like, first))",
        "part.merge(epsilon, first)",
        "masked",
        "only_perturbs",
    ),
    "a mask in the slot hides the Hessian's part": Mutation(
        "perturb/_only.py",
        'extra["grad_fn"] = _second.gradient_within(grad_fn, part, params)',
        'extra["grad_fn"] = grad_fn',
        "masked",
        "held_fixed and eigen",
    ),
    "shapes of gradients are not looked at": Mutation(
        "_fit.py",
        "if leaf.shape == param.shape and leaf.dtype == param.dtype:",
        "if leaf.dtype == param.dtype:",
        "gaps",
        "fit_the_parameters and mean",
    ),
    "the raw gradient is taken for an offset": Mutation(
        "_fit.py", "if raw and _has_mask", "if raw and not _has_mask", "masked", "gradient_itself"
    ),
    "a group sees the whole offset": Mutation(
        "perturb/_balls.py", "_parts.hide_as(ascent, offset)", "offset", "masked", "sees_its_share"
    ),
    "a direction from outside is not cut to the part": Mutation(
        "_parts.py",
        "self.prune(tree) if _shaped(tree) == shaped else tree",
        "tree",
        "masked",
        "extra_argument_like",
    ),
    "any extra argument is cut to the part": Mutation(
        "_parts.py",
        "self.prune(tree) if _shaped(tree) == shaped else tree",
        "self.prune(tree) if _shaped(tree)[0] == shaped[0] else tree",
        "masked",
        "extra_argument_unlike",
    ),
    "each number of a bias with further axes is a kernel": Mutation(
        "start/_kernel_axes.py",
        "own if is_flat or not inside",
        "own if not inside",
        "kernels",
        "a_bias_is_one",
    ),
    "a base is tried for two steps alone": Mutation(
        "_signs.py", "_MOST_STEPS = 64", "_MOST_STEPS = 2", "signs_and_ranges", "refused"
    ),
    "a base is tried with a gradient that is constant": Mutation(
        "_signs.py", "linspace(1, 2", "linspace(1, 1", "signs_and_ranges", "refused"
    ),
    "variables pass for arrays": Mutation(
        "_fit.py", "and jax.tree_util.all_leaves([leaf]))", "and True)", "flax", "no_gradient_of"
    ),
    "shapes of a state are not looked at": Mutation(
        "_states.py",
        "if jnp.shape(leaf) != jnp.shape(other):",
        "if False:",
        "states",
        "names_the_leaf",
    ),
    "the rise is a fall": Mutation(
        "_second.py",
        "_tree.widen(second.value) - before",
        "before - _tree.widen(second.value)",
        "rise",
        "budget",
    ),
    "the rise is each device's": Mutation(
        "_second.py", "jax.lax.pmean(number,", "jax.lax.pmax(number,", "rise", "losses_of_their_own"
    ),
    "any aux is kept": Mutation(
        "_second.py", "if _described(found) != _described(kept):", "if False:", "rise", "to_keep"
    ),
    "a point that takes gradients is made at every step": Mutation(
        "_step.py",
        "if jax.tree.leaves(state.perturb):\n            point",
        "if True:\n            point",
        "gradient_counts",
        "own_where_its_state and two_step",
    ),
    "a window is open at its end": Mutation(
        "when.py", "is_open & (step < stop)", "is_open & (step <= stop)", "gallery", "Early"
    ),
    "bsam forgets the damping": Mutation(
        "start/_posterior.py",
        "_tree.scalar(weight_decay + damping, params)",
        "_tree.scalar(weight_decay, params)",
        "closed_forms",
        "bsam",
    ),
    "ivon without its correction": Mutation(
        "start/_posterior.py", "share * seen + corrected", "share * seen", "closed_forms", "ivon"
    ),
    "ivon divides by the Hessian before": Mutation(
        "combine/_newton.py",
        "learned.following(first, params, step), learned.weight_decay",
        "learned.h, learned.weight_decay",
        "closed_forms",
        "ivon",
    ),
    "the arc begins at the second gradient": Mutation(
        "combine/_plain.py", "(1 - place) * angle", "place * angle", "gallery", "XSAM"
    ),
    "the ball of a layer is not relative": Mutation(
        "perturb/_balls.py", "radius * norm, _tree", "radius + 0 * norm, _tree", "gallery", "AWP"
    ),
    "the last gradient is this one": Mutation(
        "perturb/_directions.py",
        "return before, PreviousState",
        "return first, PreviousState",
        "gallery",
        "AsyncSAM",
    ),
    "booleans are numbers": Mutation(
        "_checks.py", "(bool, np.longdouble)", "np.longdouble", "odd_arguments", "no_number"
    ),
}

# Prints where the package comes from, then runs pytest.
RUN = """
import sys, pytest, sam_optax
print("package:", sam_optax.__file__)
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_tests(folder, *selections):
    """Runs tests against the package in a folder; the exit code and the output."""
    shutil.copytree(TESTS, folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TESTS.parent / "pyproject.toml", folder)
    (folder / "docs").mkdir()
    shutil.copy(TESTS.parent / "docs" / "gallery.md", folder / "docs")  # whose blocks are tested
    options = [
        "-x",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        *selections,
    ]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    output = result.stdout + result.stderr
    assert f"package: {folder / 'sam_optax'}" in output
    return result.returncode, output


def path_of(file):
    """Where a file of tests stands, whatever room it is in."""
    (path,) = TESTS.glob(f"*/test_{file}.py")
    return str(path.relative_to(TESTS.parent))


def copy_package(folder):
    shutil.copytree(PACKAGE, folder / "sam_optax", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "sam_optax"


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_what_a_mutation_changes_is_there(mutation):
    """Once, so that a change of the package is seen that leaves a mutation behind."""
    module = (PACKAGE / mutation.module).read_text()
    assert module.count(mutation.old) == 1
    ast.parse(module.replace(mutation.old, mutation.new))
    assert mutation.new != mutation.old


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fails(name, tmp_path):
    mutation = MUTATIONS[name]
    module = copy_package(tmp_path) / mutation.module
    module.write_text(module.read_text().replace(mutation.old, mutation.new))
    code, output = run_tests(tmp_path, path_of(mutation.file), "-k", mutation.keyword)
    assert code == 1, output  # a failed test, not an error of the collection
    assert "1 failed" in output, output
    assert " error" not in output.splitlines()[-1]


@pytest.mark.slow
def test_the_unmutated_package_passes_what_the_mutations_fail(tmp_path):
    copy_package(tmp_path)
    selections = {(m.file, m.keyword) for m in MUTATIONS.values()}
    files = sorted({path_of(file) for file, _ in selections})
    keyword = " or ".join(sorted({f"(test_{f} and ({k}))" for f, k in selections}))
    code, output = run_tests(tmp_path, *files, "-k", keyword)
    assert code == 0, output
