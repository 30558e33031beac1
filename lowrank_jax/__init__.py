"""LoRA and MoRA in JAX/Flax: functional adapters on frozen parameter trees."""

__version__ = "0.1.0"
