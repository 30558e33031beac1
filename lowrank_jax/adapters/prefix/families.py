"""The prefix families' equations: what a base computes at virtual tokens is replaced by trainable vectors.

A virtual token is an id that follows the base's own V: the ids V .. V + l_p - 1 stand before a prompt, the next l_i
between prompt and completion. It has a place in a row as any token has, hence a position, a key and a value.

* preembed (PrefixEmbed; Hu et al., 5.1): the virtual tokens' embeddings are trained, d (l_p + l_i) parameters. Without
  infix tokens it is prompt tuning (Lester et al., 2021; PEFT).
* prelayer (PrefixLayer; Hu et al., 5.1): their states are trained before every layer, L d (l_p + l_i) parameters. Hu et
  al. train "the activations after every Transformer layer" beside the embeddings, and count L of them: the embeddings
  are the first, and the last layer's output stays the model's own. The completion's first token is predicted from it,
  and a trained vector there would be the same for all prompts.
* prefix (Li & Liang, 2021; PEFT's prefix tuning): their keys (before a rotation) and values are trained in every layer,
  2 L d_kv l_p parameters. Other tokens read nothing else of them. There is no infix token: a completion is predicted
  from the last token before it, of which nothing but key and value would be trained.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.types import Array, PRNGKey

VECTORS = "vectors"  # name of the only leaf


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """{"vectors": (l_p + l_i, width)}: one for each virtual token."""
    prefix = spec.config.prefix
    return {VECTORS: (prefix.tokens + prefix.infix, spec.d_out)}


def init(key: PRNGKey, spec: AdapterSpec, table: Float[Array, "V d"] | None = None) -> dict[str, Array]:
    """Rows of the base's table, drawn without repetition while there are enough; without a table N(0, init_std^2)."""
    count, width = shapes(spec)[VECTORS]
    if table is None:
        return {VECTORS: spec.config.init_std * jax.random.normal(key, (count, width), jnp.float32)}
    return {VECTORS: jnp.asarray(table[draw_words(key, len(table), count)], jnp.float32)}


def draw_words(key: PRNGKey, rows: int, count: int) -> Int[Array, " count"]:
    """Numbers of `count` rows of a table that has `rows`, drawn at random; no row twice where there are enough."""
    return jax.random.choice(key, rows, (count,), replace=count > rows)


def from_table(spec: AdapterSpec) -> bool:
    """Whether the vectors start as rows of the base's table, or as the states that the base computes at such rows."""
    start = spec.config.prefix.init
    in_words = start == "family" and spec.config.method in ("preembed", "prelayer")
    return start == "vocabulary" or in_words or from_states(spec)


def from_states(spec: AdapterSpec) -> bool:
    """Whether the vectors start as states that the base computes before each layer; see `attach.states_at`."""
    return spec.config.method == "prelayer" and spec.config.prefix.init == "states"


def delta(leaf: Leaf, which: Int[Array, "*batch"], spec: AdapterSpec) -> Float[Array, "*batch d"]:
    """The vectors of the virtual tokens numbered `which`, unrounded; zero where it is -1, which is no virtual token.

    A product with a one-hot matrix: the gradient of a gather would add up rows in an order that a GPU does not keep.
    """
    del spec
    vectors = leaf[VECTORS]
    return jnp.matmul(jax.nn.one_hot(which, len(vectors), dtype=vectors.dtype), vectors, precision="highest")


PREEMBED = Family("preembed", shapes, init, delta, scaled=(), needs_kernel=from_table, place="tokens")
PRELAYER = Family("prelayer", shapes, init, delta, scaled=(), needs_kernel=from_table, place="states")
PREFIX = Family("prefix", shapes, init, delta, scaled=(), needs_kernel=from_table, place="projections")
FAMILIES = (PREEMBED, PRELAYER, PREFIX)
