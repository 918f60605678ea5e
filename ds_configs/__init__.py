"""DeepSpeed configurations; `--ds_config NAME` finds them."""
