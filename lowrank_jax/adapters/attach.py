"""A Linen model with its plan's adapters, without a change to the model: plan + model -> apply_fn."""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.fast.groups import Group, find_groups
from lowrank_jax.adapters.leaves.prepare import prepare
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.adapters.prefix.call import VirtualCall
from lowrank_jax.adapters.prefix.families import VECTORS
from lowrank_jax.adapters.prefix.places import TABLE
from lowrank_jax.adapters.sites import Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, nearest, unflatten
from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.ops.products import materialize_product
from lowrank_jax.ops.quantized import Quantized, dense, multiply


def attach(model: nn.Module, plan: Plan, groups: Groups | None = None, strict: bool = True) -> ApplyFn:
    """apply_fn(variables, *inputs, rngs=None, method=None, **kwargs) with y = x W + delta(x) at the plan's sites.

    A family that is more than a delta on the kernel (`Family.apply`) makes y from x, x W and the frozen kernel; one of
    another place (`Family.place`) reads and changes a module's output, or a norm's. Where a module and one inside it
    are both adapted, the inner one comes first, as in the model.

    `variables` has "params", "adapters" and "scales" (see `create`). Dropout acts on the branch's input when the
    call passes rngs={"dropout": key}, and never otherwise.

    Where the plan has a prefix family, the ids after the base's own are virtual tokens (`Plan.virtual`): the model
    reads them as any others, and what it computes at them is replaced by the family's vectors.

    Calls are compared with the plan while they are traced, as a site that no module reads would stay at its start:
    once the model's own `__call__` has run, every site must have been read, in that call or before; where `method`
    runs a part of the model, no module that ran may have left all sites below it unread.

    Args:
      model, plan: the model, and the sites among its modules.
      groups: kernels that the model reads side by side, as in `layouts.fused`; the plan and the adapters keep the
        parts' own paths.
      strict: False for a model whose first call may leave adapted modules out; `check` then looks for unread ones.

    Raises:
      UserError: a family that `groups` cannot serve; by a call: a site that the parameters do not have, that no module
        reads, or whose module is no product with its kernel.
    """
    return _attach(model, plan, set(), groups, strict=strict)


def check(
    model: nn.Module, plan: Plan, variables: Tree, *inputs: Any, groups: Groups | None = None, **kwargs: Any
) -> None:
    """Traces the model once on shapes and makes sure that every adapter of the plan is read.

    Args:
      model, plan, groups: as in `attach`.
      variables: arrays or ShapeDtypeStructs, as for the apply_fn.
      inputs, kwargs: one call's arguments; keyword arguments without a shape (`method`, flags) are passed as they are.

    Raises:
      UserError: a site's module was never called, so its adapter would silently stay at its start; `variables` have
        an adapter that the plan does not know.
    """
    known = {f"{site.path}/{name}" for site in plan.sites for name in site.family.shapes(site.spec)}
    if strays := sorted(flatten(variables.get("adapters", {})).keys() - known):
        raise UserError(f"the plan has no site for the adapters at {strays[:5]}; they belong to another plan")
    apply_fn = _attach(model, plan, set(), groups, whole=True)
    arrays = {k: v for k, v in kwargs.items() if all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(v))}
    options = {k: v for k, v in kwargs.items() if k not in arrays}
    jax.eval_shape(lambda v, args, kw: apply_fn(v, *args, **kw, **options), variables, inputs, arrays)


def states_at(model: nn.Module, plan: Plan, params: Tree, words: Int[Array, " n"]) -> dict[str, Array]:
    """h_l(words): the base's state before each layer l when it reads these words alone; prelayer can start there.

    A row that begins with virtual tokens of these vectors gives what it would give behind the words themselves. Infix
    tokens start from words right behind the prefix's, as the prompts that will stand between them are not known.

    Args:
      model: a causal model of the package.
      plan: its sites of prelayer are the model's blocks.
      params: its weights; quantised kernels as they are.
      words: l_p + l_i token ids.

    Returns:
      {path of a site: [layers, n, d]} in float32.
    """
    shapes = {site.path: site.family.shapes(site.spec)[VECTORS] for site in plan.sites if site.family.place == "states"}

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        path = "/".join(module.path)
        one = shapes.get(path) if context.method_name == "__call__" else None
        if one and not _is_stack(module, stacks[path], one):
            before = args[0][0] if isinstance(args[0], tuple) else args[0]  # [1, n, d]
            module.put_variable("adapters", VECTORS, before[0].astype(jnp.float32))
        return next_fun(*args, **kwargs)

    stacks = {site.path: site.spec.stack for site in plan.sites}
    empty = {f"{path}/{VECTORS}": jnp.zeros((*stacks[path], *one)) for path, one in shapes.items()}
    with nn.intercept_methods(interceptor):
        variables = {"params": params, "adapters": unflatten(empty)}
        _, found = model.apply(variables, words[None], mutable=["adapters"])
    read = flatten(cast(Any, found)["adapters"])
    return {path: read[f"{path}/{VECTORS}"].reshape(-1, *one) for path, one in shapes.items()}


