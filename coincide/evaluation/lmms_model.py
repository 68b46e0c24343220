"""The model that lmms-eval runs under the name "coincide" (see `coincide.evaluation.lmms_manifest`).

It evaluates every family of `coincide.models.families`, with the chat and encoding code of the training: a question is
the beginning of what the training saw.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from coincide.base.errors import UserError
from coincide.base.progress import Progress
from coincide.base.sections import Checkpoint
from coincide.dataset.conversation import IMAGE_MARK, ROLES
from coincide.dataset.images import to_rgb
from coincide.models.chat import Rendered, encode_prompts, end_of_turn_ids, render_prompt
from coincide.models.loading import load_model, move_to_model

SPEAKERS = {role: speaker for speaker, role in ROLES.items()}
MAX_NEW_TOKENS = 1024  # of tasks that name no limit


class QuestionError(UserError):
    """A question of a task that the model cannot be asked."""


class _Question(NamedTuple):
    position: int  # in the list of requests
    prompt: Rendered
    request: Instance


class CoincideModel(lmms):
    """A model of any family, with batches, text-only questions and several turns.

    The questions of a batch have the same length in tokens, image sizes and generation options. Nothing is padded,
    so the answers are those of batch size 1.

    Args:
        pretrained: folder or hub name; an adapter is merged into its base model in memory.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that the checkpoint ships.
        device: "auto", "cpu" or "cuda".
        dtype: of weights and computation.
        attention: attention implementation, as transformers names it.
        batch_size: questions per batch.
        max_batch_size: not used; lmms-eval passes it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        attention: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        checkpoint = Checkpoint(pretrained, revision, trust_remote_code)
        self.model, self.processor = load_model(checkpoint, dtype=dtype, device=device, attention=attention)
        self.batch_size = int(batch_size)
        generation = self.model.generation_config
        ends = generation.eos_token_id
        ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
        self.end_ids = list(dict.fromkeys([*end_of_turn_ids(self.processor), *ends]))
        pad = self.processor.tokenizer.pad_token_id
        self.pad_id = self.end_ids[0] if pad is None else pad
        # A checkpoint's settings for chatting (sampling, penalties) are not those of an evaluation.
        for name in ("temperature", "top_k", "top_p", "repetition_penalty", "do_sample", "cache_implementation"):
            setattr(generation, name, None)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to lmms-eval's requests, in the order of the requests."""
        groups: dict[tuple, list[_Question]] = {}
        for position, request in enumerate(requests):
            conversation, images = self._conversation(request)
            prompt = render_prompt(self.processor, conversation)
            tokens = len(self.processor.tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
            # The number of visual tokens may depend on the size of an image.
            sizes = tuple(image.size for image in images)
            key = (tokens, sizes, json.dumps(request.args[2], sort_keys=True, default=str))
            groups.setdefault(key, []).append(_Question(position, prompt, request))
        answers = [""] * len(requests)
        progress = Progress(len(requests), "answering", unit="questions")
        # The longest questions first: if memory runs out, it does so at the start.
        for key in sorted(groups, key=lambda key: (-key[0], key[1:])):
            for start in range(0, len(groups[key]), self.batch_size):
                batch = groups[key][start : start + self.batch_size]
                for question, answer in zip(batch, self._answer(batch)):
                    answers[question.position] = answer
                    cache_key = (question.prompt.text, question.request.args[2])
                    self.cache_hook.add_partial("generate_until", cache_key, answer)
                progress.update(len(batch))
        progress.close()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not available."""
        raise QuestionError("evaluation.backend: coincide answers questions; the task needs log-likelihoods")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not available."""
        raise QuestionError("evaluation.backend: coincide does not run tasks whose later questions depend on answers")

    def _conversation(self, request: Instance) -> tuple[list[dict[str, str]], list[Image.Image]]:
        """The question as LLaVA turns, and its images."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, videos, audios = messages.extract_media()
        if videos or audios:
            raise QuestionError(f"evaluation: task {task} has videos or audio; choose tasks with images or text")
        opened = [to_rgb(Image.open(image) if isinstance(image, str) else image) for image in images]
        return [_turn(message.role, message.content) for message in messages.messages], opened

    def _answer(self, batch: Sequence[_Question]) -> list[str]:
        """Answers to a batch of questions that have the same generation options."""
        images = [self._conversation(question.request)[1] for question in batch]
        options = batch[0].request.args[2]
        inputs = dict(encode_prompts(self.processor, [question.prompt for question in batch], images))
        inputs = move_to_model(inputs, self.model)
        sample = (options.get("temperature") or 0) > 0
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                do_sample=sample,
                temperature=options["temperature"] if sample else None,
                top_p=options.get("top_p") if sample else None,
                num_beams=options.get("num_beams") or 1,
                max_new_tokens=options.get("max_new_tokens") or MAX_NEW_TOKENS,
                pad_token_id=self.pad_id,
                eos_token_id=self.end_ids,
            )
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers = self.processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answers = [answer.split(stop)[0] for answer in answers]
        return [answer.strip() for answer in answers]


def _turn(role: str, content: Sequence[Any]) -> dict[str, str]:
    """A message of lmms-eval as a LLaVA turn. A text may already mark where its images are."""
    texts = [part.text for part in content if part.type == "text"]
    if any(IMAGE_MARK in text for text in texts):
        parts = texts
    else:
        parts = [f"{IMAGE_MARK}\n" if part.type == "image" else part.text for part in content]
    return {"from": SPEAKERS[role], "value": "".join(parts)}
