class CLASSPreTrainedModel(PreTrainedModel):
    config: CLASSConfig
    config_class = CLASSConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [BLOCK_NAMES]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = FLASH
    _supports_sdpa = SDPA
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = FULLGRAPH
    _can_record_outputs = {"hidden_states": [BLOCKS], "attentions": [ATTENTIONS]}