def _is_stack(module: nn.Module, stack: tuple[int, ...], one: tuple[int, ...]) -> bool:
    """Whether a block is called for the whole scan over the layers, not for one: its vectors have a layer axis then."""
    held = module.get_variable("adapters", VECTORS)
    return bool(stack) and held is not None and held.shape == (*stack, *one)


def _without_dropout(rngs: Any) -> Any:
    """The keys without that of dropout, which nothing reads: with it, Flax would trace a stack of layers twice."""
    return {name: key for name, key in rngs.items() if name != "dropout"} if isinstance(rngs, Mapping) else rngs


def _attach(
    model: nn.Module, plan: Plan, visited: set[str], groups: Groups | None, whole: bool = False, strict: bool = True
) -> ApplyFn:
    """See `attach`.

    Args:
      visited: sites that were read so far; grows.
      whole: a call of one method alone must read every site too.
      strict: as in `attach`.
    """
    grouped = find_groups(plan, groups or {})
    members = {site.path for group in grouped.values() for site in group.sites if site}
    sites = {site.path: site for site in plan.sites if site.path not in members}
    dtype, virtual = getattr(model, "dtype", None), plan.virtual
    drops_out = getattr(model, "drops_out", True) or any(site.config.dropout for site in plan.sites)

    # Entered inside the function: an interceptor around an already compiled function is silently ignored.
    def apply_fn(variables, *inputs, rngs=None, method=None, **kwargs):
        training = isinstance(rngs, Mapping) and "dropout" in rngs
        rngs = rngs if drops_out else _without_dropout(rngs)
        called: dict[str, nn.Module] = {}
        call = None if virtual is None else VirtualCall(virtual)

        def interceptor(next_fun, args, kwargs, context):
            module = context.module
            path = "/".join(module.path)
            if context.method_name == "__call__":
                called.setdefault(path, module)
            if context.method_name == "__call__" and path == TABLE and call is not None:
                args = (call.read(args[0]), *args[1:])  # for an adapter of the table too
            if context.method_name != "__call__" or (path not in sites and path not in grouped):
                return next_fun(*args, **kwargs)
            if path in sites and sites[path].family.virtual:
                visited.add(path)
                return _replaced(call, module, sites[path], next_fun, args, kwargs)
            tiled = grouped[path].tiled if path in grouped else get_fast(sites[path].family).tiled(sites[path].spec)
            if args and tiled:
                out = materialize_product(lambda x: next_fun(x, *args[1:], **kwargs), args[0])
            else:
                out = next_fun(*args, **kwargs)
            if path in grouped:
                visited.update(site.path for site in grouped[path].sites if site)
                return _grouped(module, grouped[path], args[0], out, training, dtype)
            visited.add(path)
            site = sites[path]
            y, *others = out if isinstance(out, tuple) else (out,)
            leaf = {name: _read(module, name, one.shape) for name, one in site.family.leaf(site.spec).items()}
            if site.spec.stack and dtype is not None:
                _refuse_rounded(leaf, y.dtype, path)
            x = next(iter((*args, *kwargs.values())))
            if site.family.place == "kernel":
                _check_product(path, site.spec, x, y)
            y = _adapted(module, site, leaf, x, y, site.config.dropout if training else 0.0)
            return (y, *others) if isinstance(out, tuple) else y

        unread = {site.path for site in plan.sites} - visited
        if unread:
            _check_params(plan, variables.get("params", {}), grouped)
        if plan.sites:
            given = {name: tree for name, tree in variables.items() if name != "scales"}  # folded into the adapters
            variables = {**given, "adapters": prepare(variables, plan, dtype, grouped)}
        with nn.intercept_methods(interceptor):
            outputs = model.apply(variables, *inputs, rngs=cast(Any, rngs), method=method, **kwargs)
        if strict and unread:
            _check_read(unread - visited, visited, called, whole)
        return outputs

    return apply_fn


