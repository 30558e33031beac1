"""FLOPs of adapters: the closed forms of LoRA and MoRA, and the paper-sized ratios that the speed table prints."""

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax import adapters
from lowrank_jax.adapters.cost import adapter_flops, kernel_flops
from lowrank_jax.core.paths import flatten
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model

TOKENS = 10
PARAMS = {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((3, 32, 48), jnp.float32)}}}


def flops(method, params=PARAMS, rank=2, tokens=TOKENS, compression="sharing"):
    config = adapters.AdapterConfig(method, rank=rank, targets=("all-linear",), mora=adapters.MoraConfig(compression))
    return adapter_flops(adapters.make_plan(params, config), tokens)


def test_lora_and_mora_by_hand():
    assert flops("lora") == 3 * TOKENS * 6 * 2 * (32 + 48)
    square = 16  # sqrt(2 * 80) = 12.6: of 13, lengthened to a multiple of 8
    assert flops("mora") == 3 * TOKENS * 6 * square**2
    blocks = 3  # of 12, made even, in an input of 32
    assert flops("mora", compression="rotation") == 3 * TOKENS * 6 * blocks * square**2


def test_dora_adds_to_lora():
    """Its norms need products with the kernel, once a step whatever the batch."""
    extra = [flops("dora", tokens=tokens) - flops("lora", tokens=tokens) for tokens in (10, 1000)]
    assert extra[0] == extra[1] > 0


@pytest.mark.parametrize("method", ["houlsby", "lin"])
def test_bottlenecks(method):
    params = jax.eval_shape(Llama(get_model("toy-llama")).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    config = adapters.AdapterConfig(method, rank=2)
    plan = adapters.make_plan(params["params"], config)
    assert adapter_flops(plan, TOKENS) == 2 * TOKENS * len(plan.sites) * 6 * 2 * 32 * 2


def test_an_embeddings_adapter_multiplies_by_b_alone():
    """E[x] + A[x] B: the rows of A are read, and their gradient is scattered."""
    params = {"embed": {"embedding": jax.ShapeDtypeStruct((100, 16), jnp.float32)}}
    plan = adapters.make_plan(params, adapters.AdapterConfig("lora", rank=2, targets=("embed",)))
    assert adapter_flops(plan, TOKENS) == 6 * TOKENS * 2 * 16


def test_kernels():
    assert kernel_flops([(3, 4), (2, 3, 4)], TOKENS) == 4 * TOKENS * 36
    assert kernel_flops([(3, 4)], TOKENS, trained=True) == 6 * TOKENS * 12


def test_ratios_at_the_7b_shape():
    """MoRA's rotation does 1.06 and 1.25 of LoRA's work at r=8 and 256, sharing the same."""
    model = Llama(get_model("llama2-7b"))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    base = kernel_flops([leaf.shape for path, leaf in flatten(params).items() if path.endswith("/kernel")], 4096)
    assert base == pytest.approx(4 * 4096 * 6.6e9, rel=0.002)

    def total(method, rank, compression="sharing"):
        return base + flops(method, params, rank, 4096, compression)

    for rank, rotation in ((8, 1.058), (256, 1.253)):
        lora = total("lora", rank)
        assert total("mora", rank) / lora == pytest.approx(1.0, abs=1e-3)
        assert total("mora", rank, "rotation") / lora == pytest.approx(rotation, abs=1e-3)
    assert total("lora", 256) / total("lora", 8) == pytest.approx(1.14, abs=1e-3)
