"""A folder that looks like a llama.cpp checkout, with a converter that writes plain GGUF from safetensors."""

from pathlib import Path

_CONVERTER = """
import json, sys, time
from pathlib import Path

# "LlamaForCausalLM"
MODE = "{mode}"
out, model = Path(sys.argv[sys.argv.index("--outfile") + 1]), Path(sys.argv[-1])
Path("{seen}").write_text(json.dumps({{
    "argv": sys.argv[1:-1],
    "tokenizer_config": json.loads((model / "tokenizer_config.json").read_text()),
    "config": json.loads((model / "config.json").read_text()),
}}))
if MODE == "slow":
    out.write_bytes(b"GGUF")
    time.sleep(3600)
if MODE.startswith("say:"):
    print(MODE[4:], file=sys.stderr)
    sys.exit(1)
import numpy as np
from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH
from gguf.tensor_mapping import get_tensor_name_map
from safetensors.numpy import load_file
config = json.loads((model / "config.json").read_text())
tokenizer = json.loads((model / "tokenizer.json").read_text())
settings = json.loads((model / "tokenizer_config.json").read_text())
vocabulary = tokenizer["model"]["vocab"] | {{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
writer = GGUFWriter(out, "llama")
writer.add_block_count(config["num_hidden_layers"])
writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
writer.add_eos_token_id(vocabulary[settings["eos_token"]])
writer.add_add_bos_token(settings["add_bos_token"])
writer.add_chat_template((model / "chat_template.jinja").read_text())
table = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
for name, tensor in load_file(model / "model.safetensors").items():
    if MODE == "forgetful" and name == "model.layers.1.mlp.down_proj.weight":
        tensor = tensor * 0.9
    values = tensor.astype(np.float16 if tensor.ndim > 1 else np.float32)
    writer.add_tensor(table.get_name(name, try_suffixes=(".weight",)), values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def make_checkout(folder: Path, mode: str = "plain") -> Path:
    """Write the converter.

    Args:
        folder: Created.
        mode: plain; forgetful, which changes a tensor; slow, which never ends; or say:WORDS, which fails with them.
    """
    folder.mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(_CONVERTER.format(mode=mode, seen=folder / "seen.json"))
    return folder