def _check_params(plan: Plan, params: Tree, grouped: Mapping[str, Group]) -> None:
    """Raises UserError where the plan names a weight that the parameters do not have: it is of another tree."""
    known = set(flatten(params))
    members = {site.path for path, group in grouped.items() for site in group.sites if site}
    weights = [site.weight for site in plan.sites if site.family.merges and site.path not in members]
    if missing := [weight for weight in weights if weight not in known]:
        close = nearest(missing[0], known)
        hint = f"did the plan mean {' or '.join(close)}?" if close else "make the plan from this model's params"
        raise UserError(f"the plan has a site at {missing[0]!r}, which the parameters do not have; {hint}")


def _check_read(unread: set[str], visited: set[str], called: Mapping[str, nn.Module], whole: bool) -> None:
    """Refuses sites that a call has left unread; see `attach`.

    Args:
      unread, visited: sites that no call so far has read, and that one has.
      called: the modules whose `__call__` ran in this call, by path.
      whole: the call must have read every site, whatever ran.
    """

    def below(top):
        return [path for path in unread if not top or path.startswith(f"{top}/")]

    if not whole and "" not in called:  # a part of the model ran: what lies below modules of which nothing was read
        blind = [top for top in called if not any(path.startswith(f"{top}/") for path in visited)]
        unread = {path for top in blind for path in below(top)}
    if not unread:
        return
    where = f"no module of the model reads the adapters at {sorted(unread)}"
    bridged = [top for top, module in called.items() if below(top) and _is_bridge(module)]
    if bridged:
        what, remedy = (repr(bridged[0]), ", or name it in adapter.exclude") if bridged[0] else ("the model", "")
        raise UserError(
            f"{where}; {what} is a flax.nnx module (nnx.bridge.to_linen), whose layers are none of Linen's: take "
            f"adapters.attach_folded (docs/own_model.md), write it in Linen{remedy}"
        )
    near = nearest(min(unread), called.keys() - {""})
    raise UserError(
        f"{where}; {_seen(visited, near)}; attach reaches "
        "Flax Linen modules by the paths of their parameters; name unread ones in adapter.exclude, or "
        "attach(strict=False) to a model whose first call leaves modules out"
    )


def _seen(visited: set[str], near: list[str]) -> str:
    """Which adapters a call read, and which modules of similar names it ran, in words."""
    read = f"it reads those at {sorted(visited)}" if visited else "it reads none at all"
    return f"{read}, and runs {', '.join(near)}" if near else f"{read}, and runs no module of a like name"


def _is_bridge(module: nn.Module) -> bool:
    return any(cls.__name__ == "ToLinen" for cls in type(module).__mro__)


def _check_product(path: str, spec: AdapterSpec, x: Array, y: Array) -> None:
    """Refuses a module that is no product of its input's last axis: its update would be added to something else."""
    if getattr(x, "ndim", 0) and x.shape[-1] == spec.d_in and y.shape == (*x.shape[:-1], spec.d_out):
        return
    raise UserError(
        f"{path!r} makes {jnp.shape(y)} of {jnp.shape(x)}, which is no product with a kernel "
        f"[{spec.d_in}, {spec.d_out}] along the last axis; name it in adapter.exclude"
    )


def _adapted(module: nn.Module, site: Site, leaf: dict[str, Array], x: Array, y: Array, dropout: float) -> Array:
    """The module's output with the update.

    Args:
      module, site: the module, and its site.
      leaf: as `prepare` makes it, of one layer.
      x, y: the module's input and its (first) output.
      dropout: rate on what the branch reads; 0 outside training.
    """
    fast, place = get_fast(site.family), site.family.place
    if place == "table":
        return y + fast.delta(leaf, x, site.spec).astype(y.dtype)
    read = (x if place == "kernel" else y).astype(y.dtype)
    if dropout:
        read = _drop(module, read, dropout)
    if fast.apply is not None:
        return fast.apply(leaf, _frozen(module, read, y, bool(dropout)), read, y, site.spec)
    update = fast.delta(leaf, read, site.spec)
    if place == "norm":
        # A second call of the module would take its parameters' names twice; an unbound copy is a pure function, and
        # has no path that a site could have.
        again = module.clone(parent=None)
        return cast(Array, again.apply({"params": module.variables["params"]}, x + update.astype(x.dtype)))
    return y + update


