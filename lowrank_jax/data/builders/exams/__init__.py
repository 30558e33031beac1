"""Exams (MMLU, GSM8K, MATH, PubMedQA, MedQA, Financial PhraseBank): the rows of their official files."""
