"""Evaluation of finetuned models with lmms-eval."""
