"""1. From files to arrays: config.json, safetensors, the hub, the tokenizer."""
