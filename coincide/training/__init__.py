"""Finetuning of the target model."""
