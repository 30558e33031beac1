"""The contract of an adapter family, and the configuration that selects one."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Array

ALL_LINEAR = "all-linear"
PREFIX_METHODS = ("preembed", "prelayer", "prefix")  # those with virtual tokens


def _check_choices(config: Any, prefix: str) -> None:
    """Refuses a value that its field's Literal does not list: a misspelt name must not mean the last branch."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            raise unknown_name(f"{prefix}.{field.name}", str(value), get_args(field.type))


@dataclasses.dataclass(frozen=True)
class MoraConfig:
    """How MoRA maps a layer's input onto its square and back (Jiang et al., section 4.2).

    Attributes:
      compression: the paper's scheme by name, or the official code's grouping `type1`-`type4`, `type6`
        (`sharing` is `type1`, `rotation` is `type6`; the code has no truncation and no decoupling).
      padding: what completes the last block of an input that the square's size does not divide: its own head (`wrap`,
        official code) or `zero`.
      layout: which coordinates form a rotated pair: (j, j + size/2) (`half`, official code) or (2j, 2j + 1) (`pairs`,
        the paper's equation 10). The two differ by a permutation of the square's rows.
      rounding: size of the square, sqrt((d_in + d_out) r) rounded `half_up` (official code) or by `floor` (paper).
    """

    compression: Literal[
        "truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6"
    ] = "sharing"
    padding: Literal["wrap", "zero"] = "wrap"
    layout: Literal["half", "pairs"] = "half"
    rounding: Literal["half_up", "floor"] = "half_up"

    def __post_init__(self):
        _check_choices(self, "adapter.mora")


