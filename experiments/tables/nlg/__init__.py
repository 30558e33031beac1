"""LoRA's tables of GPT-2 and GPT-3: generated text, choices, ranks, few rows."""