def _replaced(call: Any, module: nn.Module, site: Site, next_fun: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Calls a module with a prefix family's vectors at the virtual tokens, in place of its output or of its input.

    In a scan a block's `__call__` is met several times: for the whole stack, whose leaf has all layers and which is
    left as it is; for one layer; and with remat for that layer again, where replacing twice gives the same.
    """
    spec, family = site.spec, site.family
    if family.place == "states" and _is_stack(module, spec.stack, family.shapes(spec)[VECTORS]):
        return next_fun(*args, **kwargs)
    leaf = {name: _read(module, name, shape) for name, shape in family.shapes(spec).items()}
    if family.place != "states":
        return call.replaced(next_fun(*args, **kwargs), family, leaf, spec)
    carry, *others = args  # a layer's input, or with a cache beside it
    if isinstance(carry, tuple):
        return next_fun((call.replaced(carry[0], family, leaf, spec), *carry[1:]), *others, **kwargs)
    return next_fun(call.replaced(carry, family, leaf, spec), *others, **kwargs)


def _grouped(module: nn.Module, group: Group, x: Array, y: Array, training: bool, dtype: Any) -> Array:
    """The output of a fused module with the updates of its parts."""
    leaf = {name: _read(module, name, shape) for name, shape in group.shapes().items()}
    if dtype is not None:
        _refuse_rounded(leaf, y.dtype, group.path)
    read = x.astype(y.dtype)
    if training and group.dropout:
        read = _drop(module, read, group.dropout)
    return y + group.delta(leaf, read)


def _drop(module: nn.Module, x: Array, rate: float) -> Array:
    """Inverted dropout: entries survive with probability 1 - rate and grow by 1 / (1 - rate)."""
    if not module.has_rng("dropout"):
        raise UserError(
            f"no dropout key reaches {'/'.join(module.path)!r}; list 'dropout' in split_rngs of the nn.scan around it"
        )
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def _refuse_rounded(leaf: Mapping[str, Array], dtype: Any, path: str) -> None:
    """Raises UserError where `prepare` rounded a leaf to the model's dtype and its module computes in a wider one."""
    for value in leaf.values():
        if jnp.issubdtype(value.dtype, jnp.floating) and jnp.promote_types(value.dtype, dtype) != value.dtype:
            raise UserError(
                f"{path!r} computes in {dtype} inside an nn.scan of a model whose dtype is {value.dtype}, to which its "
                "adapter was rounded; name it in adapter.exclude, or compute in one type"
            )


def _frozen(module: nn.Module, x: Array, y: Array, dropped: bool) -> dict[str, Array]:
    """What `Fast.apply` reads of the module: its kernel and the kernel's product with x, without a bias."""
    kernel, bias = (module.get_variable("params", name) for name in ("kernel", "bias"))
    whole = dense(kernel, x.dtype) if isinstance(kernel, Quantized) else kernel
    if dropped:
        product = multiply(x, kernel) if isinstance(kernel, Quantized) else x @ kernel.astype(x.dtype)
        return {"kernel": whole, "product": product}
    return {"kernel": whole, "product": y if bias is None else y - bias.astype(y.dtype)}


def _read(module: nn.Module, name: str, shape: tuple[int, ...]) -> Array:
    where = "/".join(("adapters", *module.path, name))
    value = module.get_variable("adapters", name)
    if value is None:
        raise UserError(f"no {where!r} reaches its module; list 'adapters' in variable_axes of the nn.scan around it")
    if value.shape != shape:
        raise UserError(
            f"{where!r} reaches its module with shape {value.shape}, not {shape}: its kernel's first axes are no "
            "layers of an nn.scan (a convolution, split heads); name it in adapter.exclude"
        )
    return value
