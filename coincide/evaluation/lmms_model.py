"""The batched model that lmms-eval runs under the name "coincide" (see `coincide.evaluation.lmms_manifest`)."""

import copy
import json
from typing import NamedTuple

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.simple.llava_hf import DEFAULT_IMAGE_TOKEN, LlavaHf

from coincide.base.progress import Progress
from coincide.dataset.images import to_rgb
from coincide.models.chat import render_prompt
from coincide.models.families import complete_processor


class _Question(NamedTuple):
    position: int  # in the list of requests
    prompt: str
    request: Instance


class BatchedLlava(LlavaHf):
    """lmms-eval's llava_hf with batches, and with questions that have no image.

    The questions of a batch have the same length in tokens, image sizes and generation options. Nothing is padded,
    so the answers are those of batch size 1.
    """

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to lmms-eval's requests, in the order of the requests."""
        complete_processor(self._image_processor, self._config, self.chat_template)
        groups: dict[tuple, list[_Question]] = {}
        for position, request in enumerate(requests):
            context, options = request.args[:2]
            images = self._images(request)
            prompt = self._prompt(context, len(images))
            tokens = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            # The number of visual tokens may depend on the size of an image.
            sizes = tuple(image.size for image in images)
            key = (tokens, sizes, json.dumps(options, sort_keys=True, default=str))
            groups.setdefault(key, []).append(_Question(position, prompt, request))
        answers = [""] * len(requests)
        progress = Progress(len(requests), "answering", unit="questions")
        # The longest questions first: if memory runs out, it does so at the start.
        for key in sorted(groups, key=lambda key: (-key[0], key[1:])):
            for start in range(0, len(groups[key]), self.batch_size):
                batch = groups[key][start : start + self.batch_size]
                for question, answer in zip(batch, self._answer(batch)):
                    answers[question.position] = answer
                    cache_key = (question.prompt, question.request.args[1])
                    self.cache_hook.add_partial("generate_until", cache_key, answer)
                progress.update(len(batch))
        progress.close()
        return answers

    def _images(self, request):
        _, _, doc_to_visual, doc_id, task, split = request.args
        return [to_rgb(image) for image in doc_to_visual(self.task_dict[task][split][doc_id])]

    def _prompt(self, context, images):
        # Rendered as in training: by the processor's own template, with the images as content of the turn.
        if DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * images) + "\n" + context
        return render_prompt(self._image_processor, [{"from": "human", "value": context}])

    def _answer(self, batch):
        """Answers to a batch of questions that have the same generation options."""
        images = [image for question in batch for image in self._images(question.request)]
        options = copy.deepcopy(batch[0].request.args[1])
        prompts = [question.prompt for question in batch]
        bos = self.tokenizer.bos_token
        inputs = self._image_processor(
            text=prompts,
            images=images or None,
            # A template that writes the beginning-of-sequence token itself must not get a second one.
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
            return_tensors="pt",
        ).to(self.device, self.model.dtype)
        sample = options.get("temperature", 0) > 0
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                do_sample=sample,
                temperature=options["temperature"] if sample else None,
                top_p=options.get("top_p"),
                num_beams=options.get("num_beams", 1),
                max_new_tokens=options.get("max_new_tokens", 1024),
                use_cache=self.use_cache,
                pad_token_id=self.eot_token_id,
                eos_token_id=self.eot_token_id,
            )
        answers = self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answers = [answer.split(stop)[0] for answer in answers]
        return [answer.strip() for answer in answers]
