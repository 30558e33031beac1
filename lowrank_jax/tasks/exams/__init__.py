"""Exams (MMLU, GSM8K, MATH, PubMedQA, MedQA, Financial PhraseBank, AdaptLLM's) that any causal model can be asked."""
