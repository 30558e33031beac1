"""Answers to mathematical questions: the number at the end of a GSM8K text, and equality by math-verify."""
