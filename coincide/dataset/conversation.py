"""LLaVA conversations: turns, roles, the image mark."""

IMAGE_MARK = "<image>"  # LLaVA's mark in a human turn for the position of an image
ROLES = {"human": "user", "gpt": "assistant"}


def text_length(conversations):
    """Characters of all turns: the length that samples are sorted by before they are tokenised."""
    return sum(len(turn["value"]) for turn in conversations)
