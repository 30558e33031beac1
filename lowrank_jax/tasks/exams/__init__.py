"""Exams (MMLU, GSM8K, MATH, PubMedQA, MedQA, Financial PhraseBank) as evaluations of any run of a causal model."""
