"""LoRA's tables of GPT-2 and GPT-3: generated texts, MNLI and WikiSQL, ranks, few training rows."""