@dataclasses.dataclass(frozen=True)
class BottleneckConfig:
    """What the bottleneck families (`houlsby`, `pfeiffer`, `lin`) have beside their size, which is `adapter.rank`.

    Attributes:
      activation: between the two products; `family` is swish for houlsby, relu for pfeiffer (both as in LoRA's
        official code) and for lin (Lin et al.).
      drop_layers: AdapterDrop (Rückle et al., 2021): this many of the lowest layers have no adapter and no parameters.
    """

    activation: Literal["family", "relu", "swish", "gelu", "tanh"] = "family"
    drop_layers: Annotated[int, Range(least=0)] = 0

    def __post_init__(self):
        _check_choices(self, "adapter.bottleneck")
        check_ranges(self, "adapter.bottleneck")


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    """The virtual tokens of the prefix families (`preembed`, `prelayer`, `prefix`).

    Attributes:
      tokens: l_p, how many stand before a prompt, or before a text that has none.
      infix: l_i, how many stand between a prompt and its completion; not of `prefix`.
      init: where their vectors start. `vocabulary`: at rows of the base's own table, drawn at random (in each layer the
        same rows); `states`, for prelayer alone: at what the base computes before each layer when it reads such rows;
        `normal`: N(0, adapter.init_std^2), 0.02 being the initializer range of most bases; `family`: vocabulary for
        preembed and prelayer, as real words start better than random vectors (Li & Liang, 7.4; Lester et al., 3.2; Hu
        et al. do not say), normal for prefix. Layers after the first read states, not embeddings: prelayer starts far
        better at `states`.
    """

    tokens: Annotated[int, Range(least=0)] = 8
    infix: Annotated[int, Range(least=0)] = 0
    init: Literal["family", "vocabulary", "states", "normal"] = "family"

    def __post_init__(self):
        _check_choices(self, "adapter.prefix")
        check_ranges(self, "adapter.prefix")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Which update is learnt, at which kernels, of which size.

    Attributes:
      method: family by its name in `adapters.registry`, or `none`.
      rank: LoRA's r; MoRA's square has as many parameters as LoRA of this rank; the width of a bottleneck.
      alpha: numerator of LoRA's scale; MoRA ignores it, as its official code does.
      scaling: `standard` alpha/r (Hu et al., 4.1), `rslora` alpha/sqrt(r), or `none` (1).
      targets: names of modules with a kernel: regular expressions for the whole module path or its end
        ("query", "attention/.*"); `all-linear` stands for every kernel but the output head's, as in PEFT (see
        `plan.OUTPUT_HEADS`); name the head beside it to adapt that too. For LoRA a name that fits no kernel may be
        an embedding's ("embed", "embed/word"). The bottleneck and prefix families have places of their own and read no
        targets.
      exclude: module names left out of `targets`, or of a bottleneck family's places ("attention"), same form.
      dropout: rate on the branch's input, in training only.
      init: LoRA's and DoRA's start, see `adapters.leaves.inits`: `kaiming_uniform` (loralib: A ~ U(-1/sqrt(d_in),
        1/sqrt(d_in))), `gaussian` (the paper), `orthogonal` (PEFT), `asylora` (orthonormal A; its authors freeze A, by
        `trainable`), `asylora_uncentred` (as in MoRA's code); or from the kernel, whose residual is then what is
        frozen (`adapters.residual`): `pissa`, `olora`, `loftq`.
      init_std: standard deviation of `gaussian`, which the paper does not state, of a bottleneck's W_down, and of a
        prefix family's vectors.
      rank_pattern, alpha_pattern: (module name, value) pairs that override rank and alpha; first match wins.
      mora: MoRA's maps.
      bottleneck: the bottleneck families' activation and AdapterDrop.
      prefix: the prefix families' virtual tokens.
    """

    method: Literal["none", "lora", "mora", "dora", "houlsby", "pfeiffer", "lin", "preembed", "prelayer", "prefix"] = (
        "lora"
    )
    rank: Annotated[int, Range(least=1)] = 8
    alpha: Annotated[float, Range(above=0)] = 16.0
    scaling: Literal["standard", "rslora", "none"] = "standard"
    targets: tuple[str, ...] = ("query", "value")
    exclude: tuple[str, ...] = ()
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    init: Literal[
        "kaiming_uniform", "gaussian", "orthogonal", "asylora", "asylora_uncentred", "pissa", "olora", "loftq"
    ] = "kaiming_uniform"
    init_std: Annotated[float, Range(above=0)] = 0.02
    rank_pattern: tuple[tuple[str, Annotated[int, Range(least=1)]], ...] = ()
    alpha_pattern: tuple[tuple[str, Annotated[float, Range(above=0)]], ...] = ()
    mora: MoraConfig = MoraConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    prefix: PrefixConfig = PrefixConfig()

    def __post_init__(self):
        _check_choices(self, "adapter")
        check_ranges(self, "adapter")
        for name in ("targets", "exclude"):  # a lone name would be read letter by letter, a list has no hash
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.method == "mora" and self.init not in ("kaiming_uniform", "gaussian"):
            raise UserError(f"adapter.init {self.init!r} is a start for lora and dora; MoRA's square starts at zero")
        own = ("houlsby", "pfeiffer", "lin", *PREFIX_METHODS)
        if self.method in own and self.init not in ("kaiming_uniform", "gaussian"):
            raise UserError(f"adapter.init {self.init!r} is a start for lora and dora; {self.method} has its own")
        if self.method in PREFIX_METHODS:
            self._check_prefix()

    def _check_prefix(self) -> None:
        """Refuses settings that a prefix family would not read, or could not."""
        prefix, method = self.prefix, self.method
        unread = ("exclude", "rank_pattern", "alpha_pattern", "dropout")
        if given := [name for name in unread if getattr(self, name)]:
            raise UserError(f"adapter.{given[0]} is not read by {method}, whose places are given; leave it out")
        if prefix.tokens + prefix.infix < 1:
            raise UserError(f"adapter.prefix has no virtual token for {method}; set its tokens or infix")
        if method == "prefix" and prefix.infix:
            raise UserError(
                f"adapter.prefix.infix is {prefix.infix}, and prefix trains no vector from which a completion could be "
                "predicted (keys and values alone); set it to 0, or take preembed or prelayer"
            )
        if method == "prefix" and prefix.init == "vocabulary":
            raise UserError("adapter.prefix.init 'vocabulary' starts embeddings, not keys and values; take normal")
        if method != "prelayer" and prefix.init == "states":
            raise UserError(
                f"adapter.prefix.init 'states' is for prelayer, which has vectors before every layer; take family for "
                f"{method}"
            )


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """One adapted module, statically: all that a family needs to know of it.

    Attributes:
      d_in, d_out: the kernel's axes, y = x W with x [..., d_in]; a table's rows and width; the width of a value, twice;
        of a prefix family, the base's number of ids and the vectors' width.
      rank, alpha: those of the configuration with its patterns applied.
      stack: leading axes of leaves that are stacked over scanned layers, () when they are not.
      dropped: layers of the scan below those of `stack`, which have no adapter.
      config: the configuration, with all other options.
      cycle: MoRA's groupings that take turns, one after each merge of a run with restarts (`train.restart`): names of
        `mora.MAPS`. The leaf's "group" says whose turn it is. () for an update that stays as `config` says.
    """

    d_in: int
    d_out: int
    rank: int
    alpha: float = 16.0
    stack: tuple[int, ...] = ()
    dropped: int = 0
    config: AdapterConfig = AdapterConfig()
    cycle: tuple[str, ...] = ()


Leaf = Mapping[str, Array]  # the arrays of one adapted module by name, without the stack axes


@dataclasses.dataclass(frozen=True)
class Family:
    """An adapter family, as its paper has it: y = x W + delta(x), with delta zero at the start.

    Functions take a leaf that its scale was multiplied into (`scale_leaf`), so none has a factor of its own. How an
    update is computed in a training step is `adapters.fast`'s to say; the result is the same.

    `place` is the value that delta reads and where its result goes:

    * kernel: x is the module's input, y its output; delta is linear and merges into the kernel.
    * table: x are numbers of rows, y = E[x] + delta(x); merges into the table.
    * output: y = h + delta(h), h the output of a whole module (the first of several); does not merge.
    * norm: y = norm(s + delta(norm(s))), both times with the module's own parameters; does not merge.
    * tokens, states, projections (`prefix.families`): at virtual tokens the embedding, the input of a block, or a
      module's output is replaced by delta of the token's number; other tokens keep theirs. Does not merge.

    Attributes:
      name: as in `AdapterConfig.method`.
      shapes: spec -> {leaf name: shape}; its product is the paper's parameter count. Raises UserError on a spec that
        the family cannot serve.
      init: (key, spec) -> leaf in float32, one layer; (key, spec, kernel) where `needs_kernel` says so.
      delta: (leaf, x [..., d_in], spec) -> [..., d_out] in x's dtype.
      scaled: names of the leaf's arrays that are multiplied by the scale.
      scale: spec -> float, the factor at the start.
      apply: None, or (leaf, frozen, x, y, spec) -> y for a family that is more than a delta: `frozen` has the module's
        "kernel" and "product", the kernel's product with x (the dropped x, with dropout).
      fold: with `apply`: (kernel, leaf, spec) -> the merged kernel in float32.
      unfold: with `apply`: (merged kernel, leaf, spec, norms) -> the kernel in float32.
      needs_kernel: spec -> whether `init` starts from the kernel; of a prefix family, from the base's table.
      place: see above.
      sites: for output and norm, (module, kernel beside it) by name: the module's value is as wide as that kernel's
        output. ("mlp", "mlp/down") finds "layers/mlp" where there is "layers/mlp/down/kernel".
      numbers: spec -> names of whole numbers that `delta` reads beside the trained arrays: one for each layer, stored
        with the scales, 0 at the start and never trained.
    """

    name: str
    shapes: Callable[[AdapterSpec], dict[str, tuple[int, ...]]]
    init: Callable[..., dict[str, Array]]
    delta: Callable[[Leaf, Array, AdapterSpec], Array]
    scaled: tuple[str, ...]
    scale: Callable[[AdapterSpec], float] = lambda spec: 1.0
    apply: Callable[[Leaf, Leaf, Array, Array, AdapterSpec], Array] | None = None
    fold: Callable[[Array, Leaf, AdapterSpec], Array] | None = None
    unfold: Callable[[Array, Leaf, AdapterSpec, Array], Array] | None = None
    needs_kernel: Callable[[AdapterSpec], bool] = lambda spec: False
    place: Literal["kernel", "table", "output", "norm", "tokens", "states", "projections"] = "kernel"
    sites: tuple[tuple[str, str], ...] = ()
    numbers: Callable[[AdapterSpec], tuple[str, ...]] = lambda spec: ()

    def leaf(self, spec: AdapterSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """What `delta` reads of one layer: the trained arrays and the numbers beside them."""
        trained = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in self.shapes(spec).items()}
        return trained | {name: jax.ShapeDtypeStruct((), jnp.int32) for name in self.numbers(spec)}

    @property
    def merges(self) -> bool:
        """Whether the update can be folded into a weight of the base."""
        return self.place in ("kernel", "table")

    @property
    def virtual(self) -> bool:
        """Whether it is a prefix family, whose rows have virtual tokens."""
        return self.place in ("tokens", "states", "projections")

    def parameters(self, spec: AdapterSpec) -> int:
        """Trainable scalars of one layer's site."""
        return sum(math.prod(shape) for shape in self.shapes(spec).values())

    def scale_leaf(self, leaf: Leaf, scale: Any) -> dict[str, Array]:
        """The leaf with the scale multiplied into it.

        Args:
          leaf: arrays [*stack, ...].
          scale: a number, or one a layer [*stack].
        """

        def scaled(value: Array) -> Array:
            return value * jnp.expand_dims(scale, range(jnp.ndim(scale), jnp.ndim(value)))

        return {name: scaled(value) if name in self.scaled else value for name, value in leaf.items()}

    def delta_kernel(self, leaf: Leaf, spec: AdapterSpec) -> Float[Array, "d_in d_out"]:
        """The update as a kernel: `delta` of the identity, or of every row, in float32 (or wider) on every device.

        Accelerators multiply float32 in TF32 or bfloat16 passes unless told otherwise.
        """
        wide = jnp.result_type(jnp.float32, *leaf.values())
        rows = jnp.arange(spec.d_in) if self.place == "table" else jnp.eye(spec.d_in, dtype=wide)
        with jax.default_matmul_precision("highest"):
            return self.delta(leaf, rows, spec)
