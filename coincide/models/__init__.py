"""Vision-language models: loading, chat templates, layers."""
