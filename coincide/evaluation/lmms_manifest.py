"""Registration of the project's model with lmms-eval: the entry point in pyproject.toml names MANIFEST."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="coincide", chat_class_path="coincide.evaluation.lmms_model.CoincideModel")
