"""Names and sizes of the demo mix's sources, which the check of a config reads without the libraries that draw them."""

# Source -> its weight in the mix: the size of its counterpart in LLaVA-665K, in thousands of samples.
SOURCE_SIZES = {
    "easy_vqa": 3 * 83,  # VQAv2
    "counting": 86,  # Visual Genome
    "text_reading": 80,  # OCR-VQA
    "digits_add": 77,  # LLaVA's complex reasoning
    "spatial": 72,  # GQA
    "digits_count": 66,  # A-OKVQA
    "conversation": 58,  # LLaVA's conversations
    "digits_read": 48,  # RefCOCO
    "text_only": 41,  # ShareGPT
    "caption": 23,  # LLaVA's detailed descriptions
    "bar_chart": 22,  # TextCaps
}
