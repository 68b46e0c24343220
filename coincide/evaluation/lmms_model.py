"""The batched model that lmms-eval runs; see the entry point in pyproject.toml."""

import copy
import json

import torch
from lmms_eval.models.simple.llava_hf import DEFAULT_IMAGE_TOKEN, LlavaHf

from coincide.base.progress import Progress
from coincide.models.chat import to_messages


class BatchedLlava(LlavaHf):
    """lmms-eval's llava_hf with batches, and with questions that have no image.

    A batch holds questions of one length in tokens and one number of images, so nothing is padded
    and the answers are those of batch size 1.
    """

    def generate_until(self, requests):
        """Answer lmms-eval's requests, in their order."""
        jobs = {}
        for index, request in enumerate(requests):
            context, options, doc_to_visual, doc_id, task, split = request.args
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
            text = self._prompt(context, len(visuals))
            tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            # Images of one size each, since the number of visual tokens may follow from the size.
            key = (tokens, tuple(v.size for v in visuals), json.dumps(options, sort_keys=True, default=str))
            jobs.setdefault(key, []).append((index, text, request))
        answers = [None] * len(requests)
        progress = Progress(len(requests), "answering", unit="questions")
        for key in sorted(jobs, key=lambda k: (-k[0], k[1:])):
            for start in range(0, len(jobs[key]), self.batch_size):
                batch = jobs[key][start : start + self.batch_size]
                for (index, text, request), answer in zip(batch, self._answer(batch)):
                    answers[index] = answer
                    self.cache_hook.add_partial("generate_until", (text, request.args[1]), answer)
                progress.update(len(batch))
        progress.close()
        return answers

    def _prompt(self, context, images):
        # The same rendering as in training: the processor's own template, images as parts of the turn.
        if DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * images) + "\n" + context
        messages = to_messages([{"from": "human", "value": context}])
        options = {"chat_template": self.chat_template} if self.chat_template else {}
        return self._image_processor.apply_chat_template(messages, add_generation_prompt=True, **options)

    def _answer(self, batch):
        visuals = []
        for _, _, request in batch:
            _, _, doc_to_visual, doc_id, task, split = request.args
            visuals += doc_to_visual(self.task_dict[task][split][doc_id])
        options = copy.deepcopy(batch[0][2].args[1])
        until = options.pop("until", None) or []
        texts = [text for _, text, _ in batch]
        bos = self.tokenizer.bos_token
        inputs = self._image_processor(
            text=texts,
            images=visuals or None,
            add_special_tokens=not (bos and texts[0].startswith(bos)),
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
        for stop in [until] if isinstance(until, str) else until:
            answers = [answer.split(stop)[0] for answer in answers]
        return [answer.strip() for answer in answers]
