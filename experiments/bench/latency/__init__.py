"""Forward latency of a base and its adapters, merged and not: LoRA's Table 1 and Fig. 5."""
