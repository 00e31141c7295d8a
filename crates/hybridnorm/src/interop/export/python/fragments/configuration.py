"""Configuration of a CLASS model. The placement of its norms is in modeling_hybridnorm.py."""

from transformers.configuration_utils import PreTrainedConfig


class CLASSConfig(PreTrainedConfig):
    model_type = "hybridnorm"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    TENSOR_PARALLEL
    FIELDS
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    hybridnorm: dict | None = None
