"""Exams (MMLU, GSM8K, MATH, PubMedQA, MedQA, Financial PhraseBank, AdaptLLM's): the rows of their official files."""
